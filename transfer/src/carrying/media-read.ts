import { createHash, randomBytes } from 'node:crypto';
import { lstat, readdir, realpath, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { type Clock, SallyportError, systemClock } from '@sallyport/shared';
import { claimBatch, parseBatchName } from '../format/batch-file.js';
import { removeLeftovers } from './carry.js';
import {
  type Carrier,
  listOutboxes,
  loadReadMemory,
  type ReadMemory,
  saveReadMemory,
} from './carrier.js';
import { type SlipEvent, writeCustodySlips } from '../custody/custody-slip.js';
import { errorCode, syncDirectory } from '../format/durable-file.js';
import { describeBatch } from './fill-medium.js';
import type { Card } from '../keys/keys.js';
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
  textPaths,
  type Medium,
  type MediumContent,
  type MediumFile,
} from './medium.js';
import {
  byUrgency,
  type FileFault,
  readReady,
  type ReadyBatch,
  reopen,
  toFault,
} from './ready-batches.js';

export type ReadOptions = {
  roots: readonly string[];
  /** The inbox. */
  into: string;
  /** The outbox of the network nearby, which is never read into. */
  outbox?: string;
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
  /** Neither a mark, nor an INDEX, nor a batch: nobody wrote this for us. */
  empty?: true;
  copied: string[];
  /** Lies in the inbox, every byte right. */
  there: string[];
  /** Every byte was copied in the last hours; the importer has taken it. */
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
  /** SHA-256 of what lies in the inbox, by the digest of the batch. */
  inHand: Map<string, string>;
  onBytes: (bytes: number) => void;
};

type Content = { medium: Pick<Medium, 'root'> & Partial<Medium>; content: MediumContent };

/** How long an importer may take; whatever is not in the inbox after that is copied again. */
const REMEMBER_MS = 4 * 3_600_000;

/**
 * Copies the batches of media, in any order, into an inbox: each checked byte by byte against its
 * line 1 and, where an INDEX names it, against that. What is there, or was read in the last
 * 4 hours with the same bytes, is not copied again; nothing is removed from a medium unless `clear` is set.
 * @throws SallyportError not-found, usage, medium-invalid.
 */
export async function readMedia(options: ReadOptions): Promise<ReadReport> {
  await requireInbox(options);
  await removeLeftovers(options.into, await readdir(options.into));
  const clock = options.clock ?? systemClock;
  const memory = await loadReadMemory(options.carrier);
  const inHand = new Map<string, string>();
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
  await requireReceiver(options, new Set(found.flatMap(({ content }) => tosOf(content))));
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
  for (const { index } of sets) await addInbox(run, index);
  const recent = Object.keys(memory).flatMap((digest): [string, string][] => {
    const sha256 = readLately(run, digest);
    return sha256 === undefined ? [] : [[digest, sha256]];
  });
  report.sets = sets.map((set) => stateOf(set, inHand, new Map(recent)));
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

/**
 * Refuses the folder of a sender: what it holds would pass for what has arrived, and `clear` would
 * take the only copies from the medium.
 * @throws SallyportError usage.
 */
async function requireReceiver(
  { into, carrier, outbox }: ReadOptions,
  tos: ReadonlySet<string>,
): Promise<void> {
  const place = await realpath(into);
  const near = outbox === undefined ? undefined : await realpath(outbox).catch(() => undefined);
  const ofNode =
    basename(place) === 'outbox' &&
    (await lstat(join(place, '..', 'store')).catch(() => undefined))?.isDirectory() === true;
  if (ofNode || place === near || (await listOutboxes(carrier)).includes(place)) {
    throw notInbox(into, 'is an outbox');
  }
  const other = (await readdir(place)).find((name) => {
    const hint = parseBatchName(name);
    return hint !== undefined && tos.size > 0 && !tos.has(hint.to);
  });
  if (other === undefined) return;
  throw notInbox(into, `holds ${other}, which is for another node than ${[...tos].join(', ')}`);
}

function notInbox(into: string, why: string): SallyportError {
  return new SallyportError('usage', `${into} ${why}: nothing is read into it.`, {
    next: 'Name the inbox of the receiving network: --into INBOX.',
  });
}

function tosOf({ batches }: MediumContent): string[] {
  return batches.map(({ to }) => to);
}

async function readOne(
  run: Run,
  { medium, content }: Content,
): Promise<{ report: ReadMediumReport; sets: KnownSet[]; notes: string[] }> {
  const report = { ...emptyReport(medium), foreign: content.foreign };
  const { batches: files, indexes: lists, parts } = content;
  if (medium.id === undefined && files.length + lists.length + parts.length === 0) {
    return { report: { ...report, empty: true }, sets: [], notes: [] };
  }
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
        .filter(({ file }) => !names.has(file.name))
        .filter(({ file }) => run.memory[file.digest]?.sha256 !== file.sha256)
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
    const listed = entry?.file.sha256;
    const there = await hashInInbox(batch, target);
    const lately = options.again ? undefined : readLately(run, batch.digest);
    // Only what must be compared is read before it is copied.
    const compared = there !== undefined || lately !== undefined;
    let sha256 = listed ?? (compared ? (await describeBatch(batch, () => undefined)).sha256 : '');
    if (compared && there === sha256) {
      report.there.push(batch.name);
    } else if (compared && lately === sha256) {
      report.before.push(batch.name);
      return;
    } else {
      sha256 = await copyBatch(run, { batch, target, sha256: listed });
      report.copied.push(batch.name);
      done.push(batch);
    }
    inHand.set(batch.digest, sha256);
    const at = run.clock.now().toISOString();
    memory[batch.digest] = { medium: report.id ?? '', at, sha256 };
  } catch (error) {
    if (isOfSystem(error)) await requireReadable(report, inboxError(error, target));
    if (error instanceof SallyportError && error.code === 'WAIT_DISK') throw error;
    report.faults.push(toFault(error, basename(batch.path)));
  }
}

/** SHA-256 of every byte that was copied of this batch not long ago. */
function readLately({ memory, clock }: Run, digest: string): string | undefined {
  const read = Object.hasOwn(memory, digest) ? memory[digest] : undefined;
  const ageMs = clock.now().getTime() - Date.parse(read?.at ?? '');
  return ageMs >= 0 && ageMs < REMEMBER_MS ? read?.sha256 : undefined;
}

/**
 * Copies a batch into the inbox under the name that its content gives it.
 * @returns SHA-256 of every byte.
 * @throws SallyportError as `claimBatch` does; HASH_MISMATCH also when the INDEX says otherwise.
 */
async function copyBatch(
  { onBytes }: Run,
  { batch, target, sha256 }: { batch: ReadyBatch; target: string; sha256: string | undefined },
): Promise<string> {
  const whole = createHash('sha256');
  let found = '';
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
      if (left === 0) found = whole.digest('hex');
      if (left === 0 && sha256 !== undefined && found !== sha256) {
        throw new SallyportError('HASH_MISMATCH', 'Its bytes are not those the INDEX names.', {
          next: 'Copy the batch again from the sender.',
        });
      }
    },
  });
  return found;
}

/** A digest stands for all bytes but those of the signature. */
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

/** SHA-256 of this batch in the inbox; undefined unless its body is there, every byte right. */
async function hashInInbox(
  batch: Pick<ReadyBatch, 'digest'>,
  path: string,
): Promise<string | undefined> {
  try {
    const copy = await readReady(path, undefined);
    if (copy.digest !== batch.digest) return undefined;
    return (await describeBatch(copy, () => undefined)).sha256;
  } catch (error) {
    if (error instanceof SallyportError || errorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

/** What earlier media of a set brought lies in the inbox, perhaps. */
async function addInbox({ options, inHand }: Run, { media }: MediaIndex): Promise<void> {
  for (const file of media.flatMap(({ files }) => files)) {
    if (inHand.has(file.digest)) continue;
    const path = join(options.into, basename(file.name));
    const sha256 = await hashInInbox(file, path).catch(() => undefined);
    if (sha256 === file.sha256) inHand.set(file.digest, sha256);
  }
}

/** Removes what lies proven in the inbox, and each INDEX of which nothing is left here. */
async function clearMedium(
  { options, inHand }: Run,
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
    const copy = await hashInInbox(batch, join(options.into, batch.name));
    if (copy === undefined || copy !== inHand.get(batch.digest)) continue;
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
  if (report.id !== undefined && changed.size > 0) {
    // They tell what lay here before.
    for (const path of Object.values(await textPaths({ root: report.root, id: report.id }))) {
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
