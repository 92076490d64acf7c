import {
  notifyChanged,
  retryDeadlock,
  rows,
  type Database,
  type Settings,
} from '@sallyport/shared';
import { purgeTexts } from './result-purges.js';

const PAGE = 500;
/** What one run deletes at most, so that it ends; the next run goes on. */
const MAX_PAGES = 100;
const DAY_MS = 86_400_000;

/**
 * Deletes what was kept long enough: the texts of results after the days of their user's profile type,
 * the timelines of requests that ended long ago. Of the audit log nothing, ever: each entry is hashed
 * into the next.
 * @returns how many of each.
 */
export async function dropOld(
  db: Database,
  { now, settings }: { now: Date; settings: Settings },
): Promise<{ results: number; events: number }> {
  const results = await inPages(() => purgeResults(db, now, settings['retention.results_days']));
  const events = await inPages(() => dropEvents(db, now, settings['retention.events_days']));
  if (results > 0) await notifyChanged(db, 'requests');
  return { results, events };
}

async function inPages(page: () => Promise<number>): Promise<number> {
  let total = 0;
  for (let n = 0; n < MAX_PAGES; n += 1) {
    const count = await page();
    total += count;
    if (count < PAGE) break;
  }
  return total;
}

async function purgeResults(db: Database, now: Date, defaultDays: number): Promise<number> {
  // Whoever applies results or purges one locks the request first, too; rows of a page come in any order.
  const work = () =>
    db.transaction(async (tx) => {
      const due = await rows<{ id: string }>(tx, LOCK_DUE, { now, defaultDays });
      const ids = due.map(({ id }) => id);
      return (await purgeTexts(tx, ids, { now, reason: 'retention' })).length;
    });
  return retryDeadlock(work);
}

// The shortest time of all is what the index can be asked by.
const LOCK_DUE = `
  select r.id from results s
  join requests r on r.id = s.request_id
  left join users u on u.id = r.user_id
  left join profile_types p on p.id = u.profile_type_id
  where s.complete and s.purged_at is null and s.sha256 is not null
    and s.imported_at < cast(:now as timestamptz) - make_interval(days =>
      least(:defaultDays, (select min(retention_days) from profile_types)))
    and s.imported_at < cast(:now as timestamptz)
      - make_interval(days => coalesce(p.retention_days, :defaultDays))
  order by s.imported_at limit ${PAGE} for update of r skip locked`;

async function dropEvents(db: Database, now: Date, days: number): Promise<number> {
  const dropped = await rows(
    db,
    `delete from request_events where (request_id, id) in (
       select e.request_id, e.id from request_events e join requests r on r.id = e.request_id
       where e.at < :before and r.finished_at < :before limit ${PAGE})
     returning id`,
    { before: new Date(now.getTime() - days * DAY_MS) },
  );
  return dropped.length;
}
