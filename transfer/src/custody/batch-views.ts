import { Type, type Static, type TSchema } from 'typebox';
import {
  STREAM_NAMES,
  SallyportError,
  Timestamp,
  Uuid,
  rows,
  type Database,
  type StreamName,
} from '@sallyport/shared';
import { CUSTODY_STEPS, readCustody } from './custody.js';

const object = <T extends Record<string, TSchema>>(properties: T) =>
  Type.Object(properties, { additionalProperties: false });
const nullable = <T extends TSchema>(schema: T) => Type.Union([schema, Type.Null()]);
const oneOf = <T extends string>(...values: readonly T[]) =>
  Type.Unsafe<T>({ type: 'string', enum: values });

/** `out`: made here; `in`: came from the far side. */
export const DIRECTIONS = ['out', 'in'] as const;
/** What a batch can be: of those made here first, of those that came then. */
export const BATCH_STATES = [
  ...(['building', 'sealed', 'ready', 'handed_over', 'acked'] as const),
  ...(['waiting', 'applied', 'superseded', 'rejected', 'withdrawn'] as const),
] as const;

/** A batch as lists show it. */
export const BatchSchema = object({
  id: Uuid,
  direction: oneOf(...DIRECTIONS),
  stream: oneOf(...STREAM_NAMES),
  epoch: Type.Integer(),
  seq: Type.Integer(),
  kind: oneOf('delta', 'snapshot', 'heartbeat'),
  state: oneOf(...BATCH_STATES),
  /** Why it was refused, by either side. */
  code: nullable(Type.String()),
  records: Type.Integer(),
  file_name: nullable(Type.String()),
  file_bytes: nullable(Type.Integer()),
  /** Of its manifest: the same on both networks. */
  digest: nullable(Type.String()),
  created_at: Timestamp,
});
export type BatchView = Static<typeof BatchSchema>;

const StatisticsSchema = object({
  types: Type.Record(Type.String(), Type.Integer()),
  /** Of the lines before compression; known where it was made. */
  raw_bytes: nullable(Type.Integer()),
  build_ms: nullable(Type.Integer()),
  /** From seal to arrival, by the clocks of two networks. */
  transit_ms: nullable(Type.Integer()),
  apply_ms: nullable(Type.Integer()),
  /** Lines that were refused alone; known where it was applied. */
  faults: nullable(Type.Integer()),
  error_rate: nullable(Type.Number()),
  publications: nullable(Type.Integer()),
  duplicates: nullable(Type.Integer()),
});

/** Everything known of a batch, but for its records. */
export const BatchDetailsSchema = object({
  ...BatchSchema.properties,
  prev: nullable(Type.String()),
  sealed_at: nullable(Timestamp),
  handed_over_at: nullable(Timestamp),
  handed_over_by: nullable(Type.String()),
  medium: nullable(Type.String()),
  /** When it was imported: here, or by the receipt of the far side. */
  applied_at: nullable(Timestamp),
  statistics: StatisticsSchema,
  custody: Type.Array(
    object({
      step: oneOf(...CUSTODY_STEPS),
      who: Type.String(),
      at: Timestamp,
      medium: nullable(Type.String()),
      source: oneOf('own', 'far', 'carrier'),
    }),
  ),
});
export type BatchDetailsView = Static<typeof BatchDetailsSchema>;

export type BatchFilter = {
  direction?: (typeof DIRECTIONS)[number] | undefined;
  stream?: StreamName | undefined;
  state?: readonly string[] | undefined;
  created_from?: string | undefined;
  created_before?: string | undefined;
};

type BatchRow = Omit<BatchView, 'created_at'> & { created_at: Date };
type DetailsRow = BatchRow & {
  prev: string | null;
  types: Record<string, number> | null;
  raw_bytes: number | null;
  publications: number | null;
  duplicates: number | null;
  sealed_at: Date | null;
  seen_at: Date | null;
  handed_over_at: Date | null;
  handed_over_by: string | null;
  medium: string | null;
  applied_at: Date | null;
  faults: number | null;
};

/** Batches that were made here or came, newest first; `after` is the id of the last one seen. */
export async function listBatchViews(
  db: Database,
  { filter, limit, after }: { filter: BatchFilter; limit: number; after?: string | undefined },
): Promise<BatchView[]> {
  const found = await rows<BatchRow>(
    db,
    `select * from (
       (${SENT} where ${CONDITIONS} order by id desc limit :limit)
       union all
       (${RECEIVED} where ${CONDITIONS} order by id desc limit :limit)
     ) both_ways
     where cast(:direction as text) is null or direction = :direction
     order by id desc limit :limit`,
    {
      limit,
      after: after ?? null,
      direction: filter.direction ?? null,
      stream: filter.stream ?? null,
      states: filter.state ? [...filter.state] : null,
      from: filter.created_from ?? null,
      before: filter.created_before ?? null,
    },
  );
  return found.map(toView);
}

/**
 * Everything known of one batch.
 * @throws SallyportError `not-found`.
 */
export async function getBatchDetails(db: Database, id: string): Promise<BatchDetailsView> {
  const [found] = await rows<DetailsRow>(db, `${SENT_DETAILS} union all ${RECEIVED_DETAILS}`, {
    id,
  });
  if (!found) throw noBatch(id);
  const custody = found.digest === null ? [] : await readCustody(db, found.digest);
  const stepAt = (step: string, source?: string) =>
    custody.find((each) => each.step === step && (!source || each.source === source))?.at ?? null;
  const out = found.direction === 'out';
  const sealedAt = found.sealed_at;
  const arrivedAt = out ? (stepAt('received', 'far') ?? found.applied_at) : found.seen_at;
  const appliedAt = out ? stepAt('applied', 'far') : found.applied_at;
  const handedOver = custody.find(({ step }) => step === 'handed_over');
  return {
    ...toView(found),
    prev: found.prev,
    sealed_at: timeOf(sealedAt),
    handed_over_at: timeOf(found.handed_over_at ?? handedOver?.at ?? null),
    handed_over_by: found.handed_over_by ?? handedOver?.who ?? null,
    medium: found.medium ?? handedOver?.medium ?? null,
    applied_at: timeOf(found.applied_at),
    statistics: {
      types: found.types ?? {},
      raw_bytes: found.raw_bytes,
      build_ms: out ? between(found.created_at, sealedAt) : null,
      transit_ms: between(sealedAt, arrivedAt),
      apply_ms: between(arrivedAt, appliedAt),
      faults: found.faults,
      error_rate:
        found.faults === null || found.records === 0 ? null : found.faults / found.records,
      publications: found.publications,
      duplicates: found.duplicates,
    },
    custody: custody.map((event) => ({ ...event, at: event.at.toISOString() })),
  };
}

/** What is said of an id that names no batch. */
export function noBatch(id: string): SallyportError {
  return new SallyportError('not-found', `There is no batch ${id}.`, {
    next: 'List the batches to see their ids.',
  });
}

/** Milliseconds between two moments; clocks of two networks may make it less than nothing: null. */
function between(from: Date | null, to: Date | null): number | null {
  const ms = from && to ? to.getTime() - from.getTime() : -1;
  return ms < 0 ? null : ms;
}

function timeOf(at: Date | null): string | null {
  return at?.toISOString() ?? null;
}

function toView(row: BatchRow): BatchView {
  const { id, direction, stream, epoch, seq, kind, state, code, records } = row;
  const facts = { id, direction, stream, epoch, seq, kind, state, code, records };
  const { file_name, file_bytes, digest, created_at } = row;
  return {
    ...facts,
    file_name: file_name === '' ? null : file_name,
    file_bytes,
    digest,
    created_at: created_at.toISOString(),
  };
}

const CONDITIONS = `(cast(:after as uuid) is null or id < :after)
  and (cast(:stream as text) is null or stream = :stream)
  and (cast(:states as text[]) is null or state = any(:states))
  and (cast(:from as timestamptz) is null or created_at >= :from)
  and (cast(:before as timestamptz) is null or created_at < :before)`;

const COMMON =
  'id, stream, epoch, seq, kind, state, records, file_name, file_bytes, digest, created_at';
const SENT = `select 'out' as direction, ${COMMON}, far_code as code from outbound_batches`;
const RECEIVED = `select 'in' as direction, ${COMMON}, code from inbound_batches`;

const SENT_DETAILS = `
select 'out' as direction, ${COMMON}, far_code as code, prev, types, raw_bytes, publications,
  null as duplicates, sealed_at, null as seen_at, handed_over_at, handed_over_by, medium,
  acked_at as applied_at, null as faults
from outbound_batches where id = :id`;

const RECEIVED_DETAILS = `
select 'in' as direction, ${COMMON}, code, prev, types, null, null, duplicates, created_at, seen_at,
  null, null, null, applied_at,
  case when state = 'applied'
    then (select count(*)::integer from inbound_faults f where f.batch_id = inbound_batches.id) end
from inbound_batches where id = :id`;
