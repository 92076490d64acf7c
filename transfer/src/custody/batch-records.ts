import { Type, type Static } from 'typebox';
import { SallyportError, Uuid, rows, type Database } from '@sallyport/shared';
import { readBody } from '../format/body.js';
import { readRecords } from '../format/records.js';
import type { Node } from '../node.js';
import { findBatchFile, type BatchFile } from './batch-files.js';
import { noBatch } from './batch-views.js';

/** A record as an operator may see it: which one, and what became of it; never what it says. */
export const BatchRecordSchema = Type.Object(
  {
    line: Type.Integer(),
    type: Type.String(),
    id: Uuid,
    fate: Type.Unsafe<Fate>({
      type: 'string',
      enum: ['waiting', 'on_its_way', 'applied', 'malformed', 'orphan', 'refused', 'withdrawn'],
    }),
    /** What is wrong with a line that was refused alone. */
    detail: Type.Union([Type.String(), Type.Null()]),
  },
  { additionalProperties: false },
);
export type BatchRecord = Static<typeof BatchRecordSchema>;
type Fate = 'waiting' | 'on_its_way' | 'applied' | 'malformed' | 'orphan' | 'refused' | 'withdrawn';

/** What one look may unpack; our own batches are no larger. */
const MAX_RAW_BYTES = 64 * 1024 * 1024;
/** So many looks may wait for the one that unpacks. */
const MAX_WAITING = 4;

let turn: Promise<unknown> = Promise.resolve();
let waiting = 0;

/**
 * Records of a batch from line `from` on, at most `limit`. Of a batch made here those that are still
 * in it: what the far side refused has left with another.
 * @throws SallyportError `not-found`, `store-bytes-missing`, `body-too-large`, `queue-full`.
 */
export async function listBatchRecords(
  db: Database,
  node: Node,
  { id, from, limit }: { id: string; from: number; limit: number },
): Promise<BatchRecord[]> {
  const [sent] = await rows<{ state: string }>(
    db,
    'select state from outbound_batches where id = ?',
    [id],
  );
  if (sent) return listSent(db, { id, from, limit, fate: SENT_FATES[sent.state] ?? 'waiting' });
  const [received] = await rows<{ state: string }>(
    db,
    'select state from inbound_batches where id = ?',
    [id],
  );
  if (!received) throw noBatch(id);
  const file = await findBatchFile(db, node, id);
  if (file.manifest.body.rawBytes > MAX_RAW_BYTES) {
    throw new SallyportError('body-too-large', 'The batch is too large to be looked into here.', {
      next: 'Inspect its file with sallyport-carry.',
    });
  }
  const found = await oneAtATime(() => readLines(node, file, { from, limit }));
  const fates = await readFates(db, id, found);
  const whole = received.state === 'applied' ? 'applied' : 'waiting';
  return found.map(({ line, type, id: record }) => ({
    line,
    type,
    id: record,
    fate: fates.get(line)?.fate ?? whole,
    detail: fates.get(line)?.detail ?? null,
  }));
}

/** The lines of an applied batch that were refused alone. */
export async function listFaults(
  db: Database,
  batchId: string,
  limit: number,
): Promise<{ line: number; type: string; id: string; code: string; detail: string }[]> {
  return rows(
    db,
    `select line, type, record_id as id, code, detail from inbound_faults
     where batch_id = ? order by line limit ?`,
    [batchId, limit],
  );
}

const SENT_FATES: Readonly<Record<string, Fate>> = {
  building: 'waiting',
  sealed: 'on_its_way',
  ready: 'on_its_way',
  handed_over: 'on_its_way',
  acked: 'applied',
  rejected: 'refused',
  withdrawn: 'withdrawn',
};

async function listSent(
  db: Database,
  { id, from, limit, fate }: { id: string; from: number; limit: number; fate: Fate },
): Promise<BatchRecord[]> {
  const found = await rows<{ line: number; type: string; id: string }>(
    db,
    `select batch_line as line, type, record_id as id from outbox_records
     where batch_id = ? and batch_line >= ? order by batch_line limit ?`,
    [id, from, limit],
  );
  return found.map((record) => ({ ...record, fate, detail: null }));
}

async function readLines(
  node: Node,
  { path, header, manifest }: BatchFile,
  { from, limit }: { from: number; limit: number },
): Promise<{ line: number; type: string; id: string }[]> {
  const { ageIdentities } = node.keys;
  const offset = header.line.length + 1;
  const body = await readBody({ path, offset, body: manifest.body, ageIdentities });
  const found: { line: number; type: string; id: string }[] = [];
  for await (const group of readRecords(body, manifest)) {
    for (const { line, t, id } of group) if (line >= from) found.push({ line, type: t, id });
    if (found.length >= limit) break;
  }
  return found.slice(0, limit);
}

async function readFates(
  db: Database,
  id: string,
  records: { line: number; type: string; id: string }[],
): Promise<Map<number, { fate: Fate; detail: string | null }>> {
  const lines = records.map(({ line }) => line);
  const found = await rows<{ line: number; fate: Fate; detail: string | null }>(
    db,
    `select line, 'malformed' as fate, detail from inbound_faults
     where batch_id = :id and line = any(:lines)
     union all
     select given.line, 'orphan', null
     from unnest(cast(:lines as integer[]), cast(:types as text[]), cast(:ids as uuid[]))
       as given(line, type, id)
     join orphans o on o.type = given.type and o.record_id = given.id and o.batch_id = :id`,
    { id, lines, types: records.map(({ type }) => type), ids: records.map((each) => each.id) },
  );
  return new Map(found.map(({ line, fate, detail }) => [line, { fate, detail }]));
}

/** Unpacked batches are large: one is held at a time, and few callers wait for theirs. */
async function oneAtATime<T>(work: () => Promise<T>): Promise<T> {
  if (waiting >= MAX_WAITING) {
    throw new SallyportError('queue-full', 'Others are looking into batches right now.', {
      retryAfterS: 5,
    });
  }
  waiting += 1;
  const mine = turn.catch(() => undefined).then(work);
  turn = mine;
  return mine.finally(() => (waiting -= 1));
}
