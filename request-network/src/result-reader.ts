import { createHash } from 'node:crypto';
import { FORM_MARK, type Cache, type Database } from '@sallyport/shared';
import { cutLines } from './result-lines.js';
import { findResult, readPieces, type ReadableResult } from './result-reads.js';

/** How a result is read: as the text that came, or one hit per line. */
export type ResultForm = 'text' | 'lines';

/** The way to results, through what this process remembers and through the cache. */
export type ResultReader = {
  /**
   * The result of a request of the user; remembered for a few seconds while changes are heard of.
   * @throws SallyportError as {@link findResult}.
   */
  find(request: {
    id: string;
    userId: string;
    retryAfterS: number;
  }): ReadableResult | Promise<ReadableResult>;
  /** The whole of it, if it is small enough to be cached: see {@link ResultReader.pieces}. */
  whole(result: ReadableResult, form: ResultForm): Buffer | Promise<Buffer> | undefined;
  /** The whole of it from the database, piece by piece. */
  pieces(result: ReadableResult, form: ResultForm): AsyncGenerator<Buffer>;
  /** Something changed: what was remembered may be wrong. */
  forget(): void;
};

const REMEMBER_MS = 10_000;
const MAX_REMEMBERED = 10_000;

type Remembered = { result: ReadableResult; until: number };

/** Makes the reader of a process; without `hearsChanges` every call asks the database. */
export function createResultReader(options: {
  db: Database;
  cache: Cache;
  hearsChanges: () => boolean;
}): ResultReader {
  const { db, cache, hearsChanges } = options;
  const remembered = new Map<string, Remembered>();
  let generation = 0;

  const look: (request: Parameters<ResultReader['find']>[0]) => Promise<ReadableResult> = async (
    request,
  ) => {
    const mine = generation;
    const result = await findResult(db, request);
    // Until it was fetched once, the next reader has something to write down.
    if (hearsChanges() && mine === generation && result.fetched) {
      if (remembered.size >= MAX_REMEMBERED) {
        const oldest = remembered.keys().next();
        if (!oldest.done) remembered.delete(oldest.value);
      }
      remembered.set(result.id, { result, until: performance.now() + REMEMBER_MS });
    }
    return result;
  };

  const pieces: ResultReader['pieces'] = (result, form) =>
    form === 'lines' ? cutLines(readPieces(db, result)) : readPieces(db, result);

  const fill = async (result: ReadableResult, form: ResultForm): Promise<Buffer> => {
    const mine = generation;
    const isSound = (bytes: Buffer) => sha256Of(bytes) === result.sha256;
    const cached = cache.get(result.key) ?? (await cache.fetch(result.key, isSound));
    const text = cached ?? (await join(readPieces(db, result)));
    const bytes = form === 'lines' ? await join(cutLines(onePiece(text))) : text;
    // What was purged meanwhile must not come back.
    if (mine === generation) {
      if (!cached) cache.put(result.key, text, 'all');
      if (form === 'lines') cache.put(formKey(result, form), bytes, 'process');
    }
    return bytes;
  };

  return {
    find(request) {
      const known = remembered.get(request.id);
      if (known && hearsChanges() && known.until > performance.now()) {
        // Somebody else's request is looked up, and not found.
        if (known.result.userId === request.userId) return known.result;
      } else if (known) remembered.delete(request.id);
      return look(request);
    },
    whole(result, form) {
      if (!cache.admits(result.bytes)) return undefined;
      if (form === 'text') return cache.get(result.key) ?? fill(result, form);
      return cache.get(formKey(result, form)) ?? fill(result, form);
    },
    pieces,
    forget() {
      generation += 1;
      remembered.clear();
    },
  };
}

function formKey({ key }: ReadableResult, form: ResultForm): string {
  return `${key}${FORM_MARK}${form}`;
}

function sha256Of(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

async function* onePiece(bytes: Buffer): AsyncGenerator<Buffer> {
  yield await Promise.resolve(bytes);
}

async function join(pieces: AsyncIterable<Buffer>): Promise<Buffer> {
  const found: Buffer[] = [];
  for await (const piece of pieces) found.push(piece);
  return found.length === 1 ? (found[0] as Buffer) : Buffer.concat(found);
}
