import {
  STREAMS,
  SallyportError,
  newId,
  rows,
  withAdvisoryLock,
  type Database,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import { findLink, type Link } from './links.js';
import type { Node } from './node.js';
import { sendRecords, type OutgoingRecord } from './outbox.js';
import { sealBatch, type Building } from './seal.js';
import { publishSealed, requireStoreBehindDatabase, tidyUnsealed } from './store.js';

/** Most that one batch carries (spec: batch-format, "Export"). */
export const MAX_BATCH_RECORDS = 50_000;
export const MAX_BATCH_RAW_BYTES = 64 * 1024 * 1024;
const HEARTBEAT_MS = 10 * 60_000;

/** How many records of a type were bound, and their lines' bytes. */
type BoundType = { type: string; records: number; bytes: number };

export type Exported = { sealed: number; records: number };

/**
 * Seals what waits in a stream into batches and publishes each. What arrives meanwhile is left for the
 * next call, so that it ends. Safe to kill at any moment: before `sealed` the same number is built
 * again, after it the bytes are fixed.
 * @returns what this call sealed; nothing when another exporter has the stream or nobody is trusted.
 */
export async function exportStream(
  db: Database,
  node: Node,
  stream: StreamName,
  { signal }: { signal?: AbortSignal | undefined } = {},
): Promise<Exported> {
  const exported: Exported = { sealed: 0, records: 0 };
  const link = await findLink(db);
  if (!link) return exported;
  await whileHolding(db, node, stream, async () => {
    await publishSealed(db, node, stream);
    const last = await lastWaiting(db, link, stream);
    while (!signal?.aborted) {
      const building =
        (await resumeBuilding(db, link, stream)) ?? (await bind(db, node, link, stream, last));
      if (!building) break;
      if (await sealBatch(db, node, link, building)) {
        exported.sealed += 1;
        exported.records += building.records;
      }
      await publishSealed(db, node, stream);
    }
  });
  return exported;
}

/**
 * Exports several streams, one after the other; one that fails does not keep the others back.
 * @throws the first failure, once all were tried.
 */
export async function exportStreams(
  db: Database,
  node: Node,
  streams: readonly StreamName[],
  options: { signal?: AbortSignal | undefined } = {},
): Promise<void> {
  const failures: unknown[] = [];
  for (const stream of streams) {
    await exportStream(db, node, stream, options).catch((error: unknown) => failures.push(error));
  }
  if (failures.length > 0) throw failures[0];
}

/**
 * Seals a control batch when a control record waits, when acknowledgements of other streams changed
 * and no batch has told them yet, or as the heartbeat. Acks of control alone never cause one.
 */
export async function exportControl(db: Database, node: Node): Promise<Exported> {
  const exported = await exportStream(db, node, 'control');
  const link = await findLink(db);
  if (exported.sealed > 0 || !link) return exported;
  await whileHolding(db, node, 'control', async () => {
    if (!(await isControlDue(db, link.link, node.clock.now()))) return;
    const building = await db.transaction((tx) =>
      startBatch(tx, node, link, 'control', 'heartbeat'),
    );
    if (await sealBatch(db, node, link, building)) exported.sealed += 1;
    await publishSealed(db, node, 'control');
  });
  return exported;
}

/**
 * Sends the whole state of an ordered stream as one batch, which heals every gap before it. The
 * records are read, and all waiting ones superseded, in one repeatable-read transaction; however many
 * they are, a snapshot is one batch.
 */
export async function sendSnapshot(
  db: Database,
  node: Node,
  stream: StreamName,
  collect: (tx: Transaction) => Promise<OutgoingRecord[]>,
): Promise<Exported> {
  if (STREAMS[stream].order !== 'ordered') {
    throw new SallyportError('usage', `${stream} has no snapshots: only ordered streams do.`);
  }
  const link = await findLink(db);
  if (!link) {
    throw new SallyportError('not-trusted', 'No far side is trusted yet, so nothing can be sent.', {
      next: 'Run keys trust with the card of the other network.',
    });
  }
  const held = await whileHolding(db, node, stream, async () => {
    const unfinished = await resumeBuilding(db, link, stream);
    if (unfinished) await sealBatch(db, node, link, unfinished);
    const building = await db.transaction((tx) => bindSnapshot(tx, node, link, stream, collect), {
      isolationLevel: 'repeatable read',
    });
    await sealBatch(db, node, link, building);
    await publishSealed(db, node, stream);
    return { sealed: 1, records: building.records };
  });
  if (held) return held.done;
  throw new SallyportError('WAIT_LOCK', `Another exporter works on ${stream} right now.`, {
    next: 'Run it again.',
  });
}

/**
 * Runs the work while no other exporter tries the stream (that a number is sealed once rests on the
 * build token), after the store was found fit to continue from.
 */
async function whileHolding<T>(
  db: Database,
  node: Node,
  stream: StreamName,
  work: () => Promise<T>,
): Promise<{ done: T } | undefined> {
  return withAdvisoryLock(db, `sallyport export ${stream}`, async () => {
    await tidyUnsealed(node, stream);
    await requireStoreBehindDatabase(db, node, stream);
    return work();
  });
}

async function lastWaiting(db: Database, link: Link, stream: StreamName): Promise<number> {
  const [last] = await rows<{ position: number | null }>(
    db,
    `select max(position) as position from outbox_records
     where stream = ? and link = ? and batch_id is null`,
    [stream, link.link],
  );
  return last?.position ?? 0;
}

/** Takes over a number that somebody began and did not seal; its records are bound already. */
async function resumeBuilding(
  db: Database,
  link: Link,
  stream: StreamName,
): Promise<Building | undefined> {
  const [found] = await rows<Building>(
    db,
    `update outbound_batches set build_token = :token
     where link = :link and stream = :stream and state = 'building'
     returning id, link, stream, epoch, seq, kind, build_token as token, records, types,
               coalesce(raw_bytes, 0) as "rawBytes"`,
    { token: newId(), link: link.link, stream },
  );
  return found;
}

async function bind(
  db: Database,
  node: Node,
  link: Link,
  stream: StreamName,
  last: number,
): Promise<Building | undefined> {
  const nothing = new Error('nothing to bind');
  const bound = db.transaction(async (tx) => {
    const [waiting] = await rows(
      tx,
      `select 1 from outbox_records
       where stream = ? and link = ? and batch_id is null and position <= ? limit 1`,
      [stream, link.link, last],
    );
    if (!waiting) throw nothing;
    const building = await startBatch(tx, node, link, stream, 'delta');
    const types = await rows<BoundType>(tx, BIND_SQL, {
      stream,
      link: link.link,
      batch: building.id,
      last,
      maxRecords: MAX_BATCH_RECORDS,
      maxBytes: MAX_BATCH_RAW_BYTES,
    });
    // All that waits may be held by cancels under way: the number must not be taken for nothing.
    if (types.length === 0) throw nothing;
    return countRecords(tx, building, types);
  });
  return bound.catch((error: unknown) => {
    if (error === nothing) return undefined;
    throw error;
  });
}

async function bindSnapshot(
  tx: Transaction,
  node: Node,
  link: Link,
  stream: StreamName,
  collect: (tx: Transaction) => Promise<OutgoingRecord[]>,
): Promise<Building> {
  const building = await startBatch(tx, node, link, stream, 'snapshot');
  // Superseded: bound to the snapshot, without a line in it.
  await tx.raw(
    'update outbox_records set batch_id = ? where stream = ? and link = ? and batch_id is null',
    [building.id, stream, link.link],
  );
  await sendRecords(tx, stream, await collect(tx), node.clock.now());
  const bound = await rows<BoundType>(
    tx,
    `with numbered as (
       select position, row_number() over (order by position) as line
       from outbox_records where stream = :stream and link = :link and batch_id is null
     ), bound as (
       update outbox_records o set batch_id = :batch, batch_line = n.line
       from numbered n where o.position = n.position
       returning o.type, octet_length(o.line) + 1 as bytes
     )
     select type, count(*)::integer as records, sum(bytes)::bigint as bytes
     from bound group by type`,
    { stream, link: link.link, batch: building.id },
  );
  return countRecords(tx, building, bound);
}

async function startBatch(
  tx: Transaction,
  node: Node,
  link: Link,
  stream: StreamName,
  kind: Building['kind'],
): Promise<Building> {
  const building = {
    id: newId(),
    link: link.link,
    stream,
    epoch: link.epoch,
    kind,
    token: newId(),
    records: 0,
    rawBytes: 0,
    types: {},
  };
  const [numbered] = await rows<{ seq: number }>(
    tx,
    `insert into outbound_batches (id, link, stream, epoch, seq, kind, state, build_token, version,
                                   records, types, created_at)
     select :id, :link, :stream, :epoch, coalesce(max(seq), 0) + 1, :kind, 'building', :token, 1,
            0, '{}', :now
     from outbound_batches where link = :link and stream = :stream and epoch = :epoch
     returning seq`,
    { ...building, types: null, rawBytes: null, now: node.clock.now() },
  );
  if (!numbered) throw new Error('insert … select of an aggregate always makes one row');
  return { ...building, seq: numbered.seq };
}

async function countRecords(
  tx: Transaction,
  building: Building,
  bound: BoundType[],
): Promise<Building> {
  const types = Object.fromEntries(bound.map(({ type, records }) => [type, records]));
  const records = bound.reduce((sum, row) => sum + row.records, 0);
  const rawBytes = bound.reduce((sum, row) => sum + row.bytes, 0);
  await tx('outbound_batches')
    .where({ id: building.id })
    .update({ records, raw_bytes: rawBytes, types: JSON.stringify(types) });
  return { ...building, records, rawBytes, types };
}

async function isControlDue(db: Database, link: string, now: Date): Promise<boolean> {
  const [due] = await rows<{ due: boolean }>(
    db,
    `select l.ack_version > coalesce(max(b.ack_version), 0)
         or coalesce(max(b.sealed_at), '-infinity') <= :heartbeat as due
     from links l left join outbound_batches b on b.link = l.link and b.digest is not null
     where l.link = :link group by l.ack_version`,
    { link, heartbeat: new Date(now.getTime() - HEARTBEAT_MS) },
  );
  return due?.due ?? false;
}

// Rows locked by a cancel that is under way are left for the next batch.
const BIND_SQL = `
with waiting as (
  select position, octet_length(line) + 1 as bytes from outbox_records
  where stream = :stream and link = :link and batch_id is null and position <= :last
  order by position limit :maxRecords for update skip locked
), numbered as (
  select position, bytes, row_number() over (order by position) as line,
         sum(bytes) over (order by position) as running
  from waiting
), bound as (
  update outbox_records o set batch_id = :batch, batch_line = n.line
  from numbered n
  where o.position = n.position and (n.running <= :maxBytes or n.line = 1)
  returning o.type, n.bytes
)
select type, count(*)::integer as records, sum(bytes)::bigint as bytes from bound group by type`;
