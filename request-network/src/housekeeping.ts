import {
  FINAL_STATUSES,
  appendAudit,
  rows,
  type Database,
  type Log,
  type Settings,
  notifyChanged,
  pruneNotices,
} from '@sallyport/shared';
import { recallRecord } from '@sallyport/transfer';
import { dropEndedKeys, warnOfExpiry } from './api-key-expiry.js';
import { KEPT_MS } from './idempotency.js';
import { changeStatus } from './requests.js';

const PAGE = 1_000;
const HOUR_MS = 3_600_000;
const ORPHANS_KEPT_MS = 24 * HOUR_MS;
const OPEN = `status not in (${FINAL_STATUSES.map((status) => `'${status}'`).join(', ')})`;

/** Ends what is past its deadline and drops what nobody needs any more; safe to run at any time. */
export async function keepHouse(
  db: Database,
  { now, settings, log }: { now: Date; settings: Settings; log: Log },
): Promise<void> {
  const expired = await expireUnsent(db, now);
  const late = await expireWithoutNews(db, now, settings['requests.late_after_hours']);
  const idempotencyKeys = await db('idempotency_keys')
    .where('created_at', '<', new Date(now.getTime() - KEPT_MS))
    .delete();
  const keysExpiring = await warnOfExpiry(db, now);
  const keysDropped = await dropEndedKeys(db, now);
  const notices = await pruneNotices(db, { now, days: settings['retention.notices_days'] });
  const orphans = await dropOrphans(db, now);
  if (expired + late > 0) await notifyChanged(db, 'requests');
  const done = { expired, late, orphans, notices, idempotencyKeys, keysExpiring, keysDropped };
  if (Object.values(done).some((count) => count > 0)) log.info(done, 'kept house');
}

/** Requests past their deadline whose record has not left: it is called back. */
async function expireUnsent(db: Database, now: Date): Promise<number> {
  let expired = 0;
  for (;;) {
    const count = await db.transaction(async (tx) => {
      const due = await rows<{ id: string; outbox_position: number }>(
        tx,
        `select r.id, r.outbox_position from requests r
         join outbox_records o on o.position = r.outbox_position
         where r.status = 'submitted' and r.expires_at <= ? and o.batch_id is null
         order by r.expires_at limit ${PAGE} for update of r skip locked`,
        [now],
      );
      for (const { id, outbox_position: position } of due) {
        if (!(await recallRecord(tx, position))) continue;
        await changeStatus(tx, { id, status: 'expired', at: now, actor: null, reason: 'deadline' });
      }
      return due.length;
    });
    expired += count;
    if (count < PAGE) return expired;
  }
}

/** Requests that have left, whose deadline is long past, and of which nothing was heard. */
async function expireWithoutNews(db: Database, now: Date, lateAfterHours: number): Promise<number> {
  const moved = await rows(
    db,
    `with moved as (
       update requests set status = 'expired', stage = null, reason_code = null,
         version = version + 1, finished_at = ?
       where ${OPEN} and expires_at <= ? returning id)
     insert into request_events (request_id, at, network, event, reason)
     select id, ?, 'request', 'expired', 'no_news' from moved returning request_id`,
    [now, new Date(now.getTime() - lateAfterHours * HOUR_MS), now],
  );
  return moved.length;
}

async function dropOrphans(db: Database, now: Date): Promise<number> {
  return db.transaction(async (tx) => {
    const dropped = await rows<{ type: string; record_id: string; batch_id: string }>(
      tx,
      'delete from orphans where parked_at < ? returning type, record_id, batch_id',
      [new Date(now.getTime() - ORPHANS_KEPT_MS)],
    );
    for (const batch of new Set(dropped.map((orphan) => orphan.batch_id))) {
      const orphans = dropped.filter((orphan) => orphan.batch_id === batch);
      await appendAudit(tx, {
        at: now,
        actor: 'housekeeping',
        action: 'orphan.drop',
        subject: batch,
        details: { records: orphans.length, first: orphans[0]?.record_id ?? null },
      });
    }
    return dropped.length;
  });
}
