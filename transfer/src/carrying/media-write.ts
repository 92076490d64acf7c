import { createHash } from 'node:crypto';
import { type FileHandle, realpath } from 'node:fs/promises';
import { type Clock, SallyportError, systemClock } from '@sallyport/shared';
import {
  type Carrier,
  type IndexSigner,
  loadCarrierKey,
  rememberOutbox,
  requireNotBad,
} from './carrier.js';
import { type SlipEvent, writeCustodySlips } from '../custody/custody-slip.js';
import {
  describeBatch,
  fillMedium,
  finishMedium,
  labelled,
  type MediaAccess,
  noteRefused,
  REAL_ACCESS,
  type WriteRun,
  type WrittenMedium,
} from './fill-medium.js';
import type { Card, NodeKeys } from '../keys/keys.js';
import {
  type IndexFile,
  type MediaIndex,
  SET_LIMITS,
  signIndex,
  type VerifiedIndex,
} from './media-index.js';
import {
  type AbsentLoad,
  type OpenMedium,
  plannedId,
  planSet,
  rememberSet,
  type SetPlan,
} from './media-plan.js';
import { holdMedium, prepareMedium, scanMedium } from './medium.js';
import { type FileFault, listReady, type ReadyBatch } from './ready-batches.js';

export type WriteOptions = {
  /** The outbox. */
  from: string;
  /** Where the media are mounted. */
  roots: readonly string[];
  carrier: Carrier;
  /** Signs the INDEX; the carrier's own key does otherwise. */
  keys?: NodeKeys;
  /** Only what one of these signed is written. */
  cards?: ReadonlyMap<string, Card>;
  /** How many media the set has when not all are plugged in at once. */
  setSize?: number;
  /** Whether the medium is in the carrier's hands with that. */
  handOver?: boolean;
  clock?: Clock;
  access?: MediaAccess;
  /** Called once with the bytes to write and read back; hears of them as they pass. */
  startProgress?: (totalBytes: number) => (bytes: number) => void;
};

export type WriteReport = {
  /** Absent when there was nothing to write. */
  set?: { id: string; from: string; to: string; sha256: string; kid: string; index: MediaIndex };
  media: WrittenMedium[];
  /** Media of the set that are still to be written. */
  toDo: { id: string; label?: string; files: number }[];
  left: ReadyBatch[];
  waiting: FileFault[];
  refused: FileFault[];
  foreign: string[];
  /** Things that went wrong beside the media. */
  notes: string[];
};

type Run = WriteRun & { options: WriteOptions; from: string; to: string };

/**
 * Writes what is ready in an outbox onto media, reads every byte back, and signs an INDEX of the
 * whole set onto each. A medium that fails is reported as not safe; the others go on.
 * @throws SallyportError not-found, usage, medium-full (nothing was written), medium-bad,
 * medium-invalid, medium-unwritable, medium-gone (of a medium that fails before the first batch).
 */
export async function writeMedia(options: WriteOptions): Promise<WriteReport> {
  const found = await listReady(options.from, options.cards);
  const { waiting, refused, foreign } = found;
  const report: WriteReport = {
    media: [],
    toDo: [],
    left: [],
    waiting,
    refused,
    foreign,
    notes: [],
  };
  const [first] = found.ready;
  if (!first) return report;
  requireOnePair(found.ready);
  const access = options.access ?? REAL_ACCESS;
  const clock = options.clock ?? systemClock;
  const outbox = await realpath(options.from);
  await rememberOutbox(options.carrier, outbox);
  const { from, to } = first;
  const media = await openMedia(options, { to, outbox, access, clock });
  const size = options.setSize;
  const held = new Map<string, FileHandle>();
  try {
    for (const { medium } of media) held.set(medium.id, await holdMedium(medium));
    const plan = await planSet(options.carrier, found.ready, { media, size, outbox });
    const toWrite = plan.loads.flatMap(({ batches }) => batches);
    const total = toWrite.reduce((sum, { bytes }) => sum + 2 * bytes, 0);
    const onBytes = options.startProgress?.(total) ?? (() => undefined);
    const { carrier } = options;
    const run: Run = { options, carrier, access, clock, held, refused, from, to, onBytes };
    return await writeSet(run, { plan, outbox, report });
  } finally {
    for (const folder of held.values()) await folder.close().catch(() => undefined);
  }
}

async function writeSet(
  run: Run,
  { plan, outbox, report }: { plan: SetPlan; outbox: string; report: WriteReport },
): Promise<WriteReport> {
  const { options, from, to } = run;
  const size = options.setSize;
  const used = plan.loads.filter(({ batches }) => batches.length > 0);
  for (const load of used) report.media.push(await fillMedium(run, load));
  const absent = await describeAbsent(run, plan, report.media);
  const index = await makeIndex(run, plan, { media: report.media, absent });
  if (index) {
    const { sha256, kid } = index;
    report.set = { id: plan.set, from, to, sha256, kid, index: index.index };
    for (const medium of report.media) await finishMedium(run, medium, index);
    for (const medium of report.media) report.notes.push(...(await leaveSlips(run, medium)));
  }
  if (size !== undefined) {
    const others = report.media.filter(({ id }) => absent.every((medium) => medium.id !== id));
    const written = others.map((medium) => ({
      ...entryOf(medium),
      done: medium.state !== 'not-safe',
    }));
    await rememberSet(options.carrier, {
      outbox,
      size,
      set: plan.set,
      media: [...written, ...absent],
    });
  }
  report.toDo = absent
    .filter(({ done }) => !done)
    .map(({ files, id, label }) => ({ id, ...labelled(label), files: files.length }));
  report.left = leftOver(plan, report.media, absent);
  return report;
}

function requireOnePair(ready: readonly ReadyBatch[]): void {
  const pairs = [...new Set(ready.map(({ from, to }) => `${from} to ${to}`))];
  if (pairs.length === 1) return;
  throw new SallyportError(
    'usage',
    `The folder has batches of several pairs: ${pairs.join(', ')}.`,
    {
      next: 'Write from a folder that has those of one pair.',
    },
  );
}

async function openMedia(
  { roots, carrier, setSize }: WriteOptions,
  how: { to: string; outbox: string; access: MediaAccess; clock: Clock },
): Promise<OpenMedium[]> {
  if (setSize !== undefined && (setSize < roots.length || setSize > SET_LIMITS.media)) {
    throw new SallyportError(
      'usage',
      `--set-size is ${setSize}, expected ${roots.length} (the media named) to ${SET_LIMITS.media}.`,
    );
  }
  const open: OpenMedium[] = [];
  for (const root of roots) {
    if ((await realpath(root).catch(() => root)) === how.outbox) {
      throw new SallyportError('usage', `${root} is the folder to write from.`);
    }
    const id = await plannedId(carrier, { size: setSize, outbox: how.outbox });
    const fresh = id !== undefined && !open.some(({ medium }) => medium.id === id) ? { id } : {};
    const medium = await prepareMedium(root, how.to, { at: how.clock.now(), ...fresh });
    await requireNotBad(carrier, medium.id, root);
    if (open.some((other) => other.medium.id === medium.id)) {
      throw new SallyportError('usage', `The medium at ${root} (${medium.id}) is named twice.`, {
        next: 'If it is a copy of another one, remove SALLYPORT/MEDIUM.json from the copy.',
      });
    }
    const content = await scanMedium(medium.root);
    const mine = content.batches.filter(({ to }) => to === how.to);
    const present = new Map(mine.map(({ name, bytes }) => [name, bytes]));
    open.push({ medium, space: await how.access.spaceOf(medium.root), present });
  }
  return open;
}

/** What is known of the media that are not plugged in, with the hashes of their files. */
async function describeAbsent(
  run: Run,
  { absent, loads }: SetPlan,
  written: readonly WrittenMedium[],
): Promise<(MediaIndex['media'][number] & { done: boolean })[]> {
  const failed = run.options.setSize === undefined ? [] : written.filter(({ fault }) => fault);
  const retry: AbsentLoad[] = failed.map(({ id, label }) => ({
    id,
    ...labelled(label),
    done: false,
    batches: loads.find(({ medium }) => medium.id === id)?.batches ?? [],
    files: [],
  }));
  const described = [];
  for (const { id, label, done, batches, files } of [...absent, ...retry]) {
    const found: IndexFile[] = [...files];
    for (const batch of batches) {
      try {
        found.push(await describeBatch(batch, () => undefined));
      } catch (error) {
        noteRefused(run.refused, batch, error);
      }
    }
    described.push({ id, ...labelled(label), done, files: found });
  }
  return described;
}

/** Undefined when no medium holds anything. */
async function makeIndex(
  { options, clock, from, to }: Run,
  { set }: SetPlan,
  of: { media: readonly WrittenMedium[]; absent: readonly MediaIndex['media'][number][] },
): Promise<(VerifiedIndex & { bytes: Buffer }) | undefined> {
  const sound = of.media.filter(({ fault, files }) => !fault && files.length > 0);
  if (sound.length === 0) return undefined;
  const signer: IndexSigner = options.keys
    ? {
        kid: options.keys.kid,
        sign: options.keys.card.sign,
        signKey: options.keys.signKey,
      }
    : await loadCarrierKey(options.carrier);
  const others = of.absent.filter(({ files }) => files.length > 0);
  const index: MediaIndex = {
    v: 1,
    set,
    made_at: clock.now().toISOString(),
    carrier: { name: options.carrier.name.slice(0, 100), sign: signer.sign },
    from,
    to,
    media: [...sound.map(entryOf), ...others.map(entryOf)],
  };
  const bytes = await signIndex(index, signer);
  return {
    index,
    bytes,
    kid: signer.kid,
    sha256: createHash('sha256').update(bytes).digest('hex'),
  };
}

/** Leaves a custody slip in the outbox; that it cannot is only a note. */
async function leaveSlips(
  { options, clock }: Run,
  { state, id, files, way }: WrittenMedium,
): Promise<string[]> {
  if (state === 'not-safe') return [];
  const at = clock.now().toISOString();
  const events = files.flatMap(({ digest, stream, epoch, seq }): SlipEvent[] => {
    const batch = { digest, stream, epoch, seq, at };
    return [
      { ...batch, step: 'written' },
      ...(way === 'cached' ? [] : [{ ...batch, step: 'read_back' } as const]),
      ...(options.handOver ? [{ ...batch, step: 'handed_over' } as const] : []),
    ];
  });
  try {
    const slip = { medium: id, carrier: options.carrier.name, step: 'written' } as const;
    await writeCustodySlips(options.from, slip, events);
    return [];
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return [`No custody slip could be left in ${options.from}: ${why}`];
  }
}

function leftOver(
  { left, loads }: SetPlan,
  media: readonly WrittenMedium[],
  absent: readonly { files: readonly IndexFile[] }[],
): ReadyBatch[] {
  const failed = media.filter(({ state }) => state === 'not-safe').map(({ id }) => id);
  const planned = new Set(absent.flatMap(({ files }) => files.map(({ digest }) => digest)));
  const lost = loads
    .filter(({ medium }) => failed.includes(medium.id))
    .flatMap(({ batches }) => batches.filter(({ digest }) => !planned.has(digest)));
  return [...left, ...lost];
}

function entryOf(medium: MediaIndex['media'][number]): MediaIndex['media'][number] {
  return { id: medium.id, ...labelled(medium.label), files: medium.files };
}
