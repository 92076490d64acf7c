import { basename, join } from 'node:path';
import { isConnectionError, type StreamName } from '@sallyport/shared';
import {
  applyOpened,
  closeBatches,
  decideAllNow,
  openBatches,
  type ClaimedBatch,
  type OpenedBatch,
} from './apply.js';
import {
  readCandidate,
  requireComplete,
  requireInTime,
  requireValidKey,
  type Candidate,
} from './candidate.js';
import { countDuplicate } from './import-file.js';
import { place, type FileReport } from './import-report.js';
import { claimedPath, moveFile, requireSpace, type Importer } from './importer.js';
import { batchName, claimBatch, parseBatchName } from '../format/batch-file.js';
import { removeIfThere, syncDirectory } from '../format/durable-file.js';
import { isSameFile, removeFile } from './inbox.js';
import { someAtOnce } from './some-at-once.js';
import type { FarKey } from '../keys/links.js';
import { SMALL_BYTES } from '../format/body.js';

/** Where many small batches come, and whose apply functions take the batch from each record. */
const GROUPED: readonly StreamName[] = ['requests'];
/** Most batches applied in one transaction. */
const MAX_GROUP = 64;

/**
 * Puts together the files of one stream whose numbers follow each other, by what their names hint at,
 * and that were never seen before; every other file is alone. Keeps the order.
 */
export function makeGroups(
  paths: readonly string[],
  seen: ReadonlyMap<string, unknown>,
): string[][] {
  const groups: string[][] = [];
  let last: { stream: StreamName; seq: number } | undefined;
  for (const path of paths) {
    const name = basename(path);
    const hint = seen.has(name) ? undefined : parseBatchName(name);
    const fits = hint && last?.stream === hint.stream && last.seq + 1 === hint.seq;
    const group = groups.at(-1);
    if (group && fits && group.length < MAX_GROUP) group.push(path);
    else groups.push([path]);
    last = hint && GROUPED.includes(hint.stream) ? hint : undefined;
  }
  return groups;
}

/** Small batches that are ready to be applied in one transaction, or repeats of applied ones. */
export type PreparedGroup = { candidates: Candidate[]; opened: OpenedBatch[] };

/**
 * Verifies, copies and opens small batches of one stream, to be applied together: what a transaction
 * costs is most of what a small batch costs.
 * @returns undefined, with nothing left, when one is not simply to be applied: then each is to be
 * looked at alone, and earns its own refusal.
 */
export async function prepareGroup(
  importer: Importer,
  paths: readonly string[],
): Promise<PreparedGroup | undefined> {
  if (paths.length < 2) return undefined;
  try {
    const candidates = await readRun(importer, paths);
    return candidates && (await openRun(importer, candidates));
  } catch {
    return undefined;
  }
}

/**
 * Applies a prepared group and puts its files away: all of them or none.
 * @returns undefined, with nothing done, when each is to be looked at alone.
 */
export async function importGroup(
  importer: Importer,
  { candidates, opened }: PreparedGroup,
): Promise<FileReport[] | undefined> {
  const { db, node, applies } = importer;
  if (opened.length === 0) {
    return someAtOnce(candidates, (candidate) => removeDuplicate(importer, candidate));
  }
  let applied = false;
  const startedAt = Date.now();
  try {
    applied = await applyOpened(db, node, applies, opened);
  } catch (error) {
    // Whether it was committed is not known: the copies may belong to the archive.
    if (isConnectionError(error)) throw error;
  } finally {
    await closeBatches(opened);
  }
  if (applied) return putAway(importer, opened, Date.now() - startedAt);
  await removeClaimed(opened);
  return undefined;
}

/** Removes what a prepared group holds that will not be applied. */
export async function discardGroup(group: PreparedGroup | undefined): Promise<void> {
  if (!group) return;
  await closeBatches(group.opened);
  await removeClaimed(group.opened);
}

/** Verifies line 1 of each; undefined when they are not what their names said, or not small. */
async function readRun(
  { node, link, keys }: Importer,
  paths: readonly string[],
): Promise<Candidate[] | undefined> {
  const candidates = await someAtOnce(paths, (path) => readCandidate(node, link, keys, path));
  const [first] = candidates;
  const isRun = candidates.every(({ header, manifest, kid }, at) => {
    const { stream, epoch, seq, kind, body } = manifest;
    return (
      GROUPED.includes(stream) &&
      stream === first?.manifest.stream &&
      epoch === first.manifest.epoch &&
      seq === first.manifest.seq + at &&
      kid === first.kid &&
      kind === 'delta' &&
      header.size <= SMALL_BYTES &&
      body.rawBytes <= SMALL_BYTES
    );
  });
  if (!isRun) return undefined;
  for (const candidate of candidates) {
    requireValidKey(keys.get(candidate.kid) as FarKey, candidate.manifest);
    requireInTime(node, candidate.manifest);
    requireComplete(candidate);
  }
  return candidates;
}

async function openRun(
  { db, node }: Importer,
  candidates: Candidate[],
): Promise<PreparedGroup | undefined> {
  // Asked without the lock first: a repeat costs no byte of the body.
  const decisions = await decideAllNow(db, candidates, { lock: false });
  if (decisions.every((decision) => decision === 'duplicate')) return { candidates, opened: [] };
  if (decisions.some((decision) => decision !== 'apply')) return undefined;
  await requireSpace(
    node,
    candidates.map(({ manifest }) => manifest),
  );
  const batches = candidates.map((candidate) => {
    return { candidate, claimed: claimedPath(node, candidate) };
  });
  try {
    await someAtOnce(batches, ({ candidate: { path, header, manifest }, claimed }) =>
      claimBatch(path, claimed, { ...header, manifest, unsynced: true }),
    );
    await syncDirectory(node.folders.staging);
    return { candidates, opened: await openBatches(node, batches) };
  } catch (error) {
    await removeClaimed(batches);
    throw error;
  }
}

async function removeClaimed(batches: readonly ClaimedBatch[]): Promise<void> {
  await someAtOnce(batches, ({ claimed }) => removeIfThere(claimed));
}

async function removeDuplicate(importer: Importer, candidate: Candidate): Promise<FileReport> {
  await countDuplicate(importer.db, candidate.manifest);
  await removeSource(importer, candidate, 'DUPLICATE');
  return { file: candidate.file, outcome: 'DUPLICATE', ...place(candidate) };
}

/** What follows the commit; what fails here is done by the next import. */
async function putAway(
  importer: Importer,
  batches: readonly ClaimedBatch[],
  ms: number,
): Promise<FileReport[]> {
  const { node } = importer;
  let failure: Error | undefined;
  try {
    await someAtOnce(batches, ({ candidate: { manifest, digest }, claimed }) => {
      const target = join(node.folders.archive, batchName(manifest, digest));
      return moveFile(claimed, target, { unsynced: true });
    });
    await syncDirectory(node.folders.archive);
    await someAtOnce(batches, ({ candidate }) => removeSource(importer, candidate, 'APPLIED'));
  } catch (error) {
    if (isConnectionError(error)) throw error;
    node.log.error({ err: error }, 'applied files could not be put away');
    failure = error as Error;
  }
  return batches.map(({ candidate: { file, manifest, header, digest }, candidate }) => {
    const { records } = manifest;
    const batch = batchName(manifest, digest);
    const facts = { batch, records, bytes: header.size, ms, together: batches.length };
    node.log.info(facts, 'batch imported');
    const report = { file, outcome: 'APPLIED', records, ...place(candidate) } as const;
    return failure ? { ...report, sentence: failure.message } : report;
  });
}

async function removeSource(
  { db, node }: Importer,
  { path, header }: Candidate,
  code: 'APPLIED' | 'DUPLICATE',
): Promise<void> {
  if (!(await isSameFile(path, header))) return;
  await removeFile(db, node.clock, path, { code, detail: '' });
}
