import {
  STREAMS,
  SallyportError,
  appendAudit,
  newId,
  rows,
  type BatchCode,
  type Database,
  type RecordData,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import { markFrozen } from '../receiving/freezes.js';
import type { ImportedBatch } from '../receiving/apply.js';
import { findLink } from '../keys/links.js';
import type { Node } from '../node.js';
import { areTwoPeople } from '../custody/people.js';
import { sendRecords } from './outbox.js';
import { oweSnapshot, requeueRecords } from './refusals.js';
import { MAX_JUMP, advanceCursor, readPlace } from '../receiving/sequence.js';

/** A sealed number of ours. */
export type NumberKey = { stream: StreamName; epoch: number; seq: number };

/** What a write-off would give up. */
export type Withdrawable = NumberKey & { link: string; digest: string; records: number };

type SealedBatch = Withdrawable & { id: string; state: string; announces: boolean };
type Withdrawal = RecordData<'batch.withdrawn'>;

/**
 * A number of our present epoch that may be written off; `epoch` unless it is the present one.
 * @throws SallyportError `not-found`, `version-conflict` when it is closed already or must not be.
 */
export async function findWithdrawable(
  db: Database,
  number: { stream: string; seq: number; epoch?: number },
): Promise<Withdrawable> {
  const link = await findLink(db);
  if (!link) throw neverSealed(number);
  const epoch = number.epoch ?? link.epoch;
  const {
    id: _id,
    state: _state,
    announces: _announces,
    ...found
  } = await readOpen(db, {
    ...number,
    link: link.link,
    epoch,
  });
  return found;
}

/**
 * Writes a sealed number off in the names of two people: the far side is told to go on without it,
 * records that are still wanted wait again with the same ids, an ordered stream owes a snapshot. The
 * stored bytes stay; the next import or export takes the file out of the outbox.
 * @throws SallyportError as {@link findWithdrawable}.
 */
export async function withdrawBatch(
  tx: Transaction,
  node: Node,
  withdrawn: {
    link: string;
    stream: string;
    epoch: number;
    seq: number;
    reason: string;
    /** Two different people. */
    by: [string, string];
    at: Date;
  },
): Promise<{ queued: number; records: number }> {
  const { reason, by, at } = withdrawn;
  const batch = await readOpen(tx, withdrawn, { lock: true });
  const { id, link, stream, epoch, seq, digest, records } = batch;
  const ordered = STREAMS[stream].order === 'ordered';
  if (ordered) await oweSnapshot(tx, { link, stream, reason: 'WITHDRAWN', since: at });
  const lost = { id, stream, epoch, seq, code: 'WITHDRAWN' };
  const queued = ordered ? 0 : await requeueRecords(tx, node, lost, at);
  await tx.raw(
    `update outbound_batches set state = 'withdrawn', closed_at = ?, version = version + 1
     where id = ?`,
    [at, id],
  );
  const data = { stream, epoch, seq, digest, reason, by };
  await sendRecords(tx, 'control', [{ type: 'batch.withdrawn', id: newId(), data }], at);
  await appendAudit(tx, {
    at,
    actor: by[1],
    action: 'batch.withdraw',
    subject: `${stream} ${seq}`,
    details: { epoch, digest, reason, by, queued, records },
  });
  // Those who wait for a request see that it waits again.
  await tx.raw(`select pg_notify('sallyport_sealed', ?)`, [stream]);
  return { queued, records };
}

/**
 * Applies the `batch.withdrawn` records in `incoming`: each closes its number, with the digest as the
 * link of the chain. One about a number that is here already changes nothing; one that contradicts
 * what is here freezes the stream.
 */
export async function applyWithdrawals(
  tx: Transaction,
  batch: ImportedBatch,
  now: Date,
): Promise<void> {
  const told = await rows<{ d: Withdrawal; at: Date }>(
    tx,
    `select d, at from incoming where t = 'batch.withdrawn' order by line`,
  );
  for (const { d, at } of told) await closeWithdrawn(tx, batch, { ...d, at }, now);
  if (told.length === 0) return;
  // The sender is waiting to hear that these numbers are closed.
  await tx.raw('update links set ack_version = ack_version + 1 where link = ?', [batch.link]);
}

async function closeWithdrawn(
  tx: Transaction,
  { link, digest: source }: ImportedBatch,
  withdrawal: Withdrawal & { at: Date },
  now: Date,
): Promise<void> {
  const { stream, epoch, seq, digest, reason, by } = withdrawal;
  const [received] = await rows(
    tx,
    'select 1 from inbound_streams where link = ? and stream = ? and epoch = ?',
    [link, stream, epoch],
  );
  const audit = (action: string, details: object = {}) =>
    appendAudit(tx, {
      at: now,
      actor: `far:${by.join('+')}`,
      action,
      subject: `${stream} ${seq}`,
      details: { epoch, digest, reason, batch: source, ...details },
    });
  // A stream of ours, or of an epoch that has ended.
  if (!received) return;
  if (!areTwoPeople(by[0] ?? '', by[1] ?? '')) {
    return audit('link.alarm', { code: 'SCHEMA', sentence: 'Not two people have withdrawn it.' });
  }
  const place = await readPlace(tx, link, { stream, epoch, seq }, { lock: true });
  const { contiguous, newest } = place.cursor;
  if (seq > Math.max(contiguous, newest) + MAX_JUMP) {
    return audit('link.alarm', { code: 'WAIT_APPROVAL', sentence: 'It lies too far ahead.' });
  }
  const { known, after = digest } = place.neighboursOf(seq);
  const code: BatchCode | undefined =
    known && known.digest !== digest ? 'SEQ_FORK' : after === digest ? undefined : 'CHAIN_BREAK';
  if (code) {
    await markFrozen(tx, { link, stream, code, at: now, actor: `far:${by.join('+')}` });
    return audit('link.alarm', { code, sentence: 'A withdrawal contradicts what is here.' });
  }
  // What is here and only waits is applied in its turn.
  if (known ? known.state !== 'rejected' : seq <= contiguous) return;
  await tx.raw(CLOSE_WITHDRAWN, { ...withdrawal, id: newId(), link, now });
  await advanceCursor(tx, link, stream);
  await audit('batch.withdrawn', { by });
}

async function readOpen(
  db: Database,
  number: { link: string; stream: string; epoch: number; seq: number },
  { lock = false } = {},
): Promise<SealedBatch> {
  const { link, stream, epoch, seq } = number;
  const [found] = await rows<SealedBatch>(
    db,
    `select id, link, stream, epoch, seq, digest, records, state,
       coalesce(types->>'key.change', '0') <> '0' as announces
     from outbound_batches
     where link = :link and stream = :stream and epoch = :epoch and seq = :seq
       and digest is not null ${lock ? 'for update' : ''}`,
    { link, stream, epoch, seq },
  );
  if (!found) throw neverSealed(number);
  if (found.announces) {
    throw new SallyportError(
      'version-conflict',
      `Number ${seq} of ${stream} announces a change of keys; the far side cannot go on without it.`,
      {
        next: `Send it again with resend ${stream} ${seq}; if its bytes are gone, run keys revoke.`,
      },
    );
  }
  const why = CLOSED[found.state];
  if (why === undefined) return found;
  throw new SallyportError('version-conflict', `Number ${seq} of ${stream} ${why}.`, {
    next: 'There is nothing to write off.',
  });
}

function neverSealed({ stream, seq }: { stream: string; seq: number }): SallyportError {
  return new SallyportError('not-found', `Number ${seq} of ${stream} was never sealed here.`, {
    next: 'link shows the last sealed number of each stream.',
  });
}

const CLOSED: Readonly<Record<string, string>> = {
  acked: 'was applied on the far side',
  rejected: 'was refused by the far side, so that it is closed',
  withdrawn: 'was written off before',
};

// Of an ordered stream a refused content keeps its number open: a withdrawal closes that too.
const CLOSE_WITHDRAWN = `
insert into inbound_batches (id, link, stream, epoch, seq, digest, prev, kind, state, code,
  file_name, file_bytes, records, types, duplicates, created_at, seen_at)
values (:id, :link, :stream, :epoch, :seq, :digest, null, 'delta', 'withdrawn', 'WITHDRAWN',
  '', 0, 0, '{}', 0, :at, :now)
on conflict (link, stream, epoch, seq) do update
  set state = excluded.state, code = excluded.code`;
