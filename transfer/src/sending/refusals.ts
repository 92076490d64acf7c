import { STREAMS, appendAudit, rows, type StreamName, type Transaction } from '@sallyport/shared';
import type { Node } from '../node.js';
import type { LostBatch } from './network-rules.js';

/** Losses that say nothing against the records: they may leave again under a new number. */
const BLAMELESS: readonly string[] = ['EXPIRED', 'OLD_EPOCH', 'WITHDRAWN'];

/**
 * Does what follows when the far side refused batches of ours for their content: records of an
 * expired one leave again where they may, the rest is ended by the network's rules, and an ordered
 * stream owes a snapshot.
 */
export async function settleRefusals(
  tx: Transaction,
  node: Node,
  refused: (LostBatch & { link: string })[],
  now: Date,
): Promise<void> {
  for (const { link, ...lost } of refused) {
    const { stream, epoch, seq, code } = lost;
    let queued = 0;
    if (STREAMS[stream].order === 'ordered') {
      await oweSnapshot(tx, { link, stream, reason: code, since: now });
    } else {
      queued = await requeueRecords(tx, node, lost, now);
      await node.network?.failRecords?.(tx, lost, now);
    }
    node.log.error({ stream, seq, code, queued }, 'batch refused by the far side');
    await appendAudit(tx, {
      at: now,
      actor: node.account,
      action: 'batch.refused',
      subject: `${stream} ${seq}`,
      details: { epoch, code, queued },
    });
  }
}

/**
 * Sends again what a restored far side has forgotten of epochs that are over, under new numbers. An
 * ordered stream began its present epoch with a snapshot, and what control said is over.
 */
export async function sendForgotten(
  tx: Transaction,
  node: Node,
  forgotten: (LostBatch & { link: string })[],
  now: Date,
): Promise<void> {
  const wanted = forgotten.filter(
    ({ stream }) => stream !== 'control' && STREAMS[stream].order === 'independent',
  );
  if (wanted.length === 0) return;
  for (const lost of wanted) await requeueRecords(tx, node, lost, now);
  await tx.raw(
    `update outbound_batches set state = 'withdrawn', far_code = 'OLD_EPOCH', closed_at = ?,
       version = version + 1 where id = any(?)`,
    [now, wanted.map(({ id }) => id)],
  );
  node.log.warn({ batches: wanted.length }, 'sent again what the far side has forgotten');
}

/**
 * Puts records of a lost batch back to waiting with the same ids, in the order in which they were
 * sent: all that the network still wants answered; of a batch refused for its content only the
 * announcements of write-offs, which nobody makes again. Call it before the batch changes its state.
 * @returns how many wait again.
 */
export async function requeueRecords(
  tx: Transaction,
  node: Node,
  { id, code }: LostBatch,
  now: Date,
): Promise<number> {
  const blameless = BLAMELESS.includes(code);
  const options = { now, inTime: code === 'EXPIRED' };
  const kept = blameless ? ((await node.network?.beforeRequeue?.(tx, [id], options)) ?? []) : [];
  const queued = await rows(
    tx,
    `update outbox_records set batch_id = null, batch_line = null
     where batch_id = :id and batch_line is not null
       and position <> all(cast(:kept as bigint[]))
       and (cast(:blameless as boolean) or type = 'batch.withdrawn')
     returning position`,
    { id, kept, blameless },
  );
  return queued.length;
}

/** Notes that an ordered stream needs a snapshot before the far side can go on. */
export async function oweSnapshot(
  tx: Transaction,
  owed: { link: string; stream: StreamName; reason: string; since: Date },
): Promise<void> {
  await tx.raw(
    `insert into owed_snapshots (link, stream, reason, since)
     values (:link, :stream, :reason, :since) on conflict (link, stream) do nothing`,
    owed,
  );
}
