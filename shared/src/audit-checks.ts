import { AUDIT_START, verifyAudit, type AuditPlace, type AuditVerdict } from './audit.js';
import { rows, type Database } from './database.js';

/** What the last check of the audit chain found. */
export type AuditCheck = AuditPlace & {
  /** Where the chain breaks first; null while it holds. */
  brokenAt: number | null;
  checkedAt: Date;
  /** When it was last recomputed from its first entry. */
  fullAt: Date;
};

const FULL_EVERY_MS = 7 * 86_400_000;

/** What the last check found; undefined before the first. */
export async function readAuditCheck(db: Database): Promise<AuditCheck | undefined> {
  const [last] = await rows<AuditCheck>(
    db,
    `select position as entries, head, broken_at as "brokenAt", checked_at as "checkedAt",
       full_at as "fullAt" from audit_checks`,
  );
  return last;
}

/**
 * Recomputes the audit chain and notes what it found: with `full` and once a week from the first
 * entry, else from where the last check ended. What was checked before must still stand either way,
 * so that a chain that lost its newest entries is found too.
 */
export async function checkAudit(
  db: Database,
  { now, full = false }: { now: Date; full?: boolean },
): Promise<AuditVerdict> {
  const last = await readAuditCheck(db);
  const fromStart =
    full ||
    last === undefined ||
    last.brokenAt !== null ||
    now.getTime() - last.fullAt.getTime() >= FULL_EVERY_MS;
  let verdict = await verifyAudit(db, fromStart ? AUDIT_START : last);
  if (verdict.ok && last && !(await stands(db, last))) {
    verdict = { ...verdict, ok: false, brokenAt: last.entries };
  }
  await rows(
    db,
    `insert into audit_checks (position, head, broken_at, checked_at, full_at)
     values (:entries, :head, :brokenAt, :now, :fullAt)
     on conflict (one) do update set position = excluded.position, head = excluded.head,
       broken_at = excluded.broken_at, checked_at = excluded.checked_at, full_at = excluded.full_at`,
    {
      // What was found sound once stays remembered when it is gone.
      ...(verdict.ok || !last ? verdict : last),
      brokenAt: verdict.brokenAt,
      now,
      fullAt: fromStart ? now : last.fullAt,
    },
  );
  return verdict;
}

async function stands(db: Database, { entries, head }: AuditPlace): Promise<boolean> {
  if (entries === 0) return true;
  const found = await rows(db, 'select 1 from audit_log where position = ? and hash = ?', [
    entries,
    head,
  ]);
  return found.length > 0;
}
