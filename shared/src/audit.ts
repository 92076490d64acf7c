import { createHash } from 'node:crypto';
import { canonicalJson } from './canonical-json.js';
import { rows, type Database, type Transaction } from './database.js';

/** Who did what to what. `details` is small, JSON, and free of secrets. */
export type AuditEntry = {
  at: Date;
  actor: string;
  /** Noun and verb: `user.disable`. */
  action: string;
  subject: string;
  details: Record<string, unknown>;
};

/** An entry as it stands in the chain. */
export type AuditRow = AuditEntry & { position: number; prev: string; hash: string };

/** A place in the chain: how many entries it has up to here, and the hash of the last of them. */
export type AuditPlace = { entries: number; head: string };

export type AuditVerdict = AuditPlace & {
  ok: boolean;
  /** Where the chain breaks first; null when it holds. */
  brokenAt: number | null;
};

/** Which entries are wanted; `action` is a whole one or how it begins (`user.`). */
export type AuditFilter = {
  actor?: string | undefined;
  action?: string | undefined;
  subject?: string | undefined;
  /** Half-open: from `since`, before `until`. */
  since?: Date | undefined;
  until?: Date | undefined;
  /** Anywhere in the entry, in capitals or not. */
  text?: string | undefined;
};

const ZEROS = '0'.repeat(64);
/** Before the first entry. */
export const AUDIT_START: AuditPlace = { entries: 0, head: ZEROS };
const LOCK = 7_215_002;
const PAGE = 1_000;
const COLUMNS = 'position, at, actor, action, subject, details, prev, hash';

/** How the audit log names a person who acts over HTTP. */
export function actorOf({ login }: { login: string }): string {
  return `user:${login}`;
}

/** Appends to the audit log; other writers wait until the transaction ends. */
export async function appendAudit(tx: Transaction, entry: AuditEntry): Promise<void> {
  await rows(tx, 'select pg_advisory_xact_lock(?)', [LOCK]);
  const [last] = await rows<{ position: number; hash: string }>(
    tx,
    'select position, hash from audit_log order by position desc limit 1',
  );
  const prev = last?.hash ?? ZEROS;
  const details = JSON.stringify(entry.details);
  const stored = { ...entry, details: JSON.parse(details) as AuditEntry['details'] };
  await tx('audit_log').insert({
    ...stored,
    details,
    position: (last?.position ?? 0) + 1,
    prev,
    hash: hashEntry(prev, stored),
  });
}

/** The newest hash of the audit chain, 64 hexadecimal digits; zeros while it is empty. */
export async function readAuditHead(db: Database): Promise<string> {
  const [last] = await rows<{ hash: string }>(
    db,
    'select hash from audit_log order by position desc limit 1',
  );
  return last?.hash ?? ZEROS;
}

/** Entries that pass the filter, newest first, below a position; at most `limit`. */
export async function listAudit(
  db: Database,
  { filter, before, limit }: { filter: AuditFilter; before?: number | undefined; limit: number },
): Promise<AuditRow[]> {
  const { actor = null, action = null, subject = null, text = null } = filter;
  return rows(
    db,
    `select ${COLUMNS} from audit_log
     where (cast(:before as bigint) is null or position < :before)
       and (cast(:actor as text) is null or actor = :actor)
       and (cast(:action as text) is null or starts_with(action, :action))
       and (cast(:subject as text) is null or subject = :subject)
       and (cast(:since as timestamptz) is null or at >= :since)
       and (cast(:until as timestamptz) is null or at < :until)
       and (cast(:text as text) is null or strpos(
         lower(concat_ws(' ', actor, action, subject, details)), lower(:text)) > 0)
     order by position desc limit :limit`,
    {
      ...{ actor, action, subject, text, limit },
      before: before ?? null,
      since: filter.since ?? null,
      until: filter.until ?? null,
    },
  );
}

/** All entries after a place, oldest first, in pages. */
export async function* readAudit(
  db: Database,
  { entries }: AuditPlace = AUDIT_START,
): AsyncGenerator<AuditRow[]> {
  for (let position = entries; ;) {
    const page = await rows<AuditRow>(
      db,
      `select ${COLUMNS} from audit_log where position > ? order by position limit ${PAGE}`,
      [position],
    );
    if (page.length > 0) yield page;
    if (page.length < PAGE) return;
    position = page.at(-1)?.position ?? position;
  }
}

/** Recomputes the chain after a place that is known to hold; the whole one unless it is given. */
export async function verifyAudit(
  db: Database,
  from: AuditPlace = AUDIT_START,
): Promise<AuditVerdict> {
  let place = from;
  for await (const page of readAudit(db, from)) {
    for (const row of page) {
      if (!follows(place, row)) return { ...place, ok: false, brokenAt: place.entries + 1 };
      place = { entries: row.position, head: row.hash };
    }
  }
  return { ...place, ok: true, brokenAt: null };
}

/** Whether an entry is the next one of a chain, by its position and its hashes. */
export function follows({ entries, head }: AuditPlace, row: AuditRow): boolean {
  return row.position === entries + 1 && row.prev === head && row.hash === hashEntry(head, row);
}

function hashEntry(prev: string, { at, actor, action, subject, details }: AuditEntry): string {
  const text = canonicalJson({ at: at.toISOString(), actor, action, subject, details });
  return createHash('sha256').update(prev).update(text).digest('hex');
}
