import { lstat } from 'node:fs/promises';
import { basename } from 'node:path';
import {
  SallyportError,
  appendAudit,
  batchCodeKind,
  isConnectionError,
  type BatchCode,
  type Database,
} from '@sallyport/shared';
import { closeRefused } from './apply.js';
import type { Candidate } from './candidate.js';
import { describe, type BatchError, type FileReport } from './import-report.js';
import { claimedPath, type Importer } from './importer.js';
import { isThere, removeIfThere, requireFree } from '../format/durable-file.js';
import { freezeStream } from './freezes.js';
import { GROWTH_MS, isSameFile, rememberFile, removeFile } from './inbox.js';
import { BATCH_LIMITS } from '../format/manifest.js';
import type { Node } from '../node.js';
import { noteUnopened, quarantineFile } from './quarantine.js';

const LATER: Partial<Record<BatchCode, BatchCode>> = {
  UNKNOWN_KEY: 'WAIT_KEY',
  UNSUPPORTED_VERSION: 'WAIT_UPGRADE',
  FROM_FUTURE: 'WAIT_CLOCK',
};
/** A body refused for one of these closes its number; for any other the same bytes are asked for. */
const CONTENT_CODES: readonly string[] = [
  'EXPIRED',
  'BAD_JSON',
  'BAD_UTF8',
  'SCHEMA',
  'LINE_TOO_LONG',
  'TOO_MANY_RECORDS',
  'COUNT_MISMATCH',
  'DUPLICATE_ID_CONFLICT',
];

/** Quarantines a file, closes its number when its content is at fault, freezes on an alarm. */
export async function refuse(
  importer: Importer,
  path: string,
  inInbox: boolean,
  error: BatchError,
  candidate: Candidate | undefined,
): Promise<FileReport> {
  const { db, node } = importer;
  const file = basename(path);
  const report = { file, ...describe(error, candidate) };
  const alarm = batchCodeKind(error.code) === 'alarm';
  const facts = { file, code: error.code, sentence: error.message };
  if (alarm) node.log.error(facts, 'batch refused with an alarm');
  else node.log.warn(facts, 'batch refused');
  const decided = { code: error.code, detail: error.message };
  const before = await lstat(path).catch(() => undefined);
  // A link, a FIFO, or an oversized file is never opened again, only noted and remembered.
  if (!before?.isFile() || before.size > BATCH_LIMITS.fileBytes || error.code === 'TOO_BIG') {
    if (before) await noteUnopened(db, node, error, { file, bytes: before.size });
    if (inInbox) await rememberFile(db, node.clock, path, decided);
    return report;
  }
  const claimed = candidate && claimedPath(node, candidate);
  let rejectedBefore = false;
  try {
    const source = claimed && (await isThere(claimed)) ? claimed : path;
    const room = candidate ? before.size : 0;
    await requireFree(node.folders.quarantine, room + node.options.reserveBytes);
    ({ rejectedBefore } = await quarantineFile(db, node, source, error, { file, candidate }));
  } catch (failure) {
    if (isConnectionError(failure)) throw failure;
    node.log.error({ err: failure, file }, 'refused file could not be quarantined');
    return { ...report, sentence: `${error.message} It could not be quarantined and stays.` };
  }
  // What a person has rejected stops nothing when a carrier brings it again.
  if (candidate && !rejectedBefore) await actOnRefusal(importer, candidate, error.code);
  if (claimed) await removeIfThere(claimed);
  // Somebody may have put a good copy in its place meanwhile.
  if (inInbox && (await isSameFile(path, before))) await removeFile(db, node.clock, path, decided);
  return report;
}

/** Freezes the stream on an alarm, and closes a number whose content is at fault. */
export async function actOnRefusal(
  { db, node }: Importer,
  candidate: Candidate,
  code: BatchCode,
): Promise<void> {
  const { link, stream } = candidate.manifest;
  // Whoever has a revoked key must not stop the streams by it: its batches are refused anyway.
  if (code === 'KEY_REVOKED') await auditRevokedKey(db, node, candidate);
  else if (batchCodeKind(code) === 'alarm') await freezeStream(db, node, { link, stream, code });
  if (CONTENT_CODES.includes(code)) await closeRefused(db, node, candidate, code);
}

async function auditRevokedKey(
  db: Database,
  node: Node,
  { manifest: { stream, epoch, seq }, digest, kid }: Candidate,
): Promise<void> {
  await db.transaction((tx) =>
    appendAudit(tx, {
      at: node.clock.now(),
      actor: node.account,
      action: 'link.alarm',
      subject: stream,
      details: { code: 'KEY_REVOKED', kid, epoch, seq, digest },
    }),
  );
}

/** What may pass later is no refusal: the file stays where it is and is tried again. */
export function postpone(error: BatchError): BatchError {
  const code = LATER[error.code];
  if (code === undefined) return error;
  const { message, next } = error;
  return new SallyportError(code, `${message} (${error.code})`, {
    cause: error,
    ...(next !== undefined && { next }),
  }) as BatchError;
}

/** An incomplete file that has stopped growing was cut. */
export async function growOld(
  { db, node }: Importer,
  path: string,
  error: BatchError,
): Promise<BatchError> {
  if (error.code !== 'INCOMPLETE') return error;
  const incomplete = { code: error.code, detail: error.message };
  const since = await rememberFile(db, node.clock, path, incomplete);
  if (!since || node.clock.now().getTime() - since.getTime() < GROWTH_MS) return error;
  return new SallyportError(
    'TRUNCATED',
    `It has not grown for ${GROWTH_MS / 60_000} minutes: ${error.message}`,
    { next: 'Copy the file again from the sender; its number stays open.' },
  ) as BatchError;
}

/** Says once that a file waits for a person. */
export async function callForPerson(
  { db, node }: Importer,
  path: string,
  { code, message }: BatchError,
): Promise<void> {
  const since = await rememberFile(db, node.clock, path, { code, detail: message });
  if (since?.getTime() !== node.clock.now().getTime()) return;
  const facts = { file: basename(path), code, sentence: message };
  node.log.error(facts, 'batch waits for a person');
}
