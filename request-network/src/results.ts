import { createHash } from 'node:crypto';
import {
  FINAL_STATUSES,
  rows,
  runPrepared,
  withConnection,
  type Failure,
  type Transaction,
} from '@sallyport/shared';
import type { ImportedBatch } from '@sallyport/transfer';

const FINAL = FINAL_STATUSES.map((status) => `'${status}'`).join(', ');

/**
 * Applies the `result` records in `incoming`, and parked ones whose request is known by now. The
 * first result of a request stays; a final status never changes (the result is then kept as late); a
 * text that does not agree with its digest ends the request as failed, class integrity. Results of
 * unknown requests are parked as orphans.
 */
export async function applyResults(
  tx: Transaction,
  batch: ImportedBatch,
  now: Date,
): Promise<void> {
  await runPlanned(tx, APPLY_RESULTS, [
    batch.id,
    now,
    batch.createdAt,
    batch.digest,
    JSON.stringify(damage('The text of the result does not agree with its length and digest.')),
  ]);
  await rows(tx, END_INCOMPLETE, { now, batch: batch.id, digest: batch.digest });
  await completeResults(tx, batch, now);
}

/** Applies the `result.part` records in `incoming`: they may come before or after their result. */
export async function applyResultParts(
  tx: Transaction,
  batch: ImportedBatch,
  now: Date,
): Promise<void> {
  await runPlanned(tx, APPLY_PARTS, [batch.id, now]);
  await completeResults(tx, batch, now);
}

/** Runs a statement with a plan of its own: how much `incoming` holds differs from batch to batch. */
async function runPlanned(tx: Transaction, text: string, values: unknown[]): Promise<void> {
  await withConnection(tx, (connection) => connection.query(text, values));
}

/** The expected failure of a result that is not what its far side signed. */
export function damage(detail: string): Failure {
  return { class: 'integrity', code: 'HASH_MISMATCH', detail };
}

// `r` is locked before its status is judged, so that a cancellation cannot slip in between.
const APPLY_RESULTS = `
  with news as (
    select id, d, text, $1::uuid as batch_id from incoming where t = 'result' and code is null
    union all
    select record_id, data, text, batch_id from orphans where type = 'result'
  ), parked as (
    insert into orphans (type, record_id, part, data, text, batch_id, parked_at)
    select 'result', n.id, 0, n.d, n.text, n.batch_id, $2 from news n
    where not exists (select 1 from requests r where r.id = n.id)
    on conflict do nothing
  ), adopted as (
    delete from orphans o using requests r where o.type = 'result' and r.id = o.record_id
  ), judged as (
    select n.id, n.batch_id, n.text, r.status in (${FINAL}) as late,
      x.status, x.failure, x.media_type, x.bytes, x.sha256, x.parts, x.disclosure, x.times,
      x.parts = 0 and (n.text is not null or x.status = 'delivered') and (
        octet_length(n.text) is distinct from x.bytes
        or encode(sha256(convert_to(n.text, 'UTF8')), 'hex') is distinct from x.sha256
      ) as damaged
    from news n
    cross join lateral jsonb_to_record(n.d) as x(
      status text, failure jsonb, media_type text, bytes bigint, sha256 text, parts integer,
      disclosure jsonb, times jsonb)
    join requests r on r.id = n.id
    where not exists (select 1 from results first where first.request_id = n.id)
    for update of r
  ), stored as (
    insert into results (
      request_id, status, failure, media_type, bytes, sha256, parts, text, complete, late,
      disclosure, times, batch_id, imported_at)
    select id,
      case when damaged then 'failed' else status end,
      case when damaged then $5::jsonb else nullif(failure, 'null'::jsonb) end,
      media_type, case when damaged then null else bytes end,
      case when damaged then null else sha256 end, parts,
      case when damaged then null else text end, parts = 0, late,
      nullif(disclosure, 'null'::jsonb), times, batch_id, $2
    from judged
    on conflict (request_id) do nothing
    returning request_id, status, failure, sha256, complete, late
  ), moved as (
    update requests r set
      status = case when s.complete and not s.late then s.status else r.status end,
      failure = case when s.complete and not s.late then s.failure else r.failure end,
      finished_at = case when s.complete and not s.late then $2 else r.finished_at end,
      stage = case when s.complete then null else r.stage end,
      reason_code = case when s.complete then null else r.reason_code end,
      version = r.version + 1,
      known_as_of = greatest(r.known_as_of, $3::timestamptz)
    from stored s where r.id = s.request_id
  )
  insert into request_events (request_id, at, network, event, batch_id, digest, reason)
  select s.request_id, $2, 'request',
    case when s.late then 'late_result' when s.complete then s.status else 'partial_result' end,
    $1, $4, s.failure->>'code'
  from stored s`;

// A part that this side refused never comes again: the far side ends the result instead.
const END_INCOMPLETE = `
  with news as (
    select id, nullif(d->'failure', 'null'::jsonb) as failure from incoming
    where t = 'result' and code is null and d->>'status' = 'failed'
      and d->'failure'->>'class' = 'integrity'
  ), mine as (
    select r.id, r.status in (${FINAL}) as late, n.failure
    from news n join requests r on r.id = n.id
    join results s on s.request_id = r.id and not s.complete for update of r
  ), ended as (
    update results s set complete = true, late = m.late, status = 'failed', failure = m.failure,
      bytes = null, sha256 = null, parts = 0
    from mine m where s.request_id = m.id
    returning s.request_id, s.failure, s.late
  ), dropped as (
    delete from result_parts p using ended e where p.request_id = e.request_id
  ), moved as (
    update requests r set
      status = case when e.late then r.status else 'failed' end,
      failure = case when e.late then r.failure else e.failure end,
      finished_at = case when e.late then r.finished_at else :now end,
      stage = null, reason_code = null, version = r.version + 1,
      known_as_of = greatest(r.known_as_of, :now)
    from ended e where r.id = e.request_id
  )
  insert into request_events (request_id, at, network, event, batch_id, digest, reason)
  select e.request_id, :now, 'request', case when e.late then 'late_result' else 'failed' end,
    :batch, :digest, e.failure->>'code'
  from ended e`;

const APPLY_PARTS = `
  with news as (
    select id, (d->>'index')::integer as part, d, text, $1::uuid as batch_id
    from incoming where t = 'result.part' and code is null
    union all
    select record_id, part, data, text, batch_id from orphans where type = 'result.part'
  ), parked as (
    insert into orphans (type, record_id, part, data, text, batch_id, parked_at)
    select 'result.part', n.id, n.part, n.d, n.text, n.batch_id, $2 from news n
    where not exists (select 1 from requests r where r.id = n.id)
    on conflict do nothing
  ), adopted as (
    delete from orphans o using requests r where o.type = 'result.part' and r.id = o.record_id
  )
  insert into result_parts (request_id, part, text)
  select n.id, n.part, n.text from news n
  where exists (select 1 from requests r where r.id = n.id)
    and not exists (
      select 1 from results s where s.request_id = n.id and (s.complete or s.parts <= n.part))
  on conflict do nothing`;

type Whole = { request_id: string; parts: number; bytes: number | null; sha256: string | null };

/** Ends the requests whose last awaited part has come. */
async function completeResults(tx: Transaction, batch: ImportedBatch, now: Date): Promise<void> {
  const whole = await rows<Whole>(
    tx,
    `select s.request_id, s.parts, s.bytes, s.sha256 from results s
     where not s.complete and s.parts = (
       select count(*) from result_parts p where p.request_id = s.request_id and p.part < s.parts)`,
  );
  for (const result of whole) {
    const sound = await partsAgree(tx, result);
    await rows(tx, COMPLETE, [
      sound,
      JSON.stringify(damage('The parts of the result do not agree with its length and digest.')),
      result.request_id,
      now,
      batch.createdAt,
      now,
      batch.id,
      batch.digest,
    ]);
    if (!sound) await tx('result_parts').where({ request_id: result.request_id }).delete();
  }
}

async function partsAgree(tx: Transaction, result: Whole): Promise<boolean> {
  const hash = createHash('sha256');
  let bytes = 0;
  for (let part = 0; part < result.parts; part += 1) {
    const text = Buffer.from(await readPart(tx, result.request_id, part));
    bytes += text.length;
    hash.update(text);
  }
  return bytes === result.bytes && hash.digest('hex') === result.sha256;
}

async function readPart(tx: Transaction, requestId: string, part: number): Promise<string> {
  const [row] = await runPrepared<{ text: string }>(tx, READ_PART, [requestId, part]);
  return row?.text ?? '';
}

/** One part of a result that spans several records. */
export const READ_PART = {
  name: 'read_result_part',
  text: 'select text from result_parts where request_id = $1 and part = $2',
};

const COMPLETE = `
  with judged as (select ?::boolean as sound, ?::jsonb as damage),
  mine as (select r.id, r.status in (${FINAL}) as late from requests r where r.id = ? for update),
  done as (
    update results s set complete = true, late = m.late,
      status = case when j.sound then s.status else 'failed' end,
      failure = case when j.sound then s.failure else j.damage end,
      bytes = case when j.sound then s.bytes end,
      sha256 = case when j.sound then s.sha256 end
    from mine m, judged j where s.request_id = m.id
    returning s.request_id, s.status, s.failure, s.late
  ), moved as (
    update requests r set
      status = case when d.late then r.status else d.status end,
      failure = case when d.late then r.failure else d.failure end,
      finished_at = case when d.late then r.finished_at else ? end,
      stage = null, reason_code = null, version = r.version + 1,
      known_as_of = greatest(r.known_as_of, ?::timestamptz)
    from done d where r.id = d.request_id
  )
  insert into request_events (request_id, at, network, event, batch_id, digest, reason)
  select d.request_id, ?, 'request', case when d.late then 'late_result' else d.status end,
    ?, ?, d.failure->>'code'
  from done d`;

/**
 * Applies the `request.progress` records in `incoming`: the newest of each request counts, and only
 * if it is newer than what is known. It never moves a request that has ended, nor out of cancelling.
 */
export async function applyProgress(
  tx: Transaction,
  batch: ImportedBatch,
  _now: Date,
): Promise<void> {
  await runPlanned(tx, APPLY_PROGRESS, [batch.id, batch.createdAt, batch.digest]);
}

const APPLY_PROGRESS = `
  with news as (
    select distinct on (i.id) i.id, x.*
    from incoming i
    cross join lateral jsonb_to_record(i.d) as x(
      version integer, status text, stage text, reason_code text)
    where i.t = 'request.progress' and i.code is null
    order by i.id, x.version desc
  ), moved as (
    update requests r set
      status = case when r.status = 'cancelling' then r.status else n.status end,
      stage = n.stage, reason_code = n.reason_code, progress_version = n.version,
      version = r.version + 1, known_as_of = greatest(r.known_as_of, $2::timestamptz)
    from news n
    where r.id = n.id and n.version > r.progress_version and r.status not in (${FINAL})
    returning r.id, n.status, n.stage
  )
  insert into request_events (request_id, at, network, event, batch_id, digest, reason)
  select id, $2, 'response', status, $1, $3, stage from moved`;
