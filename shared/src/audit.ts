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

export type AuditVerdict = {
  ok: boolean;
  entries: number;
  head: string;
  /** Where the chain breaks first; null when it holds. */
  brokenAt: number | null;
};

type AuditRow = AuditEntry & { position: number; prev: string; hash: string };

const ZEROS = '0'.repeat(64);
const LOCK = 7_215_002;
const PAGE = 1_000;

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

/** Recomputes the whole chain. */
export async function verifyAudit(db: Database): Promise<AuditVerdict> {
  let head = ZEROS;
  let entries = 0;
  for (;;) {
    const page = await rows<AuditRow>(
      db,
      `select position, at, actor, action, subject, details, prev, hash from audit_log
       where position > ? order by position limit ${PAGE}`,
      [entries],
    );
    for (const row of page) {
      const sound =
        row.position === entries + 1 && row.prev === head && row.hash === hashEntry(head, row);
      if (!sound) return { ok: false, entries, head, brokenAt: entries + 1 };
      head = row.hash;
      entries += 1;
    }
    if (page.length < PAGE) return { ok: true, entries, head, brokenAt: null };
  }
}

function hashEntry(prev: string, { at, actor, action, subject, details }: AuditEntry): string {
  const text = canonicalJson({ at: at.toISOString(), actor, action, subject, details });
  return createHash('sha256').update(prev).update(text).digest('hex');
}
