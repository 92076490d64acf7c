import { FINAL_STATUSES, firstIdAt, rows, type Database } from '@sallyport/shared';

/** What somebody submitted on one UTC day, and how it ended so far. */
export type DayOfUsage = { day: string; submitted: number; delivered: number; open: number };

const USAGE_DAYS = 30;

const DAY_MS = 86_400_000;
const FINAL = FINAL_STATUSES.map((status) => `'${status}'`).join(', ');

/** The days of the last 30 on which a user submitted something, oldest first. */
export async function readUsage(db: Database, userId: string, now: Date): Promise<DayOfUsage[]> {
  const today = Math.floor(now.getTime() / DAY_MS) * DAY_MS;
  const since = new Date(today - (USAGE_DAYS - 1) * DAY_MS);
  return rows<DayOfUsage>(
    db,
    `select to_char(created_at at time zone 'UTC', 'YYYY-MM-DD') as day, count(*) as submitted,
       count(*) filter (where status = 'delivered') as delivered,
       count(*) filter (where status not in (${FINAL})) as open
     from requests where user_id = ? and id >= ? and created_at >= ? group by 1 order by 1`,
    [userId, firstIdAt(since), since],
  );
}
