import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  AUDIT_START,
  addNotices,
  checkAudit,
  preparedRows,
  readAuditCheck,
  rows,
  type AuditVerdict,
  type Database,
  type Transaction,
} from '@sallyport/shared';
import { parseBatchName, readHeaderLine } from '../format/batch-file.js';
import { isThere } from '../format/durable-file.js';
import { ZERO_DIGEST, readHeader, type Manifest } from '../format/manifest.js';
import type { Node } from '../node.js';

const DAY_MS = 86_400_000;
/** Most heads that are named when they are missing. */
const MAX_NAMED = 20;

/** A head of our chain that left, and does not stand in the chain any more. */
export type LostHead = { head: string; batch: string | null; position: number | null };

/** What is known of our own audit log: the chain, and every head of it that ever left. */
export type AuditReport = AuditVerdict & {
  /** Different heads that our manifests told the far side. */
  told: number;
  /** Batches in the store whose manifests were read for the heads that they tell. */
  stored: number;
  /** The first of those that do not stand in the chain. */
  lost: LostHead[];
};

/**
 * The head of our audit chain for a manifest, noted as told. Call it in the transaction that took the
 * manifest's number.
 */
export async function tellAuditHead(
  tx: Transaction,
  { link, no, now }: { link: string; no: number; now: Date },
): Promise<string> {
  const [last] = await preparedRows<{ hash: string }>(tx, TELL_HEAD, { link, no, now });
  return last?.hash ?? ZERO_DIGEST;
}

const TELL_HEAD = `
with last as (select position, hash from audit_log order by position desc limit 1),
told as (
  insert into sent_audit_heads (link, position, head, manifest_no, sent_at)
  select :link, position, hash, cast(:no as bigint), cast(:now as timestamptz) from last
  on conflict do nothing
)
select hash from last`;

/** Keeps the heads of the far side's audit chain that verified manifests tell. */
export async function keepFarHeads(
  tx: Transaction,
  batches: readonly { manifest: Manifest; digest: string }[],
  now: Date,
): Promise<void> {
  const heads = batches.flatMap(({ manifest: { link, auditHead: head, ack }, digest }) =>
    head === ZERO_DIGEST
      ? []
      : [{ link, head, manifest_no: ack.no, incarnation: ack.incarnation, digest }],
  );
  if (heads.length === 0) return;
  await preparedRows(tx, KEEP_HEADS, { heads: JSON.stringify(heads), now });
}

const KEEP_HEADS = `
insert into far_audit_heads (link, head, manifest_no, incarnation, digest, seen_at)
select link, head, manifest_no, incarnation, digest, cast(:now as timestamptz)
from jsonb_to_recordset(cast(:heads as jsonb))
  as h (link text, head text, manifest_no bigint, incarnation uuid, digest text)
order by manifest_no
on conflict do nothing`;

/**
 * Recomputes the whole chain of our audit log, and looks whether every head that we told the far side
 * still stands in it: those noted in the database, and those in the signed manifests of the store.
 */
export async function verifyAuditLog(db: Database, node: Node): Promise<AuditReport> {
  const verdict = await checkAudit(db, { now: node.clock.now(), full: true });
  const stored = await readStoredHeads(node);
  const lost = [...(await findLostHeads(db)), ...(await findLostStored(db, stored))];
  const [count] = await rows<{ told: number }>(
    db,
    'select count(distinct head)::integer as told from sent_audit_heads',
  );
  return {
    ...verdict,
    ok: verdict.ok && lost.length === 0,
    told: count?.told ?? 0,
    stored: stored.length,
    lost: lost.slice(0, MAX_NAMED),
  };
}

/**
 * Recomputes the new part of our audit chain once a day (once a week all of it), and tells the admins
 * when it does not hold.
 */
export async function watchAuditLog(db: Database, node: Node): Promise<void> {
  const at = node.clock.now();
  const last = await readAuditCheck(db);
  if (last && at.getTime() - last.checkedAt.getTime() < DAY_MS) return;
  const verdict = await checkAudit(db, { now: at });
  const [lost] = await findLostHeads(db);
  if (verdict.ok && !lost) return;
  const place = verdict.brokenAt ?? lost?.position ?? null;
  node.log.error({ entry: place }, 'the audit chain is broken');
  await db.transaction((tx) =>
    addNotices(tx, [
      {
        userId: null,
        kind: 'audit.broken',
        severity: 'critical',
        title: 'The audit log was changed',
        detail: `Its chain does not hold at entry ${place}. Run audit verify, and keep the database as it is for those who look into it.`,
        at,
        dedupe: { key: 'audit.broken', withinMs: DAY_MS / 2 },
      },
    ]),
  );
}

async function findLostHeads(db: Database): Promise<LostHead[]> {
  return rows<LostHead>(
    db,
    `select s.head, s.position, null as batch from sent_audit_heads s
     where not exists (
       select 1 from audit_log a where a.position = s.position and a.hash = s.head)
     order by s.position limit ${MAX_NAMED}`,
  );
}

/** Of heads by themselves, those that our chain does not have. */
export async function findUnknownHeads(db: Database, heads: readonly string[]): Promise<string[]> {
  const unknown = await rows<{ head: string }>(
    db,
    `select head from unnest(cast(? as text[])) as h (head)
     where not exists (select 1 from audit_log a where a.hash = head)`,
    [[...heads]],
  );
  return unknown.map(({ head }) => head);
}

async function findLostStored(db: Database, stored: readonly LostHead[]): Promise<LostHead[]> {
  const heads = stored.flatMap(({ head }) => (head === AUDIT_START.head ? [] : [head]));
  const unknown = new Set(await findUnknownHeads(db, heads));
  return stored.filter(({ head }) => unknown.has(head));
}

/** What the manifests in the store tell; what cannot be read there is the exporter's to complain of. */
async function readStoredHeads(node: Node): Promise<LostHead[]> {
  const { store } = node.folders;
  const found: LostHead[] = [];
  for (const name of (await isThere(store)) ? await readdir(store) : []) {
    if (!parseBatchName(name)) continue;
    try {
      const { line } = await readHeaderLine(join(store, name));
      found.push({ head: readHeader(line).manifest.auditHead, batch: name, position: null });
    } catch (err) {
      node.log.warn({ err, batch: name }, 'a batch of the store cannot be read');
    }
  }
  return found;
}
