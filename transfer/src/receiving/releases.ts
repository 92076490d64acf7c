import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  SallyportError,
  batchCodeKind,
  isConnectionError,
  rows,
  type Database,
} from '@sallyport/shared';
import { readCandidate, type Candidate } from './candidate.js';
import { importCandidate } from './import-file.js';
import {
  describe,
  isBatchError,
  note,
  type BatchError,
  type FileReport,
  type ImportReport,
} from './import-report.js';
import { claimedPath, type Importer } from './importer.js';
import { isThere, removeIfThere } from '../format/durable-file.js';
import {
  COPY_CHANGED,
  closeRelease,
  copyKept,
  keepRefused,
  keptPath,
  listReleases,
  type QuarantinedFile,
} from './quarantine.js';
import { actOnRefusal, postpone } from './refused-files.js';

const COPY_GONE = 'It was released, but its kept copy is gone from quarantine/.';

/** Takes what two people released through everything again; nothing is skipped. */
export async function importReleased(importer: Importer, report: ImportReport): Promise<void> {
  for (const file of await listReleases(importer.db)) {
    note(report, await importReleasedFile(importer, file));
  }
}

async function importReleasedFile(
  importer: Importer,
  released: QuarantinedFile,
): Promise<FileReport> {
  const { db, node, link, keys } = importer;
  const file = released.file_name;
  const path = keptPath(node, released);
  const copy = join(node.folders.staging, `import-released-${released.id}.batch`);
  let candidate: Candidate | undefined;
  try {
    if (path === null || !(await isThere(path))) throw copyLost(released, COPY_GONE);
    if (!(await copyKept(node, released, copy))) throw copyLost(released, COPY_CHANGED);
    candidate = { ...(await readCandidate(node, link, keys, copy)), file };
    const outcome = { ...(await importCandidate(importer, candidate)), file };
    if (outcome.outcome === 'DUPLICATE' && !(await wasApplied(db, candidate))) {
      throw numberClosed(released, candidate);
    }
    await closeRelease(db, node, released, outcome.outcome);
    return outcome;
  } catch (error) {
    if (isConnectionError(error)) throw error;
    if (!isBatchError(error)) {
      node.log.error({ err: error, file }, 'release of a file failed');
      return { file, outcome: 'FAILED', sentence: (error as Error).message };
    }
    const failure = postpone(error);
    const report = { file, ...describe(failure, candidate) };
    // What waits is tried again by the next import: it stays approved.
    if (batchCodeKind(failure.code) === 'wait') return report;
    node.log.warn({ file, code: failure.code, sentence: failure.message }, 'refused again');
    await keepRefused(db, node, released, failure);
    if (candidate) {
      await actOnRefusal(importer, candidate, failure.code);
      await removeIfThere(claimedPath(node, candidate));
    }
    return report;
  } finally {
    await rm(copy, { force: true }).catch(() => undefined);
  }
}

async function wasApplied(db: Database, { digest }: Candidate): Promise<boolean> {
  const applied = await rows(
    db,
    `select 1 from inbound_batches where digest = ? and state = 'applied'`,
    [digest],
  );
  return applied.length > 0;
}

function copyLost({ report }: QuarantinedFile, sentence: string): BatchError {
  return new SallyportError(report.code, sentence, {
    next: 'Bring the file again from the sender, and reject this one.',
  }) as BatchError;
}

function numberClosed({ report }: QuarantinedFile, { manifest }: Candidate): BatchError {
  return new SallyportError(
    report.code,
    `It was released, but number ${manifest.seq} of ${manifest.stream} was closed without it, and the sender knows.`,
    { next: 'Reject it; what it held comes again under another number, or was given up.' },
  ) as BatchError;
}
