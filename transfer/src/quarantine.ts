import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { mkdir, open } from 'node:fs/promises';
import { join } from 'node:path';
import {
  appendAudit,
  newId,
  rows,
  type BatchCode,
  type Database,
  type SallyportError,
} from '@sallyport/shared';
import { readRange, writeFileDurably } from './durable-file.js';
import type { Node } from './node.js';

/** Why a file was refused; never any byte of its body. */
export type QuarantineReport = {
  code: BatchCode;
  sentence: string;
  next: string | null;
  file: string;
  bytes: number;
  /** How many of its first bytes were kept; all of them unless nobody known has signed it. */
  kept: number;
  /** SHA-256 of the bytes that were kept. */
  digest: string;
  stream: string | null;
  seq: number | null;
  at: string;
  by: string;
};

/** What is kept of a file that nobody known has signed. */
const UNSIGNED_BYTES = 1024 * 1024;

export type QuarantinedFile = {
  id: string;
  code: BatchCode;
  digest: string;
  file_name: string;
  file_bytes: number;
  report: QuarantineReport;
  created_at: Date;
};

/** The refused files nobody has decided on, newest first. */
export async function listQuarantine(db: Database): Promise<QuarantinedFile[]> {
  return rows(
    db,
    `select id, code, digest, file_name, file_bytes, report, created_at from quarantine
     where decided_at is null order by created_at desc limit 1000`,
  );
}

/**
 * Keeps a copy of a refused file with its report under `quarantine/<CODE>/<digest>/`, and notes it:
 * of a file that nobody known has signed only its beginning, so that strangers cannot fill the disk.
 * The source is not touched. The same file refused again is noted once.
 */
export async function quarantineFile(
  db: Database,
  node: Node,
  source: string,
  refusal: SallyportError & { code: BatchCode },
  about: { file: string; stream?: string | undefined; seq?: number | undefined; signed: boolean },
): Promise<QuarantineReport> {
  const { digest, bytes, kept } = await hashFile(source, about.signed ? Infinity : UNSIGNED_BYTES);
  const report: QuarantineReport = {
    code: refusal.code,
    sentence: refusal.message,
    next: refusal.next ?? null,
    file: about.file,
    bytes,
    kept,
    digest,
    stream: about.stream ?? null,
    seq: about.seq ?? null,
    at: node.clock.now().toISOString(),
    by: node.account,
  };
  const folder = join(node.folders.quarantine, refusal.code, digest);
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await writeFileDurably(join(folder, 'refused.batch'), readStart(source, kept));
  await writeFileDurably(
    join(folder, 'report.json'),
    Buffer.from(`${JSON.stringify(report, null, 2)}\n`),
  );
  await db.transaction(async (tx) => {
    const noted = await rows(
      tx,
      `insert into quarantine (id, code, digest, file_name, file_bytes, report, created_at)
       values (:id, :code, :digest, :file, :bytes, :report, :at)
       on conflict (code, digest) do nothing returning id`,
      { ...report, id: newId(), report: JSON.stringify(report) },
    );
    if (noted.length === 0) return;
    await appendAudit(tx, {
      at: new Date(report.at),
      actor: node.account,
      action: 'batch.quarantine',
      subject: digest,
      details: { code: report.code, file: report.file, stream: report.stream, seq: report.seq },
    });
  });
  return report;
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
