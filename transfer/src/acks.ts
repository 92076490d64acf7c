import { SallyportError, rows, type StreamName, type Transaction } from '@sallyport/shared';
import { ZERO_DIGEST, type Ack, type Tail } from './manifest.js';

/** Most ranges and rejections told of one stream (spec: batch-format, "Acknowledgement"). */
const MAX_RANGES = 200;
const MAX_REJECTIONS = 50;
/** What an ack may take of line 1, whose limit is 64 KiB of base64url. */
const MAX_ACK_BYTES = 36 * 1024;

type Range = [first: number, last: number];
type StreamAck = NonNullable<Ack['streams'][StreamName]>;
type AckRow = Pick<StreamAck, 'epoch' | 'contiguous' | 'digest'> & {
  stream: StreamName;
  extra: Range[] | null;
  missing: Range[] | null;
  rejected: StreamAck['rejected'] | null;
};

/**
 * What we have of the far side, for the manifest with the given number. Call it in the transaction
 * that took the number, so that a higher number never tells less.
 */
export async function makeAck(tx: Transaction, link: string, no: number): Promise<Ack> {
  const [incarnation] = await rows<{ id: string }>(
    tx,
    'select id from incarnations order by made_at desc limit 1',
  );
  const streams = await rows<AckRow>(tx, ACK_SQL, {
    link,
    ranges: MAX_RANGES + 1,
    rejections: MAX_REJECTIONS + 1,
  });
  const told = (share: number) =>
    Object.fromEntries(streams.map((row) => [row.stream, shorten(row, share)]));
  let share = 1;
  // With many holes in many streams the lists are cut further: `more` says so, and the reader takes
  // nothing for applied beyond the last refusal that it was told.
  while (JSON.stringify(told(share)).length > MAX_ACK_BYTES) share /= 2;
  return { no, incarnation: incarnation?.id ?? '', streams: told(share) };
}

/** The newest sealed number and digest of every stream we send. */
export async function makeTail(tx: Transaction, link: string): Promise<Tail> {
  const sealed = await rows<{ stream: StreamName; epoch: number; seq: number; digest: string }>(
    tx,
    `select distinct on (stream) stream, epoch, seq, digest from outbound_batches
     where link = ? and digest is not null order by stream, epoch desc, seq desc`,
    [link],
  );
  return Object.fromEntries(sealed.map(({ stream, ...last }) => [stream, last]));
}

function shorten(row: AckRow, share: number): StreamAck {
  const extra = row.extra ?? [];
  const missing = row.missing ?? [];
  const rejected = row.rejected ?? [];
  const ranges = Math.floor(MAX_RANGES * share);
  const rejections = Math.max(1, Math.floor(MAX_REJECTIONS * share));
  return {
    epoch: row.epoch,
    contiguous: row.contiguous,
    digest: row.digest,
    extra: extra.slice(0, ranges),
    missing: missing.slice(0, ranges),
    rejected: rejected.slice(0, rejections),
    more: extra.length > ranges || missing.length > ranges || rejected.length > rejections,
  };
}

/** What the import of an acknowledgement changed. */
export type AckOutcome = { acked: number; alarms: SallyportError[] };

/**
 * Merges what the far side says it has of ours, and closes the batches it applied or refused. A claim
 * that cannot be true (a digest or a number that we never sealed) changes nothing and is an alarm.
 */
export async function mergeAck(
  tx: Transaction,
  link: string,
  ack: Ack,
  now: Date,
): Promise<AckOutcome> {
  const outcome: AckOutcome = { acked: 0, alarms: [] };
  for (const [name, told] of Object.entries(ack.streams)) {
    const alarm = await findFork(tx, link, name, told);
    if (alarm) outcome.alarms.push(alarm);
    else outcome.acked += await mergeStream(tx, link, name, ack, told, now);
  }
  return outcome;
}

/** Notes the newest numbers the far side sealed, so that losing the newest batch shows too. */
export async function mergeTail(tx: Transaction, link: string, tail: Tail): Promise<void> {
  for (const [stream, last] of Object.entries(tail)) {
    await tx.raw(
      `update inbound_streams set tail_seq = :seq, tail_digest = :digest
       where link = :link and stream = :stream and epoch = :epoch and tail_seq < :seq`,
      { link, stream, ...last },
    );
  }
}

async function findFork(
  tx: Transaction,
  link: string,
  stream: string,
  told: StreamAck,
): Promise<SallyportError | undefined> {
  const highest = Math.max(told.contiguous, ...told.extra.map(([, last]) => last));
  const [own] = await rows<{ highest: number | null; digest: string | null }>(
    tx,
    `select max(seq) as highest, max(digest) filter (where seq = :contiguous) as digest
     from outbound_batches
     where link = :link and stream = :stream and epoch = :epoch and digest is not null`,
    { link, stream, epoch: told.epoch, contiguous: told.contiguous },
  );
  const expected = told.contiguous === 0 ? ZERO_DIGEST : own?.digest;
  if (highest <= (own?.highest ?? 0) && expected === told.digest) return undefined;
  const found =
    expected === told.digest
      ? `number ${highest}, but ${own?.highest ?? 0} is the last one sealed here`
      : `digest ${told.digest.slice(0, 12)} for number ${told.contiguous}, which is not ours`;
  return new SallyportError('ACK_FORK', `The far side acknowledges ${stream}: ${found}.`, {
    next: 'Nothing was deleted. Find out whether a database was restored on either side.',
  });
}

async function mergeStream(
  tx: Transaction,
  link: string,
  stream: string,
  ack: Ack,
  told: StreamAck,
  now: Date,
): Promise<number> {
  const applied = multirange([
    ...(told.contiguous > 0 ? [[1, told.contiguous] as Range] : []),
    ...told.extra,
  ]);
  // A new incarnation (a restored far side) or epoch replaces what was told under the old one.
  await tx.raw(
    `delete from far_acks where link = :link and stream = :stream
       and (incarnation <> :incarnation or epoch <> :epoch)`,
    { link, stream, incarnation: ack.incarnation, epoch: told.epoch },
  );
  await tx.raw(MERGE_SQL, {
    link,
    stream,
    incarnation: ack.incarnation,
    no: ack.no,
    epoch: told.epoch,
    contiguous: told.contiguous,
    applied,
    missing: JSON.stringify(told.missing),
    rejected: JSON.stringify(told.rejected),
    now,
  });
  for (const refusal of told.rejected) {
    await tx.raw(
      `update outbound_batches set state = 'rejected', far_code = :code, version = version + 1
       where link = :link and stream = :stream and epoch = :epoch and seq = :seq
         and digest = :digest and state in ('sealed', 'ready', 'handed_over')`,
      { link, stream, epoch: told.epoch, ...refusal },
    );
  }
  // With the list of refusals cut, a number beyond its end may be one that was refused.
  const last = told.more && told.rejected.length > 0 ? told.rejected.at(-1)?.seq : undefined;
  const closed = await rows<{ id: string }>(
    tx,
    `update outbound_batches b set state = 'acked', acked_at = :now, version = version + 1
     from far_acks a
     where a.link = :link and a.stream = :stream and b.link = a.link and b.stream = a.stream
       and b.epoch = a.epoch and b.seq <@ a.applied and b.seq <= :last
       and b.state in ('sealed', 'ready', 'handed_over')
     returning b.id`,
    { link, stream, now, last: last ?? Number.MAX_SAFE_INTEGER },
  );
  return closed.length;
}

function multirange(ranges: Range[]): string {
  return `{${ranges.map(([first, last]) => `[${first},${last}]`).join(',')}}`;
}

// The set of applied numbers only grows; what is missing or refused counts from the highest `no` only.
const MERGE_SQL = `
insert into far_acks as known (link, stream, incarnation, no, epoch, contiguous, applied, missing,
                               rejected, updated_at)
values (:link, :stream, :incarnation, :no, :epoch, :contiguous, :applied, :missing, :rejected, :now)
on conflict (link, stream) do update set
  no = greatest(excluded.no, known.no),
  contiguous = greatest(excluded.contiguous, known.contiguous),
  applied = excluded.applied + known.applied,
  missing = case when excluded.no > known.no then excluded.missing else known.missing end,
  rejected = case when excluded.no > known.no then excluded.rejected else known.rejected end,
  updated_at = excluded.updated_at`;

// Per stream: closed and waiting numbers beyond the cursor as ranges, and what they leave open up to
// the newest number that we know of.
const ACK_SQL = `
with beyond as (
  select s.stream,
         range_agg(int8range(b.seq, b.seq, '[]')) filter (where b.state <> 'waiting') as closed,
         range_agg(int8range(b.seq, b.seq, '[]')) as held,
         max(b.seq) as newest
  from inbound_streams s
  join inbound_batches b
    on b.link = s.link and b.stream = s.stream and b.epoch = s.epoch and b.seq > s.contiguous
  where s.link = :link
  group by s.stream
)
select s.stream, s.epoch, s.contiguous, s.contiguous_digest as digest,
  (select json_agg(json_build_array(lower(r), upper(r) - 1))
   from (select r from unnest(y.closed) r limit :ranges) closed) as extra,
  (select json_agg(json_build_array(lower(r), upper(r) - 1))
   from (select r from unnest(
           int8multirange(int8range(s.contiguous + 1,
             greatest(y.newest, s.tail_seq, s.contiguous) + 1)) - coalesce(y.held, '{}')
         ) r limit :ranges) missing) as missing,
  (select json_agg(json_build_object('seq', seq, 'digest', digest, 'code', code))
   from (select seq, digest, code from inbound_batches b
         where b.link = s.link and b.stream = s.stream and b.epoch = s.epoch
           and b.state = 'rejected'
         order by seq limit :rejections) refused) as rejected
from inbound_streams s
left join beyond y on y.stream = s.stream
where s.link = :link
order by s.stream`;
