import {
  bucketSql,
  firstIdAt,
  msSql,
  rows,
  type Database,
  type SampleLine,
  type Span,
} from '@sallyport/shared';

const DAY_MS = 86_400_000;

/**
 * Batches, records, bytes, duplicates and refusals per stream and direction, and how long batches were
 * built and applied.
 */
export async function sampleBatches(db: Database, { from, to }: Span): Promise<SampleLine[]> {
  // Ids begin with the time they were made: a batch is sealed soon after that.
  const firstId = firstIdAt(new Date(from.getTime() - DAY_MS));
  return rows<SampleLine>(db, SAMPLE, { from, to, firstId });
}

const SAMPLE = `
  with sent as (
    select date_trunc('minute', sealed_at) as minute, stream || ' out' as label, records,
      coalesce(file_bytes, 0) as bytes, ${msSql('sealed_at - created_at')} as ms
    from outbound_batches
    where id >= :firstId and sealed_at >= :from and sealed_at < :to
  ), seen as (
    select date_trunc('minute', seen_at) as minute, stream || ' in' as label, records,
      file_bytes as bytes, duplicates, (state = 'rejected')::integer as refused,
      ${msSql('applied_at - seen_at')} as ms
    from inbound_batches where seen_at >= :from and seen_at < :to
  ), crossed as (
    select minute, label, records, bytes, 0 as duplicates, 0 as refused from sent
    union all
    select minute, label, records, bytes, duplicates, refused from seen
  )
  select b.minute, m.metric, b.label, sum(m.value)::double precision as value
  from crossed b cross join lateral (values
    ('batches', 1), ('records', b.records), ('bytes', b.bytes), ('duplicates', b.duplicates),
    ('refused', b.refused)) as m (metric, value)
  group by 1, 2, 3 having sum(m.value) > 0
  union all
  select minute, 'ms.build', ${bucketSql('ms')}, count(*) from sent group by 1, 3
  union all
  select minute, 'ms.apply', ${bucketSql('ms')}, count(*) from seen where ms is not null
  group by 1, 3`;
