import { randomUUID } from 'node:crypto';
import { SallyportError } from '@sallyport/shared';
import { type Carrier, readState, writeState } from './carrier.js';
import { type IndexFile, type MediaIndex, SET_LIMITS } from './media-index.js';
import { type Medium, MEDIUM_FILES, type Space } from './medium.js';
import type { ReadyBatch } from './ready-batches.js';

/** A medium that is plugged in, its room, and the sizes of what lies on it by name. */
export type OpenMedium = { medium: Medium; space: Space; present: ReadonlyMap<string, number> };

/** What goes onto one medium. */
export type Load = OpenMedium & { batches: ReadyBatch[] };

/** A medium of the set that is not plugged in now; `done` when it was written before. */
export type AbsentLoad = {
  id: string;
  label?: string;
  done: boolean;
  batches: ReadyBatch[];
  /** What an earlier run found out about its files. */
  files: IndexFile[];
};

/** Which batch goes where. */
export type SetPlan = {
  set: string;
  loads: Load[];
  absent: AbsentLoad[];
  /** What finds no room, or is too much for one set. */
  left: ReadyBatch[];
};

/** A set whose media are written one after the other. */
type PendingSet = {
  outbox: string;
  size: number;
  set: string;
  media: (MediaIndex['media'][number] & { done: boolean })[];
};

const PENDING_FILE = 'pending-sets.json';
const PENDING_SETS = 20;
const FIXED_BYTES = 1024 * 1024;
/** What one batch adds to the INDEX. */
const INDEX_BYTES = 512;

/**
 * Spreads the batches over the media: each gets its share in bytes, what matters most on the first;
 * what is there already stays where it is. With `size` more than the media that are plugged in, the
 * others are planned with the room of the first, and a set that was begun so is continued.
 * @throws SallyportError usage; medium-full when not even one batch finds room.
 */
export async function planSet(
  carrier: Carrier,
  ready: readonly ReadyBatch[],
  { media, size, outbox }: { media: OpenMedium[]; size?: number | undefined; outbox: string },
): Promise<SetPlan> {
  if (size !== undefined && size > media.length) {
    const pending = (await loadPending(carrier)).find(
      (entry) => entry.outbox === outbox && entry.size === size,
    );
    if (pending) return continueSet(pending, ready, media);
  }
  const missing = Math.max(0, (size ?? 0) - media.length);
  const first = media[0] as OpenMedium;
  const later: Load[] = Array.from({ length: missing }, (_, index) => ({
    medium: {
      root: '',
      id: randomUUID(),
      label: `stick ${media.length + index + 1} of ${size}`,
    },
    space: first.space,
    present: new Map(),
    batches: [],
  }));
  const loads: Load[] = media.map((open) => ({ ...open, batches: [] }));
  const left = spread(ready, [...loads, ...later]);
  if (left.length > 0 && loads.every(({ batches }) => batches.length === 0)) {
    throw fullError(loads, left[0] as ReadyBatch);
  }
  const absent = later
    .filter(({ batches }) => batches.length > 0)
    .map(({ medium: { id, label = '' }, batches }) => ({
      id,
      label,
      done: false,
      batches,
      files: [],
    }));
  return { set: randomUUID(), loads, absent, left };
}

/** The id for the next medium of a set that was begun; undefined when there is none. */
export async function plannedId(
  carrier: Carrier,
  { size, outbox }: { size?: number | undefined; outbox: string },
): Promise<string | undefined> {
  if (size === undefined) return undefined;
  const pending = (await loadPending(carrier)).find(
    (entry) => entry.outbox === outbox && entry.size === size,
  );
  return pending?.media.find(({ done }) => !done)?.id;
}

/** Remembers a set until all of its media are written. */
export async function rememberSet(
  carrier: Carrier,
  { outbox, size, set, media }: PendingSet,
): Promise<void> {
  const others = (await loadPending(carrier)).filter(
    (entry) => entry.outbox !== outbox || entry.size !== size,
  );
  const open = media.some(({ done }) => !done);
  if (!open && others.length === (await loadPending(carrier)).length) return;
  const kept = open ? [...others, { outbox, size, set, media }] : others;
  await writeState(carrier, PENDING_FILE, kept.slice(-PENDING_SETS));
}

/** The sets of which media are still to be written. */
export async function loadPending(carrier: Carrier): Promise<PendingSet[]> {
  return readState<PendingSet[]>(carrier, PENDING_FILE, []);
}

/** What stays free beside so many batches for the INDEX, the texts and folders of the file system. */
export function reserveBytes(batches: number): number {
  return FIXED_BYTES + INDEX_BYTES * batches;
}

/** Gives each batch its place; returns what found none. */
export function spread(ready: readonly ReadyBatch[], loads: readonly Load[]): ReadyBatch[] {
  const reserve = reserveBytes(ready.length);
  const room = loads.map(({ space }) => space.freeBytes - reserve);
  const share = ready.reduce((sum, { bytes }) => sum + bytes, 0) / loads.length;
  const left: ReadyBatch[] = [];
  let current = 0;
  let passed = 0;
  for (const [number, batch] of ready.entries()) {
    const fits = (at: number): boolean => {
      const load = loads[at] as Load;
      if (load.batches.length >= MEDIUM_FILES) return false;
      return costOf(batch, load) <= (room[at] as number);
    };
    // The next medium begins where more than half of a batch would be beyond the share.
    const middle = passed + batch.bytes / 2;
    while (current < loads.length - 1 && middle > share * (current + 1)) current += 1;
    passed += batch.bytes;
    const there = loads.findIndex((load) => load.present.get(batch.name) === batch.bytes);
    const order = [there, current, ...loads.keys()].filter((at) => at >= 0);
    const at = number < SET_LIMITS.files ? order.find(fits) : undefined;
    if (at === undefined) {
      left.push(batch);
      continue;
    }
    const load = loads[at] as Load;
    room[at] = (room[at] as number) - costOf(batch, load);
    load.batches.push(batch);
  }
  return left;
}

function continueSet(
  pending: PendingSet,
  ready: readonly ReadyBatch[],
  media: readonly OpenMedium[],
): SetPlan {
  const byDigest = new Map(ready.map((batch) => [batch.digest, batch]));
  const batchesOf = (files: readonly IndexFile[]) =>
    files.flatMap(({ digest }) => byDigest.get(digest) ?? []);
  const entries = [...pending.media];
  const loads = media.map((open): Load => {
    const mine = entries.findIndex(({ id }) => id === open.medium.id);
    const at = mine === -1 ? entries.findIndex(({ done }) => !done) : mine;
    const [entry] = at === -1 ? [] : entries.splice(at, 1);
    if (!entry) {
      throw new SallyportError('usage', `The set ${pending.set} needs no further medium.`, {
        next: 'Name fewer media, or leave out --set-size to begin a new set.',
      });
    }
    const load: Load = { ...open, batches: [] };
    const [missing] = spread(batchesOf(entry.files), [load]);
    if (missing) throw fullError([load], missing);
    return load;
  });
  const absent = entries.map(({ id, label, done, files }) => ({
    id,
    ...(label === undefined ? {} : { label }),
    done,
    // What the sender has tidied away meanwhile has arrived.
    files: files.filter(({ digest }) => done || byDigest.has(digest)),
    batches: [],
  }));
  const planned = new Set(pending.media.flatMap(({ files }) => files.map(({ digest }) => digest)));
  return {
    set: pending.set,
    loads,
    absent,
    left: ready.filter(({ digest }) => !planned.has(digest)),
  };
}

function costOf(batch: ReadyBatch, { present, space }: Load): number {
  if (present.get(batch.name) === batch.bytes) return 0;
  return Math.ceil(batch.bytes / space.blockBytes) * space.blockBytes;
}

function fullError(loads: readonly Load[], batch: ReadyBatch): SallyportError {
  const found = loads
    .map(({ medium, space }) => `${medium.root} has ${space.freeBytes}`)
    .join(', ');
  return new SallyportError(
    'medium-full',
    `Full: ${found} bytes free, ${batch.name} needs ${batch.bytes} and some room to spare.`,
    { next: 'Nothing was written. Make room, or use a larger medium.' },
  );
}
