import { createHash } from 'node:crypto';
import { realpath } from 'node:fs/promises';
import { basename } from 'node:path';
import { SallyportError } from '@sallyport/shared';
import { type BadMedium, type Carrier, listBadMedia } from './carrier.js';
import { errorCode } from '../format/durable-file.js';
import type { Card } from '../keys/keys.js';
import { loadPending } from './media-plan.js';
import {
  entriesFor,
  newestOf,
  readIndexes,
  type KnownSet,
  type SetState,
  stateOf,
} from './media-sets.js';
import { mediumError, readMedium, scanMedium, type Medium, spaceOf } from './medium.js';
import { readBack, type ReadBackWay } from './read-back.js';
import {
  type FileFault,
  listReady,
  readReady,
  readWhole,
  type ReadyBatch,
  toFault,
} from './ready-batches.js';

/** What lies in one place. */
export type PlaceStatus = {
  path: string;
  /** `medium` where it has a mark of ours. */
  kind: 'medium' | 'folder';
  id?: string;
  label?: string;
  /** It failed before: never used again. */
  bad?: BadMedium;
  freeBytes: number;
  batches: number;
  bytes: number;
  byStream: Record<string, { batches: number; bytes: number; first: number; last: number }>;
  waiting: FileFault[];
  faults: FileFault[];
  foreign: string[];
  parts: number;
  /** With `verify`: how sure the reading was. */
  way?: ReadBackWay;
};

export type StatusReport = {
  places: PlaceStatus[];
  sets: SetState[];
  bad: BadMedium[];
  /** Sets of which media are still to be written. */
  toDo: { set: string; outbox: string; media: { id: string; label?: string; files: number }[] }[];
};

export type StatusOptions = {
  paths: readonly string[];
  carrier: Carrier;
  cards?: ReadonlyMap<string, Card>;
  /** Reads every byte, past the page cache where that is possible. */
  verify?: boolean;
  startProgress?: (totalBytes: number) => (bytes: number) => void;
};

/**
 * Says what lies where, and what is missing of the sets that the media belong to. It changes nothing.
 * @throws SallyportError not-found, medium-gone, medium-invalid.
 */
export async function mediaStatus(options: StatusOptions): Promise<StatusReport> {
  const bad = await listBadMedia(options.carrier);
  const places: PlaceStatus[] = [];
  const known: KnownSet[] = [];
  const inHand = new Set<string>();
  for (const path of options.paths) {
    try {
      const medium = await readMedium(path);
      const { place, sets, batches } = medium
        ? await lookAtMedium(options, medium)
        : await lookAtFolder(options, path);
      const failed = bad.find((entry) => entry.medium === medium?.id);
      places.push({ ...place, ...(failed ? { bad: failed } : {}) });
      known.push(...sets);
      for (const { digest } of batches) inHand.add(digest);
    } catch (error) {
      throw mediumError(error, path);
    }
  }
  const { sets, faults } = newestOf(known);
  places[0]?.faults.push(...faults);
  const toDo = (await loadPending(options.carrier)).map(({ set, outbox, media }) => ({
    set,
    outbox,
    media: media
      .filter(({ done }) => !done)
      .map(({ id, label, files }) => ({
        id,
        ...(label === undefined ? {} : { label }),
        files: files.length,
      })),
  }));
  return { places, sets: sets.map((set) => stateOf(set, inHand)), bad, toDo };
}

type Looked = { place: PlaceStatus; sets: KnownSet[]; batches: ReadyBatch[] };

async function lookAtMedium(options: StatusOptions, medium: Medium): Promise<Looked> {
  const { root, id, label } = medium;
  const content = await scanMedium(root);
  const { sets, faults } = await readIndexes(content, options.cards);
  const entries = entriesFor(sets, id);
  const batches: ReadyBatch[] = [];
  for (const file of content.batches) {
    await noteFault(faults, file.name, async () => {
      const batch = await readReady(file.path, options.cards);
      const entry = entries.get(file.name)?.file;
      if (entry && (entry.digest !== batch.digest || entry.bytes !== batch.bytes)) {
        throw new SallyportError('index-mismatch', 'It is not the file that the INDEX names.');
      }
      batches.push(batch);
    });
  }
  const place: PlaceStatus = {
    ...summary(root, batches),
    kind: 'medium',
    id,
    ...(label === undefined ? {} : { label }),
    freeBytes: (await spaceOf(root)).freeBytes,
    faults,
    foreign: content.foreign,
    parts: content.parts.length,
  };
  const there = new Set(content.batches.map(({ name }) => name));
  for (const { file } of entries.values()) {
    if (there.has(file.name)) continue;
    const message = 'The INDEX says that it lies here; it does not.';
    place.faults.push({ file: file.name, code: 'not-found', message });
  }
  if (options.verify) {
    const sums = new Map([...entries.values()].map(({ file }) => [file.name, file.sha256]));
    place.way = await verifyAll(options, { batches, faults, sums });
  }
  return { place, sets, batches };
}

async function lookAtFolder(options: StatusOptions, path: string): Promise<Looked> {
  const root = await realpath(path);
  const { ready, waiting, refused, foreign } = await listReady(root, options.cards);
  const place: PlaceStatus = {
    ...summary(root, ready),
    freeBytes: (await spaceOf(root)).freeBytes,
    waiting,
    faults: refused,
    foreign,
  };
  if (options.verify) {
    const found = { batches: ready, faults: refused, sums: new Map<string, string>() };
    place.way = await verifyAll(options, found);
  }
  return { place, sets: [], batches: ready };
}

/** Every byte from the medium, compared with the INDEX and with line 1. */
async function verifyAll(
  options: StatusOptions,
  of: { batches: readonly ReadyBatch[]; faults: FileFault[]; sums: ReadonlyMap<string, string> },
): Promise<ReadBackWay> {
  const total = of.batches.reduce((sum, { bytes }) => sum + bytes, 0);
  const onBytes = options.startProgress?.(total) ?? (() => undefined);
  let way: ReadBackWay = 'direct';
  for (const batch of of.batches) {
    await noteFault(of.faults, basename(batch.path), async () => {
      const back = await readBack(batch.path, { onBytes });
      if (back.way !== 'direct' && way !== 'cached') way = back.way;
      const whole = createHash('sha256');
      await readWhole(batch, (piece) => whole.update(piece));
      const expected = of.sums.get(basename(batch.path)) ?? whole.digest('hex');
      if (back.sha256 === expected) return;
      throw new SallyportError(
        'read-back-differs',
        `It gives back SHA-256 ${back.sha256}, expected ${expected}.`,
      );
    });
  }
  return way;
}

/** A failure of one file is noted; one of the whole medium is thrown. */
async function noteFault(
  faults: FileFault[],
  file: string,
  look: () => Promise<void>,
): Promise<void> {
  try {
    await look();
  } catch (error) {
    const gone = !(error instanceof SallyportError) && errorCode(error) !== undefined;
    if (gone) throw error;
    faults.push(toFault(error, file));
  }
}

function summary(path: string, batches: readonly ReadyBatch[]): PlaceStatus {
  const byStream: PlaceStatus['byStream'] = {};
  for (const { stream, bytes, seq } of batches) {
    const sum = (byStream[stream] ??= { batches: 0, bytes: 0, first: seq, last: seq });
    sum.batches += 1;
    sum.bytes += bytes;
    sum.first = Math.min(sum.first, seq);
    sum.last = Math.max(sum.last, seq);
  }
  return {
    path,
    kind: 'folder',
    freeBytes: 0,
    batches: batches.length,
    bytes: batches.reduce((sum, { bytes }) => sum + bytes, 0),
    byStream,
    waiting: [],
    faults: [],
    foreign: [],
    parts: 0,
  };
}
