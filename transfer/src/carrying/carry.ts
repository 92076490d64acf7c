import type { Stats } from 'node:fs';
import { lstat, readdir, readFile, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { SallyportError, STREAMS } from '@sallyport/shared';
import {
  batchBytes,
  batchName,
  checkLength,
  claimBatch,
  type HeaderLine,
  isBatchFileName,
  parseBatchName,
  readHeaderLine,
  verifyBytes,
} from '../format/batch-file.js';
import { errorCode, writeFileDurably } from '../format/durable-file.js';
import { type Card, parseCard } from '../keys/keys.js';
import { type Header, type Manifest, readHeader, verifyHeader } from '../format/manifest.js';

/** Cards by key id. */
export type Cards = ReadonlyMap<string, Card>;

/** What was found out about one batch file. */
export type Verdict = {
  file: string;
  ok: boolean;
  /** Whether the signature was checked by a card that was handed in. */
  signature: 'valid' | 'not checked';
  /** Absent where line 1 cannot be read. */
  header?: Header;
  /** Things worth knowing that are no fault: codes of kind info. */
  notes: { code: 'NAME_HINT_WRONG'; message: string }[];
  /** Why it is not in order. */
  fault?: { code: string; message: string; next: string | null };
};

/**
 * Checks one batch file as an importer would before it opens the body: line 1, the signature if
 * `cards` are given, length, hash. A file that is not in order, or not there (`not-found`), gives a
 * verdict, it does not throw.
 * @throws system errors of reading as they come.
 */
export async function verifyBatch(
  path: string,
  cards: Cards | undefined,
  startBytes?: (total: number) => (bytes: number) => void,
): Promise<Verdict> {
  const verdict: Verdict = { file: path, ok: false, signature: 'not checked', notes: [] };
  try {
    const head = await readHeaderLine(path);
    if (cards) {
      verdict.header = await verifyHeader(head.line, (kid) => cards.get(kid));
      verdict.signature = 'valid';
    } else {
      verdict.header = readHeader(head.line);
    }
    const { manifest, digest } = verdict.header;
    noteName(verdict, batchName(manifest, digest));
    requireComplete(head, manifest);
    const onBytes = startBytes?.(head.size);
    await verifyBytes(path, { line: head.line, manifest }, onBytes);
    return { ...verdict, ok: true };
  } catch (error) {
    const { code, message, next } = toFault(error, path);
    return { ...verdict, fault: { code, message, next: next ?? null } };
  }
}

function toFault(error: unknown, path: string): SallyportError {
  if (error instanceof SallyportError) return error;
  switch (errorCode(error)) {
    case 'ENOENT':
    case 'ENOTDIR':
      return new SallyportError('not-found', `There is no file ${path}.`, {
        cause: error,
        next: 'Check the name and the folder.',
      });
    case 'EACCES':
    case 'EPERM':
      return new SallyportError('not-found', `There is no right to read ${path}.`, {
        cause: error,
        next: 'Check its owner and mode.',
      });
    default:
      throw error;
  }
}

/**
 * The cards in a file, or in all `*.json` files of a folder.
 * @throws SallyportError card-invalid, not-found.
 */
export async function readCards(path: string): Promise<Cards> {
  const found = await stat(path).catch((cause: unknown) => {
    throw new SallyportError('not-found', `There is no card ${path}.`, { cause });
  });
  const files = found.isDirectory()
    ? (await readdir(path)).filter((name) => name.endsWith('.json')).map((name) => join(path, name))
    : [path];
  const cards = await Promise.all(
    files.map(async (file) => parseCard(await readFile(file, 'utf8'))),
  );
  if (cards.length === 0) {
    throw new SallyportError('not-found', `There is no card (*.json) in the folder ${path}.`);
  }
  return new Map(cards.map((card) => [card.kid, card]));
}

/** What a round of {@link carryOnce} did with one file. */
export type CarryEvent =
  | { event: 'carried'; file: string; bytes: number }
  /** Not whole yet; looked at again in the next round. */
  | { event: 'waiting'; file: string; code: string; message: string }
  /** Damaged at the source; told once. */
  | { event: 'refused'; file: string; code: string; message: string }
  /** It alone cannot be read or put in its place (a system error); tried again in the next round. */
  | { event: 'failed'; file: string; code: string; message: string };

/**
 * Files that need no second look, by name, size and time: what was carried stays carried even when
 * the importer has removed it from its inbox.
 */
export type CarryMemory = Map<string, string>;

/** How a folder is carried. */
export type CarryOptions = {
  /** A file that was touched less long ago is left for a later round; 0 unless set. */
  settleMs?: number;
  /** Removes a file from `from` once it is whole in `to`. */
  move?: boolean;
};

/**
 * Copies every whole batch file in `from` that was not carried before into `to`, the lane that
 * matters most first: checked byte for byte, under a temporary name, synced, renamed. Copies of more
 * than an hour ago that a carrier left unfinished in `to` are removed; nothing else is touched. Of
 * `to` it needs no more than the names and what has the name of the batch: it may be the near end of
 * a one-way line.
 * @throws SallyportError WAIT_DISK when `to` is full; system errors of the folders as they come.
 */
export async function carryOnce(
  from: string,
  to: string,
  memory: CarryMemory,
  { settleMs = 0, move = false }: CarryOptions = {},
): Promise<CarryEvent[]> {
  const names = (await readdir(from)).filter(isBatchFileName).sort(byLane);
  // Also tells at once that the target is missing, when there is nothing to carry yet.
  const there = new Set(await readdir(to));
  await removeLeftovers(to, there);
  const events: CarryEvent[] = [];
  const present = new Set<string>();
  for (const name of names) {
    const found = await lstat(join(from, name)).catch(() => undefined);
    if (!found) continue;
    present.add(name);
    const mark = `${found.size}:${found.mtimeMs}`;
    if (memory.get(name) === mark || !isSettled(found, settleMs)) continue;
    const event = await carryFile(name, { from, to, found, there: there.has(name) });
    if (event?.event !== 'waiting' && event?.event !== 'failed') memory.set(name, mark);
    if (event) events.push(event);
    if (move && (await mayRemove(event, join(to, name))))
      await rm(join(from, name), { force: true });
  }
  for (const name of memory.keys()) if (!present.has(name)) memory.delete(name);
  return events;
}

/**
 * Runs {@link carryOnce} every so many milliseconds until `signal` aborts. A folder that is missing,
 * full or read-only is told once and tried again.
 */
export async function watchFolders(
  from: string,
  to: string,
  options: {
    intervalMs: number;
    signal: AbortSignal;
    /** How each round carries. */
    carry?: CarryOptions;
    /** Keeps the memory across restarts. */
    stateFile?: string;
    onEvent: (event: CarryEvent) => void;
    onTrouble: (message: string) => void;
  },
): Promise<void> {
  const memory = await readMemory(options.stateFile);
  let told: ReadonlyMap<string, string> = new Map();
  let trouble = '';
  while (!options.signal.aborted) {
    try {
      const before = options.stateFile === undefined ? '' : JSON.stringify([...memory]);
      const again = new Map<string, string>();
      for (const event of await carryOnce(from, to, memory, options.carry)) {
        const text = JSON.stringify(event);
        if (told.get(event.file) !== text) options.onEvent(event);
        if (event.event === 'waiting' || event.event === 'failed') again.set(event.file, text);
      }
      told = again;
      if (options.stateFile !== undefined) {
        const after = JSON.stringify([...memory]);
        if (after !== before) await writeFileDurably(options.stateFile, Buffer.from(after));
      }
      trouble = '';
    } catch (error) {
      const message = describeTrouble(error);
      if (message !== trouble) options.onTrouble(`${message} It is tried again by itself.`);
      trouble = message;
    }
    await setTimeout(options.intervalMs, undefined, { signal: options.signal }).catch(() => {});
  }
}

/** One sentence on why a round failed, the same each time that it fails so. */
export function describeTrouble(error: unknown): string {
  if (error instanceof SallyportError) return `${error.code}: ${error.message}`;
  const raw = pathOf(error) ?? '';
  const path = isLeftoverName(basename(raw)) ? dirname(raw) : raw;
  switch (errorCode(error)) {
    case 'ENOENT':
      return `There is no ${path}; check its name, or plug it in.`;
    case 'EROFS':
      return `The file system of ${path} is read-only; make it writable.`;
    case 'EACCES':
    case 'EPERM':
      return `There is no right to use ${path}; check its owner and mode.`;
    default:
      return `${path === '' ? '' : `${path}: `}${causeOf(error)}.`;
  }
}

function pathOf(error: unknown): string | undefined {
  return error instanceof Error && 'path' in error ? String(error.path) : undefined;
}

/** What the system said, without the paths that follow it: they may have a random name in them. */
function causeOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return errorCode(error) === undefined ? error.message : (error.message.split(', ', 1)[0] ?? '');
}

/** Whether the target has every byte: just copied, or found there and read. */
async function mayRemove(event: CarryEvent | undefined, target: string): Promise<boolean> {
  if (event) return event.event === 'carried';
  return (await verifyBatch(target, undefined)).ok;
}

/** Neither written nor renamed lately; a clock that is behind the file's does not hold it for ever. */
function isSettled({ mtimeMs, ctimeMs }: Stats, settleMs: number): boolean {
  const now = Date.now();
  return [mtimeMs, ctimeMs].every((time) => Math.abs(now - time) >= settleMs);
}

type Errand = { from: string; to: string; found: Stats; there: boolean };

/** Carries one file; undefined when it is there already or has gone meanwhile. */
async function carryFile(
  name: string,
  { from, to, found, there }: Errand,
): Promise<CarryEvent | undefined> {
  const source = join(from, name);
  const target = join(to, name);
  try {
    const head = await readHeaderLine(source);
    const { manifest } = readHeader(head.line);
    requireComplete(head, manifest);
    if (there && (await isFolder(target))) {
      return { event: 'failed', file: name, code: 'EISDIR', message: FOLDER_IN_PLACE };
    }
    if (there && (await isSame(head, target))) return undefined;
    await claimBatch(source, target, { line: head.line, manifest, mode: 0o644 });
    return { event: 'carried', file: name, bytes: found.size };
  } catch (error) {
    if (!(error instanceof SallyportError)) {
      const system = errorCode(error);
      if (system === 'ENOENT' && !(await exists(source))) return undefined;
      if (system === undefined || isOfFolder(error, [source, target])) throw error;
      return { event: 'failed', file: name, code: system, message: describeFailure(error) };
    }
    const { code, message } = error;
    if (code === 'WAIT_DISK') throw error;
    // A copy that was still growing while it was read is whole in a later round.
    const unfinished = code === 'INCOMPLETE' || code === 'TRUNCATED';
    return { event: unfinished ? 'waiting' : 'refused', file: name, code, message };
  }
}

const FOLDER_IN_PLACE =
  'A folder of this name is in its place; move that away. It is tried again by itself.';

/** Whether a system error would meet every file: the target is gone, read-only or not ours. */
function isOfFolder(error: unknown, files: readonly string[]): boolean {
  const code = errorCode(error) ?? '';
  if (['ENOENT', 'EROFS', 'EMFILE', 'ENFILE'].includes(code)) return true;
  // Only the temporary file is opened under another name than these.
  const opening = (error as NodeJS.ErrnoException).syscall === 'open';
  return opening && code !== 'ENAMETOOLONG' && !files.includes(pathOf(error) ?? '');
}

/** Cause and next step; without temporary names, so that it is told once. */
function describeFailure(error: unknown): string {
  switch (errorCode(error)) {
    case 'EISDIR':
    case 'ENOTEMPTY':
    case 'EEXIST':
      return FOLDER_IN_PLACE;
    case 'EACCES':
    case 'EPERM':
      return 'There is no right to read or replace it; check owner and mode on both sides.';
    default:
      return `${causeOf(error)}; check both disks. It is tried again by itself.`;
  }
}

/** What `watch` and `read` call a copy under way. */
const LEFTOVER_NAME = /^(?:(.+)\.[0-9a-f]{16}\.tmp|\.(.+)\.[0-9a-f]{16}\.part)$/;
/** No copy under way is that old: each piece that is written makes it new. */
const LEFTOVER_MS = 3_600_000;

function isLeftoverName(name: string): boolean {
  const [, carried, read] = LEFTOVER_NAME.exec(name) ?? [];
  return isBatchFileName(carried ?? read ?? '');
}

/** Removes what killed carriers left half copied. What cannot be removed does no harm; it stays. */
export async function removeLeftovers(to: string, names: Iterable<string>): Promise<void> {
  for (const name of names) {
    if (!isLeftoverName(name)) continue;
    const path = join(to, name);
    const found = await lstat(path).catch(() => undefined);
    if (!found?.isFile() || Date.now() - found.mtimeMs < LEFTOVER_MS) continue;
    await rm(path, { force: true }).catch(() => undefined);
  }
}

/** Same size and same line 1, which states the hash of the rest. */
async function isSame(head: HeaderLine, target: string): Promise<boolean> {
  try {
    const other = await readHeaderLine(target);
    return other.size === head.size && other.line.equals(head.line);
  } catch (error) {
    if (error instanceof SallyportError || errorCode(error) === 'ENOENT') return false;
    throw error;
  }
}

function requireComplete(head: HeaderLine, manifest: Manifest): void {
  if (checkLength(head.size, head.line, manifest) === 'complete') return;
  const stated = batchBytes(head.line, manifest);
  throw new SallyportError('INCOMPLETE', `It has ${head.size} bytes, line 1 states ${stated}.`, {
    next: 'Wait for the copy to finish; if it does not grow, copy the file again.',
  });
}

function noteName(verdict: Verdict, expected: string): void {
  if (basename(verdict.file) === expected) return;
  verdict.notes.push({
    code: 'NAME_HINT_WRONG',
    message: `By its content its name is ${expected}.`,
  });
}

function byLane(a: string, b: string): number {
  return laneOf(a) - laneOf(b) || (a < b ? -1 : 1);
}

function laneOf(name: string): number {
  const hint = parseBatchName(name);
  return hint ? STREAMS[hint.stream].lane : Number.MAX_SAFE_INTEGER;
}

async function readMemory(stateFile: string | undefined): Promise<CarryMemory> {
  if (stateFile === undefined) return new Map();
  try {
    return new Map(JSON.parse(await readFile(stateFile, 'utf8')) as [string, string][]);
  } catch (error) {
    // A lost memory costs a second copy, which the importer drops as a duplicate.
    if (errorCode(error) === 'ENOENT' || error instanceof SyntaxError) return new Map();
    throw error;
  }
}

async function isFolder(path: string): Promise<boolean> {
  return lstat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}

async function exists(path: string): Promise<boolean> {
  return lstat(path).then(
    () => true,
    () => false,
  );
}
