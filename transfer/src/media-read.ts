import { createHash, randomBytes } from 'node:crypto';
import { lstat, readdir, realpath, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { type Clock, SallyportError, systemClock } from '@sallyport/shared';
import { claimBatch } from './batch-file.js';
import { removeLeftovers } from './carry.js';
import { type Carrier, loadReadMemory, type ReadMemory, saveReadMemory } from './carrier.js';
import { type SlipEvent, writeCustodySlips } from './custody-slip.js';
import { errorCode, syncDirectory } from './durable-file.js';
import type { Card } from './keys.js';
import type { IndexFile, MediaIndex } from './media-index.js';
import {
  entriesFor,
  type KnownSet,
  newestOf,
  readIndexes,
  type SetState,
  stateOf,
} from './media-sets.js';
import {
  MEDIUM_FILES,
  mediumError,
  readMedium,
  requireStillThere,
  scanMedium,
  type Medium,
  type MediumContent,
  type MediumFile,
} from './medium.js';
import {
  byUrgency,
  type FileFault,
  readReady,
  readWhole,
  type ReadyBatch,
  reopen,
  toFault,
} from './ready-batches.js';

export type ReadOptions = {
  roots: readonly string[];
  /** The inbox. */
  into: string;
  carrier: Carrier;
  /** Only what one of these signed is read. */
  cards?: ReadonlyMap<string, Card>;
  /** Removes from the medium what lies, proven, in the inbox. */
  clear?: boolean;
  /** Copies also what was read before and is not in the inbox any more. */
  again?: boolean;
  clock?: Clock;
  startProgress?: (totalBytes: number) => (bytes: number) => void;
};

/** What became of one medium. */
export type ReadMediumReport = {
  root: string;
  /** Absent where the medium has no mark of ours. */
  id?: string;
  label?: string;
  copied: string[];
  /** Lies in the inbox, every byte right. */
  there: string[];
  /** Was read before; the importer has taken it. */
  before: string[];
  cleared: string[];
  /** Batches that no INDEX names. */
  unlisted: string[];
  /** Named by an INDEX as lying on this medium. */
  lost: string[];
  faults: FileFault[];
  foreign: string[];
  /** The medium itself failed. */
  failure?: { code: string; message: string; next: string | null };
};

export type ReadReport = { media: ReadMediumReport[]; sets: SetState[]; notes: string[] };

type Run = {
  options: ReadOptions;
  memory: ReadMemory;
  clock: Clock;
  inHand: Set<string>;
  onBytes: (bytes: number) => void;
};

type Content = { medium: Pick<Medium, 'root'> & Partial<Medium>; content: MediumContent };

/**
 * Copies the batches of media, in any order, into an inbox: each checked byte by byte against its
 * line 1 and, where an INDEX names it, against that. What is there, or was read before, is not
 * copied again; nothing is removed from a medium unless `clear` is set.
 * @throws SallyportError not-found, usage, medium-invalid.
 */
export async function readMedia(options: ReadOptions): Promise<ReadReport> {
  await requireInbox(options);
  await removeLeftovers(options.into, await readdir(options.into));
  const clock = options.clock ?? systemClock;
  const memory = await loadReadMemory(options.carrier);
  const inHand = new Set(Object.keys(memory));
  const found: Content[] = [];
  const failed: ReadMediumReport[] = [];
  for (const root of options.roots) {
    try {
      const medium = (await readMedium(root)) ?? { root: await realpath(root) };
      found.push({ medium, content: await scanMedium(medium.root) });
    } catch (error) {
      failed.push({ ...emptyReport({ root }), failure: failureOf(error, root) });
    }
  }
  const sizes = found.flatMap(({ content }) => content.batches.map(({ bytes }) => bytes));
  const total = sizes.reduce((sum, bytes) => sum + bytes, 0);
  const onBytes = options.startProgress?.(total) ?? (() => undefined);
  const run: Run = { options, memory, clock, inHand, onBytes };
  const report: ReadReport = { media: failed, sets: [], notes: [] };
  const known: KnownSet[] = [];
  for (const one of found) {
    const read = await readOne(run, one);
    report.media.push(read.report);
    known.push(...read.sets);
    report.notes.push(...read.notes);
  }
  await saveReadMemory(options.carrier, memory);
  const { sets, faults } = newestOf(known);
  report.media[0]?.faults.push(...faults);
  report.sets = sets.map((set) => stateOf(set, inHand));
  return report;
}

async function requireInbox({ into, roots }: ReadOptions): Promise<void> {
  const place = await realpath(into).catch(() => undefined);
  if (place === undefined || !(await lstat(place)).isDirectory()) {
    throw new SallyportError('not-found', `There is no folder ${into} to read into.`);
  }
  for (const root of roots) {
    if ((await realpath(root).catch(() => root)) !== place) continue;
    throw new SallyportError('usage', `${root} is the folder to read into.`);
  }
}

async function readOne(
  run: Run,
  { medium, content }: Content,
): Promise<{ report: ReadMediumReport; sets: KnownSet[]; notes: string[] }> {
  const report = { ...emptyReport(medium), foreign: content.foreign };
  const done: ReadyBatch[] = [];
  const notes: string[] = [];
  let sets: KnownSet[] = [];
  try {
    const indexes = await readIndexes(content, run.options.cards);
    sets = indexes.sets;
    report.faults.push(...indexes.faults, ...strangers(sets, content));
    const entries = entriesFor(sets, medium.id);
    const batches = await peekAll(run, content.batches, report);
    for (const batch of batches) {
      await readBatch(run, { batch, entry: entries.get(basename(batch.path)), report, done });
    }
    const names = new Set(content.batches.map(({ name }) => name));
    report.lost.push(
      ...[...entries.values()]
        .filter(({ file }) => !names.has(file.name) && !run.inHand.has(file.digest))
        .map(({ file }) => file.name),
    );
    if (medium.id !== undefined) await requireStillThere(medium as Medium);
    if (run.options.clear) await clearMedium(run, { content, sets, batches, report });
  } catch (error) {
    report.failure = failureOf(error, medium.root);
  }
  if (medium.id !== undefined) notes.push(...(await leaveSlip(run, medium.id, done)));
  return { report, sets, notes };
}

/** Line 1 of every batch on the medium, what matters most first. */
async function peekAll(
  { options }: Run,
  files: readonly MediumFile[],
  report: ReadMediumReport,
): Promise<ReadyBatch[]> {
  const batches: ReadyBatch[] = [];
  for (const file of files) {
    try {
      batches.push(await readReady(file.path, options.cards));
    } catch (error) {
      if (isOfSystem(error)) await requireReadable(report, error);
      report.faults.push(toFault(error, file.name));
    }
  }
  batches.sort(byUrgency);
  for (const { path } of batches.slice(MEDIUM_FILES)) {
    const message = `Only ${MEDIUM_FILES} files are read from one medium at a time.`;
    report.faults.push({ file: basename(path), code: 'TOO_BIG', message });
  }
  return batches.slice(0, MEDIUM_FILES);
}

type OneBatch = {
  batch: ReadyBatch;
  entry: { file: IndexFile; index: MediaIndex } | undefined;
  report: ReadMediumReport;
  /** What was copied now. */
  done: ReadyBatch[];
};

async function readBatch(run: Run, { batch, entry, report, done }: OneBatch): Promise<void> {
  const { options, memory, inHand } = run;
  const target = join(options.into, batch.name);
  try {
    if (entry) requireAsListed(batch, entry);
    else report.unlisted.push(basename(batch.path));
    if (await isProven(batch, target)) {
      report.there.push(batch.name);
    } else if (Object.hasOwn(memory, batch.digest) && !options.again) {
      report.before.push(batch.name);
      return;
    } else {
      await copyBatch(run, { batch, target, sha256: entry?.file.sha256 });
      report.copied.push(batch.name);
      done.push(batch);
    }
    inHand.add(batch.digest);
    memory[batch.digest] = { medium: report.id ?? '', at: run.clock.now().toISOString() };
  } catch (error) {
    if (isOfSystem(error)) await requireReadable(report, inboxError(error, target));
    if (error instanceof SallyportError && error.code === 'WAIT_DISK') throw error;
    report.faults.push(toFault(error, basename(batch.path)));
  }
}

/**
 * Copies a batch into the inbox under the name that its content gives it.
 * @throws SallyportError as `claimBatch` does; HASH_MISMATCH also when the INDEX says otherwise.
 */
async function copyBatch(
  { onBytes }: Run,
  { batch, target, sha256 }: { batch: ReadyBatch; target: string; sha256: string | undefined },
): Promise<void> {
  const whole = createHash('sha256');
  let left = batch.bytes;
  await claimBatch(batch.path, target, {
    ...(await reopen(batch)),
    temporary: join(target, '..', `.${batch.name}.${randomBytes(8).toString('hex')}.part`),
    mode: 0o644,
    onPiece: (piece) => {
      whole.update(piece);
      left -= piece.length;
      onBytes(piece.length);
      // Before it gets its name, because a batch in the inbox is imported at once.
      if (left === 0 && sha256 !== undefined && whole.digest('hex') !== sha256) {
        throw new SallyportError('HASH_MISMATCH', 'Its bytes are not those the INDEX names.', {
          next: 'Copy the batch again from the sender.',
        });
      }
    },
  });
}

/** Line 1 states the length and the hash of everything, so that a digest stands for all bytes. */
function requireAsListed(
  batch: ReadyBatch,
  { file, index }: { file: IndexFile; index: MediaIndex },
): void {
  const same =
    batch.digest === file.digest &&
    batch.bytes === file.bytes &&
    batch.from === index.from &&
    batch.to === index.to;
  if (!same) throw swapped(batch);
}

function swapped({ path }: ReadyBatch): SallyportError {
  return new SallyportError(
    'index-mismatch',
    `${basename(path)} is not the file that the INDEX names.`,
    { next: 'It was exchanged on the way, or the INDEX is of another medium. Ask the sender.' },
  );
}

/** An INDEX of another pair of networks than the batches beside it. */
function strangers(sets: readonly KnownSet[], { batches }: MediumContent): FileFault[] {
  const targets = new Set(batches.map(({ to }) => to));
  return sets
    .filter(({ index }) => targets.size > 0 && !targets.has(index.to))
    .map(({ index, path }) => ({
      file: basename(path),
      code: 'index-mismatch',
      message: `It is of batches to ${index.to}; on the medium are batches to ${[...targets].join()}.`,
    }));
}

/** Whether the inbox has exactly this batch, every byte right. */
async function isProven(batch: ReadyBatch, path: string): Promise<boolean> {
  try {
    const copy = await readReady(path, undefined);
    if (copy.digest !== batch.digest) return false;
    await readWhole(copy, () => undefined);
    return true;
  } catch (error) {
    if (error instanceof SallyportError || errorCode(error) === 'ENOENT') return false;
    throw error;
  }
}

/** Removes what lies proven in the inbox, and each INDEX of which nothing is left here. */
async function clearMedium(
  { options }: Run,
  now: {
    content: MediumContent;
    sets: readonly KnownSet[];
    batches: readonly ReadyBatch[];
    report: ReadMediumReport;
  },
): Promise<void> {
  const { content, sets, batches, report } = now;
  const left = new Set(content.batches.map(({ name }) => name));
  const changed = new Set<string>();
  for (const batch of batches) {
    if (![...report.copied, ...report.there].includes(batch.name)) continue;
    if (!(await isProven(batch, join(options.into, batch.name)))) continue;
    await rm(batch.path);
    left.delete(basename(batch.path));
    report.cleared.push(batch.name);
    changed.add(join(batch.path, '..'));
  }
  for (const { index, path } of sets) {
    const mine = index.media.find(({ id }) => id === report.id)?.files ?? [];
    if (changed.size > 0 && mine.every(({ name }) => !left.has(name))) {
      await rm(path, { force: true });
      changed.add(join(path, '..'));
    }
  }
  for (const folder of changed) await syncDirectory(folder);
}

/** Leaves a custody slip in the inbox; that it cannot is only a note. */
async function leaveSlip(
  { options, clock }: Run,
  id: string,
  done: readonly ReadyBatch[],
): Promise<string[]> {
  const at = clock.now().toISOString();
  const events = done.map(({ digest, stream, epoch, seq }): SlipEvent => {
    return { digest, stream, epoch, seq, step: 'received', at };
  });
  try {
    const slip = { medium: id, carrier: options.carrier.name, step: 'received' } as const;
    await writeCustodySlips(options.into, slip, events);
    return [];
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return [`No custody slip could be left in ${options.into}: ${why}`];
  }
}

function emptyReport(medium: { root: string; id?: string; label?: string }): ReadMediumReport {
  return {
    ...medium,
    copied: [],
    there: [],
    before: [],
    cleared: [],
    unlisted: [],
    lost: [],
    faults: [],
    foreign: [],
  };
}

/** Whether the system failed, not what the file says. */
function isOfSystem(error: unknown): boolean {
  return !(error instanceof SallyportError) && errorCode(error) !== undefined;
}

/** Goes on when the system cannot read one file of a medium that is still there. */
async function requireReadable({ root, id }: ReadMediumReport, error: unknown): Promise<void> {
  if (!isOfSystem(error) || id === undefined) throw error;
  await requireStillThere({ root, id });
}

/** A failure to write into the inbox is not the medium's. */
function inboxError(error: unknown, target: string): unknown {
  const { path, syscall } = error as NodeJS.ErrnoException;
  const ours = path?.startsWith(join(target, '..')) ?? (syscall === 'write' || syscall === 'fsync');
  if (!ours) return error;
  return new SallyportError('inbox-unwritable', `${join(target, '..')} cannot be written to.`, {
    cause: error,
    next: 'Check the owner and mode of the inbox, and repeat the command.',
  });
}

function failureOf(
  error: unknown,
  root: string,
): { code: string; message: string; next: string | null } {
  const known =
    error instanceof SallyportError && error.code === 'WAIT_DISK'
      ? error
      : mediumError(error, root);
  if (known instanceof SallyportError) {
    return { code: known.code, message: known.message, next: known.next ?? null };
  }
  const code = errorCode(known);
  if (code === undefined) throw known;
  return {
    code,
    message: (known as Error).message,
    next: 'Look at the medium; repeat the command.',
  };
}
