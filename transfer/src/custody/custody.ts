import {
  newId,
  preparedRows,
  rows,
  shorten,
  type Database,
  type RecordData,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import type { Apply } from '../receiving/apply.js';
import type { Node } from '../node.js';
import { CURRENT_LINK, OUTBOX_INSERT, recordLine } from '../sending/outbox.js';

/** What can happen to a batch, in the order in which it must happen. */
export const CUSTODY_STEPS = [
  'sealed',
  'written',
  'read_back',
  'handed_over',
  'received',
  'verified',
  'applied',
  'receipt',
] as const;
export type CustodyStep = (typeof CUSTODY_STEPS)[number];

/** Who tells of a step: this node, the far node by a control record, a carrier by a slip. */
export type CustodySource = 'own' | 'far' | 'carrier';

/** Which batch: the digest of its manifest names it on both networks. */
export type BatchKey = { stream: StreamName; epoch: number; seq: number; digest: string };

/** One step of one batch. */
export type CustodyNote = BatchKey & {
  step: CustodyStep;
  who: string;
  at: Date;
  medium?: string | null;
  source?: CustodySource;
  /** Whether the far side cannot know of it otherwise and is to be told; `false` unless set. */
  tell?: boolean;
};

/** A step as operators see it. */
export type CustodyEvent = {
  step: CustodyStep;
  who: string;
  at: Date;
  medium: string | null;
  source: CustodySource;
};

const MAX_TEXT = 200;
/** What one far side, or one carrier, may tell of one batch. */
export const MAX_TOLD = 64;
const YEAR_MS = 365 * 86_400_000;

/**
 * Notes steps in the transaction that makes them true, one statement however many; a step that is
 * noted already changes nothing. What is to be told leaves with the next control batch. Of control
 * batches nothing is told: receipts do not answer receipts.
 */
export async function noteCustody(
  tx: Database,
  notes: readonly CustodyNote[],
  now: Date,
): Promise<void> {
  if (notes.length === 0) return;
  const events = notes.map((note) => {
    const event = { ...note, id: newId(), who: clean(note.who), medium: cleaned(note.medium) };
    return { ...event, line: isTold(note) ? custodyLine(event, now) : null };
  });
  const column = <T>(read: (event: (typeof events)[number]) => T): T[] => events.map(read);
  await preparedRows(tx, NOTE_SQL, {
    ids: column(({ id }) => id),
    streams: column(({ stream }) => stream),
    epochs: column(({ epoch }) => epoch),
    seqs: column(({ seq }) => seq),
    digests: column(({ digest }) => digest),
    steps: column(({ step }) => step),
    whos: column(({ who }) => who),
    ats: column(({ at }) => at.toISOString()),
    media: column(({ medium }) => medium),
    sources: column(({ source }) => source ?? 'own'),
    lines: column(({ line }) => line),
    now,
  });
}

/** Keeps what the far side tells of steps: the first of each stays, and at most 64 of one batch. */
export const applyCustody: Apply = async (tx, batch, now) => {
  await tx.raw(
    `insert into custody_events (id, link, stream, epoch, seq, digest, step, who, at, medium,
                                 source, recorded_at)
     select id, :link, d->>'stream', (d->>'epoch')::integer, (d->>'seq')::bigint, d->>'digest',
            d->>'step', d->>'who', least((d->>'at')::timestamptz, cast(:now as timestamptz)),
            d->>'medium', 'far', cast(:now as timestamptz)
     from (
       select id, d, row_number() over (partition by d->>'digest' order by line) as n
       from incoming where t = 'custody' and d->>'stream' <> 'control'
     ) told
     where n + (select count(*) from custody_events c
                where c.digest = d->>'digest' and c.source = 'far') <= ${MAX_TOLD}
     on conflict do nothing`,
    { link: batch.link, now },
  );
};

/**
 * Everything known of a batch's way, in the order in which it must have happened: the clocks of two
 * networks are shown, not compared.
 */
export async function readCustody(db: Database, digest: string): Promise<CustodyEvent[]> {
  return rows<CustodyEvent>(
    db,
    `select step, who, at, medium, source from custody_events where digest = ?
     order by array_position(?::text[], step), at, source limit 1000`,
    [digest, [...CUSTODY_STEPS]],
  );
}

/**
 * Notes that somebody took sealed batches away, on which medium where known.
 * @returns the batches that were not handed over before.
 */
export async function markHandedOver(
  tx: Transaction,
  { ids, by, medium, at }: { ids: string[]; by: string; medium: string | null; at: Date },
): Promise<BatchKey[]> {
  const moved = await rows<BatchKey>(
    tx,
    `update outbound_batches set state = 'handed_over', handed_over_at = :at,
       handed_over_by = :by, medium = :medium, version = version + 1
     where id = any(:ids) and state in ('sealed', 'ready')
     returning stream, epoch, seq, digest`,
    { ids, by: clean(by), medium: cleaned(medium), at },
  );
  for (const stream of new Set(moved.map((batch) => batch.stream))) {
    await tx.raw(`select pg_notify('sallyport_sealed', ?)`, [stream]);
  }
  return moved;
}

/** Deletes what is older than a year. */
export async function pruneCustody(db: Database, node: Node): Promise<number> {
  const deleted = await rows(db, 'delete from custody_events where recorded_at < ? returning id', [
    new Date(node.clock.now().getTime() - YEAR_MS),
  ]);
  return deleted.length;
}

/** How much one source has told of each of some batches. */
export async function countTold(
  db: Database,
  digests: string[],
  source: CustodySource,
): Promise<Map<string, number>> {
  const told = await rows<{ digest: string; count: number }>(
    db,
    `select digest, count(*) as count from custody_events
     where digest = any(?) and source = ? group by digest`,
    [digests, source],
  );
  return new Map(told.map(({ digest, count }) => [digest, count]));
}

function isTold({ tell, stream }: CustodyNote): boolean {
  return (tell ?? false) && stream !== 'control';
}

function custodyLine(event: CustodyNote & { id: string }, now: Date): string {
  const { id, stream, epoch, seq, digest, step, who, at, medium } = event;
  const data: RecordData<'custody'> = {
    ...{ stream, epoch, seq, digest, step, who },
    at: at.toISOString(),
    medium: medium ?? null,
  };
  return recordLine({ type: 'custody', id, data }, now);
}

/** Names and media come from people and from sticks: no control characters, a bounded length. */
function clean(text: string): string {
  return shorten(text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, ' '), MAX_TEXT);
}

function cleaned(text: string | null | undefined): string | null {
  return text === null || text === undefined ? null : clean(text);
}

const NOTE_SQL = `
with told as (
  select * from unnest(cast(:ids as uuid[]), cast(:streams as text[]), cast(:epochs as integer[]), cast(:seqs as bigint[]),
      cast(:digests as text[]), cast(:steps as text[]), cast(:whos as text[]), cast(:ats as timestamptz[]), cast(:media as text[]),
      cast(:sources as text[]), cast(:lines as text[])) with ordinality
    as e (id, stream, epoch, seq, digest, step, who, at, medium, source, line, n)
), noted as (
  insert into custody_events (id, link, stream, epoch, seq, digest, step, who, at, medium, source,
                              recorded_at)
  select id, ${CURRENT_LINK}, stream, epoch, seq, digest, step, who, at, medium, source, cast(:now as timestamptz)
  from told order by n
  on conflict do nothing returning id
)
${OUTBOX_INSERT}
select ${CURRENT_LINK}, 'control', 'custody', told.id, told.line
from told join noted using (id) where told.line is not null order by told.n`;
