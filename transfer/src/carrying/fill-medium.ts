import { createHash } from 'node:crypto';
import { type FileHandle, rm } from 'node:fs/promises';
import { basename } from 'node:path';
import { type Clock, SallyportError } from '@sallyport/shared';
import { claimBatch } from '../format/batch-file.js';
import { type Carrier, rememberBad } from './carrier.js';
import { errorCode } from '../format/durable-file.js';
import {
  type IndexFile,
  type MediaIndex,
  SET_LIMITS,
  type VerifiedIndex,
  verifyIndex,
} from './media-index.js';
import type { Load } from './media-plan.js';
import {
  batchPath,
  indexPath,
  type Medium,
  mediumError,
  readSmall,
  requireHeld,
  requireStillThere,
  scanMedium,
  type Space,
  spaceOf,
  textPaths,
  writeOnMedium,
} from './medium.js';
import { paperSlip, readMeText } from './paper-slip.js';
import { type ReadBack, readBack, type ReadBackWay } from './read-back.js';
import {
  type FileFault,
  readReady,
  readWhole,
  type ReadyBatch,
  reopen,
  toFault,
} from './ready-batches.js';

/** The two things a medium can lie about; replaced in tests. */
export type MediaAccess = {
  spaceOf: (root: string) => Promise<Space>;
  readBack: (path: string, options: { onBytes?: (bytes: number) => void }) => Promise<ReadBack>;
};
export const REAL_ACCESS: MediaAccess = { spaceOf, readBack };

/** What became of one medium. */
export type WrittenMedium = {
  root: string;
  id: string;
  label?: string;
  /** `safe`: every byte came back right; `unproven`: perhaps from memory only. */
  state: 'safe' | 'unproven' | 'not-safe';
  way: ReadBackWay;
  /** What lies on it, proven as `way` says. */
  files: IndexFile[];
  copied: number;
  there: number;
  foreign: string[];
  fault?: { code: string; message: string; next: string | null };
};

/** What the writing of one set shares. */
export type WriteRun = {
  carrier: Carrier;
  access: MediaAccess;
  clock: Clock;
  /** The folders of the media, by id, open since before the first byte was written. */
  held: ReadonlyMap<string, FileHandle>;
  /** Batches that turn out to be damaged are added. */
  refused: FileFault[];
  onBytes: (bytes: number) => void;
};

type Placed = { file: IndexFile; target: string };

/** Copies what goes onto one medium; while one file is written the one before is read back. */
export async function fillMedium(run: WriteRun, load: Load): Promise<WrittenMedium> {
  const { root, id, label } = load.medium;
  const written: WrittenMedium = {
    root,
    id,
    ...labelled(label),
    state: 'not-safe',
    way: 'direct',
    files: [],
    copied: 0,
    there: 0,
    foreign: [],
  };
  let proving: Promise<void> = Promise.resolve();
  try {
    written.foreign = (await scanMedium(root)).foreign;
    for (const batch of load.batches) {
      if (await isThere(run, load, { batch, written })) continue;
      const placed = await placeBatch(run, load.medium, batch);
      await proving;
      if (!placed) continue;
      proving = prove(run, written, placed);
      // Heard at the next turn.
      proving.catch(() => undefined);
    }
    await proving;
  } catch (error) {
    await proving.catch(() => undefined);
    written.fault = faultOf(mediumError(error, root));
  }
  return written;
}

/** Whether the batch lies there already, every byte right. */
async function isThere(
  { access, onBytes, refused }: WriteRun,
  { medium, present }: Load,
  { batch, written }: { batch: ReadyBatch; written: WrittenMedium },
): Promise<boolean> {
  if (present.get(batch.name) !== batch.bytes) return false;
  const file = await describeBatch(batch, onBytes).catch((error: unknown) => {
    noteRefused(refused, batch, error);
    return undefined;
  });
  // A source that is damaged now was not, perhaps, when it was copied: what lies there stays.
  if (!file) return true;
  const back = await access.readBack(batchPath(medium, batch.to, batch.name), { onBytes });
  if (back.sha256 !== file.sha256) return false;
  written.way = worse(written.way, back.way);
  written.files.push(file);
  written.there += 1;
  return true;
}

/** Copies a batch; undefined when the source, not the medium, is at fault. */
async function placeBatch(
  { refused, onBytes }: WriteRun,
  medium: Medium,
  batch: ReadyBatch,
): Promise<Placed | undefined> {
  const target = batchPath(medium, batch.to, batch.name);
  const whole = createHash('sha256');
  try {
    const header = await reopen(batch);
    await claimBatch(batch.path, target, {
      ...header,
      mode: 0o644,
      temporary: `${target}.part`,
      onPiece: (piece) => {
        whole.update(piece);
        onBytes(piece.length);
      },
    });
    return { target, file: indexFile(batch, whole.digest('hex')) };
  } catch (error) {
    if (!isOfSource(error, batch)) throw error;
    noteRefused(refused, batch, error);
    return undefined;
  }
}

function isOfSource(error: unknown, batch: ReadyBatch): boolean {
  if (error instanceof SallyportError) return error.code !== 'WAIT_DISK';
  const { path, syscall } = error as NodeJS.ErrnoException;
  return path === batch.path || syscall === 'read';
}

/** Reads a file back and compares; a medium that gives back other bytes is never used again. */
async function prove(
  run: WriteRun,
  written: WrittenMedium,
  { file, target }: Placed,
): Promise<void> {
  const back = await run.access.readBack(target, { onBytes: run.onBytes });
  written.way = worse(written.way, back.way);
  if (back.sha256 === file.sha256) {
    written.files.push(file);
    written.copied += 1;
    return;
  }
  await rm(target, { force: true }).catch(() => undefined);
  throw await differs(run, written, {
    file: file.name,
    found: back.sha256,
    expected: file.sha256,
  });
}

async function differs(
  { carrier, clock }: WriteRun,
  { id, root }: WrittenMedium,
  { file, found, expected }: { file: string; found: string; expected: string },
): Promise<SallyportError> {
  await rememberBad(carrier, { medium: id, at: clock.now().toISOString(), file });
  return new SallyportError(
    'read-back-differs',
    `${root} gave back other bytes of ${file}: SHA-256 ${found}, expected ${expected}.`,
    { next: 'Do not use this medium again; write the same batches onto another one.' },
  );
}

/** Puts the INDEX, then the texts, onto a medium that holds its files, and proves them, too. */
export async function finishMedium(
  run: WriteRun,
  written: WrittenMedium,
  { index, sha256, bytes }: VerifiedIndex & { bytes: Buffer },
): Promise<void> {
  if (written.fault) return;
  const medium: Medium = written;
  try {
    await requireStillThere(medium);
    const { readMe, slip } = await textPaths(medium);
    const facts = { index, sha256, medium };
    const own: [path: string, bytes: Buffer][] = [
      [indexPath(medium, index.set), bytes],
      [readMe, Buffer.from(readMeText(facts))],
      [slip, Buffer.from(paperSlip(facts))],
    ];
    for (const [path, content] of own) {
      await writeOnMedium(path, content);
      const back = await run.access.readBack(path, {});
      written.way = worse(written.way, back.way);
      const expected = createHash('sha256').update(content).digest('hex');
      if (back.sha256 === expected) continue;
      throw await differs(run, written, { file: basename(path), found: back.sha256, expected });
    }
    await removeReplaced(medium, index);
    await requireAllThere(medium, index);
    await requireStillThere(medium);
    const held = run.held.get(medium.id);
    if (held) await requireHeld(medium, held);
    written.state = written.way === 'cached' ? 'unproven' : 'safe';
  } catch (error) {
    written.fault = faultOf(mediumError(error, medium.root));
  }
}

/** Every file that the INDEX names there has its size and line 1: a twin plugged in has not. */
async function requireAllThere(medium: Medium, index: MediaIndex): Promise<void> {
  for (const { name, bytes, digest } of index.media.find(({ id }) => id === medium.id)?.files ??
    []) {
    const found = await readReady(batchPath(medium, index.to, name), undefined);
    if (found.bytes === bytes && found.digest === digest) continue;
    throw new SallyportError('medium-gone', `${name} on ${medium.root} is not what was written.`, {
      next: 'Was the medium changed for another one? Repeat the command.',
    });
  }
}

/** Removes INDEX files that name nothing beyond the new one. */
async function removeReplaced(medium: Medium, index: MediaIndex): Promise<void> {
  const names = new Set(index.media.flatMap(({ files }) => files.map(({ name }) => name)));
  const { indexes } = await scanMedium(medium.root);
  for (const path of indexes) {
    if (path === indexPath(medium, index.set)) continue;
    const old = await readSmall(path, SET_LIMITS.indexBytes)
      .then(verifyIndex)
      .catch(() => undefined);
    const known = old?.index.media.every(({ files }) => files.every(({ name }) => names.has(name)));
    if (known) await rm(path, { force: true });
  }
}

/** Notes why a batch of the outbox was not used; what was tidied away meanwhile needs no carrying. */
export function noteRefused(refused: FileFault[], { path }: ReadyBatch, error: unknown): void {
  if (errorCode(error) !== 'ENOENT') refused.push(toFault(error, basename(path)));
}

/** A batch as the INDEX names it; every byte is read and checked. */
export async function describeBatch(
  batch: ReadyBatch,
  onBytes: (bytes: number) => void,
): Promise<IndexFile> {
  const whole = createHash('sha256');
  await readWhole(batch, (piece) => {
    whole.update(piece);
    onBytes(piece.length);
  });
  return indexFile(batch, whole.digest('hex'));
}

function indexFile(batch: ReadyBatch, sha256: string): IndexFile {
  const { name, bytes, digest, stream, epoch, seq } = batch;
  return { name, bytes, sha256, digest, stream, epoch, seq };
}

function worse(a: ReadBackWay, b: ReadBackWay): ReadBackWay {
  const order: readonly ReadBackWay[] = ['direct', 'dropped', 'cached'];
  return order.indexOf(a) > order.indexOf(b) ? a : b;
}

/** A failure of one medium for the report; bugs pass through. */
function faultOf(error: unknown): { code: string; message: string; next: string | null } {
  if (error instanceof SallyportError) {
    return { code: error.code, message: error.message, next: error.next ?? null };
  }
  const code = errorCode(error);
  if (code === undefined) throw error;
  const message = (error as Error).message;
  return { code, message, next: 'Look at the medium, and repeat the command.' };
}

/** An optional member. */
export function labelled(label: string | undefined): { label?: string } {
  return label === undefined ? {} : { label };
}
