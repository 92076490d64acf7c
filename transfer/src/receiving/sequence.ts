import {
  STREAMS,
  SallyportError,
  preparedRows,
  type BatchCode,
  type Database,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import { ZERO_DIGEST, type Manifest } from '../format/manifest.js';

/** Beyond this a jump in the numbers waits for a person. */
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
  /** The epoch, further on than the next, that two people allowed the sender to announce. */
  epochAllowed: number | null;
  /** A key adopted by hand whose first batch has not come: it announces whatever epoch it names. */
  adoptedKid: string | null;
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
  /** The key that signed it. */
  kid?: string | null;
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
  const adopted = cursor.adoptedKid !== null && batch.kid === cursor.adoptedKid;
  if (opensEpoch(batch) && (adopted || (!known && batch.epoch > cursor.epoch))) {
    if (!adopted) requireNextEpoch(batch, cursor);
    return 'announce';
  }
  if (adopted) throw unannounced(batch, name);
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

/** A stream's cursor, and what is known of some numbers and their neighbours. */
export type Place = { cursor: Cursor; neighboursOf(seq: number): Neighbours };

/**
 * Reads the place of a batch, or of `count` numbers from its own on; with `lock` the cursor's row is
 * locked first, so that what is read stays true.
 */
export async function readPlace(
  db: Database,
  link: string,
  { stream, epoch, seq }: Pick<Numbered, 'stream' | 'epoch' | 'seq'>,
  { lock, count = 1 }: { lock: boolean; count?: number },
): Promise<Place> {
  // A statement of its own: another one sees what was committed while this one waited.
  if (lock) await preparedRows(db, LOCK_CURSOR, { link, stream });
  const range = { first: seq - 1, last: seq + count };
  const [found] = await preparedRows<
    Cursor & { around: { seq: number; digest: string; prev: string | null; state: string }[] }
  >(db, READ_PLACE, { link, stream, epoch, ...range });
  if (!found) throw new Error(`no cursor for ${stream} of link ${link}`);
  const { around, ...cursor } = found;
  const bySeq = new Map(around.map((row) => [row.seq, row]));
  return {
    cursor,
    neighboursOf(number) {
      const known = bySeq.get(number);
      return {
        known: known && { digest: known.digest, state: known.state },
        before: bySeq.get(number - 1)?.digest,
        after: bySeq.get(number + 1)?.prev ?? undefined,
      };
    },
  };
}

/**
 * What is to be done with batches whose numbers follow each other, each as if the ones before it had
 * been applied; see {@link decide}.
 */
export function decideRun(
  batches: readonly (Numbered & { digest: string })[],
  { cursor, neighboursOf }: Place,
): Decision[] {
  let { contiguous, digest, newest } = cursor;
  let before: string | undefined;
  return batches.map((batch) => {
    const neighbours = neighboursOf(batch.seq);
    const now = { ...cursor, contiguous, digest, newest };
    const decision = decide(batch, batch.digest, now, {
      ...neighbours,
      before: before ?? neighbours.before,
    });
    if (batch.seq === contiguous + 1) [contiguous, digest] = [batch.seq, batch.digest];
    newest = Math.max(newest, batch.seq);
    before = batch.digest;
    return decision;
  });
}

const LOCK_CURSOR =
  'select 1 from inbound_streams where link = :link and stream = :stream for update';

const READ_PLACE = `
select s.epoch, s.contiguous, s.contiguous_digest as digest, s.frozen_code as "frozenCode",
  s.jump_allowed_to as "jumpAllowedTo", l.far_epoch_allowed as "epochAllowed",
  l.adopted_kid as "adoptedKid",
  coalesce((select max(seq) from inbound_batches b
            where b.link = s.link and b.stream = s.stream and b.epoch = s.epoch), 0) as newest,
  coalesce((select json_agg(json_build_object(
              'seq', seq, 'digest', digest, 'prev', prev, 'state', state))
            from inbound_batches b
            where b.link = s.link and b.stream = s.stream and b.epoch = :epoch
              and b.seq between :first and :last), '[]') as around
from inbound_streams s join links l on l.link = s.link
where s.link = :link and s.stream = :stream`;

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
  await preparedRows(tx, ADVANCE_CURSOR, { link, stream, closed });
}

// In a run without holes the number minus its rank stays the cursor. What lies beyond a hole is not
// looked at.
const ADVANCE_CURSOR = `
update inbound_streams s set contiguous = run.seq, contiguous_digest = run.digest
from (
  select seq, digest
  from (
    select c.contiguous, b.seq, b.digest, b.seq - row_number() over (order by b.seq) as hole
    from inbound_streams c
    join inbound_batches b
      on b.link = c.link and b.stream = c.stream and b.epoch = c.epoch and b.seq > c.contiguous
    where c.link = :link and c.stream = :stream and b.state = any(:closed)
      and exists (
        select 1 from inbound_batches n
        where n.link = c.link and n.stream = c.stream and n.epoch = c.epoch
          and n.seq = c.contiguous + 1 and n.state = any(:closed))
  ) beyond
  where hole = contiguous
  order by seq desc
  limit 1
) run
where s.link = :link and s.stream = :stream`;

/**
 * Starts every stream of the far side again, at number 1 of its new epoch: what waited of the epochs
 * before is superseded, and no alarm of theirs holds anything up any more. An epoch that is not above
 * the present one (a key adopted by hand may name it) takes the place of those from it on: what came in
 * them is kept under negative epochs.
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
     where link = :link and state = 'waiting'`,
    { link },
  );
  await tx.raw(
    `update inbound_batches set epoch = least(0, known.lowest) - epoch
     from (select min(epoch) as lowest from inbound_batches where link = :link) known
     where link = :link and epoch >= :epoch`,
    { link, epoch },
  );
  await tx.raw(
    `update links set far_epoch = :epoch, far_epoch_allowed = null, adopted_kid = null,
       ack_version = ack_version + 1
     where link = :link`,
    { link, epoch },
  );
}

/** The first batch of a new epoch is number 1 of control, and says so. */
function opensEpoch(batch: Numbered): boolean {
  const first = batch.stream === 'control' && batch.seq === 1 && batch.prev === ZERO_DIGEST;
  return first && (batch.types?.['key.change'] ?? 0) > 0;
}

/** One batch of a stolen key must not use up all epochs: the honest ones would be old for ever. */
function requireNextEpoch({ epoch }: Numbered, cursor: Cursor): void {
  if (epoch === cursor.epoch + 1 || epoch === cursor.epochAllowed) return;
  throw new SallyportError(
    'WAIT_APPROVAL',
    `It announces epoch ${epoch}; we are in ${cursor.epoch}, and only the next one passes unasked.`,
    { next: `Ask the sender for its epoch (link there), then link allow epoch ${epoch}.` },
  );
}

function unannounced({ kid }: Numbered, name: string): SallyportError {
  return new SallyportError(
    'WAIT_KEY',
    `${name} is signed by ${kid ?? ''}, which was adopted by hand and has announced no epoch yet.`,
    {
      next: 'Bring number 1 of control of its epoch; if the sender has none, it runs keys revoke.',
    },
  );
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
