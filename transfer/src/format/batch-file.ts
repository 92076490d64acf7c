import { createHash, randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, lstat, open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { STREAM_NAMES, type StreamName, type ErrorCode, SallyportError } from '@sallyport/shared';
import { diskError, errorCode, readRange, syncDirectory, writeAll } from './durable-file.js';
import { BATCH_LIMITS, type Manifest } from './manifest.js';

/** Line 1 of a file without its newline, and what tells one file from another. */
export type HeaderLine = {
  line: Buffer;
  size: number;
  mtimeMs: number;
  ino: number;
  dev: number;
  /** All bytes of a file of at most 64 KiB, as they were when its line 1 was read. */
  whole?: Buffer;
};

export type BatchNameHint = {
  to: string;
  from: string;
  stream: StreamName;
  epoch: number;
  seq: number;
  digest12: string;
};

const BATCH_NAME =
  /^([a-z0-9-]{1,16})\.([a-z0-9-]{1,16})\.([a-z.]+)\.e(\d{4})\.s(\d{12,16})\.([0-9a-f]{12})\.batch$/;
const LF = Buffer.from('\n');
const DAMAGED = 'Copy the file again from the sender.';

/** The file name of a batch: a hint for people and tools, never trusted. */
export function batchName(
  manifest: Pick<Manifest, 'to' | 'from' | 'stream' | 'epoch' | 'seq'>,
  digest: string,
): string {
  const { to, from, stream, epoch, seq } = manifest;
  const number = `e${String(epoch).padStart(4, '0')}.s${String(seq).padStart(12, '0')}`;
  return `${to}.${from}.${stream}.${number}.${digest.slice(0, 12)}.batch`;
}

/** What a file name hints at; undefined when it is not of the form that {@link batchName} makes. */
export function parseBatchName(name: string): BatchNameHint | undefined {
  const match = BATCH_NAME.exec(name);
  const [, to = '', from = '', stream = '', epoch, seq, digest12 = ''] = match ?? [];
  if (!match || !(STREAM_NAMES as readonly string[]).includes(stream)) return undefined;
  return {
    to,
    from,
    stream: stream as StreamName,
    epoch: Number(epoch),
    seq: Number(seq),
    digest12,
  };
}

/** Whether an importer or carrier may open a file of this name. */
export function isBatchFileName(name: string): boolean {
  // A name that is no UTF-8 cannot be opened by what we were told of it.
  const readable = !name.includes('\ufffd');
  return readable && /^[^.~].*\.batch$/i.test(name) && !/sync-conflict/i.test(name);
}

/** Whether a name is that of a copy under way. */
export function isTemporaryName(name: string): boolean {
  return /\.(?:part|tmp|partial|crdownload)$/i.test(name);
}

/** Whether a file of this name is none of ours: told to the operator, never opened. */
export function isForeign(name: string): boolean {
  return !isBatchFileName(name) && !isTemporaryName(name);
}

/**
 * Reads line 1 of a regular file, at most 64 KiB of it; links are not followed and a FIFO does not
 * block.
 * @throws SallyportError NOT_REGULAR_FILE; HEADER_TOO_BIG; INCOMPLETE while there is no newline;
 * NOT_A_BATCH or BAD_HEADER when the first bytes cannot become a line 1.
 */
export async function readHeaderLine(path: string): Promise<HeaderLine> {
  const { file, size, mtimeMs, ino, dev } = await openRegular(path);
  try {
    const head = Buffer.alloc(Math.min(size, BATCH_LIMITS.headerBytes + 1));
    let length = 0;
    while (length < head.length) {
      const { bytesRead } = await file.read(head, length, head.length - length, length);
      if (bytesRead === 0) break;
      length += bytesRead;
    }
    const line = firstLine(head.subarray(0, length));
    const found = { line, size, mtimeMs, ino, dev };
    return length === size ? { ...found, whole: head } : found;
  } finally {
    await file.close();
  }
}

/**
 * Compares a file's size with what its line 1 states.
 * @throws SallyportError TOO_BIG over 3.9 GiB, TRAILING_DATA when there is more than stated.
 */
export function checkLength(size: number, line: Buffer, manifest: Manifest): 'complete' | 'short' {
  const expected = batchBytes(line, manifest);
  if (expected > BATCH_LIMITS.fileBytes) {
    throw refuse('TOO_BIG', `It has ${expected} bytes, a file may have 3.9 GiB.`);
  }
  if (size > expected) {
    throw refuse('TRAILING_DATA', `It has ${size} bytes, line 1 states ${expected}.`);
  }
  return size === expected ? 'complete' : 'short';
}

/** The size of the whole file that line 1 states, in bytes. */
export function batchBytes(line: Buffer, manifest: Manifest): number {
  return line.length + 1 + manifest.body.bytes;
}

/** What is verified after line 1: the line as it was verified, and the manifest in it. */
export type VerifiedHeader = { line: Buffer; manifest: Manifest };

/**
 * Copies a batch whose line 1 has been verified to `target`, which is ours from then on: hashed
 * while it is copied, never beyond the stated size, synced and renamed only if every byte is right.
 * The source is left alone; nothing is left of a copy that failed.
 * @throws SallyportError NOT_REGULAR_FILE, TRUNCATED, TRAILING_DATA, HASH_MISMATCH, WAIT_DISK.
 */
export async function claimBatch(
  source: string,
  target: string,
  header: VerifiedHeader & {
    mode?: number;
    /** The path until it is whole; a random name beside the target unless set. */
    temporary?: string;
    /** All bytes of the source, where they are known: it is not read again. */
    whole?: Buffer | undefined;
    /** Leaves the sync of the folder to the caller, who claims several. */
    unsynced?: boolean;
    /** Hears of each piece while it is written; what it throws ends the copy. */
    onPiece?: (piece: Buffer) => void;
  },
): Promise<void> {
  const temporary = header.temporary ?? `${target}.${randomBytes(8).toString('hex')}.tmp`;
  const file = header.whole ? undefined : (await openRegular(source)).file;
  const pieces = file ? readToEnd(file, header) : [header.whole ?? Buffer.alloc(0)];
  try {
    const copy = await open(temporary, 'wx', header.mode ?? 0o600);
    try {
      await hashBatch(pieces, header, async (piece) => {
        const written = writeAll(copy, piece);
        try {
          header.onPiece?.(piece);
        } finally {
          await written;
        }
      });
      await copy.sync();
    } finally {
      await copy.close();
    }
    await rename(temporary, target);
    if (!header.unsynced) await syncDirectory(dirname(target));
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw diskError(error, target);
  } finally {
    await file?.close();
  }
}

/**
 * Reads every byte of a batch whose line 1 has been verified and compares length, line 1 and hash;
 * `onBytes` hears of each piece. With `whole`, these bytes are compared.
 * @throws SallyportError NOT_REGULAR_FILE, TRUNCATED, TRAILING_DATA, HASH_MISMATCH.
 */
export async function verifyBytes(
  path: string,
  header: VerifiedHeader & { whole?: Buffer },
  onBytes: (bytes: number, piece: Buffer) => void = () => undefined,
): Promise<void> {
  const file = header.whole ? undefined : (await openRegular(path)).file;
  try {
    const pieces = file ? readToEnd(file, header) : [header.whole ?? Buffer.alloc(0)];
    await hashBatch(pieces, header, (piece) => onBytes(piece.length, piece));
  } finally {
    await file?.close();
  }
}

/** What line 1 states, and a byte more if there is one. */
function readToEnd(file: FileHandle, { line, manifest }: VerifiedHeader): AsyncIterable<Buffer> {
  return readRange(file, 0, batchBytes(line, manifest) + 1);
}

/** Passes a file on in pieces, and compares it with what its line 1 states. */
async function hashBatch(
  pieces: AsyncIterable<Buffer> | Iterable<Buffer>,
  { line, manifest }: VerifiedHeader,
  pass: (piece: Buffer) => Promise<void> | void,
): Promise<void> {
  const expected = batchBytes(line, manifest);
  const head = Buffer.concat([line, LF]);
  const body = createHash('sha256');
  let at = 0;
  for await (const piece of pieces) {
    if (at + piece.length > expected) {
      throw refuse('TRAILING_DATA', `It has more than the ${expected} bytes that line 1 states.`);
    }
    const inHead = Math.min(Math.max(head.length - at, 0), piece.length);
    if (!piece.subarray(0, inHead).equals(head.subarray(at, at + inHead))) {
      throw refuse('HASH_MISMATCH', 'Line 1 changed while the file was read.');
    }
    // The system writes the piece while it is hashed here.
    const passed = pass(piece);
    body.update(piece.subarray(inHead));
    at += piece.length;
    await passed;
  }
  if (at < expected) {
    throw refuse('TRUNCATED', `It has ${at} bytes, line 1 states ${expected}.`);
  }
  if (body.digest('hex') !== manifest.body.sha256) {
    throw refuse('HASH_MISMATCH', 'The bytes after line 1 are not those that were signed.');
  }
}

function firstLine(head: Buffer): Buffer {
  const end = head.indexOf(0x0a);
  const line = end === -1 ? head : head.subarray(0, end);
  if (head.length > 0 && head[0] !== 0x7b) {
    if (head[0] === 0xef && head[1] === 0xbb && head[2] === 0xbf) {
      throw refuse('BAD_HEADER', 'It starts with a byte order mark: an editor has changed it.');
    }
    if (head[0] !== 0xef || head.length > 2) {
      throw refuse('NOT_A_BATCH', 'It does not start with a signed manifest.');
    }
  }
  if (line.length > BATCH_LIMITS.headerBytes) {
    throw refuse('HEADER_TOO_BIG', 'Line 1 is longer than 64 KiB.');
  }
  if (end === -1) {
    throw refuse('INCOMPLETE', `Line 1 has no end yet after ${head.length} bytes.`, {
      next: 'Wait for the copy to finish; if it does not grow, copy the file again.',
    });
  }
  return line;
}

async function openRegular(
  path: string,
): Promise<{ file: FileHandle; size: number; mtimeMs: number; ino: number; dev: number }> {
  // Opening a device can have effects; what is swapped in after this look is caught by fstat.
  if (!(await lstat(path)).isFile()) throw notRegular();
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  const file = await open(path, flags).catch((error: unknown) => {
    throw ['ELOOP', 'ENXIO', 'EMLINK'].includes(errorCode(error) ?? '') ? notRegular(error) : error;
  });
  const found = await file.stat();
  if (found.isFile()) {
    return { file, size: found.size, mtimeMs: found.mtimeMs, ino: found.ino, dev: found.dev };
  }
  await file.close();
  throw notRegular();
}

function notRegular(cause?: unknown): SallyportError {
  return refuse('NOT_REGULAR_FILE', 'It is a link, folder, pipe or device, not a regular file.', {
    cause,
    next: 'Remove it and copy the batch itself.',
  });
}

function refuse(
  code: ErrorCode,
  message: string,
  options: { next?: string; cause?: unknown } = {},
): SallyportError {
  return new SallyportError(code, message, { next: DAMAGED, ...options });
}
