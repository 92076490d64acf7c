import { randomUUID } from 'node:crypto';
import {
  createServer,
  maxHeaderSize,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import express, { type Express, type Request, type Response, type Router } from 'express';
import { SallyportError } from './errors.js';
import { admitBrowsers, type BrowserConfig } from './http-browsers.js';
import { bareProblem, callState, sendProblem, sendProblemPage, sendText } from './http-problems.js';
import type { Actor, Routes, RouteSummary } from './http-routes.js';
import type { Log } from './log.js';
import { buildOpenApi } from './openapi.js';

/** Something the service needs; a required one that fails makes `/readyz` answer 503. */
export type ReadinessCheck = { name: string; required: boolean; check: () => Promise<unknown> };

export type AppOptions = {
  title: string;
  version: string;
  log: Log;
  config?: BrowserConfig;
  routes: readonly Pick<Routes<Actor>, 'router' | 'summaries'>[];
  readiness?: readonly ReadinessCheck[];
  /** Served after the API: the console's files. */
  routers?: readonly Router[];
};

export type RunningServer = { url: string; port: number; close(limitMs?: number): Promise<void> };

const REQUEST_ID = /^[A-Za-z0-9._:-]{1,128}$/;
const TRACEPARENT = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/;
const READINESS_LIMIT_MS = 2_000;
const HEALTH_ROUTES = new Set(['/livez', '/readyz']);
const DRAIN_LIMIT_MS = 10_000;
const IDLE_SWEEP_MS = 50;

/**
 * The HTTP base of both networks: request ids, problem documents, access log, health checks and the
 * OpenAPI document around the routes.
 */
export function createApp(options: AppOptions): Express {
  const { log, routes, readiness = [], routers = [] } = options;
  const summaries = routes.flatMap((each) => each.summaries);
  const openApi = JSON.stringify(
    buildOpenApi({ title: options.title, version: options.version }, summaries),
  );
  const app = express();
  app.disable('x-powered-by');
  app.disable('etag');
  app.set('query parser', 'simple');
  app.use(beginCall(log));
  admitBrowsers(app, options.config ?? {});
  for (const { router } of routes) app.use(router);
  const serve = (path: string, answer: (req: Request, res: Response) => unknown) =>
    app.get(path, async (req, res) => {
      callState(res).route = path;
      await answer(req, res);
    });
  serve('/livez', (_req, res) => sendText(res, 200, 'application/json', '{"status":"ok"}'));
  serve('/readyz', (_req, res) => answerReadiness(readiness, res));
  serve('/openapi.json', (_req, res) => sendText(res, 200, 'application/json', openApi));
  serve('/problems', (req, res) => sendProblemPage(req, res));
  serve('/problems/:code', (req, res) => sendProblemPage(req, res, String(req.params['code'])));
  for (const router of routers) app.use(router);
  app.use((req: Request, res: Response) => refuseUnknown(req, res, summaries));
  // Express knows an error handler by its four parameters.
  app.use((error: unknown, req: Request, res: Response, _next: unknown) => {
    sendProblem(error, req, res, log);
  });
  return app;
}

/** Listens, with time limits on slow callers; port 0 takes a free one. */
export async function startServer(
  app: Express,
  { host, port }: { host: string; port: number },
): Promise<RunningServer> {
  const server = createServer({
    headersTimeout: 15_000,
    requestTimeout: 300_000,
    keepAliveTimeout: 65_000,
    // It is required all the same, by us: Node's own answer is no problem document.
    requireHostHeader: false,
  });
  answerCalls(server, app);
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, () => {
      server.off('error', reject);
      resolve();
    });
  });
  const bound = (server.address() as AddressInfo).port;
  const name = host.includes(':') ? `[${host}]` : host;
  return {
    port: bound,
    url: `http://${name}:${bound}`,
    async close(limitMs = DRAIN_LIMIT_MS) {
      const closed = new Promise((resolve) => server.close(resolve));
      // Kept-alive connections become idle one by one, as their last answers end.
      const sweep = setInterval(() => server.closeIdleConnections(), IDLE_SWEEP_MS);
      const cut = setTimeout(() => server.closeAllConnections(), limitMs);
      await closed;
      clearInterval(sweep);
      clearTimeout(cut);
    },
  };
}

/** Every call gets the app's answer, or a problem document where Node would answer by itself. */
function answerCalls(server: Server, app: Express): void {
  const answering = new WeakMap<Duplex, Set<ServerResponse>>();
  const end = (socket: Duplex, problem: SallyportError) => {
    // Half an answer must not be followed by another one.
    const begun = [...(answering.get(socket) ?? [])].some((res) => res.headersSent);
    if (!socket.writable || begun) socket.destroy();
    else socket.end(bareProblem(problem), () => socket.destroy());
  };
  server.on('request', (req: IncomingMessage, res: ServerResponse) => {
    if (req.httpVersion === '1.1' && req.headers.host === undefined) {
      end(req.socket, new SallyportError('bad-header', 'The header Host is missing.'));
      return;
    }
    const open = answering.get(req.socket) ?? new Set();
    answering.set(req.socket, open.add(res));
    res.once('finish', () => open.delete(res));
    void app(req as Request, res as Response);
  });
  server.on('checkExpectation', (req: IncomingMessage) => {
    const next = 'Expect 100-continue or nothing.';
    const text = 'The header Expect asks for something that is unknown here.';
    end(req.socket, new SallyportError('bad-header', text, { next }));
  });
  server.on('clientError', (error: NodeJS.ErrnoException, socket: Duplex) => {
    if (error.code === 'ECONNRESET') socket.destroy();
    else end(socket, clientProblem(error.code));
  });
}

function clientProblem(code: string | undefined): SallyportError {
  if (code === 'HPE_HEADER_OVERFLOW') {
    const text = `The headers have more than ${maxHeaderSize} bytes.`;
    return new SallyportError('headers-too-large', text);
  }
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') {
    return new SallyportError('body-too-slow', 'The request was not complete in time.');
  }
  return new SallyportError('bad-header', 'The request is not valid HTTP/1.1.');
}

function beginCall(log: Log) {
  // None of the fields below is a secret, and looking for one costs as much as the line itself.
  const accessLog = log.child({}, { redact: [] });
  return (req: Request, res: Response, next: () => void) => {
    const startedAt = performance.now();
    const given = req.headers['x-request-id'];
    const requestId = typeof given === 'string' && REQUEST_ID.test(given) ? given : randomUUID();
    const state = callState(res);
    state.requestId = requestId;
    res.setHeader('X-Request-Id', requestId);
    res.setHeader('Cache-Control', 'no-store');
    res.setHeader('X-Content-Type-Options', 'nosniff');
    // Nothing here is a page that loads anything; one that is says so itself.
    res.setHeader('Content-Security-Policy', "default-src 'none'; frame-ancestors 'none'");
    res.setHeader('Referrer-Policy', 'no-referrer');
    const trace = req.headers['traceparent'];
    if (typeof trace === 'string' && TRACEPARENT.test(trace)) res.setHeader('traceparent', trace);
    const sentBefore = req.socket.bytesWritten;
    res.on('close', () => {
      const level = state.route !== undefined && HEALTH_ROUTES.has(state.route) ? 'debug' : 'info';
      accessLog[level](
        {
          method: req.method,
          route: state.route ?? null,
          status: res.headersSent ? res.statusCode : 499,
          ms: Math.round((performance.now() - startedAt) * 10) / 10,
          bytes: req.socket.bytesWritten - sentBefore,
          actor: state.actor ?? null,
          request_id: requestId,
        },
        'call answered',
      );
    });
    next();
  };
}

async function answerReadiness(checks: readonly ReadinessCheck[], res: Response): Promise<void> {
  const outcomes = await Promise.all(
    checks.map(async ({ name, required, check }) => ({ name, required, ok: await passes(check) })),
  );
  const states = Object.fromEntries(outcomes.map(({ name, ok }) => [name, ok ? 'ok' : 'failed']));
  const failed = outcomes.filter((each) => !each.ok);
  const missing = failed.filter((each) => each.required).map((each) => each.name);
  if (missing.length > 0) {
    throw new SallyportError('store-unavailable', `Out of reach: ${missing.join(', ')}.`, {
      retryAfterS: 5,
      extra: { checks: states },
    });
  }
  const status = failed.length > 0 ? 'degraded' : 'ok';
  sendText(res, 200, 'application/json', JSON.stringify({ status, checks: states }));
}

async function passes(check: () => Promise<unknown>): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), READINESS_LIMIT_MS);
  });
  try {
    return await Promise.race([check().then(() => true), late]);
  } catch {
    return false;
  } finally {
    clearTimeout(timer);
  }
}

function refuseUnknown(req: Request, res: Response, routes: readonly RouteSummary[]): never {
  const allowed = routes.filter((route) => route.pattern.test(req.path));
  const [first] = allowed;
  if (!first) throw new SallyportError('not-found', 'Nothing is here.');
  callState(res).route = first.path;
  const methods = [...new Set(allowed.map((route) => route.method.toUpperCase()))];
  res.setHeader('Allow', methods.join(', '));
  throw new SallyportError('method-not-allowed', `${req.method} is not possible here.`, {
    next: `Use ${methods.join(' or ')}.`,
  });
}
