import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { SallyportError, rows, type Database, type StreamName } from '@sallyport/shared';
import { batchName, readHeaderLine, type HeaderLine } from '../format/batch-file.js';
import { errorCode, readRange } from '../format/durable-file.js';
import { readHeader, type Manifest } from '../format/manifest.js';
import type { Node } from '../node.js';
import { noBatch } from './batch-views.js';

/** The kept bytes of one batch: ours in the store, the far side's where they were put on arrival. */
export type BatchFile = {
  id: string;
  direction: 'out' | 'in';
  stream: StreamName;
  state: string;
  name: string;
  path: string;
  header: HeaderLine;
  manifest: Manifest;
};

/** What users asked and were answered. */
const USERS_STREAMS: readonly StreamName[] = [
  'requests.urgent',
  'requests',
  'results',
  'results.bulk',
];

/** A batch file that is open for reading, and what a download says of it. */
export type OpenBatchFile = {
  bytes: number;
  /** SHA-256 of all its bytes, hexadecimal. */
  sha256: string;
  /** The bytes from `from` on, up to `to`; closes the file at the end. */
  pieces(from: number, to: number): AsyncGenerator<Buffer>;
  close(): Promise<void>;
};

type FileRow = {
  direction: 'out' | 'in';
  stream: StreamName;
  state: string;
  epoch: number;
  seq: number;
  farNode: string;
  fileName: string | null;
  digest: string | null;
};

/**
 * Where the bytes of a batch lie, and their line 1.
 * @throws SallyportError `not-found`, `store-bytes-missing` when nothing is kept (any more).
 */
export async function findBatchFile(db: Database, node: Node, id: string): Promise<BatchFile> {
  const [row] = await rows<FileRow>(db, FIND, { id });
  if (!row) throw noBatch(id);
  const { direction, stream, state, fileName, digest } = row;
  const { store, archive, waiting } = node.folders;
  const refused = direction === 'in' && !['applied', 'waiting'].includes(state);
  if (refused || fileName === null || digest === null) throw bytesGone(row);
  const folder = direction === 'out' ? store : state === 'waiting' ? waiting : archive;
  // What came is archived under the name that its manifest gives it, not the carrier's.
  const name =
    folder === archive ? batchName({ ...row, to: node.name, from: row.farNode }, digest) : fileName;
  const path = join(folder, name);
  const header = await readHeaderLine(path).catch((error: unknown) => {
    throw errorCode(error) === 'ENOENT' ? bytesGone(row) : error;
  });
  const { manifest } = readHeader(header.line);
  return { id, direction, stream, state, name, path, header, manifest };
}

/**
 * That a file may be given out: readable requests and results are not, on the network that received
 * them.
 * @throws SallyportError `plain-results`.
 */
export function requireUnreadable({ direction, stream, manifest }: BatchFile): void {
  const ofUsers = USERS_STREAMS.includes(stream);
  if (direction === 'out' || !ofUsers || manifest.body.crypt !== 'none') return;
  const what = stream.startsWith('requests') ? 'requests' : 'results';
  throw new SallyportError('plain-results', `This batch holds ${what} that anybody could read.`, {
    next: 'Its records tell what became of each; what they say is for whoever asked.',
  });
}

/** Opens a batch file and hashes it; what is read later is of the same open file. */
export async function openBatchFile({ path }: BatchFile): Promise<OpenBatchFile> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    const { size } = await file.stat();
    const hash = createHash('sha256');
    for await (const piece of readRange(file, 0, size)) hash.update(piece);
    const close = () => file.close().catch(() => undefined);
    return {
      bytes: size,
      sha256: hash.digest('hex'),
      pieces: (from, to) => readAndClose(file, from, to),
      close,
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function* readAndClose(file: FileHandle, from: number, to: number): AsyncGenerator<Buffer> {
  try {
    yield* readRange(file, from, to);
  } finally {
    await file.close().catch(() => undefined);
  }
}

function bytesGone({ state }: FileRow): SallyportError {
  return new SallyportError('store-bytes-missing', `Nothing is kept of this batch: ${state}.`, {
    next: 'Sent batches are kept until some days after their receipt, received ones once applied.',
  });
}

const FIND = `
select 'out' as direction, b.stream, b.epoch, b.seq, b.state, b.file_name as "fileName", b.digest,
  l.far_node as "farNode"
from outbound_batches b join links l on l.link = b.link where b.id = :id
union all
select 'in', b.stream, b.epoch, b.seq, b.state, b.file_name, b.digest, l.far_node
from inbound_batches b join links l on l.link = b.link where b.id = :id`;
