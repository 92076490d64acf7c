import { readdir } from 'node:fs/promises';
import {
  batchCodeKind,
  rows,
  type BatchCode,
  type Database,
  type StreamName,
} from '@sallyport/shared';
import { writeGapCode } from '../format/gap-code.js';
import { findLink, hasValidFarKey, type Link } from '../keys/links.js';
import type { Node } from '../node.js';
import { toRanges, type Range } from '../format/ranges.js';

/** How one stream that we send stands. */
export type SendingStatus = {
  stream: StreamName;
  /** Records that wait for the next batch. */
  waiting: number;
  sealed: number;
  handed_over: number;
  acked: number;
  /** Sealed batches without a receipt. */
  open: number;
  /** Of their files. */
  open_bytes: number;
  oldest_open_at: Date | null;
  /** Open numbers that the far side misses, as it last told. */
  missing: Range[];
  /** Numbers that must leave, and whose bytes are gone from the store. */
  gone: Range[];
  /** Why the far side needs a snapshot; null when it needs none. */
  owes_snapshot: string | null;
};

/** How one stream that we receive stands. */
export type ReceivingStatus = {
  stream: StreamName;
  /** Every number up to here is closed. */
  contiguous: number;
  /** The newest number that we know the far side sealed. */
  newest: number;
  /** How many numbers between are not here, and which; at most the 20 lowest ranges. */
  missing: number;
  gaps: Range[];
  waiting: number;
  last_applied_at: Date | null;
  frozen_code: string | null;
};

export type LinkStatus = {
  link: Link | null;
  sending: SendingStatus[];
  receiving: ReceivingStatus[];
  quarantined: number;
  /** Files that stay in the inbox until something else has come, by the code that says what. */
  inbox: { code: BatchCode; files: number }[];
  /** Whether a key of the far side counts; without one nothing is sealed or taken. */
  far_key: boolean;
};

/** The missing numbers of one stream and the code to read to the sender. */
export type GapCode = { stream: StreamName; epoch: number; ranges: Range[]; code: string };

const MAX_GAPS = 20;
/** Most numbers without a receipt that are looked at one by one. */
const MAX_OPEN = 1_000;

/** What has left, what has arrived, and what is missing, for operators. */
export async function readLinkStatus(db: Database, node: Node): Promise<LinkStatus> {
  const link = await findLink(db);
  const gaps = await readGaps(db);
  const lost = await readLost(db, node);
  const sending = await rows<Omit<SendingStatus, 'missing' | 'gone'>>(db, SENDING);
  const receiving = await rows<Omit<ReceivingStatus, 'gaps'>>(db, RECEIVING);
  const [counted] = await rows<{ count: number }>(
    db,
    'select count(*) as count from quarantine where decided_at is null',
  );
  return {
    link: link ?? null,
    sending: sending.map((one) => ({ ...one, ...lost(one.stream) })),
    receiving: receiving.map((one) => ({
      ...one,
      gaps: gaps.find(({ stream }) => stream === one.stream)?.ranges ?? [],
    })),
    quarantined: counted?.count ?? 0,
    inbox: await countWaiting(db, node),
    far_key: link !== undefined && (await hasValidFarKey(db)),
  };
}

/** What is missing here, with a code per stream that `resend --code` takes on the far side. */
export async function readGapCodes(db: Database, node: Node): Promise<GapCode[]> {
  const link = await findLink(db);
  if (!link) return [];
  const sender = node.role === 'request' ? 'response' : 'request';
  const found = await readGaps(db);
  return found.map((gaps) => ({ ...gaps, code: writeGapCode(link.link, sender, gaps) }));
}

async function countWaiting(db: Database, node: Node): Promise<LinkStatus['inbox']> {
  const noted = await rows<{ name: string; code: BatchCode | 'APPLIED' }>(
    db,
    'select name, code from inbox_seen order by code',
  );
  if (noted.length === 0) return [];
  // What a carrier has taken away again waits no more.
  const there = new Set(await readdir(node.folders.inbox).catch(() => []));
  const counts = new Map<BatchCode, number>();
  for (const { name, code } of noted) {
    if (code === 'APPLIED' || batchCodeKind(code) !== 'wait' || !there.has(name)) continue;
    counts.set(code, (counts.get(code) ?? 0) + 1);
  }
  return [...counts].map(([code, files]) => ({ code, files }));
}

async function readGaps(
  db: Database,
): Promise<{ stream: StreamName; epoch: number; ranges: Range[] }[]> {
  return rows(db, GAPS, { most: MAX_GAPS });
}

/** Of each stream that we send: what the far side misses, and what can leave no more. */
async function readLost(
  db: Database,
  node: Node,
): Promise<(stream: StreamName) => Pick<SendingStatus, 'missing' | 'gone'>> {
  const open = await rows<{
    stream: StreamName;
    seq: number;
    fileName: string;
    named: boolean;
  }>(db, LOST, { most: MAX_OPEN });
  const stored = open.length === 0 ? [] : await readdir(node.folders.store).catch(() => []);
  const there = new Set(stored);
  return (stream) => {
    const mine = open.filter((batch) => batch.stream === stream);
    const numbers = (batches: typeof mine) => toRanges(batches.map(({ seq }) => seq));
    return {
      missing: numbers(mine.filter(({ named }) => named)),
      gone: numbers(mine.filter(({ fileName }) => !there.has(fileName))),
    };
  };
}

const SENDING = `
with waiting as (
  select stream, count(*) as waiting from outbox_records where batch_id is null group by stream
), sent as (
  select b.stream, max(b.seq) filter (where b.digest is not null) as sealed,
    max(b.seq) filter (where b.handed_over_at is not null) as handed_over,
    max(b.seq) filter (where b.state = 'acked') as acked,
    count(*) filter (where b.state in ('sealed', 'ready', 'handed_over')) as open,
    sum(b.file_bytes) filter (where b.state in ('sealed', 'ready', 'handed_over'))::bigint
      as open_bytes,
    min(b.sealed_at) filter (where b.state in ('sealed', 'ready', 'handed_over')) as oldest_open_at
  from outbound_batches b
  where b.epoch = (select max(epoch) from outbound_batches n where n.stream = b.stream)
  group by b.stream
)
select stream, coalesce(waiting, 0) as waiting, coalesce(sealed, 0) as sealed,
  coalesce(handed_over, 0) as handed_over, coalesce(acked, 0) as acked,
  coalesce(open, 0) as open, coalesce(open_bytes, 0) as open_bytes, oldest_open_at, o.reason as owes_snapshot
from waiting full join sent using (stream) full join owed_snapshots o using (stream)
order by stream`;

// Numbers that must leave again, or have never left: those named as missing, those that a restored
// far side has lost, those that are sealed and not published.
const LOST = `
select b.stream, b.seq, b.file_name as "fileName", b.state <> 'sealed' as named
from outbound_batches b
join links l on l.link = b.link and l.epoch = b.epoch
left join far_acks a on a.link = b.link and a.stream = b.stream and a.epoch = b.epoch
where b.file_name is not null and (b.state = 'sealed' or b.state in ('ready', 'handed_over') and (
  b.published_at is null or b.seq <@ (
    select range_agg(int8range((r->>0)::bigint, (r->>1)::bigint, '[]'))
    from jsonb_array_elements(a.missing) r)))
order by b.stream, b.seq limit :most`;

const RECEIVING = `
select s.stream, s.contiguous, greatest(s.tail_seq, s.contiguous, b.newest) as newest,
  greatest(s.tail_seq, s.contiguous, b.newest) - s.contiguous - coalesce(b.beyond, 0) as missing,
  coalesce(b.waiting, 0) as waiting, b.last_applied_at, s.frozen_code
from inbound_streams s
left join lateral (
  select max(seq) as newest, count(*) filter (where seq > s.contiguous) as beyond,
    count(*) filter (where state = 'waiting') as waiting, max(applied_at) as last_applied_at
  from inbound_batches b
  where b.link = s.link and b.stream = s.stream and b.epoch = s.epoch
) b on true
order by s.stream`;

const GAPS = `
with gaps as (
  select s.stream, s.epoch,
    int8multirange(int8range(s.contiguous + 1,
      greatest(max(b.seq), s.tail_seq, s.contiguous) + 1))
    - coalesce(range_agg(int8range(b.seq, b.seq, '[]')) filter (where b.seq is not null), '{}')
    as numbers
  from inbound_streams s
  left join inbound_batches b
    on b.link = s.link and b.stream = s.stream and b.epoch = s.epoch and b.seq > s.contiguous
  group by s.link, s.stream
)
select stream, epoch,
  (select json_agg(json_build_array(lower(r), upper(r) - 1))
   from (select r from unnest(numbers) r limit :most) lowest) as ranges
from gaps where not isempty(numbers) order by stream`;
