import { once } from 'node:events';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import {
  SallyportError,
  matchesEtag,
  notifyChanged,
  retryDeadlock,
  type Answer,
  type Call,
  type Principal,
  type Routes,
} from '@sallyport/shared';
import type { RequestNetwork } from './network.js';
import { retryAfterS } from './polling.js';
import { purgeResult } from './result-purges.js';
import type { ResultForm } from './result-reader.js';
import { noteFetched, type ReadableResult } from './result-reads.js';

const NDJSON = 'application/x-ndjson';
const READ = { roles: ['user'], scope: 'results:read' } as const;
const WRITE = { roles: ['user'], scope: 'requests:write' } as const;
const NOT_FOUND = { description: 'No request of yours has this id.' };
const NO_RESULT = { description: 'It is not here yet (Retry-After), or there will be none.' };

/** Reading results, and deleting them before their time. */
export function addResultRoutes(routes: Routes<Principal>, network: RequestNetwork): void {
  const { db, clock } = network;

  for (const path of ['/v1/requests/{id}/result', '/v1/requests/{id}/response']) {
    routes.add({
      ...READ,
      method: 'get',
      path,
      summary: 'The answer, as JSON or as one hit per line',
      responses: {
        200: { description: 'The answer, exactly as it came.', mediaType: 'application/json' },
        304: { description: 'It is still the one of If-None-Match.' },
        404: NOT_FOUND,
        409: NO_RESULT,
        410: { description: 'It was here and has been purged.' },
      },
      handler: (call) => answerResult(network, call),
    });
  }

  routes.add({
    ...WRITE,
    method: 'delete',
    path: '/v1/requests/{id}/result',
    summary: 'Delete the result for good, before its time; may be repeated',
    responses: {
      204: { description: 'It is gone; reading it answers 410 from now on.' },
      404: NOT_FOUND,
      409: NO_RESULT,
    },
    async handler({ params, actor }) {
      const request = { id: params['id'] ?? '', userId: actor.userId, login: actor.login };
      const key = await retryDeadlock(() =>
        db.transaction((tx) => purgeResult(tx, request, clock.now())),
      );
      if (key !== undefined) {
        network.results.forget();
        await network.cache.drop({ key });
        await notifyChanged(db, 'requests');
      }
      return { status: 204 };
    },
  });
}

async function answerResult(
  network: RequestNetwork,
  { req, res, params, actor }: Call<Principal, unknown, unknown>,
): Promise<Answer | undefined> {
  const { replica, results } = network;
  const { settings } = await replica.rules();
  const result = await results.find({
    id: params['id'] ?? '',
    userId: actor.userId,
    retryAfterS: retryAfterS(settings, 'processing'),
  });
  const form = chooseForm(req.headers.accept, result, (types) => req.accepts(types));
  const etag = `"${result.sha256}${form === 'lines' ? '-lines' : ''}"`;
  res.vary('Accept');
  if (matchesEtag(req.headers['if-none-match'], etag)) {
    return { status: 304, headers: { ETag: etag } };
  }
  const whole = req.method === 'HEAD' ? undefined : await results.whole(result, form);
  res.statusCode = 200;
  res.setHeader('ETag', etag);
  describeResult(result, form, (name, value) => res.setHeader(name, value));
  if (req.method === 'HEAD') {
    res.end();
    return undefined;
  }
  if (whole) {
    res.setHeader('Content-Length', whole.length);
    res.end(whole);
    if (!result.fetched) await noteWhenSent(network, res, result);
    return undefined;
  }
  await stream(network, res, { result, form });
  return undefined;
}

type Reply = Call<Principal, unknown, unknown>['res'];

async function stream(
  network: RequestNetwork,
  res: Reply,
  { result, form }: { result: ReadableResult; form: ResultForm },
): Promise<void> {
  const { db, clock, log, results } = network;
  try {
    await pipeline(Readable.from(results.pieces(result, form)), res);
    await noteFetched(db, result.id, clock.now());
  } catch (error) {
    // A reader who leaves early is no failure of ours.
    if (!isReaderGone(error)) throw error;
    log.debug({ request: result.id }, 'the reader of a result left early');
  }
}

async function noteWhenSent(
  { db, clock }: RequestNetwork,
  res: Reply,
  { id }: ReadableResult,
): Promise<void> {
  if (!res.writableFinished) await Promise.race([once(res, 'finish'), once(res, 'close')]);
  if (res.writableFinished) await noteFetched(db, id, clock.now());
}

function chooseForm(
  accept: string | undefined,
  { mediaType }: ReadableResult,
  negotiate: (types: string[]) => string | false,
): ResultForm {
  if (accept === undefined || accept === '*/*' || accept === mediaType) return 'text';
  const chosen = negotiate([mediaType, NDJSON]);
  if (chosen === false) {
    throw new SallyportError('not-acceptable', `The result is ${mediaType}.`, {
      next: `Accept ${mediaType} or ${NDJSON}.`,
    });
  }
  return chosen === NDJSON ? 'lines' : 'text';
}

function isReaderGone(error: unknown): boolean {
  const code = error instanceof Error && (error as NodeJS.ErrnoException).code;
  return code === 'ERR_STREAM_PREMATURE_CLOSE' || code === 'ECONNRESET' || code === 'EPIPE';
}

function describeResult(
  { mediaType, bytes, digest }: ReadableResult,
  form: ResultForm,
  set: (name: string, value: string) => void,
): void {
  set('Content-Type', form === 'lines' ? NDJSON : mediaType);
  // The digest (RFC 9530) is of the stored text, which lines are not.
  if (form === 'lines') return;
  set('Content-Length', String(bytes));
  set('Repr-Digest', digest);
}
