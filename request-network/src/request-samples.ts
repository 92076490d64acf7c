import {
  FINAL_STATUSES,
  bucketSql,
  msSql,
  rows,
  type Database,
  type SampleData,
  type SampleLine,
  type Span,
} from '@sallyport/shared';
import { BATCH_OF_REQUEST } from '@sallyport/transfer';

/** Users of whom a minute keeps a count: those with the most requests. */
const USERS_PER_MINUTE = 50;
const FINAL = FINAL_STATUSES.map((status) => `'${status}'`).join(', ');

/**
 * Requests by status, dataset and user, and how long the stages of delivered ones took: until the
 * batch was sealed, carrying there and back, waiting and working on the far side, and all together.
 * Only durations on one clock are compared.
 */
export async function sampleRequests(db: Database, { from, to }: Span): Promise<SampleLine[]> {
  return rows<SampleLine>(db, SAMPLE, { from, to });
}

/** Open requests by status, and records that wait to leave. */
export async function countOpen(db: Database): Promise<SampleData> {
  const open = await rows<{ label: string; value: number }>(
    db,
    `select status as label, count(*)::integer as value from requests
     where status in ('submitted', 'processing', 'held', 'cancelling') group by 1`,
  );
  const waiting = await rows<{ label: string; value: number }>(
    db,
    `select stream as label, count(*)::integer as value from outbox_records
     where batch_id is null group by 1`,
  );
  const toLabels = (found: { label: string; value: number }[]) =>
    Object.fromEntries(found.map(({ label, value }) => [label, value]));
  return { requests: toLabels(open), waiting: toLabels(waiting) };
}

const SAMPLE = `
  with events as (
    select date_trunc('minute', e.at) as minute, e.event, e.request_id
    from request_events e
    where e.at >= :from and e.at < :to and e.network = 'request'
      and e.event in ('submitted', ${FINAL})
  ), submitted as (
    select e.minute, r.dataset, r.user_id
    from events e join requests r on r.id = e.request_id where e.event = 'submitted'
  ), users_of as (
    select minute, user_id, count(*) as value,
      row_number() over (partition by minute order by count(*) desc) as place
    from submitted group by 1, 2
  ), times as (
    select e.minute, ${msSql('r.finished_at - r.created_at')} as total,
      ${msSql('b.sealed_at - r.created_at')} as seal,
      ${msSql(`(s.times->>'finished_at')::timestamptz - (s.times->>'received_at')::timestamptz`)}
        as far,
      ${msSql(`(s.times->>'started_at')::timestamptz - (s.times->>'received_at')::timestamptz`)}
        as far_wait,
      ${msSql(`(s.times->>'finished_at')::timestamptz - (s.times->>'started_at')::timestamptz`)}
        as far_work
    from events e join requests r on r.id = e.request_id ${BATCH_OF_REQUEST}
    join results s on s.request_id = r.id
    where e.event = 'delivered'
  )
  select minute, 'requests.status' as metric, event as label, count(*)::double precision as value
  from events group by 1, 3
  union all
  select minute, 'requests.dataset', dataset, count(*) from submitted group by 1, 3
  union all
  select o.minute, 'requests.user', coalesce(u.login, o.user_id::text), o.value
  from users_of o left join users u on u.id = o.user_id where o.place <= ${USERS_PER_MINUTE}
  union all
  select t.minute, m.metric, ${bucketSql('m.ms')}, count(*)
  from times t cross join lateral (values
    ('ms.total', t.total), ('ms.seal', t.seal), ('ms.far_wait', t.far_wait),
    ('ms.far_work', t.far_work), ('ms.carry', t.total - t.seal - t.far)) as m (metric, ms)
  where m.ms is not null
  group by 1, 2, 3`;
