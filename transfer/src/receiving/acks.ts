import { createHash } from 'node:crypto';
import {
  SallyportError,
  preparedRows,
  rows,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import type { BatchKey } from '../custody/custody.js';
import { ZERO_DIGEST, type Ack, type Tail } from '../format/manifest.js';
import { multirange, type Range } from '../format/ranges.js';
import type { LostBatch } from '../sending/network-rules.js';

/** Most ranges and rejections told of one stream. */
const MAX_RANGES = 200;
const MAX_REJECTIONS = 50;
/** What an ack may take of line 1, whose limit is 64 KiB of base64url. */
const MAX_ACK_BYTES = 36 * 1024;
/** No honest far side signs so many manifests between two that arrive here. */
const MAX_LEAP = 1_000_000_000;
/** The incarnation of which every other one is a successor. */
const NOBODY = '00000000-0000-0000-0000-000000000000';

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
  const shortenAll = (share: number): Ack['streams'] =>
    Object.fromEntries(streams.map((row) => [row.stream, shorten(row, share)]));
  let share = 1;
  let told = shortenAll(share);
  // With many holes in many streams the lists are cut further: `more` says so, and the reader takes
  // nothing for applied beyond the last refusal that it was told.
  while (JSON.stringify(told).length > MAX_ACK_BYTES) told = shortenAll((share /= 2));
  await noteTold(tx, link, no, told);
  return { no, incarnation: incarnation?.id ?? '', streams: told };
}

/**
 * Notes since which manifest without a break each refusal has been told, so that it can be left out
 * once one of these is known to have been applied.
 */
async function noteTold(
  tx: Transaction,
  link: string,
  no: number,
  streams: Ack['streams'],
): Promise<void> {
  const listed = Object.entries(streams).flatMap(([stream, { rejected }]) =>
    rejected.map(({ seq }) => ({ stream, seq })),
  );
  if (listed.length === 0) return;
  await tx.raw(NOTE_TOLD, { link, no, listed: JSON.stringify(listed) });
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

/** What the import of an acknowledgement changed; `alarms` have the stream in `extra`. */
export type AckOutcome = {
  /** The batches that are known as applied from now on. */
  receipts: BatchKey[];
  refused: (LostBatch & { link: string })[];
  /** Applied in an epoch before the present one, and forgotten by a restore of the far side. */
  forgotten: (LostBatch & { link: string })[];
  alarms: SallyportError[];
};

/**
 * Merges what the far side says it has of ours, and closes the batches it applied or refused. A claim
 * that cannot be true (a digest or a number that we never sealed) changes nothing and is an alarm; one
 * from before the far side's restore, or about an epoch that we have left, changes nothing.
 */
export async function mergeAck(
  tx: Transaction,
  link: string,
  ack: Ack,
  now: Date,
): Promise<AckOutcome> {
  const outcome: AckOutcome = { receipts: [], refused: [], forgotten: [], alarms: [] };
  const epoch = await noteIncarnation(tx, link, ack, now);
  if (epoch === undefined) {
    const leap = await findLeap(tx, link, ack);
    if (leap) outcome.alarms.push(leap);
    return outcome;
  }
  const repeated = await noteRepeated(tx, link, ack, now);
  for (const [name, told] of Object.entries(ack.streams)) {
    const stream = name as StreamName;
    if (repeated.has(stream)) continue;
    if (told.epoch < epoch) {
      const lost = await noteOldEpoch(tx, { link, stream, ack, told, now }, epoch);
      outcome.forgotten.push(...lost.map((batch) => ({ ...batch, link })));
      continue;
    }
    const alarm = await findFork(tx, link, stream, told);
    if (alarm) outcome.alarms.push(alarm);
    else await mergeStream(tx, { link, stream, ack, told, now }, outcome);
  }
  return outcome;
}

/** Notes the newest numbers the far side sealed, so that losing the newest batch shows too. */
export async function mergeTail(tx: Transaction, link: string, tail: Tail): Promise<void> {
  const told = Object.entries(tail).map(([stream, last]) => ({ stream, ...last }));
  await preparedRows(tx, MERGE_TAIL, { link, told: JSON.stringify(told) });
}

const MERGE_TAIL = `
update inbound_streams s set tail_seq = t.seq, tail_digest = t.digest
from json_to_recordset(:told) as t(stream text, epoch integer, seq bigint, digest text)
where s.link = :link and s.stream = t.stream and s.epoch = t.epoch and s.tail_seq < t.seq`;

/**
 * Forgets in what order the far side told what it has, because not everything that told it was the
 * far side, or because it begins anew: its next acknowledgement counts whatever it is called, and
 * what that does not name as applied is published again.
 */
export async function forgetAcks(tx: Transaction, link: string): Promise<void> {
  await tx.raw(
    'update links set far_no = 0, far_incarnation = null, far_told_epoch = 0 where link = ?',
    [link],
  );
  await tx.raw('delete from far_incarnations where link = ?', [link]);
  await tx.raw(
    `update far_acks set incarnation = '${NOBODY}', no = 0, contiguous = 0, applied = '{}',
       missing = '[]', rejected = '[]', told_digest = null where link = ?`,
    [link],
  );
  await tx.raw(`update inbound_batches set told_no = null where link = ? and state = 'rejected'`, [
    link,
  ]);
}

/**
 * Finds out whether the far side speaks from its present database.
 * @returns our sending epoch; undefined when the acknowledgement is from before its restore, or its
 * number leaps.
 */
async function noteIncarnation(
  tx: Transaction,
  link: string,
  { incarnation, no, streams }: Ack,
  now: Date,
): Promise<number | undefined> {
  const [noted] = await preparedRows<{ epoch: number; before: string | null }>(
    tx,
    NOTE_INCARNATION,
    {
      link,
      incarnation,
      no,
      told: Math.max(0, ...Object.values(streams).map(({ epoch }) => epoch)),
    },
  );
  if (!noted) return undefined;
  if (noted.before !== null && noted.before !== incarnation) {
    await tx.raw(
      `insert into far_incarnations (link, incarnation, ended_at) values (?, ?, ?)
       on conflict do nothing`,
      [link, noted.before, now],
    );
    // What the far side was told before it may have forgotten.
    await tx.raw(
      `update inbound_batches set told_no = null where link = ? and state = 'rejected'`,
      [link],
    );
  }
  return noted.epoch;
}

async function findLeap(
  tx: Transaction,
  link: string,
  { no }: Ack,
): Promise<SallyportError | undefined> {
  const [known] = await rows<{ no: number }>(
    tx,
    'select far_no as no from links where link = ? and cast(? as bigint) > far_no + ?',
    [link, no, MAX_LEAP],
  );
  if (!known) return undefined;
  return new SallyportError(
    'ACK_FORK',
    `The far side numbers its acknowledgement ${no}, after ${known.no}: it was not taken.`,
    { next: 'Ask the far side whether its key was stolen; keys revoke KID forgets what it told.' },
  );
}

/** The streams of which nothing else is told than by the newest acknowledgement merged: most of them. */
async function noteRepeated(
  tx: Transaction,
  link: string,
  { incarnation, no, streams }: Ack,
  now: Date,
): Promise<Set<StreamName>> {
  const told = Object.entries(streams).map(([stream, one]) => ({ stream, digest: digestOf(one) }));
  const repeated = await preparedRows<{ stream: StreamName }>(tx, NOTE_REPEATED, {
    link,
    incarnation,
    no,
    now,
    told: JSON.stringify(told),
  });
  return new Set(repeated.map(({ stream }) => stream));
}

function digestOf(told: StreamAck): string {
  return createHash('sha256').update(JSON.stringify(told)).digest('hex');
}

async function findFork(
  tx: Transaction,
  link: string,
  stream: StreamName,
  told: StreamAck,
): Promise<SallyportError | undefined> {
  const { epoch, contiguous, rejected } = told;
  const highest = Math.max(contiguous, ...told.extra.map(([, last]) => last));
  const [own] = await rows<{
    current: number;
    highest: number | null;
    digest: string | null;
    foreign: number | null;
  }>(tx, OWN_NUMBERS, { link, stream, epoch, contiguous, rejected: JSON.stringify(rejected) });
  const expected = contiguous === 0 ? ZERO_DIGEST : own?.digest;
  let found: string;
  if (epoch > (own?.current ?? 0)) {
    found = `epoch ${epoch}, but we are in epoch ${own?.current ?? 0}`;
  } else if (expected !== told.digest) {
    found = `digest ${told.digest.slice(0, 12)} for number ${contiguous}, which is not ours`;
  } else if (highest > (own?.highest ?? 0)) {
    found = `number ${highest}, but ${own?.highest ?? 0} is the last one sealed here`;
  } else if (own?.foreign) {
    found = `a refusal of number ${own.foreign} with a digest that is not ours`;
  } else {
    return undefined;
  }
  return new SallyportError('ACK_FORK', `The far side acknowledges ${stream}: ${found}.`, {
    next: 'Nothing was deleted. If the database of this network was restored, run re-adopt; else ask the far side.',
    extra: { stream },
  });
}

/**
 * The far side has not heard of our epoch yet. Where it had, a restore made it forget: then it has
 * nothing of this epoch any more, and all of it is published again.
 * @returns what it has forgotten of epochs before, whose numbers cannot be published again.
 */
async function noteOldEpoch(
  tx: Transaction,
  { link, stream, ack, told, now }: Merging,
  epoch: number,
): Promise<LostBatch[]> {
  const key = keyOf(link, stream, ack, told);
  const forgot = await rows(
    tx,
    `delete from far_acks where link = :link and stream = :stream
       and incarnation <> :incarnation returning stream`,
    key,
  );
  await tx.raw(NOTE_OLD_EPOCH, { ...key, now });
  if (forgot.length === 0) return [];
  const nothing = { closed: '{}', refused: '{}', last: Number.MAX_SAFE_INTEGER };
  await tx.raw(REOPEN, { ...key, epoch, ...nothing });
  return rows<LostBatch>(tx, FORGOTTEN, { ...key, ...claimsOf(told), current: epoch });
}

type Merging = { link: string; stream: StreamName; ack: Ack; told: StreamAck; now: Date };

async function mergeStream(
  tx: Transaction,
  { link, stream, ack, told, now }: Merging,
  outcome: AckOutcome,
): Promise<void> {
  const key = keyOf(link, stream, ack, told);
  const [before] = await rows<{ incarnation: string; epoch: number }>(
    tx,
    `delete from far_acks where link = :link and stream = :stream
       and (incarnation <> :incarnation or epoch <> :epoch) returning incarnation, epoch`,
    key,
  );
  const claims = claimsOf(told);
  if (before?.epoch === told.epoch) await tx.raw(REOPEN, { ...key, ...claims });
  const [known] = await rows<{ applied: string }>(tx, MERGE_SQL, {
    ...key,
    ...claims,
    contiguous: told.contiguous,
    missing: JSON.stringify(told.missing),
    rejected: JSON.stringify(told.rejected),
    told: digestOf(told),
    now,
  });
  if (told.rejected.length > 0) {
    const lost = await rows<LostBatch>(tx, CLOSE_REFUSED, {
      ...key,
      rejected: JSON.stringify(told.rejected),
      now,
    });
    outcome.refused.push(...lost.map((batch) => ({ ...batch, link })));
  }
  const acked = await rows<BatchKey>(tx, CLOSE_APPLIED, {
    ...key,
    applied: known?.applied ?? '{}',
    now,
  });
  outcome.receipts.push(...acked);
}

function claimsOf(told: StreamAck): { closed: string; refused: string; last: number } {
  const closed = [...(told.contiguous > 0 ? [[1, told.contiguous] as Range] : []), ...told.extra];
  // With the list of refusals cut, a number beyond its end may be one that was refused.
  const last = told.more ? told.rejected.at(-1)?.seq : undefined;
  const refused = told.rejected.map(({ seq }): Range => [seq, seq]);
  return {
    closed: multirange(closed),
    refused: multirange(refused),
    last: last ?? Number.MAX_SAFE_INTEGER,
  };
}

function keyOf(link: string, stream: StreamName, { incarnation, no }: Ack, { epoch }: StreamAck) {
  return { link, stream, incarnation, no, epoch };
}

// An incarnation that another one has replaced never comes back.
const NOTE_INCARNATION = `
update links l set far_incarnation = :incarnation,
  far_told_epoch = greatest(l.far_told_epoch, :told),
  far_no = case when known.before is distinct from :incarnation then :no
                else greatest(l.far_no, :no) end
from (select far_incarnation as before from links where link = :link for update) known
where l.link = :link and cast(:no as bigint) <= l.far_no + ${MAX_LEAP} and not exists (
  select 1 from far_incarnations p where p.link = l.link and p.incarnation = :incarnation)
returning l.epoch, known.before`;

const NOTE_REPEATED = `
update far_acks f set no = greatest(f.no, :no),
  updated_at = case when f.no < :no then :now else f.updated_at end
from json_to_recordset(:told) as t(stream text, digest text)
where f.link = :link and f.stream = t.stream and f.incarnation = :incarnation
  and f.told_digest = t.digest
returning f.stream`;

// That the far side has not heard of our epoch yet is all that such an acknowledgement tells.
const NOTE_OLD_EPOCH = `
insert into far_acks as known (link, stream, incarnation, no, epoch, contiguous, applied, missing,
                               rejected, updated_at)
values (:link, :stream, :incarnation, :no, :epoch, 0, '{}', '[]', '[]', :now)
on conflict (link, stream) do update set no = excluded.no, updated_at = excluded.updated_at
  where known.epoch = excluded.epoch and known.no < excluded.no`;

const OWN_NUMBERS = `
select
  (select epoch from links where link = :link) as current,
  (select max(seq) from outbound_batches
   where link = :link and stream = :stream and epoch = :epoch and digest is not null) as highest,
  (select digest from outbound_batches
   where link = :link and stream = :stream and epoch = :epoch and seq = :contiguous) as digest,
  (select min(r.seq) from json_to_recordset(:rejected) as r(seq bigint, digest text)
   left join outbound_batches b
     on b.link = :link and b.stream = :stream and b.epoch = :epoch and b.seq = r.seq
   where b.digest is distinct from r.digest) as foreign`;

// What one acknowledgement proves to be applied: all that is closed, but for refusals, of which it
// may name only the lowest.
const PROVEN = `
cast(:closed as int8multirange) * int8multirange(int8range(1, cast(:last as bigint), '[]'))
  - cast(:refused as int8multirange)`;

// What a restored far side has lost is published again. A refusal stands while the number is closed:
// it may have been told before the restore, and is not told twice.
const REOPEN = `
update outbound_batches set state = 'ready', published_at = null, acked_at = null,
  closed_at = null, far_code = null, version = version + 1
where link = :link and stream = :stream and epoch = :epoch and (
  state = 'acked' and not seq <@ (${PROVEN})
  or state = 'rejected' and not seq <@ cast(:closed as int8multirange))`;

const FORGOTTEN = `
select id, stream, epoch, seq, 'OLD_EPOCH' as code from outbound_batches
where link = :link and stream = :stream and state = 'acked' and epoch < :current
  and (epoch > :epoch or epoch = :epoch and not seq <@ (${PROVEN}))
order by epoch, seq for update`;

// What is applied only grows; what is missing or refused counts from the highest `no` only. What was
// told as refused by one acknowledgement is not applied, whatever another leaves out.
const MERGE_SQL = `
with told as (
  select ${PROVEN} as applied
), merged as (
  insert into far_acks as known (link, stream, incarnation, no, epoch, contiguous, applied, missing,
                                 rejected, told_digest, updated_at)
  select :link, :stream, :incarnation, :no, :epoch, :contiguous, applied, :missing, :rejected,
         :told, cast(:now as timestamptz)
  from told
  on conflict (link, stream) do update set
    no = greatest(excluded.no, known.no),
    contiguous = greatest(excluded.contiguous, known.contiguous),
    applied = excluded.applied + known.applied - cast(:refused as int8multirange),
    missing = case when excluded.no > known.no then excluded.missing else known.missing end,
    rejected = case when excluded.no > known.no then excluded.rejected else known.rejected end,
    told_digest = case when excluded.no > known.no then excluded.told_digest
                       else known.told_digest end,
    updated_at = case when excluded.no > known.no then excluded.updated_at else known.updated_at end
)
select applied::text as applied from told`;

const CLOSE_REFUSED = `
update outbound_batches b set state = 'rejected', far_code = r.code, closed_at = :now,
  version = version + 1
from json_to_recordset(:rejected) as r(seq bigint, digest text, code text)
where b.link = :link and b.stream = :stream and b.epoch = :epoch and b.seq = r.seq
  and b.digest = r.digest and b.state in ('sealed', 'ready', 'handed_over')
returning b.id, b.stream, b.epoch, b.seq, b.far_code as code`;

const CLOSE_APPLIED = `
update outbound_batches set state = 'acked', acked_at = :now, closed_at = :now,
  version = version + 1
where link = :link and stream = :stream and epoch = :epoch
  and seq <@ cast(:applied as int8multirange) and state in ('sealed', 'ready', 'handed_over')
returning stream, epoch, seq, digest`;

// The newest of our manifests that the far side is known to have read.
const HEARD = `select max(manifest_no) from outbound_batches where link = :link and state = 'acked'`;

// A row that is locked is told again, which does no harm.
const NOTE_TOLD = `
with noted as (
  select b.id, l.seq is not null as listed
  from inbound_batches b
  join inbound_streams s on s.link = b.link and s.stream = b.stream and s.epoch = b.epoch
  left join json_to_recordset(:listed) as l(stream text, seq bigint)
    on l.stream = b.stream and l.seq = b.seq
  where b.link = :link and b.state = 'rejected' and case
    when l.seq is null then b.told_no > coalesce((${HEARD}), 0)
    else b.told_no is null end
  for update of b skip locked
)
update inbound_batches b set told_no = case when n.listed then cast(:no as bigint) end
from noted n where b.id = n.id`;

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
           and (b.told_no is null or b.told_no > coalesce((${HEARD}), 0))
         order by seq limit :rejections) refused) as rejected
from inbound_streams s
left join beyond y on y.stream = s.stream
where s.link = :link
order by s.stream`;
