import { rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { SallyportError, batchCodeKind, isConnectionError, type Database } from '@sallyport/shared';
import { applyBatch, decideNow } from './apply.js';
import {
  readCandidate,
  requireComplete,
  requireInTime,
  requireValidKey,
  type Candidate,
} from './candidate.js';
import { askAboutHeld } from './held.js';
import { describe, isBatchError, place, type FileReport } from './import-report.js';
import {
  claimedPath,
  moveFile,
  requireCredibleClock,
  requireSpace,
  type Importer,
} from './importer.js';
import { batchName, claimBatch } from '../format/batch-file.js';
import { removeIfThere } from '../format/durable-file.js';
import { isSameFile, rememberFile, removeFile } from './inbox.js';
import { readFarKeys } from '../keys/links.js';
import type { Manifest } from '../format/manifest.js';
import { callForPerson, growOld, postpone, refuse } from './refused-files.js';
import { keepWaiting, requireWaitingRoom } from './waiting.js';

/** Imports one file, or says why not; what it throws is a lost database. */
export async function importFile(
  importer: Importer,
  path: string,
  inInbox: boolean,
): Promise<FileReport> {
  const { db, node, link, keys } = importer;
  const file = basename(path);
  let candidate: Candidate | undefined;
  try {
    candidate = await readCandidate(node, link, keys, path);
    const report = { ...(await importCandidate(importer, candidate)), file };
    // What waits now lies in our own folder: for the inbox it is decided.
    const decided = report.outcome === 'WAIT_GAP' ? 'DUPLICATE' : report.outcome;
    if (inInbox && decided !== 'FAILED' && (await isSameFile(path, candidate.header))) {
      await removeFile(db, node.clock, path, { code: decided, detail: report.sentence ?? '' });
    }
    return report;
  } catch (error) {
    if (isConnectionError(error)) throw error;
    const unreadable = fileSystemFault(error);
    if (unreadable) return { file, outcome: 'FAILED', ...unreadable };
    if (!isBatchError(error)) {
      node.log.error({ err: error, file }, 'import of a file failed');
      return { file, outcome: 'FAILED', sentence: (error as Error).message };
    }
    const postponed = postpone(error);
    const failure = inInbox ? await growOld(importer, path, postponed) : postponed;
    if (failure.code === 'WAIT_APPROVAL') await askAboutHeld(db, node, failure);
    if (inInbox && failure.code === 'WAIT_APPROVAL') await callForPerson(importer, path, failure);
    // For those who look at the link: it waits for a card, or for a key change.
    if (inInbox && failure.code === 'WAIT_KEY') {
      await rememberFile(db, node.clock, path, { code: failure.code, detail: failure.message });
    }
    if (batchCodeKind(failure.code) === 'wait') {
      // It is copied again when it is tried again; until then the disk is worth more.
      if (candidate) await removeIfThere(claimedPath(node, candidate));
      return { file, ...describe(failure, candidate) };
    }
    return refuse(importer, path, inInbox, failure, candidate);
  }
}

/** Takes a verified line 1 through sequence, length, space, claim, body, and apply. */
export async function importCandidate(
  importer: Importer,
  candidate: Candidate,
): Promise<Omit<FileReport, 'file'>> {
  const { db, node, keys } = importer;
  const { manifest, header, path, kid } = candidate;
  const startedAt = Date.now();
  const key = keys.get(kid);
  // Asked without the lock first: a repeat costs no byte of the body.
  const decision = await decideNow(db, candidate, { lock: false }).catch((error: unknown) => {
    // A key that counts no more must not raise an alarm of the sequence, nor wait for anything; but
    // the sender left old epochs behind.
    const old = error instanceof SallyportError && error.code === 'OLD_EPOCH';
    if (key && !old) requireValidKey(key, manifest);
    throw error;
  });
  if (decision === 'duplicate') {
    await countDuplicate(db, manifest);
    return { outcome: 'DUPLICATE', ...place(candidate) };
  }
  if (key) requireValidKey(key, manifest);
  await requireCredibleClock(db, node, manifest);
  requireInTime(node, manifest);
  requireComplete(candidate);
  if (decision === 'wait') await requireWaitingRoom(importer, candidate);
  await requireSpace(node, [manifest]);
  const claimed = claimedPath(node, candidate);
  await rm(claimed, { force: true });
  await claimBatch(path, claimed, { ...header, manifest });
  if (decision === 'wait') return keepWaiting(importer, candidate, claimed);
  const name = batchName(manifest, candidate.digest);
  if (!(await applyBatch(db, node, importer.applies, { candidate, claimed }))) {
    await removeIfThere(claimed);
    return { outcome: 'DUPLICATE', ...place(candidate) };
  }
  if ('key.change' in manifest.types) importer.keys = await readFarKeys(db, manifest.link);
  await moveFile(claimed, join(node.folders.archive, name));
  node.log.info(
    { batch: name, records: manifest.records, bytes: header.size, ms: Date.now() - startedAt },
    'batch imported',
  );
  return { outcome: 'APPLIED', records: manifest.records, ...place(candidate) };
}

/** Counts a number that has come again. */
export async function countDuplicate(db: Database, manifest: Manifest): Promise<void> {
  await db.raw(
    `update inbound_batches set duplicates = duplicates + 1
     where link = ? and stream = ? and epoch = ? and seq = ?`,
    [manifest.link, manifest.stream, manifest.epoch, manifest.seq],
  );
}

/** A file that is gone again, or that we may not read, is no bug of ours. */
function fileSystemFault(error: unknown): { sentence: string; next: string } | undefined {
  const { code, syscall } = error as NodeJS.ErrnoException;
  if (typeof code !== 'string' || syscall === undefined || error instanceof SallyportError) {
    return undefined;
  }
  if (code === 'ENOENT') {
    return { sentence: 'It is not there (any more).', next: 'Look whether a carrier moved it.' };
  }
  return {
    sentence: `It cannot be taken in: ${syscall} says ${code}.`,
    next: 'Mend its rights, the disk here, or the medium it lies on; it is tried again by itself.',
  };
}
