import { SallyportError, rows, runPrepared, type Database } from '@sallyport/shared';
import { isFinal, notFound } from './requests.js';
import type { RequestStatus } from './request-schemas.js';
import { READ_PART } from './results.js';

/** A result that can be read; its text is opaque and comes exactly as it was signed. */
export type ReadableResult = {
  mediaType: string;
  bytes: number;
  /** Of the whole text, hexadecimal. */
  sha256: string;
  late: boolean;
  /** The text in pieces of at most 768 KiB; memory does not grow with its length. */
  pieces(): AsyncGenerator<Buffer>;
};

type ResultRow = {
  status: RequestStatus;
  complete: boolean | null;
  late: boolean;
  media_type: string | null;
  bytes: number | null;
  sha256: string | null;
  parts: number;
  text: string | null;
  purged_at: Date | null;
};

/**
 * Opens the result of a request of the user.
 * @throws SallyportError `not-found`, `result-not-ready`, `no-result`, `result-purged`.
 */
export async function openResult(
  db: Database,
  { id, userId, retryAfterS }: { id: string; userId: string; retryAfterS: number },
): Promise<ReadableResult> {
  const [row] = await runPrepared<ResultRow>(db, READ_RESULT, [id, userId]);
  if (!row) throw notFound(id);
  const { bytes, sha256, parts, text } = row;
  if (row.purged_at) {
    throw new SallyportError('result-purged', 'The result was here and has been purged.', {
      next: 'Submit the request again.',
    });
  }
  if (row.complete && bytes !== null && sha256 !== null) {
    return {
      mediaType: row.media_type ?? 'application/json',
      bytes,
      sha256,
      late: row.late,
      pieces: () => (parts === 0 ? onePiece(text ?? '') : readParts(db, id, parts)),
    };
  }
  if (isFinal(row.status)) {
    throw new SallyportError('no-result', `The request ended without a result: ${row.status}.`, {
      next: 'Read the request to see why.',
      extra: { status: row.status },
    });
  }
  throw new SallyportError('result-not-ready', 'The request has not ended yet.', {
    next: 'Ask again later, or wait on the request.',
    retryAfterS,
  });
}

/** Notes the first time that a user had the whole result. */
export async function noteFetched(db: Database, id: string, now: Date): Promise<void> {
  await rows(db, 'update results set fetched_at = ? where request_id = ? and fetched_at is null', [
    now,
    id,
  ]);
}

async function* onePiece(text: string): AsyncGenerator<Buffer> {
  yield await Promise.resolve(Buffer.from(text));
}

async function* readParts(db: Database, id: string, parts: number): AsyncGenerator<Buffer> {
  for (let part = 0; part < parts; part += 1) {
    const [row] = await runPrepared<{ text: string }>(db, READ_PART, [id, part]);
    if (!row) throw new Error(`part ${part} of result ${id} is gone`);
    yield Buffer.from(row.text);
  }
}

const READ_RESULT = {
  name: 'read_result',
  text: `select r.status, s.complete, s.late, s.media_type, s.bytes, s.sha256, s.parts, s.text,
      s.purged_at
    from requests r left join results s on s.request_id = r.id where r.id = $1 and r.user_id = $2`,
};
