import { lstat, readdir, rename, rm, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import {
  SallyportError,
  appendAudit,
  batchCodeKind,
  isConnectionError,
  rows,
  withAdvisoryLock,
  type BatchCode,
  type Database,
  type StreamName,
} from '@sallyport/shared';
import { applyBatch, closeRefused, decideNow, noteWaiting, type ApplyTable } from './apply.js';
import { batchName, claimBatch, isBatchFileName, readHeaderLine } from '../format/batch-file.js';
import {
  readCandidate,
  requireComplete,
  requireInTime,
  requireValidKey,
  type Candidate,
} from './candidate.js';
import { controlApplies } from './control-records.js';
import {
  removeIfThere,
  requireFree,
  syncDirectory,
  writeFileDurably,
} from '../format/durable-file.js';
import { freezeStream } from './freezes.js';
import { GROWTH_MS, isSameFile, listInbox, rememberFile, removeFile, wasDecided } from './inbox.js';
import { findLink, readFarKeys, type FarKey, type Link } from '../keys/links.js';
import { BATCH_LIMITS, readHeader, type Manifest } from '../format/manifest.js';
import type { Node } from '../node.js';
import { refreshKeys } from '../keys/own-keys.js';
import {
  COPY_CHANGED,
  closeRelease,
  copyKept,
  keepRefused,
  keptPath,
  listReleases,
  noteUnopened,
  quarantineFile,
  type QuarantinedFile,
} from './quarantine.js';
import { resendMissing } from '../sending/resend.js';
import { takeSlips } from '../custody/slips.js';
import { tidyOutbox } from '../sending/store.js';

/** What became of one file: applied, or the code that says why not. */
export type FileReport = {
  file: string;
  outcome: 'APPLIED' | 'FAILED' | BatchCode;
  sentence?: string;
  next?: string | null;
  stream?: StreamName;
  seq?: number;
  records?: number;
};

export type ImportReport = {
  applied: number;
  records: number;
  duplicates: number;
  waiting: number;
  quarantined: number;
  failed: number;
  /** Names in the inbox that are none of ours: listed, never opened. */
  foreign: string[];
  files: FileReport[];
  /** The streams that something was applied of. */
  streams: StreamName[];
};

type Importer = {
  db: Database;
  node: Node;
  applies: ApplyTable;
  link: Link;
  keys: Map<string, FarKey>;
};

type BatchError = SallyportError & { code: BatchCode };

const MAX_WAITING = 1_000;
const MAX_WAITING_BYTES = 10 * 1024 ** 3;
const LOOK_AGAIN_MS = 2_000;
/** Longer than any link is silent; a clock that is further on is taken for wrong. */
const MAX_SILENCE_MS = 90 * 86_400_000;
const LATER: Partial<Record<BatchCode, BatchCode>> = {
  UNKNOWN_KEY: 'WAIT_KEY',
  UNSUPPORTED_VERSION: 'WAIT_UPGRADE',
  FROM_FUTURE: 'WAIT_CLOCK',
};
const COPY_GONE = 'It was released, but its kept copy is gone from quarantine/.';
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

/**
 * Imports what lies in the inbox, or the one file given, each batch in one transaction, then what
 * waited for it. Safe to kill at any moment, and to run from several processes: one works, the others
 * report WAIT_LOCK. A file that is refused never stops the next. The signal ends it between two files.
 */
export async function importBatches(
  db: Database,
  node: Node,
  applies: ApplyTable,
  { path, signal }: { path?: string; signal?: AbortSignal | undefined } = {},
): Promise<ImportReport> {
  const report: ImportReport = { ...EMPTY_REPORT, files: [], foreign: [], streams: [] };
  const link = await findLink(db);
  if (!link) {
    const paths = path === undefined ? (await listInbox(node.folders.inbox)).paths : [path];
    const wait = { sentence: 'No far side is trusted yet.', next: 'Run keys trust CARD.' };
    for (const file of paths) note(report, { file: basename(file), outcome: 'WAIT_KEY', ...wait });
    return report;
  }
  const held = await withAdvisoryLock(db, 'sallyport import', async () => {
    await refreshKeys(db, node);
    const importer = {
      db,
      node,
      applies: { ...controlApplies, ...applies },
      link,
      keys: await readFarKeys(db, link.link),
    };
    await tidyStaging(importer);
    await importReleased(importer, report);
    await drainWaiting(importer, report);
    if (path === undefined) await importInbox(importer, report, signal);
    else note(report, await importFile(importer, path, false));
    await drainWaiting(importer, report);
    // Last: a slip may tell of batches that have only just come in.
    report.foreign.push(...(await takeSlips(db, node)).strange);
    if (report.applied > 0) await tidyOutbox(db, node);
    // What was imported may name what is missing there; that it cannot be sent spoils no import.
    await resendMissing(db, node).catch((error: unknown) => {
      if (isConnectionError(error)) throw error;
      node.log.error({ err: error }, 'missing batches could not be published again');
    });
  });
  if (!held) {
    const sentence = 'Another importer of this network is at work; it takes the files.';
    note(report, { file: basename(node.folders.inbox), outcome: 'WAIT_LOCK', sentence });
  }
  return report;
}

/** Looks again from time to time: what is carried first must not wait for a long list. */
async function importInbox(
  importer: Importer,
  report: ImportReport,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { db, node } = importer;
  const looked = new Set<string>();
  for (;;) {
    const { paths, foreign } = await listInbox(node.folders.inbox);
    report.foreign = foreign;
    const fresh = paths.filter((path) => !looked.has(path));
    if (fresh.length === 0) return;
    const lookAgainAt = Date.now() + LOOK_AGAIN_MS;
    // They may have been revoked, or rotated, meanwhile.
    importer.keys = await readFarKeys(db, importer.link.link);
    for (const path of fresh) {
      if (signal?.aborted) return;
      looked.add(path);
      if (await wasDecided(db, node.clock, path).catch(() => false)) continue;
      note(report, await importFile(importer, path, true));
      if (Date.now() > lookAgainAt) break;
    }
  }
}

async function importFile(importer: Importer, path: string, inInbox: boolean): Promise<FileReport> {
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
async function importCandidate(
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
  await requireSpace(node, manifest);
  const claimed = claimedPath(node, candidate);
  await rm(claimed, { force: true });
  await claimBatch(path, claimed, { line: header.line, manifest });
  if (decision === 'wait') return keepWaiting(importer, candidate, claimed);
  const name = batchName(manifest, candidate.digest);
  if (!(await applyBatch(db, node, importer.applies, candidate, claimed))) {
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

/** Applies what waited in ordered streams, as far as the numbers follow each other now. */
async function drainWaiting(importer: Importer, report: ImportReport): Promise<void> {
  const { db, node, link } = importer;
  const stuck: string[] = [];
  for (;;) {
    const [next] = await rows<{ stream: string; fileName: string }>(
      db,
      `select b.stream, b.file_name as "fileName" from inbound_batches b
       join inbound_streams s on s.link = b.link and s.stream = b.stream and s.epoch = b.epoch
       where b.link = ? and b.state = 'waiting' and b.seq = s.contiguous + 1
         and s.frozen_code is null and b.stream <> all(?) limit 1`,
      [link.link, stuck],
    );
    if (!next) break;
    const outcome = await importFile(importer, join(node.folders.waiting, next.fileName), false);
    note(report, outcome);
    if (outcome.outcome === 'APPLIED') continue;
    stuck.push(next.stream);
    // A copy that was damaged here is asked for again; a refused content has closed its number.
    const refused = outcome.outcome !== 'FAILED' && batchCodeKind(outcome.outcome) === 'reject';
    // A revoked key freezes nothing: the file would be refused again each time.
    if (refused || outcome.outcome === 'KEY_REVOKED') {
      await db.raw(`delete from inbound_batches where state = 'waiting' and file_name = ?`, [
        next.fileName,
      ]);
    }
  }
  await removeDrained(importer);
}

/** Keeps a claimed batch of an ordered stream until the numbers before it have come. */
async function keepWaiting(
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
async function requireWaitingRoom({ db, node }: Importer, { digest, header }: Candidate) {
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

async function removeDrained({ db, node }: Importer): Promise<void> {
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

/** Quarantines a file, closes its number when its content is at fault, freezes on an alarm. */
async function refuse(
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
async function actOnRefusal(
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

/** Takes what two people released through everything again; nothing is skipped. */
async function importReleased(importer: Importer, report: ImportReport): Promise<void> {
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

/** Says once that a file waits for a person. */
async function callForPerson(
  { db, node }: Importer,
  path: string,
  { code, message }: BatchError,
): Promise<void> {
  const since = await rememberFile(db, node.clock, path, { code, detail: message });
  if (since?.getTime() !== node.clock.now().getTime()) return;
  const facts = { file: basename(path), code, sentence: message };
  node.log.error(facts, 'batch waits for a person');
}

/** Removes what a killed importer left; a copy whose batch was applied belongs to the archive. */
async function tidyStaging({ db, node }: Importer): Promise<void> {
  for (const name of await readdir(node.folders.staging)) {
    if (!name.startsWith('import-')) continue;
    const path = join(node.folders.staging, name);
    const digest = /^import-([0-9a-f]{64})\.batch$/.exec(name)?.[1];
    const [applied] = digest
      ? await rows(db, `select 1 from inbound_batches where digest = ? and state = 'applied'`, [
          digest,
        ])
      : [];
    if (!digest || !applied) {
      await rm(path, { force: true });
      continue;
    }
    try {
      const { manifest } = readHeader((await readHeaderLine(path)).line);
      await moveFile(path, join(node.folders.archive, batchName(manifest, digest)));
    } catch (err) {
      // It was applied; a copy that cannot be read any more is worth no archive.
      node.log.warn({ err, file: name }, 'staged copy could not be archived');
      await rm(path, { force: true });
    }
  }
}

async function countDuplicate(db: Database, manifest: Manifest): Promise<void> {
  await db.raw(
    `update inbound_batches set duplicates = duplicates + 1
     where link = ? and stream = ? and epoch = ? and seq = ?`,
    [manifest.link, manifest.stream, manifest.epoch, manifest.seq],
  );
}

/** What may pass later is no refusal: the file stays where it is and is tried again. */
function postpone(error: BatchError): BatchError {
  const code = LATER[error.code];
  if (code === undefined) return error;
  const { message, next } = error;
  return new SallyportError(code, `${message} (${error.code})`, {
    cause: error,
    ...(next !== undefined && { next }),
  }) as BatchError;
}

/** An incomplete file that has stopped growing was cut. */
async function growOld(
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

async function moveFile(source: string, target: string): Promise<void> {
  try {
    await rename(source, target);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EXDEV') throw error;
    await writeFileDurably(target, { copyFrom: source });
    await unlink(source);
    return;
  }
  await syncDirectory(dirname(target));
}

/**
 * Our clock may be wrong rather than the batch late: what has expired waits while our time is far
 * beyond everything that the far side has signed. The next batch of it settles the question.
 */
async function requireCredibleClock(
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

async function requireSpace(node: Node, { body }: Manifest): Promise<void> {
  const needed = body.bytes + 2 * body.rawBytes + node.options.reserveBytes;
  await requireFree(node.folders.staging, needed);
}

function claimedPath(node: Node, { digest }: Candidate): string {
  return join(node.folders.staging, `import-${digest}.batch`);
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
    sentence: `It cannot be read (${code}).`,
    next: 'Mend its rights, or the medium it lies on; it is tried again by itself.',
  };
}

function isBatchError(error: unknown): error is BatchError {
  return error instanceof SallyportError && /^[A-Z][A-Z0-9_]*$/.test(error.code);
}

function describe(
  error: BatchError,
  candidate: Candidate | undefined,
): Omit<FileReport, 'file'> & { outcome: BatchCode } {
  const { code, message, next } = error;
  return { outcome: code, sentence: message, next: next ?? null, ...place(candidate) };
}

function place(candidate: Candidate | undefined): { stream?: StreamName; seq?: number } {
  if (!candidate) return {};
  return { stream: candidate.manifest.stream, seq: candidate.manifest.seq };
}

const EMPTY_REPORT = {
  applied: 0,
  records: 0,
  duplicates: 0,
  waiting: 0,
  quarantined: 0,
  failed: 0,
} as const;

function note(report: ImportReport, file: FileReport): void {
  report.files.push(file);
  const { outcome, stream } = file;
  if (outcome === 'FAILED') report.failed += 1;
  else if (outcome === 'DUPLICATE') report.duplicates += 1;
  else if (outcome !== 'APPLIED') {
    if (batchCodeKind(outcome) === 'wait') report.waiting += 1;
    else report.quarantined += 1;
  } else {
    report.applied += 1;
    report.records += file.records ?? 0;
    if (stream && !report.streams.includes(stream)) report.streams.push(stream);
  }
}

async function isThere(path: string): Promise<boolean> {
  return (await lstat(path).catch(() => undefined)) !== undefined;
}
