import { minuteOf } from './counters.js';
import { rows, type Database, type Transaction } from './database.js';
import type { Settings } from './settings.js';

/** What happened in a span of time: metric, label, how often or how much. All of it can be added. */
export type SampleData = Record<string, Record<string, number>>;
export type SampleLine = { minute: Date; metric: string; label: string; value: number };
/** Half-open. */
export type Span = { from: Date; to: Date };
/** Counts what tables say of a span, by minute, through an index. */
export type Sampler = (db: Database, span: Span) => Promise<SampleLine[]>;

const MINUTE_MS = 60_000;
const HOUR_MS = 3_600_000;
const DAY_MS = 86_400_000;
/** Transactions that began in a minute have committed by then. */
const SETTLE_MS = 30_000;
/** What a network that stood still counts afterwards, at most. */
const CATCH_UP_MS = DAY_MS;
const FIRST_MS = HOUR_MS;
/** Durations are counted in buckets, each this much longer than the one before. */
const GROWTH = 1.1;

/** Metrics with this prefix have buckets of durations as labels; see {@link bucketSql}. */
export const DURATIONS = 'ms.';

/** SQL for the bucket in which an interval, or a number of milliseconds, lies. */
export function bucketSql(milliseconds: string): string {
  return `floor(ln(greatest(${milliseconds}, 1)) / ln(${GROWTH}))::integer::text`;
}

/** SQL for an interval in milliseconds. */
export function msSql(interval: string): string {
  return `(extract(epoch from ${interval}) * 1000)::double precision`;
}

/** The duration, in milliseconds, that this share of those in the buckets does not exceed. */
export function percentile(buckets: Record<string, number>, share: number): number {
  const sorted = Object.entries(buckets)
    .map(([bucket, count]) => ({ bucket: Number(bucket), count }))
    .sort((a, b) => a.bucket - b.bucket);
  const wanted = share * sorted.reduce((sum, { count }) => sum + count, 0);
  let passed = 0;
  for (const { bucket, count } of sorted) {
    passed += count;
    if (passed >= wanted) return Math.round(GROWTH ** (bucket + 0.5));
  }
  return 0;
}

/**
 * Samples every minute that has ended since the last sample, then the hours that are full, and drops
 * what is too old; returns how many minutes it took.
 */
export async function takeSamples(
  db: Database,
  { samplers, now, settings }: { samplers: readonly Sampler[]; now: Date; settings: Settings },
): Promise<number> {
  const span = await nextSpan(db, now);
  if (span) {
    const lines = await Promise.all(samplers.map((sample) => sample(db, span)));
    await db.transaction(async (tx) => {
      await storeMinutes(tx, span, [...lines.flat(), ...(await takeCounts(tx, span))]);
      await storeHours(tx, span.to);
    });
  }
  await pruneSamples(db, now, settings);
  return span ? (span.to.getTime() - span.from.getTime()) / MINUTE_MS : 0;
}

async function nextSpan(db: Database, now: Date): Promise<Span | undefined> {
  const to = minuteOf(new Date(now.getTime() - SETTLE_MS));
  const [last] = await rows<{ at: Date }>(
    db,
    `select at from samples where grain = 'minute' order by at desc limit 1`,
  );
  const since = last ? last.at.getTime() + MINUTE_MS : to.getTime() - FIRST_MS;
  const from = new Date(Math.max(since, to.getTime() - CATCH_UP_MS));
  return from < to ? { from, to } : undefined;
}

/** What the processes counted; what came late is counted in the first minute of the span. */
async function takeCounts(tx: Transaction, { from, to }: Span): Promise<SampleLine[]> {
  return rows<SampleLine>(
    tx,
    `delete from counts where minute < ?
     returning greatest(minute, ?) as minute, metric, label, value`,
    [to, from],
  );
}

async function storeMinutes(tx: Transaction, { from, to }: Span, lines: SampleLine[]) {
  const minutes = new Map<number, SampleData>();
  for (let at = from.getTime(); at < to.getTime(); at += MINUTE_MS) minutes.set(at, {});
  for (const { minute, metric, label, value } of lines) {
    const data = minutes.get(minute.getTime());
    if (!data) continue;
    const labels = (data[metric] ??= {});
    labels[label] = (labels[label] ?? 0) + Number(value);
  }
  const found = [...minutes].map(([at, data]) => ({ at: new Date(at).toISOString(), data }));
  await rows(
    tx,
    `insert into samples (grain, at, data)
     select 'minute', at, data from json_to_recordset(?) as t (at timestamptz, data jsonb)`,
    [JSON.stringify(found)],
  );
}

async function storeHours(tx: Transaction, to: Date): Promise<void> {
  const until = new Date(Math.floor(to.getTime() / HOUR_MS) * HOUR_MS);
  await rows(
    tx,
    `with lines as (
       select ${stepSql(3_600)} as hour, m.key as metric, l.key as label,
         sum(l.value::double precision) as value
       from samples s cross join jsonb_each(s.data) m cross join jsonb_each(m.value) l
       where s.grain = 'minute' and s.at < :until and s.at >= coalesce(
         (select max(at) + interval '1 hour' from samples where grain = 'hour'), '-infinity')
       group by 1, 2, 3
     ), metrics as (
       select hour, metric, jsonb_object_agg(label, value) as labels from lines group by 1, 2
     )
     insert into samples (grain, at, data)
     select 'hour', hour, jsonb_object_agg(metric, labels) from metrics group by hour`,
    { until },
  );
}

async function pruneSamples(db: Database, now: Date, settings: Settings): Promise<void> {
  const before = (days: number) => new Date(now.getTime() - days * DAY_MS);
  await rows(
    db,
    `delete from samples
     where (grain = 'minute' and at < ?) or (grain = 'hour' and at < ?)`,
    [before(settings['retention.samples_days']), before(settings['retention.hourly_days'])],
  );
}

/**
 * Samples added up to steps of so many seconds, oldest first; where the step allows it, from those of
 * hours, and from those of minutes for what no hour has yet.
 */
export async function readSamples(
  db: Database,
  { from, to }: Span,
  stepS: number,
): Promise<{ at: Date; data: SampleData }[]> {
  const hourly = stepS % 3_600 === 0;
  const found = await rows<{ at: Date; metric: string; label: string; value: number }>(
    db,
    `with hours as (
       select case when :hourly then coalesce(max(at) + interval '1 hour', '-infinity')
         else '-infinity' end as until
       from samples where grain = 'hour'
     )
     select ${stepSql(stepS)} as at, m.key as metric, l.key as label,
       sum(l.value::double precision) as value
     from hours, samples s cross join jsonb_each(s.data) m cross join jsonb_each(m.value) l
     where s.at >= :from and s.at < :to
       and ((s.grain = 'hour' and s.at < hours.until)
         or (s.grain = 'minute' and s.at >= hours.until))
     group by 1, 2, 3 order by 1, 2, 3`,
    { from, to, hourly },
  );
  const steps = new Map<number, { at: Date; data: SampleData }>();
  for (const { at, metric, label, value } of found) {
    const step = steps.get(at.getTime()) ?? { at, data: {} };
    steps.set(at.getTime(), step);
    (step.data[metric] ??= {})[label] = value;
  }
  return [...steps.values()];
}

function stepSql(stepS: number): string {
  return `to_timestamp(floor(extract(epoch from s.at) / ${stepS}) * ${stepS})`;
}
