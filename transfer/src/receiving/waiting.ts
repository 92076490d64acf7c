import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { SallyportError, rows } from '@sallyport/shared';
import { noteWaiting } from './apply.js';
import type { Candidate } from './candidate.js';
import { place, type FileReport } from './import-report.js';
import { moveFile, type Importer } from './importer.js';
import { batchName, isBatchFileName } from '../format/batch-file.js';
import { removeIfThere } from '../format/durable-file.js';

const MAX_WAITING = 1_000;
const MAX_WAITING_BYTES = 10 * 1024 ** 3;

/** Keeps a claimed batch of an ordered stream until the numbers before it have come. */
export async function keepWaiting(
  { db, node }: Importer,
  candidate: Candidate,
  claimed: string,
): Promise<Omit<FileReport, 'file'>> {
  const { manifest, digest } = candidate;
  const name = batchName(manifest, digest);
  await moveFile(claimed, join(node.folders.waiting, name));
  await noteWaiting(db, node, candidate, name);
  const sentence = `Number ${manifest.seq} of ${manifest.stream} waits for the ones before it.`;
  return { outcome: 'WAIT_GAP', sentence, ...place(candidate) };
}

/** What waits for missing numbers is bounded; asked before a byte of the body is copied. */
export async function requireWaitingRoom({ db, node }: Importer, { digest, header }: Candidate) {
  const files = (await readdir(node.folders.waiting)).length;
  const [waiting] = await rows<{ bytes: number }>(
    db,
    `select coalesce(sum(file_bytes), 0)::bigint as bytes from inbound_batches
     where state = 'waiting' and digest <> ?`,
    [digest],
  );
  const bytes = (waiting?.bytes ?? 0) + header.size;
  if (files < MAX_WAITING && bytes <= MAX_WAITING_BYTES) return;
  throw new SallyportError(
    'WAIT_GAP',
    `${files} batches wait for missing numbers already (at most ${MAX_WAITING}, and 10 GiB); this one stays where it is.`,
    { next: 'Bring the missing numbers that the link command shows.' },
  );
}

/** Removes the files of which nothing waits any more. */
export async function removeDrained({ db, node }: Importer): Promise<void> {
  const files = (await readdir(node.folders.waiting)).filter(isBatchFileName);
  if (files.length === 0) return;
  const waiting = await rows<{ fileName: string }>(
    db,
    `select file_name as "fileName" from inbound_batches
     where state = 'waiting' and file_name = any(?)`,
    [files],
  );
  const needed = new Set(waiting.map(({ fileName }) => fileName));
  for (const file of files) {
    if (!needed.has(file)) await removeIfThere(join(node.folders.waiting, file));
  }
}
