import { notifyChanged, rows, tellCache, type Database, type Settings } from '@sallyport/shared';
import { resultKey } from './result-reads.js';

type Purged = { id: string; userId: string; dataset: string; sha256: string };

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
  return db.transaction(async (tx) => {
    const purged = await rows<Purged>(tx, PURGE, { now, defaultDays });
    for (const one of purged) await tellCache(tx, { do: 'drop', scope: { key: resultKey(one) } });
    return purged.length;
  });
}

// The shortest time of all is what the index can be asked by.
const PURGE = `
  with due as (
    select s.request_id from results s
    join requests r on r.id = s.request_id
    left join users u on u.id = r.user_id
    left join profile_types p on p.id = u.profile_type_id
    where s.complete and s.purged_at is null and s.sha256 is not null
      and s.imported_at < cast(:now as timestamptz) - make_interval(days =>
        least(:defaultDays, (select min(retention_days) from profile_types)))
      and s.imported_at < cast(:now as timestamptz)
        - make_interval(days => coalesce(p.retention_days, :defaultDays))
    order by s.imported_at limit ${PAGE} for update of s skip locked
  ), purged as (
    update results s set text = null, purged_at = :now from due
    where s.request_id = due.request_id returning s.request_id, s.sha256
  ), parts as (
    delete from result_parts p using due where p.request_id = due.request_id
  ), moved as (
    update requests r set version = r.version + 1 from due where r.id = due.request_id
  ), told as (
    insert into request_events (request_id, at, network, event, reason)
    select request_id, :now, 'request', 'result_purged', 'retention' from purged
  )
  select r.id, r.user_id as "userId", r.dataset, p.sha256
  from purged p join requests r on r.id = p.request_id`;

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
