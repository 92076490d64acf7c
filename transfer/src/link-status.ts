import { rows, type Database, type StreamName } from '@sallyport/shared';
import { findLink, type Link } from './links.js';

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
  oldest_open_at: Date | null;
};

/** How one stream that we receive stands. */
export type ReceivingStatus = {
  stream: StreamName;
  /** Every number up to here is closed. */
  contiguous: number;
  /** The newest number that we know the far side sealed. */
  newest: number;
  /** Numbers between that are not here. */
  missing: number;
  waiting: number;
  last_applied_at: Date | null;
  frozen_code: string | null;
};

export type LinkStatus = {
  link: Link | null;
  sending: SendingStatus[];
  receiving: ReceivingStatus[];
  quarantined: number;
};

/** What has left, what has arrived, and what is missing, for operators. */
export async function readLinkStatus(db: Database): Promise<LinkStatus> {
  const link = await findLink(db);
  const sending = await rows<SendingStatus>(db, SENDING);
  const receiving = await rows<ReceivingStatus>(db, RECEIVING);
  const [counted] = await rows<{ count: number }>(
    db,
    'select count(*) as count from quarantine where decided_at is null',
  );
  return { link: link ?? null, sending, receiving, quarantined: counted?.count ?? 0 };
}

const SENDING = `
with waiting as (
  select stream, count(*) as waiting from outbox_records where batch_id is null group by stream
), sent as (
  select b.stream, max(b.seq) filter (where b.digest is not null) as sealed,
    max(b.seq) filter (where b.handed_over_at is not null) as handed_over,
    max(b.seq) filter (where b.state = 'acked') as acked,
    count(*) filter (where b.state in ('sealed', 'ready', 'handed_over')) as open,
    min(b.sealed_at) filter (where b.state in ('sealed', 'ready', 'handed_over')) as oldest_open_at
  from outbound_batches b
  where b.epoch = (select max(epoch) from outbound_batches n where n.stream = b.stream)
  group by b.stream
)
select stream, coalesce(waiting, 0) as waiting, coalesce(sealed, 0) as sealed,
  coalesce(handed_over, 0) as handed_over, coalesce(acked, 0) as acked,
  coalesce(open, 0) as open, oldest_open_at
from waiting full join sent using (stream)
order by stream`;

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
