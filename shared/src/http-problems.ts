import { STATUS_CODES } from 'node:http';
import type { Request, Response } from 'express';
import { isConnectionError } from './database.js';
import { batchCodeKind, httpProblem, listHttpCodes, SallyportError } from './errors.js';
import type { BatchCode, HttpCode } from './errors.js';
import { newId } from './ids.js';
import type { Log } from './log.js';

/** What every request carries through the app, in `res.locals`. */
export type CallState = {
  requestId: string;
  /** The pattern of the route that answers, for the log: never the path with its ids. */
  route?: string;
  actor?: string;
};

const PROBLEM_TYPE = 'application/problem+json';
const MAX_ERRORS = 20;
const STORE_RETRY_S = 5;
const RETRYABLE = new Set([408, 429, 503]);

/** The state of a call, put there by the app before any route runs. */
export function callState(res: Response): CallState {
  return res.locals as CallState;
}

/** Whether the same call may succeed later without being changed. */
function isRetryable(code: string, status: number): boolean {
  return RETRYABLE.has(status) || code === 'in-flight' || code === 'result-not-ready';
}

/**
 * Answers with the problem document (RFC 9457) of an error. Expected failures say what they are; a
 * database out of reach is 503; anything else is a bug: logged once, answered 500 without details.
 */
export function sendProblem(error: unknown, req: Request, res: Response, log: Log): void {
  const { requestId } = callState(res);
  const known = toKnownError(error);
  if (known.code === 'internal' && !req.destroyed) {
    log.error({ err: error, request_id: requestId, route: callState(res).route }, 'call failed');
  }
  if (res.headersSent) {
    // The reader must not take a cut answer for a whole one.
    res.destroy();
    return;
  }
  const { status, title } = httpProblem(known.code);
  if (known.code === 'unauthenticated') res.setHeader('WWW-Authenticate', 'Bearer');
  if (known.retryAfterS !== undefined) res.setHeader('Retry-After', String(known.retryAfterS));
  for (const name in known.headers) res.setHeader(name, known.headers[name] as string);
  // What is left of an unread body must not be taken for the next request.
  if (!req.complete) res.setHeader('Connection', 'close');
  const instance = req.originalUrl.split('?', 1)[0] ?? '';
  const text = problemText(known, { title, status, requestId, instance });
  sendText(res, status, PROBLEM_TYPE, text);
}

/**
 * A whole HTTP answer with the problem document of an error, for a call that never became a request
 * of the app; the connection ends with it.
 */
export function bareProblem(known: SallyportError): string {
  const { status, title } = httpProblem(known.code);
  const requestId = newId();
  const text = problemText(known, { title, status, requestId });
  const lines = [
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}`,
    `Content-Type: ${PROBLEM_TYPE}`,
    `Content-Length: ${Buffer.byteLength(text)}`,
    `X-Request-Id: ${requestId}`,
    'Cache-Control: no-store',
    'X-Content-Type-Options: nosniff',
    'Connection: close',
  ];
  return `${lines.join('\r\n')}\r\n\r\n${text}`;
}

function problemText(
  known: SallyportError,
  call: { title: string; status: number; requestId: string; instance?: string },
): string {
  return JSON.stringify({
    type: `/problems/${known.code}`,
    title: call.title,
    status: call.status,
    detail: known.next === undefined ? known.message : `${known.message} ${known.next}`,
    instance: call.instance,
    code: known.code,
    request_id: call.requestId,
    retryable: isRetryable(known.code, call.status),
    ...(known.retryAfterS === undefined ? {} : { retry_after_s: known.retryAfterS }),
    ...(known.errors.length === 0 ? {} : { errors: known.errors.slice(0, MAX_ERRORS) }),
    ...known.extra,
  });
}

/** Writes a whole answer; `Content-Length` is set, HEAD gets no body. */
export function sendText(res: Response, status: number, mediaType: string, text: string): void {
  res.statusCode = status;
  res.setHeader('Content-Type', mediaType);
  res.setHeader('Content-Length', Buffer.byteLength(text));
  res.end(text);
}

function toKnownError(error: unknown): SallyportError {
  if (error instanceof SallyportError) {
    if ((listHttpCodes() as string[]).includes(error.code)) return error;
    return error.code === error.code.toUpperCase() ? batchProblem(error) : internal(error);
  }
  if (isConnectionError(error)) {
    return new SallyportError('store-unavailable', 'The database does not answer.', {
      cause: error,
      retryAfterS: STORE_RETRY_S,
      next: 'Try again in a moment; nothing was changed.',
    });
  }
  // The router's complaint about a path that is not valid percent-encoding.
  if (error instanceof URIError) {
    return new SallyportError('not-found', 'The path is not valid percent-encoding.');
  }
  return internal(error);
}

/** What is wrong with a batch file, with its own code beside that of the answer. */
function batchProblem(error: SallyportError): SallyportError {
  const waits = batchCodeKind(error.code as BatchCode) === 'wait';
  return new SallyportError(waits ? 'batch-waits' : 'batch-refused', error.message, {
    cause: error,
    ...(error.next !== undefined && { next: error.next }),
    extra: { batch_code: error.code },
  });
}

function internal(cause: unknown): SallyportError {
  return new SallyportError('internal', 'Something broke on our side.', {
    cause,
    next: 'Tell an administrator the request_id.',
  });
}

/** Answers `/problems/<code>`, or the list of all codes; HTML for browsers, else JSON. */
export function sendProblemPage(req: Request, res: Response, code?: string): void {
  const codes = listHttpCodes();
  if (code !== undefined && !(codes as string[]).includes(code)) {
    throw new SallyportError('not-found', 'No problem has this code.', {
      next: 'All codes are listed at /problems.',
    });
  }
  const shown = (code === undefined ? codes : [code as HttpCode]).map(describeCode);
  if (req.accepts(['json', 'html']) !== 'html') {
    sendText(res, 200, 'application/json', JSON.stringify(code === undefined ? shown : shown[0]));
    return;
  }
  const rows = shown.map(
    ({ status, title, type, code: name }) =>
      `<tr><td>${status}<td><a href="${type}"><code>${name}</code></a><td>${title}`,
  );
  const page = `<!doctype html><html lang="en"><meta charset="utf-8"><title>${code ?? 'Problems'}</title>
<h1>${code ?? 'Problems'}</h1><table><tr><th>Status<th>Code<th>Meaning${rows.join('')}</table>`;
  sendText(res, 200, 'text/html; charset=utf-8', page);
}

function describeCode(code: HttpCode) {
  const { status, title } = httpProblem(code);
  return { type: `/problems/${code}`, title, status, code, retryable: isRetryable(code, status) };
}
