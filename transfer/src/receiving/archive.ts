import { lstat, opendir } from 'node:fs/promises';
import { join } from 'node:path';
import { removeIfThere } from '../format/durable-file.js';
import { isBatchFileName } from '../format/batch-file.js';
import type { Node } from '../node.js';

const DAY_MS = 86_400_000;
/** What one run removes at most; the next run goes on. */
const MAX_REMOVED = 10_000;

/**
 * Removes the files of batches that were imported longer ago than the days. What is known of each
 * batch stays in the database: by it a repeat is told from a fork.
 * @returns how many.
 */
export async function pruneArchive(node: Node, days: number): Promise<number> {
  const before = node.clock.now().getTime() - days * DAY_MS;
  let removed = 0;
  for await (const { name } of await opendir(node.folders.archive)) {
    if (!isBatchFileName(name)) continue;
    const path = join(node.folders.archive, name);
    const found = await lstat(path).catch(() => undefined);
    if (!found || found.mtimeMs >= before) continue;
    await removeIfThere(path);
    removed += 1;
    if (removed === MAX_REMOVED) break;
  }
  return removed;
}
