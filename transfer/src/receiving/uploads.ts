import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { open, readdir, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import {
  SallyportError,
  appendAudit,
  newId,
  rows,
  withAdvisoryLock,
  type Database,
} from '@sallyport/shared';
import { readHeaderLine } from '../format/batch-file.js';
import { isThere, readRange, removeIfThere, requireFree } from '../format/durable-file.js';
import { BATCH_LIMITS, readHeader } from '../format/manifest.js';
import type { Node } from '../node.js';
import type { FileReport } from './import-report.js';
import { moveFile } from './importer.js';

/** A file on its way into the inbox, and what became of it. */
export type Upload = {
  id: string;
  actor: string;
  state: 'receiving' | 'received';
  total_bytes: number | null;
  received_bytes: number;
  sha256: string | null;
  /** Of its manifest, as its line 1 has it; nothing is verified by it. */
  digest: string | null;
  verdict: FileReport | null;
  created_at: Date;
  updated_at: Date;
};

/** Bytes that continue an upload at its offset. */
export type Piece = {
  id: string;
  offset: number;
  bytes: AsyncIterable<Buffer>;
  /** Whether nothing follows these bytes. */
  complete: boolean;
  /** Who sends them. */
  by: string;
  /** What the whole file hashes to, as its sender says, hexadecimal. */
  sha256?: string | undefined;
};

/** Uploads that may be under way at once, of everybody. */
const MAX_OPEN = 50;
/** Calls of one process that may send bytes at once: each holds a connection of its pool. */
const MAX_PIECES = 4;
/** How often the disk is asked for room, in bytes written. */
const ASK_DISK_EVERY = 64 * 1024 * 1024;
const DAY_MS = 86_400_000;
/** An upload without news for so long is given up. */
const GIVE_UP_MS = DAY_MS;
const KEEP_MS = 90 * DAY_MS;
const COLUMNS = `id, actor, state, total_bytes, received_bytes, sha256, digest, verdict, created_at,
  updated_at`;

/** In this process, now. */
let piecesUnderWay = 0;

/**
 * Opens an upload; its bytes come with {@link receivePiece}.
 * @throws SallyportError `body-too-large`, `queue-full`, WAIT_DISK.
 */
export async function openUpload(
  db: Database,
  node: Node,
  { actor, totalBytes }: { actor: string; totalBytes: number | null },
): Promise<Upload> {
  requirePieceSlot();
  if (totalBytes !== null) requireSize(totalBytes);
  await requireFree(node.folders.staging, (totalBytes ?? 0) + node.options.reserveBytes);
  const [made] = await db.transaction(async (tx) => {
    // One at a time, or several would count before any of them is there.
    await rows(tx, "select pg_advisory_xact_lock(hashtextextended('sallyport open uploads', 0))");
    return rows<Upload>(
      tx,
      `insert into imports (id, actor, state, total_bytes, received_bytes, created_at, updated_at)
       select :id, :actor, 'receiving', :totalBytes, 0, :now, :now
       where (select count(*) from imports where state = 'receiving') < ${MAX_OPEN}
       returning ${COLUMNS}`,
      { id: newId(), actor, totalBytes, now: node.clock.now() },
    );
  });
  if (made) return made;
  throw new SallyportError('queue-full', `${MAX_OPEN} uploads are under way already.`, {
    next: 'Finish or cancel one of them; one without news for a day is given up by itself.',
    retryAfterS: 60,
  });
}

/**
 * Writes bytes of an upload into a private file, and once all are there moves it into the inbox in
 * one step. What arrived before a cut is kept, and the upload goes on from there.
 * @throws SallyportError `not-found`, `already-final`, `in-flight`, `queue-full`, `upload-offset`,
 * `digest-mismatch`, `body-too-large`, WAIT_DISK, and what the stream of bytes throws.
 */
export async function receivePiece(db: Database, node: Node, piece: Piece): Promise<Upload> {
  requirePieceSlot();
  piecesUnderWay += 1;
  try {
    return await receiveAlone(db, node, piece);
  } finally {
    piecesUnderWay -= 1;
  }
}

async function receiveAlone(db: Database, node: Node, piece: Piece): Promise<Upload> {
  const held = await withAdvisoryLock(db, `sallyport upload ${piece.id}`, async () => {
    const upload = await getUpload(db, piece.id);
    if (upload.state === 'received') throw allReceived();
    requireOffset(upload, piece.offset);
    const received = await writePiece(db, node, upload, piece).catch(async (error: unknown) => {
      // No other bytes after these make a batch of it.
      if (error instanceof SallyportError && error.code === 'body-too-large') {
        await dropUpload(db, node, piece.id);
      }
      throw error;
    });
    return piece.complete ? finishUpload(db, node, received, piece) : received;
  });
  if (held) return held.done;
  throw new SallyportError('in-flight', 'Another call is sending bytes of this upload.', {
    next: 'Ask for its offset once that call has ended.',
    retryAfterS: 1,
  });
}

/** @throws SallyportError `not-found`. */
export async function getUpload(db: Database, id: string): Promise<Upload> {
  const [found] = await rows<Upload>(db, `select ${COLUMNS} from imports where id = ?`, [id]);
  if (found) return found;
  throw new SallyportError('not-found', `There is no import ${id}.`, {
    next: 'List the imports; one without news for a day was given up.',
  });
}

/** Uploads, newest first. */
export async function listUploads(
  db: Database,
  { limit, after }: { limit: number; after?: string | undefined },
): Promise<Upload[]> {
  return rows<Upload>(
    db,
    `select ${COLUMNS} from imports where cast(:after as uuid) is null or id < :after
     order by id desc limit :limit`,
    { limit, after: after ?? null },
  );
}

/**
 * Gives an unfinished upload up.
 * @throws SallyportError `not-found`, `already-final`, `in-flight`.
 */
export async function cancelUpload(
  db: Database,
  node: Node,
  { id, by }: { id: string; by: string },
): Promise<void> {
  const held = await withAdvisoryLock(db, `sallyport upload ${id}`, async () => {
    const { state, actor, received_bytes: bytes } = await getUpload(db, id);
    if (state === 'received') throw allReceived();
    const entry = { at: node.clock.now(), actor: by, action: 'import.cancel', subject: id };
    await db.transaction(async (tx) => {
      await rows(tx, 'delete from imports where id = ?', [id]);
      await appendAudit(tx, { ...entry, details: { bytes, opened_by: actor } });
    });
    await removeIfThere(partPath(node, id));
  });
  if (held) return;
  throw new SallyportError('in-flight', 'A call is sending bytes of this upload.', {
    next: 'Try again once it has ended.',
    retryAfterS: 1,
  });
}

/** Notes what an import run said of uploaded files, by their names in the inbox. */
export async function noteVerdicts(
  db: Database,
  reports: readonly FileReport[],
  now: Date,
): Promise<void> {
  const verdicts = reports.flatMap((report) => {
    const id = UPLOADED.exec(report.file)?.[1];
    return id === undefined ? [] : [{ id, report }];
  });
  if (verdicts.length === 0) return;
  await rows(
    db,
    `update imports i set verdict = v.report, state = 'received', updated_at = :now
     from json_to_recordset(:verdicts) as v(id uuid, report jsonb) where i.id = v.id`,
    { verdicts: JSON.stringify(verdicts), now },
  );
}

/** Gives up uploads without news, and forgets old ones; returns how many. */
export async function pruneUploads(db: Database, node: Node): Promise<number> {
  const now = node.clock.now().getTime();
  const gone = await rows<{ id: string }>(
    db,
    `delete from imports where state = 'receiving' and updated_at < :silent or created_at < :old
     returning id`,
    { silent: new Date(now - GIVE_UP_MS), old: new Date(now - KEEP_MS) },
  );
  const parts = (await readdir(node.folders.staging)).flatMap((name) => {
    const id = PART.exec(name)?.[1];
    return id === undefined ? [] : [id];
  });
  if (parts.length === 0) return gone.length;
  const known = await rows<{ id: string }>(db, 'select id from imports where id = any(?)', [parts]);
  const wanted = new Set(known.map(({ id }) => id));
  for (const id of parts) if (!wanted.has(id)) await removeIfThere(partPath(node, id));
  return gone.length;
}

async function dropUpload(db: Database, node: Node, id: string): Promise<void> {
  await rows(db, 'delete from imports where id = ?', [id]);
  await removeIfThere(partPath(node, id));
}

/** How an uploaded file is called in the inbox. */
function uploadName(id: string): string {
  return `upload-${id}.batch`;
}

const UPLOADED = /^upload-([0-9a-f-]{36})\.batch$/;
const PART = /^upload-([0-9a-f-]{36})\.part$/;

function partPath(node: Node, id: string): string {
  return join(node.folders.staging, `upload-${id}.part`);
}

async function writePiece(
  db: Database,
  node: Node,
  upload: Upload,
  { bytes }: Piece,
): Promise<Upload> {
  const path = partPath(node, upload.id);
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW;
  const file = await open(path, flags, 0o600);
  let received = upload.received_bytes;
  try {
    if ((await file.stat()).size < received) throw await startAgain(db, node, upload.id);
    // What a killed process wrote and never counted is not trusted.
    await file.truncate(received);
    try {
      let askAt = received + ASK_DISK_EVERY;
      for await (const piece of bytes) {
        requireSize(received + piece.length, upload.total_bytes ?? BATCH_LIMITS.fileBytes);
        if (received + piece.length > askAt) {
          await requireFree(node.folders.staging, piece.length + node.options.reserveBytes);
          askAt = received + ASK_DISK_EVERY;
        }
        await writeAt(file, piece, received);
        received += piece.length;
      }
    } finally {
      await file.sync();
      await rows(db, 'update imports set received_bytes = ?, updated_at = ? where id = ?', [
        received,
        node.clock.now(),
        upload.id,
      ]);
    }
  } finally {
    await file.close();
  }
  return { ...upload, received_bytes: received };
}

async function writeAt(file: FileHandle, piece: Buffer, at: number): Promise<void> {
  let done = 0;
  while (done < piece.length) {
    const left = piece.length - done;
    const { bytesWritten } = await file.write(piece, done, left, at + done);
    done += bytesWritten;
  }
}

async function startAgain(db: Database, node: Node, id: string): Promise<SallyportError> {
  await rows(db, 'update imports set received_bytes = 0, updated_at = ? where id = ?', [
    node.clock.now(),
    id,
  ]);
  return offsetError(0, 'What had arrived is gone from the disk here.');
}

async function finishUpload(
  db: Database,
  node: Node,
  upload: Upload,
  { by, sha256: expected }: Piece,
): Promise<Upload> {
  const { id, received_bytes: bytes, total_bytes: total, actor } = upload;
  if (bytes === 0 || (total !== null && bytes < total)) {
    throw new SallyportError(
      'body-incomplete',
      `${bytes} bytes have arrived${total ? ` of ${total}` : ''}.`,
      {
        next: 'Send the rest from this offset on.',
        extra: { offset: bytes },
      },
    );
  }
  const path = partPath(node, id);
  const sha256 = await hashFile(path);
  if (expected !== undefined && expected !== sha256) {
    await rows(db, 'update imports set received_bytes = 0 where id = ?', [id]);
    throw new SallyportError('digest-mismatch', 'The bytes are not those that Repr-Digest names.', {
      next: 'Send the file again from offset 0.',
      extra: { offset: 0 },
    });
  }
  const digest = await readDigest(path);
  const target = join(node.folders.inbox, uploadName(id));
  if (await isThere(target)) {
    // Moved before a crash and never noted: other bytes than those are no part of this upload.
    if ((await hashFile(target)) !== sha256) throw otherBytes();
    await removeIfThere(path);
  } else await moveFile(path, target);
  const at = node.clock.now();
  await db.transaction(async (tx) => {
    await rows(
      tx,
      `update imports set state = 'received', sha256 = ?, digest = ?, total_bytes = received_bytes,
         updated_at = ? where id = ?`,
      [sha256, digest, at, id],
    );
    const details = { bytes, sha256, digest, opened_by: actor };
    await appendAudit(tx, { at, actor: by, action: 'import.upload', subject: id, details });
  });
  return getUpload(db, id);
}

async function hashFile(path: string): Promise<string> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    const { size } = await file.stat();
    const hash = createHash('sha256');
    for await (const piece of readRange(file, 0, size)) hash.update(piece);
    return hash.digest('hex');
  } finally {
    await file.close();
  }
}

/** What line 1 says, for those who look for the batch; the importer judges it. */
async function readDigest(path: string): Promise<string | null> {
  try {
    return readHeader((await readHeaderLine(path)).line).digest;
  } catch (error) {
    if (error instanceof SallyportError) return null;
    throw error;
  }
}

function requireOffset({ received_bytes: received }: Upload, offset: number): void {
  if (received !== offset) throw offsetError(received, `${received} bytes have arrived.`);
}

function offsetError(offset: number, found: string): SallyportError {
  return new SallyportError('upload-offset', found, {
    next: `Go on with Upload-Offset: ${offset}.`,
    extra: { offset },
  });
}

function requireSize(bytes: number, limit: number = BATCH_LIMITS.fileBytes): void {
  if (bytes <= limit) return;
  throw new SallyportError('body-too-large', `The file would have ${bytes} bytes or more.`, {
    next: `This one may have ${limit}.`,
  });
}

function requirePieceSlot(): void {
  if (piecesUnderWay < MAX_PIECES) return;
  throw new SallyportError('queue-full', `${MAX_PIECES} calls are sending files already.`, {
    next: 'Try again once one of them has ended.',
    retryAfterS: 5,
  });
}

function otherBytes(): SallyportError {
  return new SallyportError('digest-mismatch', 'Other bytes of this upload are in the inbox.', {
    next: 'Give this upload up and send the file as a new one.',
  });
}

function allReceived(): SallyportError {
  return new SallyportError('already-final', 'The file has arrived whole already.', {
    next: 'Read the import to see what became of it.',
  });
}
