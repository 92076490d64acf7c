import {
  STREAMS,
  SallyportError,
  rows,
  type BatchCode,
  type Database,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import { ZERO_DIGEST, type Manifest } from './manifest.js';

/** Beyond this a jump in the numbers waits for a person (spec: batch-format, FAST_FORWARD). */
export const MAX_JUMP = 10_000;

/** How far a stream has been received. */
export type Cursor = {
  epoch: number;
  /** Every number up to here is closed. */
  contiguous: number;
  digest: string;
  /** The highest number that was seen, closed or waiting. */
  newest: number;
  frozenCode: BatchCode | null;
  /** Up to here two people allowed the numbers to jump. */
  jumpAllowedTo: number | null;
};

/** What is known around one number: itself, its predecessor's digest, its successor's link back. */
export type Neighbours = {
  known: { digest: string; state: string } | undefined;
  before: string | undefined;
  after: string | undefined;
};

/** `announce`: it opens a new epoch, in which every stream of the sender starts again. */
export type Decision = 'apply' | 'heal' | 'wait' | 'duplicate' | 'announce';

type Numbered = Pick<Manifest, 'stream' | 'epoch' | 'seq' | 'prev' | 'kind'> & {
  types?: Manifest['types'];
};

/**
 * What is to be done with a verified batch, by its place in the sequence (the table of
 * batch-format). Pure; the cursor's row must be locked when the decision is acted upon.
 * @throws SallyportError OLD_EPOCH, WAIT_KEY, WAIT_APPROVAL, SEQ_FORK, CHAIN_BREAK.
 */
export function decide(
  batch: Numbered,
  digest: string,
  cursor: Cursor,
  { known, before, after }: Neighbours,
): Decision {
  const name = `${batch.stream} number ${batch.seq}`;
  if (!known && opensEpoch(batch, cursor)) return 'announce';
  requireEpoch(batch, cursor, name);
  if (known && known.digest !== digest) {
    throw new SallyportError(
      'SEQ_FORK',
      `${name} was seen before with other content: ${known.digest.slice(0, 12)}, now ${digest.slice(0, 12)}.`,
      {
        next: 'The stream is frozen. Ask the sender whether a backup was restored or a key stolen.',
      },
    );
  }
  const independent = STREAMS[batch.stream].order === 'independent';
  const late = known?.state === 'withdrawn' && independent;
  const closed = known ? known.state !== 'waiting' : batch.seq <= cursor.contiguous;
  if (closed && !late) return 'duplicate';
  if (cursor.frozenCode) {
    throw new SallyportError(
      'WAIT_APPROVAL',
      `${batch.stream} is frozen since ${cursor.frozenCode}; ${name} waits for a person.`,
      { next: 'link frozen shows the evidence; link unfreeze lets the stream go on.' },
    );
  }
  const top = Math.max(cursor.contiguous, cursor.newest);
  if (batch.seq > top + MAX_JUMP && batch.seq > (cursor.jumpAllowedTo ?? 0)) {
    throw new SallyportError(
      'WAIT_APPROVAL',
      `${name} jumps ${batch.seq - top} numbers ahead (FAST_FORWARD); at most ${MAX_JUMP} pass unasked.`,
      { next: `Ask the sender for its last number, then link allow ${batch.stream} NUMBER.` },
    );
  }
  if (batch.seq === cursor.contiguous + 1) {
    requireChain(name, batch.prev, cursor.digest);
    if (after) requireChain(`${batch.stream} number ${batch.seq + 1}`, after, digest);
    return 'apply';
  }
  if (!independent) {
    return batch.kind === 'snapshot' ? 'heal' : 'wait';
  }
  if (before) requireChain(name, batch.prev, before);
  if (after) requireChain(`${batch.stream} number ${batch.seq + 1}`, after, digest);
  return 'apply';
}

/** Reads a stream's cursor, with its row locked when told to. */
export async function readCursor(
  db: Database,
  link: string,
  stream: StreamName,
  { lock }: { lock: boolean },
): Promise<Cursor> {
  const [cursor] = await rows<Omit<Cursor, 'newest'>>(
    db,
    `select epoch, contiguous, contiguous_digest as digest, frozen_code as "frozenCode",
       jump_allowed_to as "jumpAllowedTo"
     from inbound_streams where link = ? and stream = ? ${lock ? 'for update' : ''}`,
    [link, stream],
  );
  if (!cursor) throw new Error(`no cursor for ${stream} of link ${link}`);
  const [seen] = await rows<{ newest: number | null }>(
    db,
    'select max(seq) as newest from inbound_batches where link = ? and stream = ? and epoch = ?',
    [link, stream, cursor.epoch],
  );
  return { ...cursor, newest: seen?.newest ?? 0 };
}

/** Reads what is known around a number. */
export async function readNeighbours(
  db: Database,
  link: string,
  batch: Numbered,
): Promise<Neighbours> {
  const found = await rows<{ seq: number; digest: string; prev: string | null; state: string }>(
    db,
    `select seq, digest, prev, state from inbound_batches
     where link = ? and stream = ? and epoch = ? and seq between ? and ?`,
    [link, batch.stream, batch.epoch, batch.seq - 1, batch.seq + 1],
  );
  const at = (seq: number) => found.find((row) => row.seq === seq);
  const known = at(batch.seq);
  return {
    known: known && { digest: known.digest, state: known.state },
    before: at(batch.seq - 1)?.digest,
    after: at(batch.seq + 1)?.prev ?? undefined,
  };
}

/**
 * Moves the cursor over every number that is closed without a hole before it. A content refusal
 * closes a number of an independent stream only: an ordered one waits for a snapshot.
 */
export async function advanceCursor(
  tx: Transaction,
  link: string,
  stream: StreamName,
): Promise<void> {
  const closed =
    STREAMS[stream].order === 'ordered'
      ? ['applied', 'withdrawn']
      : ['applied', 'withdrawn', 'rejected'];
  // In a run without holes the number minus its rank stays the cursor.
  await tx.raw(
    `update inbound_streams s set contiguous = run.seq, contiguous_digest = run.digest
     from (
       select c.contiguous, b.seq, b.digest,
              b.seq - row_number() over (order by b.seq) as hole
       from inbound_streams c
       join inbound_batches b
         on b.link = c.link and b.stream = c.stream and b.epoch = c.epoch and b.seq > c.contiguous
       where c.link = :link and c.stream = :stream and b.state = any(:closed)
       order by b.seq
     ) run
     where s.link = :link and s.stream = :stream and run.hole = run.contiguous
       and not exists (
         select 1 from inbound_batches n
         where n.link = s.link and n.stream = s.stream and n.epoch = s.epoch
           and n.seq = run.seq + 1 and n.state = any(:closed)
       )`,
    { link, stream, closed },
  );
}

/**
 * Starts every stream of the far side again, at number 1 of its new epoch: what waited of the epochs
 * before is superseded, and no alarm of theirs holds anything up any more.
 */
export async function restartCursors(tx: Transaction, link: string, epoch: number): Promise<void> {
  await tx.raw(
    `update inbound_streams set epoch = :epoch, contiguous = 0, contiguous_digest = :zero,
       tail_seq = 0, tail_digest = null, frozen_code = null, frozen_at = null, jump_allowed_to = null
     where link = :link`,
    { link, epoch, zero: ZERO_DIGEST },
  );
  await tx.raw(
    `update inbound_batches set state = 'superseded', code = 'OLD_EPOCH'
     where link = :link and epoch < :epoch and state = 'waiting'`,
    { link, epoch },
  );
  await tx.raw(
    'update links set far_epoch = :epoch, ack_version = ack_version + 1 where link = :link',
    { link, epoch },
  );
}

/** The first batch of a new epoch is number 1 of control, and says so. */
function opensEpoch(batch: Numbered, cursor: Cursor): boolean {
  const first = batch.stream === 'control' && batch.seq === 1 && batch.prev === ZERO_DIGEST;
  return first && batch.epoch > cursor.epoch && batch.types?.['key.change'] !== undefined;
}

function requireEpoch(batch: Numbered, cursor: Cursor, name: string): void {
  if (batch.epoch < cursor.epoch) {
    throw new SallyportError(
      'OLD_EPOCH',
      `${name} is of epoch ${batch.epoch}; the sender is in epoch ${cursor.epoch}.`,
      { next: 'Discard the file: the sender has queued its records again.' },
    );
  }
  if (batch.epoch > cursor.epoch) {
    throw new SallyportError(
      'WAIT_KEY',
      `${name} is of epoch ${batch.epoch}; no key change to it has arrived, we are in ${cursor.epoch}.`,
      { next: 'Bring the control batches of the sender first.' },
    );
  }
}

function requireChain(name: string, prev: string, expected: string): void {
  if (prev === expected) return;
  throw new SallyportError(
    'CHAIN_BREAK',
    `${name} says that ${prev.slice(0, 12)} came before it; here it was ${expected.slice(0, 12)}.`,
    { next: 'The stream is frozen. Compare both sides before anything else is imported.' },
  );
}
