import { SallyportError, type ErrorCode, type ErrorDetail } from '@sallyport/shared';
import type { CliSession } from './cli-config.js';

type CallOptions = {
  method?: 'GET' | 'POST' | 'DELETE';
  body?: unknown;
  headers?: Record<string, string>;
  /** Statuses besides 2xx that are an answer, not a failure. */
  allow?: number[];
  /** From the call to the last byte of the answer. */
  timeLimitMs?: number;
};

const TIME_LIMIT_MS = 60_000;

/**
 * Calls the API and returns its answer.
 * @throws SallyportError with the code of the problem document, or `store-unavailable` when nobody
 * answers.
 */
export async function callApi(
  session: Pick<CliSession, 'url'> & { token?: string },
  path: string,
  { method = 'GET', body, headers = {}, allow = [], timeLimitMs = TIME_LIMIT_MS }: CallOptions = {},
): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(`${session.url}${path}`, {
      method,
      headers: {
        ...(session.token === undefined ? {} : { authorization: `Bearer ${session.token}` }),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(timeLimitMs),
    });
  } catch (cause) {
    throw new SallyportError('store-unavailable', `Nobody answers at ${session.url}.`, {
      cause,
      next: 'Check the URL and that the request network runs.',
    });
  }
  if (response.ok || allow.includes(response.status)) return response;
  throw await problemOf(response);
}

/** The JSON body of an answer. */
export async function callJson<T>(
  session: CliSession,
  path: string,
  options?: CallOptions,
): Promise<T> {
  return (await (await callApi(session, path, options)).json()) as T;
}

type Problem = { code: string; detail: string; errors?: ErrorDetail[]; retry_after_s?: number };

async function problemOf(response: Response): Promise<SallyportError> {
  const text = await response.text();
  try {
    const { code, detail, errors, retry_after_s: retryAfterS } = JSON.parse(text) as Problem;
    return new SallyportError(code as ErrorCode, detail, {
      ...(errors ? { errors } : {}),
      ...(retryAfterS === undefined ? {} : { retryAfterS }),
    });
  } catch {
    const found = `The answer was ${response.status} and not from a request network.`;
    return new SallyportError('internal', found, { next: 'Check the URL.' });
  }
}
