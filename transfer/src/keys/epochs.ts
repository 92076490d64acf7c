import {
  STREAMS,
  SallyportError,
  newId,
  rows,
  streamsSentBy,
  type RecordData,
  type Transaction,
} from '@sallyport/shared';
import { countRecords, startBatch } from '../sending/export.js';
import type { Link } from './links.js';
import type { Node } from '../node.js';
import { sendRecords } from '../sending/outbox.js';
import type { LostBatch } from '../sending/network-rules.js';
import { oweSnapshot, requeueRecords } from '../sending/refusals.js';
import type { Building } from '../sending/seal.js';

/** As far as the format goes; nobody gets there by honest means. */
const MAX_EPOCH = 9_999;

/** Why our epoch rises, as the far side is told. */
export type EpochReason = Pick<RecordData<'key.change'>, 'kid' | 'card'> & {
  change: 'revoke' | 'restore';
};

export type RaisedEpoch = {
  epoch: number;
  /** Batches that the far side had not acknowledged; they are withdrawn. */
  withdrawn: number;
  /** Records of theirs that wait again, with the same ids. */
  queued: number;
};

/**
 * Starts all our streams again, at number 1 of the next epoch above everything known. What was not
 * acknowledged as applied waits again, ordered streams owe a snapshot, and number 1 of control, which
 * says so, is begun: it must be sealed before anything else. Call it while holding all streams.
 * @throws SallyportError `usage` when there is no epoch left.
 */
export async function raiseEpoch(
  tx: Transaction,
  node: Node,
  link: Link,
  { reason, above = 0 }: { reason: EpochReason; above?: number },
): Promise<RaisedEpoch> {
  const now = node.clock.now();
  const epoch = Math.max(await highestEpoch(tx, link), above) + 1;
  if (epoch > MAX_EPOCH) {
    throw new SallyportError('usage', `There is no epoch ${epoch}: ${MAX_EPOCH} is the last.`);
  }
  const lost = await rows<LostBatch>(
    tx,
    `select id, stream, epoch, seq, 'OLD_EPOCH' as code from outbound_batches
     where link = ? and state in ('building', 'sealed', 'ready', 'handed_over')
     order by stream, seq for update`,
    [link.link],
  );
  await dropNumbered(tx, link, lost);
  let queued = 0;
  // What an ordered stream says stands in the snapshot that it owes.
  for (const batch of lost.filter(({ stream }) => STREAMS[stream].order === 'independent')) {
    queued += await requeueRecords(tx, node, batch, now);
  }
  await tx.raw(
    `update outbound_batches set state = 'withdrawn', far_code = 'OLD_EPOCH', version = version + 1
     where id = any(?)`,
    [lost.map(({ id }) => id)],
  );
  for (const stream of streamsSentBy(node.role)) {
    if (STREAMS[stream].order === 'independent') continue;
    await oweSnapshot(tx, { link: link.link, stream, reason: reason.change, since: now });
  }
  await tx.raw('update links set epoch = ? where link = ?', [epoch, link.link]);
  await announceKeyChange(tx, node, { ...link, epoch }, { ...reason, retire: {}, epoch });
  return { epoch, withdrawn: lost.length, queued };
}

/**
 * Begins the next number of control with this one record in it, so that the number is known while it
 * is decided.
 */
export async function announceKeyChange(
  tx: Transaction,
  node: Node,
  link: Link,
  change: RecordData<'key.change'>,
): Promise<Building> {
  const building = await startBatch(tx, node, link, 'control', 'delta');
  const id = newId();
  await sendRecords(tx, 'control', [{ type: 'key.change', id, data: change }], node.clock.now());
  const bound = await rows<{ bytes: number }>(
    tx,
    `update outbox_records set batch_id = ?, batch_line = 1
     where stream = 'control' and type = 'key.change' and record_id = ? and batch_id is null
     returning octet_length(line) + 1 as bytes`,
    [building.id, id],
  );
  const bytes = bound.reduce((sum, row) => sum + row.bytes, 0);
  return countRecords(tx, building, [{ type: 'key.change', records: bound.length, bytes }]);
}

/** The highest epoch that this database has used towards the far side, or was told by it. */
async function highestEpoch(tx: Transaction, { link }: Link): Promise<number> {
  const [found] = await rows<{ epoch: number }>(
    tx,
    `select greatest(l.epoch, l.far_told_epoch,
       (select max(epoch) from outbound_batches b where b.link = l.link)) as epoch
     from links l where l.link = ? for update`,
    [link],
  );
  return found?.epoch ?? 1;
}

/** Records that speak of numbers or keys of the old epoch: they stay with it, and without a line. */
async function dropNumbered(tx: Transaction, { link }: Link, lost: LostBatch[]): Promise<void> {
  await tx.raw(
    `update outbox_records set batch_line = null
     where batch_id = any(?) and type in ('key.change', 'batch.withdrawn')`,
    [lost.map(({ id }) => id)],
  );
  await tx.raw(
    `delete from outbox_records where link = ? and stream = 'control' and batch_id is null
       and type in ('key.change', 'batch.withdrawn')`,
    [link],
  );
}
