import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { lstat, mkdir, open } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import {
  SallyportError,
  appendAudit,
  newId,
  retryDeadlock,
  rows,
  type BatchCode,
  type Database,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import type { Candidate } from './candidate.js';
import {
  readRange,
  removeIfThere,
  syncDirectory,
  writeFileDurably,
} from '../format/durable-file.js';
import { findLink } from '../keys/links.js';
import type { Manifest } from '../format/manifest.js';
import type { Node } from '../node.js';
import { type Decision, decide, readPlace } from './sequence.js';

/** Why a file was refused; never any byte of its body. */
export type QuarantineReport = {
  code: BatchCode;
  sentence: string;
  next: string | null;
  file: string;
  bytes: number;
  /** How many of its first bytes were kept; all of them unless nobody known has signed it. */
  kept: number;
  /** SHA-256 of the bytes that were kept; null for what was never opened. */
  digest: string | null;
  stream: StreamName | null;
  epoch: number | null;
  seq: number | null;
  /** Digest of its manifest, the one before, and more of it: of a verified line 1 only. */
  batch: string | null;
  prev: string | null;
  kind: Manifest['kind'] | null;
  types: Manifest['types'] | null;
  kid: string | null;
  at: string;
  by: string;
};

/** What is kept of a file that nobody known has signed. */
const UNSIGNED_BYTES = 1024 * 1024;
/** What is said of a kept copy with other bytes than those that were refused. */
export const COPY_CHANGED = 'The kept copy was changed in quarantine/: it is not what was refused.';
const MAX_LISTED = 1_000;
/** What these bytes were refused for stays as it is, whatever is mended around them. */
const NEVER_CODES: readonly BatchCode[] = [
  'HASH_MISMATCH',
  'TRUNCATED',
  'TRAILING_DATA',
  'NOT_A_BATCH',
  'BAD_HEADER',
  'HEADER_TOO_BIG',
  'BAD_SIGNATURE',
  'NOT_REGULAR_FILE',
  'WRONG_DIRECTION',
];
const COLUMNS = `id, code, digest, file_name, file_bytes, report, created_at, decided_at, decision,
  decided_by, release_approval`;

export type QuarantinedFile = {
  id: string;
  /** Of its first refusal; names its folder. That of the newest is in the report. */
  code: BatchCode;
  digest: string | null;
  file_name: string;
  file_bytes: number;
  report: QuarantineReport;
  created_at: Date;
  decided_at: Date | null;
  decision: 'released' | 'rejected' | null;
  decided_by: string | null;
  /** The approved release that the next import carries out. */
  release_approval: string | null;
};

/** Everything known of one quarantined file, for the person who decides. */
export type QuarantineDetails = {
  file: QuarantinedFile;
  /** `whole`, `beginning` (of a file that nobody known has signed), `gone`, or never kept. */
  bytes: 'whole' | 'beginning' | 'gone' | 'none';
  /** What the sequence would say if it came now; null where line 1 was never verified. */
  sequence: string | null;
  /** Other quarantined files of the same number. */
  siblings: { id: string; code: BatchCode; batch: string | null; decision: string | null }[];
  /** What is known here under its number. */
  known: { state: string; code: string | null; digest: string; seen_at: Date } | null;
};

/** The refused files nobody has decided on, newest first; with `all`, the decided ones too. */
export async function listQuarantine(
  db: Database,
  {
    code,
    stream,
    all = false,
    limit = MAX_LISTED,
    after,
  }: {
    code?: string | undefined;
    stream?: string | undefined;
    all?: boolean;
    limit?: number;
    /** The last one of the page before. */
    after?: { at: string; id: string };
  } = {},
): Promise<QuarantinedFile[]> {
  return rows(
    db,
    `select ${COLUMNS} from quarantine
     where (decided_at is null or cast(:all as boolean))
       and (cast(:code as text) is null or :code in (code, report->>'code'))
       and (cast(:stream as text) is null or report->>'stream' = :stream)
       and (cast(:at as timestamptz) is null
         or (created_at, id) < (cast(:at as timestamptz), cast(:id as uuid)))
     order by created_at desc, id desc limit :limit`,
    {
      all,
      limit,
      code: code ?? null,
      stream: stream ?? null,
      at: after?.at ?? null,
      id: after?.id ?? null,
    },
  );
}

/**
 * The quarantined file of this id or digest, or of a beginning that only one has.
 * @throws SallyportError `not-found`, `usage` when several begin so.
 */
export async function findQuarantined(db: Database, id: string): Promise<QuarantinedFile> {
  if (!/^[0-9a-f-]{4,64}$/.test(id)) {
    throw new SallyportError('usage', `"${id}" is no id: 4 or more of 0-9, a-f and -.`, {
      next: 'quarantine ls shows the ids.',
    });
  }
  const found = await rows<QuarantinedFile>(
    db,
    `select ${COLUMNS} from quarantine
     where id::text like :id || '%' or digest like :id || '%' or report->>'batch' like :id || '%'
     order by decided_at is not null, created_at desc limit 20`,
    { id },
  );
  const [first, second] = found;
  if (!first) {
    throw new SallyportError('not-found', `No quarantined file is called ${id}.`, {
      next: 'quarantine ls shows the ids.',
    });
  }
  if (!second) return first;
  throw new SallyportError('usage', `${found.length} quarantined files begin with ${id}.`, {
    next: `Take one of ${found.map((one) => one.id).join(', ')}.`,
  });
}

/** Reads everything that helps to decide on one file; never a byte of its body. */
export async function readQuarantined(
  db: Database,
  node: Node,
  id: string,
): Promise<QuarantineDetails> {
  const file = await findQuarantined(db, id);
  const { stream, epoch, seq } = file.report;
  const number = { stream, epoch: epoch ?? null, seq, id: file.id };
  const siblings = await rows<QuarantineDetails['siblings'][number]>(
    db,
    `select id, code, report->>'batch' as batch, decision from quarantine
     where report->>'stream' = :stream and (report->>'epoch')::integer = :epoch
       and (report->>'seq')::bigint = :seq and id <> :id
     order by created_at limit 100`,
    number,
  );
  const [known] = await rows<NonNullable<QuarantineDetails['known']>>(
    db,
    `select state, code, digest, seen_at from inbound_batches
     where stream = :stream and epoch = :epoch and seq = :seq limit 1`,
    number,
  );
  return {
    file,
    bytes: await keptBytes(node, file),
    sequence: await askSequence(db, file.report),
    siblings,
    known: known ?? null,
  };
}

/**
 * Keeps a copy of a refused file with its report under `quarantine/<CODE>/<digest>/`, and notes it:
 * of a file that nobody known has signed only its beginning, so that strangers cannot fill the disk.
 * The source is not touched. The same file refused again is noted once; one that a person rejected
 * stays so, and nothing is kept.
 */
export async function quarantineFile(
  db: Database,
  node: Node,
  source: string,
  refusal: SallyportError & { code: BatchCode },
  about: { file: string; candidate: Candidate | undefined },
): Promise<{ report: QuarantineReport; rejectedBefore: boolean }> {
  const hashed = await hashFile(source, about.candidate ? Infinity : UNSIGNED_BYTES);
  const report = makeReport(node, refusal, about, hashed);
  const [before] = await rows<{ decision: string | null }>(
    db,
    'select decision from quarantine where code = ? and digest = ?',
    [refusal.code, hashed.digest],
  );
  if (before?.decision === 'rejected') return { report, rejectedBefore: true };
  const folder = join(node.folders.quarantine, refusal.code, hashed.digest);
  await mkdir(folder, { recursive: true, mode: 0o700 });
  // A new folder lasts only once the ones above it have been synced.
  for (const above of [dirname(folder), node.folders.quarantine]) await syncDirectory(above);
  await writeFileDurably(join(folder, 'refused.batch'), readStart(source, hashed.kept));
  await writeReport(folder, report);
  await noteRefused(db, node, report);
  return { report, rejectedBefore: false };
}

/** Notes what was refused without being opened: a link, a folder, a device, a giant. */
export async function noteUnopened(
  db: Database,
  node: Node,
  refusal: SallyportError & { code: BatchCode },
  { file, bytes }: { file: string; bytes: number },
): Promise<void> {
  const about = { file, candidate: undefined };
  await noteRefused(db, node, makeReport(node, refusal, about, { digest: null, bytes, kept: 0 }));
}

/**
 * Rejects a file for good: its bytes are deleted, its report stays. Open requests to release it are
 * declined with it, and named. Rejecting it again deletes what a killed process left.
 * @throws SallyportError `not-found`, `already-final` when it was released.
 */
export async function rejectQuarantined(
  db: Database,
  node: Node,
  { id, reason, by }: { id: string; reason: string; by: string },
): Promise<QuarantinedFile & { declined: string[] }> {
  const file = await findQuarantined(db, id);
  const at = node.clock.now();
  const reject = async (tx: Transaction): Promise<string[]> => {
    const decided = await rows(
      tx,
      `update quarantine set decision = 'rejected', decided_at = :at, decided_by = :by,
         release_approval = null
       where id = :id and decided_at is null returning id`,
      { id: file.id, at, by },
    );
    if (decided.length === 0) {
      await requireRejected(tx, file.id);
      return [];
    }
    const declined = await rows<{ id: string }>(
      tx,
      `update approvals set decision = 'declined', decided_by = ?, decided_at = ?, answer = ?
       where act = 'release' and subject = ? and decision is null returning id`,
      [by, at, reason, file.id],
    );
    await appendAudit(tx, {
      at,
      actor: by,
      action: 'quarantine.reject',
      subject: file.id,
      details: { ...brief(file), reason },
    });
    return declined.map((ask) => ask.id);
  };
  // Whoever approves its release right now locks the same rows in another order.
  const declined = await retryDeadlock(() => db.transaction(reject));
  const path = keptPath(node, file);
  if (path !== null) await removeIfThere(path);
  return { ...file, decision: 'rejected', decided_at: at, decided_by: by, declined };
}

/**
 * That a file can be released: undecided, kept whole with the bytes that were refused, and not
 * refused for what these bytes are.
 * @throws SallyportError `already-final`, `quarantine-bytes-missing`, the code of a damaged file.
 */
export async function requireReleasable(node: Node, file: QuarantinedFile): Promise<void> {
  if (file.decision !== null) {
    throw new SallyportError(
      'already-final',
      `${file.file_name} was ${file.decision} by ${file.decided_by ?? 'somebody'}.`,
    );
  }
  const bytes = await keptBytes(node, file);
  if (bytes === 'whole' && NEVER_CODES.includes(file.report.code)) {
    throw new SallyportError(
      file.report.code,
      `${file.file_name} cannot be released: these bytes can never pass. ${file.report.sentence}`,
      { next: 'Bring the file again from the sender, and reject this one.' },
    );
  }
  if (bytes === 'whole') {
    const path = keptPath(node, file);
    const { digest } = (path !== null && (await hashFile(path, Infinity))) || {};
    if (digest === file.digest) return;
    throw new SallyportError('quarantine-bytes-missing', COPY_CHANGED, {
      next: 'Bring the file again from the sender, and reject this one.',
    });
  }
  const found = {
    gone: 'Its kept copy is gone from quarantine/.',
    beginning: `Nobody known has signed it, so only its first ${file.report.kept} bytes were kept.`,
    none: 'It was never opened, so nothing of it was kept.',
  }[bytes];
  throw new SallyportError('quarantine-bytes-missing', `${found} It cannot be released.`, {
    next: 'Bring the file again from the sender, and reject this one.',
  });
}

/**
 * Copies what was kept of a file to `target`, for an import that nobody can change any more.
 * @returns whether the bytes are those that were refused, which people decided on.
 * @throws SallyportError WAIT_DISK.
 */
export async function copyKept(
  node: Node,
  file: QuarantinedFile,
  target: string,
): Promise<boolean> {
  const path = keptPath(node, file);
  if (path === null || (await keptBytes(node, file)) !== 'whole') return false;
  await writeFileDurably(target, readStart(path, file.report.kept + 1));
  return (await hashFile(target, Infinity)).digest === file.digest;
}

/**
 * Marks a release as approved: the next import carries it out.
 * @throws SallyportError `already-final`, `quarantine-bytes-missing`.
 */
export async function approveRelease(
  tx: Transaction,
  node: Node,
  { id, approval }: { id: string; approval: string },
): Promise<void> {
  await requireReleasable(node, await findQuarantined(tx, id));
  const marked = await rows(
    tx,
    `update quarantine set release_approval = ? where id = ? and decided_at is null returning id`,
    [approval, id],
  );
  if (marked.length > 0) return;
  throw new SallyportError('already-final', 'The file was decided on meanwhile.', {
    next: 'quarantine show tells by whom.',
  });
}

/** The files whose release two people wanted and that no import has taken yet. */
export async function listReleases(db: Database): Promise<QuarantinedFile[]> {
  return rows(
    db,
    `select ${COLUMNS} from quarantine
     where release_approval is not null and decided_at is null order by created_at limit 1000`,
  );
}

/** Ends a release: the file was applied. */
export async function closeRelease(
  db: Database,
  node: Node,
  file: QuarantinedFile,
  outcome: string,
): Promise<void> {
  const at = node.clock.now();
  await db.transaction(async (tx) => {
    const closed = await rows<{ by: string }>(
      tx,
      `update quarantine q set decision = 'released', decided_at = :at, release_approval = null,
         decided_by = a.asked_by || ', ' || a.decided_by
       from approvals a where q.id = :id and q.decided_at is null and a.id = q.release_approval
       returning q.decided_by as by`,
      { id: file.id, at },
    );
    if (!closed[0]) return;
    await appendAudit(tx, {
      at,
      actor: node.account,
      action: 'quarantine.release',
      subject: file.id,
      details: { ...brief(file), outcome, by: closed[0].by },
    });
  });
  const path = keptPath(node, file);
  if (path !== null) await removeIfThere(path);
}

/** Notes that a released file was refused again: it stays, with the new report. */
export async function keepRefused(
  db: Database,
  node: Node,
  file: QuarantinedFile,
  refusal: { code: BatchCode; message: string; next?: string | undefined },
): Promise<void> {
  const at = node.clock.now();
  const { code, message: sentence, next = null } = refusal;
  const report = { ...file.report, code, sentence, next, at: at.toISOString(), by: node.account };
  await db.transaction(async (tx) => {
    await tx.raw('update quarantine set report = ?, release_approval = null where id = ?', [
      JSON.stringify(report),
      file.id,
    ]);
    await appendAudit(tx, {
      at,
      actor: node.account,
      action: 'quarantine.refused-again',
      subject: file.id,
      details: { ...brief(file), code, sentence },
    });
  });
  const path = keptPath(node, file);
  if (path !== null) await writeReport(join(path, '..'), report);
}

/** Where the kept bytes of a file lie; null for what was never opened. */
export function keptPath(node: Node, { code, digest }: QuarantinedFile): string | null {
  return digest && join(node.folders.quarantine, code, digest, 'refused.batch');
}

async function keptBytes(node: Node, file: QuarantinedFile): Promise<QuarantineDetails['bytes']> {
  const path = keptPath(node, file);
  if (path === null) return 'none';
  const found = await lstat(path).catch(() => undefined);
  if (!found?.isFile()) return 'gone';
  return file.report.kept === file.report.bytes ? 'whole' : 'beginning';
}

async function askSequence(db: Database, report: QuarantineReport): Promise<string | null> {
  const { stream, epoch, seq, batch, prev, kind, types } = report;
  const link = await findLink(db);
  if (!link || !stream || !epoch || seq === null || !batch || !prev) return null;
  if (!kind || !types) return null;
  const numbered = { stream, epoch, seq, prev, kind, types };
  const { cursor, neighboursOf } = await readPlace(db, link.link, numbered, { lock: false });
  try {
    const decision = decide(numbered, batch, cursor, neighboursOf(seq));
    if (decision === 'duplicate' || !NEVER_CODES.includes(report.code)) return SAYS[decision];
    return 'Its number is open, but these bytes can never pass: bring the file again from the sender.';
  } catch (error) {
    if (!(error instanceof SallyportError)) throw error;
    return `${error.code}: ${error.message}`;
  }
}

const SAYS: Record<Decision, string> = {
  announce: 'It announces a new epoch of the sender: its numbers would start again at 1.',
  apply: 'Its number is open and fits: it would be applied.',
  heal: 'It is a snapshot that would heal the stream.',
  wait: 'Its number is open; it would wait for the ones before it.',
  duplicate: 'Its number is closed: nothing of it would be applied.',
};

function makeReport(
  node: Node,
  refusal: SallyportError & { code: BatchCode },
  { file, candidate }: { file: string; candidate: Candidate | undefined },
  hashed: { digest: string | null; bytes: number; kept: number },
): QuarantineReport {
  const manifest = candidate?.manifest;
  return {
    code: refusal.code,
    sentence: refusal.message,
    next: refusal.next ?? null,
    file,
    ...hashed,
    stream: manifest?.stream ?? null,
    epoch: manifest?.epoch ?? null,
    seq: manifest?.seq ?? null,
    batch: candidate?.digest ?? null,
    prev: manifest?.prev ?? null,
    kind: manifest?.kind ?? null,
    types: manifest?.types ?? null,
    kid: candidate?.kid ?? null,
    at: node.clock.now().toISOString(),
    by: node.account,
  };
}

/** A file that was released and is refused after all, or comes again unopened, is open once more. */
async function noteRefused(db: Database, node: Node, report: QuarantineReport): Promise<void> {
  const target =
    report.digest === null ? '(code, file_name) where digest is null' : '(code, digest)';
  await db.transaction(async (tx) => {
    const noted = await rows(
      tx,
      `insert into quarantine as q (id, code, digest, file_name, file_bytes, report, created_at)
       values (:id, :code, :digest, :file, :bytes, :report, :at)
       on conflict ${target} do update
         set report = excluded.report, created_at = excluded.created_at, decided_at = null,
             decision = null, decided_by = null
         where q.decided_at is not null
       returning id`,
      { ...report, id: newId(), report: JSON.stringify(report) },
    );
    if (noted.length === 0) return;
    await appendAudit(tx, {
      at: new Date(report.at),
      actor: node.account,
      action: 'batch.quarantine',
      subject: report.digest ?? report.file,
      details: { code: report.code, file: report.file, stream: report.stream, seq: report.seq },
    });
  });
}

async function requireRejected(tx: Transaction, id: string): Promise<void> {
  const [row] = await rows<{ decision: string; by: string }>(
    tx,
    'select decision, decided_by as by from quarantine where id = ?',
    [id],
  );
  if (row?.decision === 'rejected') return;
  throw new SallyportError('already-final', `The file was released by ${row?.by ?? 'somebody'}.`);
}

function brief({ report, file_name: file, digest }: QuarantinedFile): Record<string, unknown> {
  const { code, stream, epoch, seq, batch } = report;
  return { file, digest, code, stream, epoch: epoch ?? null, seq, batch: batch ?? null };
}

async function writeReport(folder: string, report: QuarantineReport): Promise<void> {
  const text = `${JSON.stringify(report, null, 2)}\n`;
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await writeFileDurably(join(folder, 'report.json'), Buffer.from(text));
}

async function hashFile(
  path: string,
  limit: number,
): Promise<{ digest: string; bytes: number; kept: number }> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const { size } = await file.stat();
    const kept = Math.min(size, limit);
    const hash = createHash('sha256');
    for await (const piece of readRange(file, 0, kept)) hash.update(piece);
    return { digest: hash.digest('hex'), bytes: size, kept };
  } finally {
    await file.close();
  }
}

async function* readStart(path: string, bytes: number): AsyncGenerator<Buffer> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    yield* readRange(file, 0, bytes);
  } finally {
    await file.close();
  }
}
