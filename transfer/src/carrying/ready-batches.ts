import { readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { SallyportError, STREAMS, type StreamName } from '@sallyport/shared';
import {
  batchName,
  checkLength,
  isBatchFileName,
  isForeign,
  readHeaderLine,
  verifyBytes,
  type VerifiedHeader,
} from '../format/batch-file.js';
import { SLIP_SUFFIX } from '../custody/custody-slip.js';
import { errorCode, isThere } from '../format/durable-file.js';
import type { Card } from '../keys/keys.js';
import { readHeader, verifyHeader, type Header } from '../format/manifest.js';

/** A file and why it is not used. */
export type FileFault = { file: string; code: string; message: string };

/** A batch file whose line 1 and length are in order; `name` is the one it ought to have. */
export type ReadyBatch = {
  path: string;
  name: string;
  digest: string;
  from: string;
  to: string;
  stream: StreamName;
  epoch: number;
  seq: number;
  /** Of the whole file. */
  bytes: number;
};

/** What can be carried from a folder now, what must matter most first. */
export type ReadyFolder = {
  ready: ReadyBatch[];
  /** Not whole yet. */
  waiting: FileFault[];
  refused: FileFault[];
  foreign: string[];
};

/** Cards by key id. */
type Cards = ReadonlyMap<string, Card>;

/**
 * The batches in a folder by lane, then stream, then number, oldest first. With `cards` only those
 * that one of them signed. The bodies are not read.
 * @throws SallyportError not-found.
 */
export async function listReady(folder: string, cards?: Cards): Promise<ReadyFolder> {
  const names = await readdir(folder).catch((cause: unknown) => {
    if (!['ENOENT', 'ENOTDIR'].includes(errorCode(cause) ?? '')) throw cause;
    throw new SallyportError('not-found', `There is no folder ${folder}.`, { cause });
  });
  const result: ReadyFolder = { ready: [], waiting: [], refused: [], foreign: [] };
  const digests = new Set<string>();
  for (const name of names) {
    if (isForeign(name) && !name.endsWith(SLIP_SUFFIX)) result.foreign.push(name);
    if (!isBatchFileName(name)) continue;
    const path = join(folder, name);
    try {
      const batch = await readReady(path, cards);
      if (!digests.has(batch.digest)) result.ready.push(batch);
      digests.add(batch.digest);
    } catch (error) {
      if (errorCode(error) === 'ENOENT' && !(await isThere(path))) continue;
      const fault = toFault(error, name);
      (fault.code === 'INCOMPLETE' ? result.waiting : result.refused).push(fault);
    }
  }
  result.ready.sort(byUrgency);
  return result;
}

/**
 * Reads line 1 of a batch, checks its length, and its signature when cards are given.
 * @throws SallyportError for every refusal that line 1 and the length alone can earn.
 */
export async function readReady(path: string, cards: Cards | undefined): Promise<ReadyBatch> {
  const { header, line, size } = await openHeader(path, cards);
  if (checkLength(size, line, header.manifest) === 'short') {
    throw new SallyportError('INCOMPLETE', `${basename(path)} has only ${size} bytes yet.`, {
      next: 'Wait for the copy to finish; if it does not grow, copy the file again.',
    });
  }
  const { from, to, stream, epoch, seq } = header.manifest;
  const name = batchName(header.manifest, header.digest);
  return { path, name, digest: header.digest, from, to, stream, epoch, seq, bytes: size };
}

/**
 * Line 1 of a batch that was looked at before.
 * @throws SallyportError HASH_MISMATCH when it is another batch by now.
 */
export async function reopen(batch: ReadyBatch): Promise<VerifiedHeader> {
  const { header, line } = await openHeader(batch.path, undefined);
  if (header.digest === batch.digest) return { line, manifest: header.manifest };
  throw new SallyportError('HASH_MISMATCH', `${basename(batch.path)} has been replaced meanwhile.`);
}

/**
 * Reads a batch whole and compares it with its line 1; `onPiece` hears of each piece.
 * @throws SallyportError as `verifyBytes` does.
 */
export async function readWhole(
  batch: ReadyBatch,
  onPiece: (piece: Buffer) => void,
): Promise<void> {
  await verifyBytes(batch.path, await reopen(batch), (_, piece) => onPiece(piece));
}

/** What matters most first: lane, stream, epoch, number. */
export function byUrgency(a: ReadyBatch, b: ReadyBatch): number {
  return (
    STREAMS[a.stream].lane - STREAMS[b.stream].lane ||
    a.stream.localeCompare(b.stream) ||
    a.epoch - b.epoch ||
    a.seq - b.seq
  );
}

/** A failure of one file; what the system says of it alone counts as one. */
export function toFault(error: unknown, file: string): FileFault {
  if (error instanceof SallyportError) return { file, code: error.code, message: error.message };
  const code = errorCode(error);
  if (code === undefined) throw error;
  return { file, code, message: `It cannot be read (${code}).` };
}

async function openHeader(
  path: string,
  cards: Cards | undefined,
): Promise<{ header: Header; line: Buffer; size: number }> {
  const { line, size } = await readHeaderLine(path);
  const header = cards ? await verifyHeader(line, (kid) => cards.get(kid)) : readHeader(line);
  return { header, line, size };
}
