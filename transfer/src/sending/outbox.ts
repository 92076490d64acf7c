import {
  RECORD_TYPES,
  STREAMS,
  SallyportError,
  rows,
  type Database,
  type RecordData,
  type RecordType,
  type StreamName,
} from '@sallyport/shared';
import { checkRecordData, checkRecordLine, unsendable } from '../format/record-checks.js';

/** A record on its way out; `id` is the entity's or request's uuid. */
export type OutgoingRecord = {
  [T in RecordType]: { type: T; id: string; data: RecordData<T> };
}[RecordType];

/** The link that records sent now belong to, as an SQL scalar; null before trust. */
export const CURRENT_LINK = '(select link from links order by created_at limit 1)';

/** Start of an `insert … select` into the outbox, for statements that do everything in one trip. */
export const OUTBOX_INSERT = 'insert into outbox_records (link, stream, type, record_id, line)';

/** Joins a request's row `r` to its outbox row `o` and its batch `b`. */
export const BATCH_OF_REQUEST = `
  left join outbox_records o on o.position = r.outbox_position
  left join outbound_batches b on b.id = o.batch_id`;

/**
 * Puts records into the outbox in the transaction that makes them true: they leave if, and only if,
 * it commits.
 * @throws SallyportError `record-invalid` for a record that the far side would refuse.
 */
export async function sendRecords(
  tx: Database,
  stream: StreamName,
  records: OutgoingRecord[],
  at: Date,
): Promise<void> {
  if (records.length === 0) return;
  for (const { type } of records) requireTypeOf(stream, type);
  await tx.raw(
    `${OUTBOX_INSERT}
     select ${CURRENT_LINK}, ?, type, id, line
     from unnest(?::text[], ?::uuid[], ?::text[]) with ordinality as sent (type, id, line, n)
     order by n`,
    [
      stream,
      records.map(({ type }) => type),
      records.map(({ id }) => id),
      records.map((record) => recordLine(record, at)),
    ],
  );
}

/**
 * The JSON text of a record as it crosses, without its line feed. What is asserted here is asserted
 * again by the reader.
 * @throws SallyportError `record-invalid` naming what the schema found.
 */
export function recordLine(record: OutgoingRecord, at: Date): string {
  const { type, id, data } = record;
  try {
    checkRecordData(type, data);
  } catch (cause) {
    throw unsendable(type, (cause as Error).message, cause);
  }
  const { v } = RECORD_TYPES[type];
  const line = JSON.stringify({ t: type, id, v, at: at.toISOString(), d: data });
  checkRecordLine(type, line);
  return line;
}

/**
 * Takes a waiting record back, in the caller's transaction.
 * @returns false when it is bound to a batch already: what is bound leaves.
 */
export async function recallRecord(tx: Database, position: number): Promise<boolean> {
  const recalled = await rows(
    tx,
    'delete from outbox_records where position = ? and batch_id is null returning position',
    [position],
  );
  return recalled.length > 0;
}

function requireTypeOf(stream: StreamName, type: RecordType): void {
  if (STREAMS[stream].types.includes(type)) return;
  throw new SallyportError('record-invalid', `A ${type} record does not belong to ${stream}.`);
}
