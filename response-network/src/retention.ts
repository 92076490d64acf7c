import { rows, type Database, type Settings } from '@sallyport/shared';

const DAY_MS = 86_400_000;
/** What one run deletes at most; the next run goes on. */
const MAX_PURGED = 50_000;

/**
 * Deletes the texts of answers that were kept long enough and whose records have left for good: the
 * batch was acknowledged, and its rows went from the outbox. That there was an answer stays known.
 * @returns how many.
 */
export async function purgeAnswers(
  db: Database,
  { now, settings }: { now: Date; settings: Settings },
): Promise<number> {
  const purged = await rows(
    db,
    `with due as (
       select s.request_id from results s
       where s.purged_at is null and s.sha256 is not null and s.finished_at < :before
         and not exists (select 1 from outbox_records o
           where o.record_id = s.request_id and o.type in ('result', 'result.part'))
       order by s.finished_at limit ${MAX_PURGED} for update of s skip locked
     ), parts as (
       delete from result_parts p using due where p.request_id = due.request_id
     )
     update results s set text = null, purged_at = :now from due
     where s.request_id = due.request_id returning s.request_id`,
    { now, before: new Date(now.getTime() - settings['retention.results_days'] * DAY_MS) },
  );
  return purged.length;
}
