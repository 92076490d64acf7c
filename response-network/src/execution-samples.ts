import {
  bucketSql,
  msSql,
  rows,
  type Database,
  type SampleData,
  type SampleLine,
  type Span,
} from '@sallyport/shared';

/** Users of whom a minute keeps a count: those with the most requests. */
const USERS_PER_MINUTE = 50;

/**
 * Answered requests by status, dataset and user, searches by dataset, and how long requests waited,
 * were searched for and took here altogether.
 */
export async function sampleExecutions(db: Database, { from, to }: Span): Promise<SampleLine[]> {
  return rows<SampleLine>(db, SAMPLE, { from, to });
}

/** Requests that wait and that run, and records that wait to leave. */
export async function countOpen(db: Database): Promise<SampleData> {
  const open = await rows<{ label: string; value: number }>(
    db,
    `select state as label, count(*)::integer as value from requests
     where state = 'received' group by 1
     union all
     select state, count(*)::integer from requests where state = 'running' group by 1`,
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
  with ended as (
    select date_trunc('minute', s.finished_at) as minute, s.status, s.took_ms, r.dataset, r.user_id,
      ${msSql('s.started_at - s.received_at')} as wait,
      ${msSql('s.finished_at - s.received_at')} as total
    from results s left join requests r on r.id = s.request_id
    where s.finished_at >= :from and s.finished_at < :to
  ), users_of as (
    select minute, user_id, count(*) as value,
      row_number() over (partition by minute order by count(*) desc) as place
    from ended where user_id is not null group by 1, 2
  )
  select minute, 'requests.status' as metric, status as label, count(*)::double precision as value
  from ended group by 1, 3
  union all
  select minute, 'requests.dataset', dataset, count(*) from ended where dataset is not null
  group by 1, 3
  union all
  select minute, 'searches', dataset, count(*) from ended where took_ms is not null group by 1, 3
  union all
  select o.minute, 'requests.user', coalesce(u.login, o.user_id::text), o.value
  from users_of o left join users u on u.id = o.user_id where o.place <= ${USERS_PER_MINUTE}
  union all
  select e.minute, m.metric, ${bucketSql('m.ms')}, count(*)
  from ended e cross join lateral (values
    ('ms.total', e.total), ('ms.wait', e.wait), ('ms.search', e.took_ms::double precision)
  ) as m (metric, ms)
  where m.ms is not null
  group by 1, 2, 3`;
