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
import { isOutboundFrozen, requireNotFrozen } from '../receiving/freezes.js';
import { exportLock } from './hold-streams.js';
import { findLink, type Link } from '../keys/links.js';
import type { Node } from '../node.js';
import { sendRecords, type OutgoingRecord } from './outbox.js';
import { isAnnouncing, refreshKeys } from '../keys/own-keys.js';
import { sealBatch, type Building } from './seal.js';
import { takeSlips } from '../custody/slips.js';
import { publishSealed, requireStoreBehindDatabase, tidyUnsealed } from './store.js';

/** Most that one batch carries. */
export const MAX_BATCH_RECORDS = 50_000;
export const MAX_BATCH_RAW_BYTES = 64 * 1024 * 1024;
const HEARTBEAT_MS = 10 * 60_000;

/** How many records of a type were bound, and their lines' bytes. */
export type BoundType = { type: string; records: number; bytes: number };

export type Exported = { sealed: number; records: number };

/**
 * Seals what waits in a stream into batches and publishes each. What arrives meanwhile is left for the
 * next call, so that it ends. Safe to kill at any moment: before `sealed` the same number is built
 * again, after it the bytes are fixed.
 * @returns what this call sealed; nothing while the stream is paused, when another exporter has it, or
 * nobody is trusted.
 */
export async function exportStream(
  db: Database,
  node: Node,
  stream: StreamName,
  { signal }: { signal?: AbortSignal | undefined } = {},
): Promise<Exported> {
  const exported: Exported = { sealed: 0, records: 0 };
  if (node.options.paused(stream)) {
    node.log.debug({ stream }, 'stream is paused, nothing is sealed');
    return exported;
  }
  await sealAnnouncementFirst(db, node, stream);
  await whileHolding(db, node, stream, async (link) => {
    await publishSealed(db, node, stream);
    if (await isOutboundFrozen(db, link.link, stream)) {
      node.log.warn({ stream }, 'stream is frozen, nothing is sealed');
      return;
    }
    if (await isSnapshotOwed(db, link, stream)) {
      const collect = node.snapshots?.[stream];
      if (!collect) {
        node.log.warn({ stream }, 'a snapshot is owed, nothing else is sealed');
        return;
      }
      exported.records += (await sealSnapshot(db, node, link, { stream, collect })).records;
      exported.sealed += 1;
    }
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
      // What was announced just now counts for the next number.
      if (stream === 'control') await refreshKeys(db, node);
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
 * and no batch has told them yet, or as the heartbeat. Acks of control alone never cause one, nor do
 * custody records: they go with the next batch, or receipts would answer receipts; `custody` seals
 * them all the same.
 */
export async function exportControl(
  db: Database,
  node: Node,
  { custody = false }: { custody?: boolean } = {},
): Promise<Exported> {
  const link = await findLink(db);
  if (!link) return { sealed: 0, records: 0 };
  await takeSlips(db, node);
  const due = await isControlDue(db, link.link, node.clock.now());
  if (!due && !(await hasControlNews(db, link.link, { custody }))) return { sealed: 0, records: 0 };
  const exported = await exportStream(db, node, 'control');
  if (exported.sealed > 0) return exported;
  await whileHolding(db, node, 'control', async (current) => {
    if (await isOutboundFrozen(db, current.link, 'control')) return;
    if (!(await isControlDue(db, current.link, node.clock.now()))) return;
    const building = await db.transaction((tx) =>
      startBatch(tx, node, current, 'control', 'heartbeat'),
    );
    if (await sealBatch(db, node, current, building)) exported.sealed += 1;
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
  if (!(await findLink(db))) {
    throw new SallyportError('not-trusted', 'No far side is trusted yet, so nothing can be sent.', {
      next: 'Run keys trust with the card of the other network.',
    });
  }
  await sealAnnouncementFirst(db, node, stream);
  const held = await whileHolding(db, node, stream, async (link) => {
    await requireNotFrozen(db, link.link, stream);
    return sealSnapshot(db, node, link, { stream, collect });
  });
  if (held) return held.done;
  throw new SallyportError('WAIT_LOCK', `Another exporter works on ${stream} right now.`, {
    next: 'Run it again.',
  });
}

/** Seals and publishes a number that somebody began, if there is one. Call it holding the stream. */
export async function sealUnfinished(
  db: Database,
  node: Node,
  link: Link,
  stream: StreamName,
): Promise<void> {
  const unfinished = await resumeBuilding(db, link, stream);
  if (unfinished) await sealBatch(db, node, link, unfinished);
  await publishSealed(db, node, stream);
}

/**
 * Readies a stream that its caller holds: the node's keys are current, what a killed exporter left is
 * gone, and the store is fit to continue from.
 * @throws SallyportError `store-ahead`, `keys-missing`, `keys-locked`, `passphrase-wrong`.
 */
export async function readyStream(db: Database, node: Node, stream: StreamName): Promise<void> {
  await refreshKeys(db, node);
  await tidyUnsealed(node, stream);
  await requireStoreBehindDatabase(db, node, stream);
}

/** A change of keys, or of the epoch, leaves before anything else does. */
async function sealAnnouncementFirst(db: Database, node: Node, stream: StreamName): Promise<void> {
  if (stream !== 'control' && (await isAnnouncing(db))) await exportStream(db, node, 'control');
}

/**
 * Runs the work while no other exporter tries the stream (that a number is sealed once rests on the
 * build token), after the store was found fit to continue from.
 */
async function whileHolding<T>(
  db: Database,
  node: Node,
  stream: StreamName,
  work: (link: Link) => Promise<T>,
): Promise<{ done: T } | undefined> {
  const held = await withAdvisoryLock(db, exportLock(stream), async () => {
    if (stream !== 'control' && (await isAnnouncing(db))) return undefined;
    // Read while holding the stream: whoever raises the epoch holds them all.
    const link = await findLink(db);
    if (!link) return undefined;
    await readyStream(db, node, stream);
    return { done: await work(link) };
  });
  return held?.done;
}

async function sealSnapshot(
  db: Database,
  node: Node,
  link: Link,
  {
    stream,
    collect,
  }: { stream: StreamName; collect: (tx: Transaction) => Promise<OutgoingRecord[]> },
): Promise<Exported> {
  await sealUnfinished(db, node, link, stream);
  const building = await db.transaction((tx) => bindSnapshot(tx, node, link, stream, collect), {
    isolationLevel: 'repeatable read',
  });
  await sealBatch(db, node, link, building);
  await publishSealed(db, node, stream);
  return { sealed: 1, records: building.records };
}

async function isSnapshotOwed(db: Database, link: Link, stream: StreamName): Promise<boolean> {
  const owed = await rows(db, 'select 1 from owed_snapshots where link = ? and stream = ?', [
    link.link,
    stream,
  ]);
  return owed.length > 0;
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
     where id = (select id from outbound_batches
                 where link = :link and stream = :stream and state = 'building'
                 order by epoch, seq limit 1)
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
  await tx.raw('delete from owed_snapshots where link = ? and stream = ?', [link.link, stream]);
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

/** Takes the next number of a stream of the link; nothing is bound to it yet. */
export async function startBatch(
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

/** Notes what was bound to a number. */
export async function countRecords(
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

/** Whether a control record waits, with `custody` one of any type, or a batch was left half done. */
async function hasControlNews(
  db: Database,
  link: string,
  { custody }: { custody: boolean },
): Promise<boolean> {
  const [news] = await rows<{ news: boolean }>(
    db,
    `select exists (select 1 from outbox_records
                    where stream = 'control' and link = :link and batch_id is null
                      and (type <> 'custody' or cast(:custody as boolean)))
         or exists (select 1 from outbound_batches
                    where stream = 'control' and link = :link
                      and state in ('building', 'sealed')) as news`,
    { link, custody },
  );
  return news?.news ?? false;
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
