import type { Express, Request, Response } from 'express';
import { SallyportError } from './errors.js';

/** What of the configuration concerns browsers and what stands between them and us. */
export type BrowserConfig = {
  /** Origins, comma-separated. */
  CORS_ORIGINS?: string | undefined;
  /** Addresses and networks, comma-separated. */
  TRUSTED_PROXIES?: string | undefined;
};

/** The cookies of a console: the access token, and the token that fetches the next one. */
const SESSION_COOKIE = '__Host-sallyport';
const REFRESH_COOKIE = '__Host-sallyport-refresh';
const COOKIE_RULES = 'Path=/; HttpOnly; Secure; SameSite=Strict';
const SAFE_METHODS = ['GET', 'HEAD', 'OPTIONS'];
const KEY_PREFIX = 'sp_';
const PREFLIGHT_S = 600;
const CORS_METHODS = 'GET, HEAD, POST, PUT, PATCH, DELETE';
const CORS_REQUEST_HEADERS = [
  'Authorization',
  'Content-Type',
  'Idempotency-Key',
  'If-Match',
  'If-None-Match',
  'Last-Event-ID',
  'Range',
  'Repr-Digest',
  'Upload-Complete',
  'Upload-Length',
  'Upload-Offset',
  'X-Request-Id',
  'traceparent',
].join(', ');
const CORS_ANSWER_HEADERS = [
  'ETag',
  'Idempotency-Replayed',
  'Location',
  'RateLimit',
  'RateLimit-Policy',
  'Repr-Digest',
  'Retry-After',
  'Upload-Complete',
  'Upload-Offset',
  'X-Request-Id',
].join(', ');

/**
 * What proves who calls: the header Authorization, or else the cookie of a console. With a cookie a
 * call that changes something must come from a page of our own.
 * @throws SallyportError `cross-site`.
 */
export function authorizationOf(req: Request): string | undefined {
  const { authorization } = req.headers;
  if (authorization !== undefined) return authorization;
  const token = readCookie(req, SESSION_COOKIE);
  // A key never belongs in a cookie.
  if (token === undefined || token.startsWith(KEY_PREFIX)) return undefined;
  if (!SAFE_METHODS.includes(req.method)) requireSameOrigin(req);
  return `Bearer ${token}`;
}

/** The refresh token in the cookie of a console. */
export function refreshCookieOf(req: Request): string | undefined {
  return readCookie(req, REFRESH_COOKIE);
}

/**
 * That a call comes from a page of the origin it goes to (Fetch Metadata; Origin for browsers that
 * do not send it).
 * @throws SallyportError `cross-site`.
 */
export function requireSameOrigin(req: Request): void {
  const { host, origin, 'sec-fetch-site': site } = req.headers;
  if (site === 'same-origin') return;
  if (site === undefined && origin !== undefined && hostOf(origin) === host) return;
  throw new SallyportError('cross-site', 'The call does not come from a page of this host.', {
    next: 'Programs send the token in the header Authorization, without cookies.',
  });
}

/**
 * That a GET which notes something does so for a page of our own where a cookie proves who calls.
 * @throws SallyportError `cross-site`.
 */
export function requireOwnPage(req: Request): void {
  if (req.headers.authorization === undefined) requireSameOrigin(req);
}

/** Gives a browser the tokens of a session in cookies that no script can read; null takes them away. */
export function setSessionCookies(
  res: Response,
  tokens: { token: string; refreshToken: string; refreshExpiresAt: Date } | null,
  now: Date,
): void {
  const seconds = tokens
    ? Math.max(0, Math.floor((tokens.refreshExpiresAt.getTime() - now.getTime()) / 1_000))
    : 0;
  const cookie = (name: string, value: string) =>
    `${name}=${value}; ${COOKIE_RULES}; Max-Age=${seconds}`;
  res.setHeader('Set-Cookie', [
    cookie(SESSION_COOKIE, tokens?.token ?? ''),
    cookie(REFRESH_COOKIE, tokens?.refreshToken ?? ''),
  ]);
}

/**
 * Lets pages of the configured origins call the API with tokens and keys, never with cookies, and
 * believes the configured proxies about who calls.
 * @throws SallyportError `config-invalid`.
 */
export function admitBrowsers(app: Express, config: BrowserConfig): void {
  const proxies = listOf(config.TRUSTED_PROXIES);
  try {
    app.set('trust proxy', proxies.length > 0 ? proxies : false);
  } catch (cause) {
    const text = `TRUSTED_PROXIES is not valid: ${(cause as Error).message}.`;
    throw new SallyportError('config-invalid', text, { cause });
  }
  const origins = new Set(listOf(config.CORS_ORIGINS));
  if (origins.size === 0) return;
  app.use((req: Request, res: Response, next: () => void) => {
    res.setHeader('Vary', 'Origin');
    const { origin } = req.headers;
    if (origin === undefined || !origins.has(origin)) {
      next();
      return;
    }
    res.setHeader('Access-Control-Allow-Origin', origin);
    res.setHeader('Access-Control-Expose-Headers', CORS_ANSWER_HEADERS);
    const asks = req.headers['access-control-request-method'] !== undefined;
    if (req.method !== 'OPTIONS' || !asks) {
      next();
      return;
    }
    res.setHeader('Access-Control-Allow-Methods', CORS_METHODS);
    res.setHeader('Access-Control-Allow-Headers', CORS_REQUEST_HEADERS);
    res.setHeader('Access-Control-Max-Age', PREFLIGHT_S);
    res.statusCode = 204;
    res.end();
  });
}

function readCookie(req: Request, name: string): string | undefined {
  for (const part of req.headers.cookie?.split(';') ?? []) {
    const at = part.indexOf('=');
    if (at !== -1 && part.slice(0, at).trim() === name)
      return part.slice(at + 1).trim() || undefined;
  }
  return undefined;
}

function hostOf(origin: string): string | undefined {
  return URL.canParse(origin) ? new URL(origin).host : undefined;
}

function listOf(text: string | undefined): string[] {
  return (text ?? '')
    .split(',')
    .map((item) => item.trim())
    .filter((item) => item !== '');
}
