import { SallyportError, type ErrorCode, type ErrorDetail } from '@sallyport/shared';
import { readSession, saveSession, type CliSession } from './cli-config.js';

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

type Caller = Pick<CliSession, 'url' | 'refreshToken'> & { token?: string };

/**
 * Calls the API and returns its answer; a session whose token has run out is refreshed and kept.
 * @throws SallyportError with the code of the problem document, or `store-unavailable` when nobody
 * answers.
 */
export async function callApi(
  session: Caller,
  path: string,
  options: CallOptions = {},
): Promise<Response> {
  const { allow = [] } = options;
  let response = await send(session, path, options);
  if (response.status === 401 && (await renew(session))) {
    response = await send(session, path, options);
  }
  if (response.ok || allow.includes(response.status)) return response;
  throw await problemOf(response);
}

/** Puts the next pair of tokens into the session; false when it is over. */
async function renew(session: Caller): Promise<boolean> {
  const { url, token: old, refreshToken } = session;
  if (refreshToken === undefined) return false;
  const body = { refresh_token: refreshToken };
  const response = await send({ url }, '/v1/sessions:refresh', { method: 'POST', body });
  if (response.ok) {
    const next = (await response.json()) as { token: string; refresh_token: string };
    const fresh = { url, token: next.token, refreshToken: next.refresh_token };
    await saveSession(fresh);
    Object.assign(session, fresh);
    return true;
  }
  await response.body?.cancel();
  // Another command may have been faster; then it has kept the pair.
  const kept = await readSession();
  if (kept === undefined || kept.token === old) return false;
  Object.assign(session, kept, { url });
  return true;
}

async function send(
  session: Caller,
  path: string,
  { method = 'GET', body, headers = {}, timeLimitMs = TIME_LIMIT_MS }: CallOptions,
): Promise<Response> {
  try {
    return await fetch(`${session.url}${path}`, {
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
