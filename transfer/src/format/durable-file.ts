import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, link, lstat, open, rename, rm, statfs, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { SallyportError } from '@sallyport/shared';

/** What a durable file is made of: bytes, a stream of bytes, or a copy of another file. */
export type FileContent = Buffer | AsyncIterable<Uint8Array> | { copyFrom: string };

/** Size of the pieces in which files are copied. */
const COPY_BYTES = 1 << 20;

/**
 * Writes a file that is either whole or absent after a crash: temporary file in the same folder,
 * fsync, rename, fsync of the folder. An existing target is replaced unless `replace` is false.
 * The temporary name starts with a dot, carries `token`, and ends in `.part`; it is removed on
 * failure.
 * @throws SallyportError WAIT_DISK when the file system is full; other failures as they come.
 */
export async function writeFileDurably(
  target: string,
  content: FileContent,
  options: { token?: string; mode?: number; replace?: boolean } = {},
): Promise<void> {
  const token = options.token ?? randomBytes(8).toString('hex');
  const temporary = join(dirname(target), `.${basename(target)}.${token}.part`);
  try {
    const file = await open(temporary, 'wx', options.mode ?? 0o600);
    try {
      await writeContent(file, content);
      await file.sync();
    } finally {
      await file.close();
    }
    await publish(temporary, target, options.replace ?? true);
    await syncDirectory(dirname(target));
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw diskError(error, target);
  }
}

/** Makes renames and new names in a folder survive a power cut. */
export async function syncDirectory(path: string): Promise<void> {
  const folder = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/**
 * @throws SallyportError WAIT_DISK when the disk of the folder has fewer bytes free.
 */
export async function requireFree(folder: string, bytes: number): Promise<void> {
  const disk = await statfs(folder);
  const free = disk.bavail * disk.bsize;
  if (free >= bytes) return;
  throw new SallyportError(
    'WAIT_DISK',
    `${free} bytes are free at ${basename(folder)}, ${bytes} are needed.`,
    { next: 'Make room on the disk of the state directory; it is tried again by itself.' },
  );
}

/** Removes a file; that it is gone already is as good. */
export async function removeIfThere(path: string): Promise<void> {
  await rm(path, { force: true }).catch((error: unknown) => {
    throw diskError(error, path);
  });
}

/** Whether there is anything at the path that can be looked at; a link counts as itself. */
export async function isThere(path: string): Promise<boolean> {
  return (await lstat(path).catch(() => undefined)) !== undefined;
}

/** Writes the whole of `bytes` at the file's current position. */
export async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  let done = 0;
  while (done < bytes.length) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done);
    done += bytesWritten;
  }
}

/** Reads `[from, to)` of an open file in pieces of 1 MiB; ends early where the file does. */
export async function* readRange(
  file: FileHandle,
  from: number,
  to: number,
): AsyncGenerator<Buffer, void, void> {
  const readAt = async (at: number) => {
    const piece = Buffer.allocUnsafe(Math.max(0, Math.min(COPY_BYTES, to - at)));
    const { bytesRead } = await file.read(piece, 0, piece.length, at);
    return piece.subarray(0, bytesRead);
  };
  const start = (at: number) => {
    const reading = readAt(at);
    // Heard where it is awaited, which may be later than it fails.
    reading.catch(() => undefined);
    return reading;
  };
  let at = from;
  // The next piece is read while the caller works on this one.
  let next = start(at);
  try {
    for (;;) {
      const piece = await next;
      if (piece.length === 0) return;
      at += piece.length;
      next = start(at);
      yield piece;
    }
  } finally {
    // The file must not be closed under a read.
    await next.catch(() => undefined);
  }
}

/**
 * A disk that is full, broken or read-only becomes WAIT_DISK, with what to do; what cannot be read,
 * and every other error, stays what it is.
 */
export function diskError(error: unknown, target: string): unknown {
  const code = errorCode(error);
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new SallyportError('WAIT_DISK', `There is no space left to write ${basename(target)}.`, {
      cause: error,
      next: 'Make room on the disk; it is tried again by itself.',
    });
  }
  const reading = (error as NodeJS.ErrnoException | undefined)?.syscall === 'read';
  if (reading || !['EIO', 'EROFS', 'ESTALE'].includes(code ?? '')) return error;
  return new SallyportError('WAIT_DISK', `The disk refused ${basename(target)} (${code}).`, {
    cause: error,
    next: 'Look at the disk and whether it may be written; it is tried again by itself.',
  });
}

/** The `code` of a system error, or undefined. */
export function errorCode(error: unknown): string | undefined {
  if (!(error instanceof Error) || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

async function writeContent(file: FileHandle, content: FileContent): Promise<void> {
  if (content instanceof Uint8Array) return writeAll(file, content);
  if (!('copyFrom' in content)) {
    for await (const piece of content) await writeAll(file, piece);
    return;
  }
  const source = await open(content.copyFrom, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    const { size } = await source.stat();
    for await (const piece of readRange(source, 0, size)) await writeAll(file, piece);
  } finally {
    await source.close();
  }
}

async function publish(temporary: string, target: string, replace: boolean): Promise<void> {
  if (replace) return rename(temporary, target);
  // Unlike rename, link refuses an existing name.
  await link(temporary, target);
  await unlink(temporary);
}
