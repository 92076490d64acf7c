import { SallyportError, cacheKey, rows, runPrepared, type Database } from '@sallyport/shared';
import { isFinal, notFound } from './requests.js';
import type { RequestStatus } from './request-schemas.js';
import { READ_PART } from './results.js';

/** A result that its user can read; its text is opaque and comes exactly as it was signed. */
export type ReadableResult = {
  id: string;
  userId: string;
  /** Names its text in the cache. */
  key: string;
  mediaType: string;
  bytes: number;
  /** Of the whole text, hexadecimal. */
  sha256: string;
  /** The same as RFC 9530 writes it. */
  digest: string;
  late: boolean;
  /** The records that its text came in; 0: in the result itself. */
  parts: number;
  /** Whether a user has had the whole of it. */
  fetched: boolean;
};

type ResultRow = {
  status: RequestStatus;
  dataset: string;
  complete: boolean | null;
  late: boolean;
  media_type: string | null;
  bytes: number | null;
  sha256: string | null;
  parts: number;
  fetched: boolean;
  purged_at: Date | null;
};

/**
 * The result of a request of the user, without its text.
 * @throws SallyportError `not-found`, `result-not-ready`, `no-result`, `result-purged`.
 */
export async function findResult(
  db: Database,
  { id, userId, retryAfterS }: { id: string; userId: string; retryAfterS: number },
): Promise<ReadableResult> {
  const [row] = await runPrepared<ResultRow>(db, FIND_RESULT, [id, userId]);
  if (!row) throw notFound(id);
  const { bytes, sha256, parts, late, fetched, dataset } = row;
  if (row.purged_at) throw purged();
  if (row.complete && bytes !== null && sha256 !== null) {
    const mediaType = row.media_type ?? 'application/json';
    const key = resultKey({ id, userId, dataset, sha256 });
    const digest = `sha-256=:${Buffer.from(sha256, 'hex').toString('base64')}:`;
    return { id, userId, key, mediaType, bytes, sha256, digest, late, parts, fetched };
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

/** Names the text of a result in the cache: whose it is, of which request, and what it says. */
export function resultKey(of: {
  id: string;
  userId: string;
  dataset: string;
  sha256: string;
}): string {
  const { id, userId, dataset, sha256 } = of;
  return cacheKey({ dataset, user: userId, what: `${id}/${sha256}` });
}

/**
 * The text of a result in pieces of at most 768 KiB; memory does not grow with its length.
 * @throws SallyportError `result-purged` when it went meanwhile.
 */
export async function* readPieces(
  db: Database,
  { id, parts }: Pick<ReadableResult, 'id' | 'parts'>,
): AsyncGenerator<Buffer> {
  if (parts === 0) {
    const [row] = await runPrepared<{ text: string | null }>(db, READ_TEXT, [id]);
    if (typeof row?.text !== 'string') throw purged();
    yield Buffer.from(row.text);
    return;
  }
  for (let part = 0; part < parts; part += 1) {
    const [row] = await runPrepared<{ text: string }>(db, READ_PART, [id, part]);
    if (!row) throw purged();
    yield Buffer.from(row.text);
  }
}

/** Notes the first time that a user had the whole result. */
export async function noteFetched(db: Database, id: string, now: Date): Promise<void> {
  await rows(db, 'update results set fetched_at = ? where request_id = ? and fetched_at is null', [
    now,
    id,
  ]);
}

function purged(): SallyportError {
  return new SallyportError('result-purged', 'The result was here and has been purged.', {
    next: 'Submit the request again.',
  });
}

const FIND_RESULT = {
  name: 'find_result',
  text: `select r.status, r.dataset, s.complete, s.late, s.media_type, s.bytes, s.sha256, s.parts,
      s.fetched_at is not null as fetched, s.purged_at
    from requests r left join results s on s.request_id = r.id where r.id = $1 and r.user_id = $2`,
};
const READ_TEXT = {
  name: 'read_result_text',
  text: 'select text from results where request_id = $1',
};
