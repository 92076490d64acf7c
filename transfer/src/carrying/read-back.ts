import { spawn } from 'node:child_process';
import { createHash, type Hash } from 'node:crypto';
import { once } from 'node:events';
import { createReadStream } from 'node:fs';
import { lstat } from 'node:fs/promises';

/**
 * How sure it is that the bytes came from the medium: `direct` past the page cache; `dropped` after
 * the system was asked to forget its copy; `cached` perhaps from memory only, which proves nothing.
 */
export type ReadBackWay = 'direct' | 'dropped' | 'cached';
export type ReadBack = { sha256: string; bytes: number; way: ReadBackWay };

const PIECE = 'bs=4M';

/**
 * Reads every byte of a file from the medium it lies on, past the page cache where the file system
 * allows it, and hashes it. `program` is the `dd` to use.
 * @throws system errors of reading, and an Error (code EIO) when the medium fails half-way.
 */
export async function readBack(
  path: string,
  { onBytes, program = 'dd' }: { onBytes?: (bytes: number) => void; program?: string } = {},
): Promise<ReadBack> {
  const { size } = await lstat(path);
  const direct = await hashByDd(program, [`if=${path}`, 'iflag=direct', PIECE], size, onBytes);
  if (direct !== undefined) return { ...direct, way: 'direct' };
  // With count=0, dd asks the system to drop what it keeps of the whole file.
  const drop = [`if=${path}`, 'of=/dev/null', 'iflag=nocache', 'count=0'];
  if ((await hashByDd(program, drop, 0, undefined)) !== undefined) {
    const dropped = await hashByDd(program, [`if=${path}`, 'iflag=nocache', PIECE], size, onBytes);
    if (dropped !== undefined) return { ...dropped, way: 'dropped' };
  }
  const hash = createHash('sha256');
  let bytes = 0;
  for await (const piece of createReadStream(path, { highWaterMark: 1 << 20 })) {
    hash.update(piece as Buffer);
    bytes += (piece as Buffer).length;
    onBytes?.((piece as Buffer).length);
  }
  return { sha256: hash.digest('hex'), bytes, way: 'cached' };
}

/** Undefined when dd is not there, or refuses before the first byte. */
async function hashByDd(
  program: string,
  args: string[],
  size: number,
  onBytes: ((bytes: number) => void) | undefined,
): Promise<{ sha256: string; bytes: number } | undefined> {
  const hash: Hash = createHash('sha256');
  let bytes = 0;
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'ignore'] });
  const ended = once(child, 'close').then(
    ([code]) => code as number | null,
    () => null,
  );
  child.stdout.on('data', (piece: Buffer) => {
    hash.update(piece);
    bytes += piece.length;
    onBytes?.(piece.length);
  });
  const code = await ended;
  if (code === 0) return { sha256: hash.digest('hex'), bytes };
  if (bytes === 0) return undefined;
  const fault = new Error(`EIO: reading back ended after ${bytes} of ${size} bytes`);
  throw Object.assign(fault, { code: 'EIO' });
}
