import { rename, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { SallyportError, rows, type Database } from '@sallyport/shared';
import type { ApplyTable } from './apply.js';
import type { Candidate } from './candidate.js';
import { requireFree, syncDirectory, writeFileDurably } from '../format/durable-file.js';
import type { FarKey, Link } from '../keys/links.js';
import type { Manifest } from '../format/manifest.js';
import type { Node } from '../node.js';

/** What one run of the import works with. */
export type Importer = {
  db: Database;
  node: Node;
  applies: ApplyTable;
  link: Link;
  keys: Map<string, FarKey>;
};

/** Longer than any link is silent; a clock that is further on is taken for wrong. */
const MAX_SILENCE_MS = 90 * 86_400_000;

/**
 * Our clock may be wrong rather than the batch late: what has expired waits while our time is far
 * beyond everything that the far side has signed. The next batch of it settles the question.
 * @throws SallyportError WAIT_CLOCK.
 */
export async function requireCredibleClock(
  db: Database,
  node: Node,
  { link, createdAt, notAfter }: Manifest,
): Promise<void> {
  const now = node.clock.now();
  if (!notAfter || new Date(notAfter) >= now) return;
  const [known] = await rows<{ newest: Date | null }>(
    db,
    `select max(created_at) as newest from (
       select created_at from inbound_batches where link = ? order by seen_at desc limit 1000) seen`,
    [link],
  );
  const newest = Math.max(Date.parse(createdAt), known?.newest?.getTime() ?? 0);
  if (now.getTime() - newest <= MAX_SILENCE_MS) return;
  throw new SallyportError(
    'WAIT_CLOCK',
    `It seems expired, but our clock says ${now.toISOString()} and the newest batch of the far ` +
      `side is of ${new Date(newest).toISOString()}.`,
    { next: 'Set the clock right; if it is, the next batch of the far side lets this one expire.' },
  );
}

/**
 * Asks for room for our copies and what they unpack to.
 * @throws SallyportError WAIT_DISK.
 */
export async function requireSpace(node: Node, manifests: readonly Manifest[]): Promise<void> {
  const needed = manifests.reduce((sum, { body }) => sum + body.bytes + 2 * body.rawBytes, 0);
  await requireFree(node.folders.staging, needed + node.options.reserveBytes);
}

/** Where our copy of a batch lies until it is applied. */
export function claimedPath(node: Node, { digest }: Candidate): string {
  return join(node.folders.staging, `import-${digest}.batch`);
}

/** Moves a file durably, to another file system too; `unsynced` leaves the folder to the caller. */
export async function moveFile(
  source: string,
  target: string,
  { unsynced = false } = {},
): Promise<void> {
  try {
    await rename(source, target);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EXDEV') throw error;
    await writeFileDurably(target, { copyFrom: source });
    await unlink(source);
    return;
  }
  if (!unsynced) await syncDirectory(dirname(target));
}
