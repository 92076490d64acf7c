import {
  STREAMS,
  STREAM_NAMES,
  SallyportError,
  rows,
  withAdvisoryLock,
  type Database,
  type StreamName,
} from '@sallyport/shared';
import { findLink, type Link } from '../keys/links.js';
import type { Node } from '../node.js';
import { repetition } from './one-way.js';
import { multirange, rangesText, toRanges, type Range } from '../format/ranges.js';
import { oweSnapshot } from './refusals.js';
import { publishBatch, tidyOutbox, type StoredBatch } from './store.js';

/** Numbers of one stream that were published again, and those whose bytes are gone. */
export type Resent = { stream: StreamName; published: number[]; gone: number[] };

const HOUR_MS = 3_600_000;
const PAGE = 500;
/** Most numbers that one call publishes; the next one goes on. */
const MAX_NUMBERS = 10_000;

/**
 * Publishes again, with the same bytes, what is due: numbers that the far side misses (at once, then
 * at most once per gap time of their lane), what a restored far side has lost, announcements of keys
 * and epochs until they are acknowledged, and, over a one-way link, everything several times.
 * An ordered stream whose bytes are gone owes a snapshot. Safe to run from several processes.
 * @throws SallyportError `outbox-unwritable`.
 */
export async function resendMissing(db: Database, node: Node): Promise<Resent[]> {
  const link = await findLink(db);
  if (!link) return [];
  const held = await withAdvisoryLock(db, 'sallyport resend', async () => {
    if (node.options.oneWay) await tidyOutbox(db, node);
    return publishAll(db, node, (after) => findDue(db, node, link, after));
  });
  const resent = held?.done ?? [];
  for (const { stream, gone } of resent) {
    if (gone.length === 0) continue;
    const numbers = rangesText(toRanges(gone));
    node.log.error({ stream, numbers }, 'bytes of missing batches are gone from the store');
    const newest = gone.at(-1) ?? 0;
    if (STREAMS[stream].order === 'ordered') await oweUnlessSent(db, node, link, stream, newest);
  }
  return resent;
}

/**
 * Publishes numbers of our present epoch again now, or with `missing` those that the far side was last
 * known to miss; written-off ones stay written off.
 * @throws SallyportError `usage` for a stream that this network does not send, `not-found` for numbers
 * that were never sealed, `outbox-unwritable`.
 */
export async function resendNumbers(
  db: Database,
  node: Node,
  { stream, ranges }: { stream: string; ranges: readonly Range[] | 'missing' },
): Promise<Resent> {
  const name = requireOwnStream(node, stream);
  const link = await findLink(db);
  if (!link) {
    throw new SallyportError('not-trusted', 'No far side is trusted yet, so nothing was sent.', {
      next: 'Run keys trust with the card of the other network.',
    });
  }
  const find = (after: StoredBatch | undefined) =>
    rows<StoredBatch>(db, ranges === 'missing' ? MISSING_SQL : NUMBERS_SQL, {
      link: link.link,
      stream: name,
      after: after?.seq ?? 0,
      ranges: ranges === 'missing' ? null : multirange(ranges),
    });
  const [resent] = await publishAll(db, node, find);
  if (!resent && ranges !== 'missing') {
    throw new SallyportError(
      'not-found',
      `${stream} has no sealed number among ${rangesText(ranges)} that may leave again.`,
      { next: 'link shows what was sealed; what was written off has left under another number.' },
    );
  }
  return resent ?? { stream: name, published: [], gone: [] };
}

/** The name, when this network sends such a stream. */
export function requireOwnStream(node: Node, stream: string): StreamName {
  const name = STREAM_NAMES.find((known) => known === stream);
  if (name && STREAMS[name].from.includes(node.role)) return name;
  const mine = STREAM_NAMES.filter((known) => STREAMS[known].from.includes(node.role));
  throw new SallyportError('usage', `This network does not send the stream "${stream}".`, {
    next: `It sends ${mine.join(', ')}.`,
  });
}

async function publishAll(
  db: Database,
  node: Node,
  find: (after: StoredBatch | undefined) => Promise<StoredBatch[]>,
): Promise<Resent[]> {
  const resent = new Map<StreamName, Resent>();
  let after: StoredBatch | undefined;
  for (let done = 0; done < MAX_NUMBERS; done += PAGE) {
    const page = await find(after);
    for (const batch of page) {
      const { stream, seq } = batch;
      const known = resent.get(stream) ?? { stream, published: [], gone: [] };
      resent.set(stream, known);
      if (await publishAgain(db, node, batch)) known.published.push(seq);
      else known.gone.push(seq);
    }
    after = page.at(-1);
    if (page.length < PAGE) break;
  }
  return [...resent.values()];
}

/** @returns false when its bytes are gone. */
async function publishAgain(db: Database, node: Node, batch: StoredBatch): Promise<boolean> {
  try {
    await publishBatch(node, batch);
  } catch (error) {
    if (error instanceof SallyportError && error.code === 'store-bytes-missing') return false;
    throw error;
  }
  await db.raw(
    `update outbound_batches set published_at = ?, publications = publications + 1 where id = ?`,
    [node.clock.now(), batch.id],
  );
  node.log.info({ batch: batch.fileName }, 'batch published again');
  return true;
}

async function findDue(
  db: Database,
  node: Node,
  link: Link,
  after: StoredBatch | undefined,
): Promise<StoredBatch[]> {
  const now = node.clock.now().getTime();
  const cutoffs = STREAM_NAMES.map((stream) => ({
    stream,
    before: new Date(now - node.options.gapHours(stream) * HOUR_MS),
  }));
  const again = repetition(node);
  return rows<StoredBatch>(db, DUE_SQL, {
    link: link.link,
    cutoffs: JSON.stringify(cutoffs),
    afterStream: after?.stream ?? '',
    afterSeq: after?.seq ?? 0,
    times: again?.times ?? 0,
    sealedAfter: again?.sealedAfter ?? null,
    publishedBefore: again?.publishedBefore ?? null,
  });
}

/** A snapshot heals what cannot be sent any more, unless one is on its way. */
async function oweUnlessSent(
  db: Database,
  node: Node,
  { link, epoch }: Link,
  stream: StreamName,
  newest: number,
): Promise<void> {
  await db.transaction(async (tx) => {
    const [sent] = await rows(
      tx,
      `select 1 from outbound_batches where link = ? and stream = ? and epoch = ? and seq > ?
         and kind = 'snapshot' and state <> 'withdrawn' limit 1`,
      [link, stream, epoch, newest],
    );
    const owed = { link, stream, reason: 'store-bytes-missing', since: node.clock.now() };
    if (!sent) await oweSnapshot(tx, owed);
  });
}

const FOUND = `b.id, b.file_name as "fileName", b.stream, b.seq`;

// The numbers that the far side's newest acknowledgement names as missing.
const NAMED = `
named as (
  select a.link, a.stream, a.epoch,
    (select range_agg(int8range((r->>0)::bigint, (r->>1)::bigint, '[]'))
     from jsonb_array_elements(a.missing) r) as numbers
  from far_acks a where a.link = :link and jsonb_array_length(a.missing) > 0
)`;

// What was never published since a far side lost it (published_at is null) is due in any case.
// A far side that missed an announcement can read nothing that follows, so it cannot say so.
const DUE_SQL = `
with ${NAMED}, cutoffs as (
  select * from json_to_recordset(:cutoffs) as c(stream text, before timestamptz)
)
select ${FOUND}
from outbound_batches b
join links l on l.link = b.link and l.epoch = b.epoch
join cutoffs c on c.stream = b.stream
left join named n on n.link = b.link and n.stream = b.stream and n.epoch = b.epoch
where b.link = :link and b.state in ('ready', 'handed_over') and b.file_name is not null
  and (b.stream, b.seq) > (:afterStream, cast(:afterSeq as bigint))
  and (b.published_at is null
    or (b.publications < 2 or b.published_at <= c.before) and (
      b.seq <@ n.numbers
      or b.stream = 'control' and b.seq = 1 and exists (
        select 1 from far_acks a where a.link = b.link and a.stream = b.stream
          and a.epoch < b.epoch and a.updated_at > b.published_at))
    or b.stream = 'control' and b.types->'key.change' is not null and b.published_at <= c.before
    or b.publications < cast(:times as integer)
      and b.sealed_at > cast(:sealedAfter as timestamptz)
      and b.published_at <= cast(:publishedBefore as timestamptz))
order by b.stream, b.seq limit ${PAGE}`;

const SENDABLE = `
from outbound_batches b
join links l on l.link = b.link and l.epoch = b.epoch
where b.link = :link and b.stream = :stream and b.seq > :after
  and b.state in ('sealed', 'ready', 'handed_over', 'acked', 'rejected')`;

const NUMBERS_SQL = `
select ${FOUND} ${SENDABLE} and b.seq <@ cast(:ranges as int8multirange)
order by b.seq limit ${PAGE}`;

const MISSING_SQL = `
with ${NAMED}
select ${FOUND} ${SENDABLE} and b.state in ('ready', 'handed_over')
  and b.seq <@ (select numbers from named n where n.stream = b.stream and n.epoch = b.epoch)
order by b.seq limit ${PAGE}`;
