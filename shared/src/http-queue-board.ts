import { Router, type Express, type Request, type Response } from 'express';
import { SallyportError } from './errors.js';
import { callState } from './http-problems.js';
import { requireAccess, type Actor } from './http-routes.js';
import type { QueueAccess } from './queue-access.js';
import { READERS } from './role-sets.js';
import { listWorkers } from './workers.js';

/** Where the browser of the queues lies. */
const BOARD_PATH = '/admin/queues';
/** Everything from this host; its own styles stand in the page. */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self' 'unsafe-inline'",
  "img-src 'self' data:",
  "font-src 'self'",
  "connect-src 'self'",
  "base-uri 'self'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');
const ASSET = /\.(?:css|js|svg|png|ico|json|woff2?)$/;

type Board = { app: Express };

/**
 * bull-board, for looking only: what changes a queue takes a reason and goes through the API, so
 * every call but GET and HEAD is refused. Callers are known as they are to the routes.
 */
export function queueBoard<A extends Actor>(
  queues: Pick<QueueAccess, 'open'>,
  authenticate: (req: Request) => A | Promise<A>,
): Router {
  let opened: Promise<Board> | undefined;
  const open = () => {
    opened ??= openBoard(queues).catch((error: unknown) => {
      opened = undefined;
      throw error;
    });
    return opened;
  };
  const router = Router({ caseSensitive: true });
  router.use(BOARD_PATH, async (req: Request, res: Response, next: (error?: unknown) => void) => {
    const state = callState(res);
    state.route = BOARD_PATH;
    const actor = await authenticate(req);
    state.actor = actor.id;
    requireAccess(actor, { roles: READERS });
    if (req.method !== 'GET' && req.method !== 'HEAD') {
      res.setHeader('Allow', 'GET, HEAD');
      throw new SallyportError('method-not-allowed', 'Queues are only looked at here.', {
        next: 'Use /v1/admin/queues, with a reason.',
      });
    }
    res.setHeader('Content-Security-Policy', POLICY);
    res.setHeader('Referrer-Policy', 'no-referrer');
    if (ASSET.test(req.path)) res.setHeader('Cache-Control', 'private, max-age=3600');
    const { app } = await open();
    app(req, res, next);
  });
  return router;
}

async function openBoard(access: Pick<QueueAccess, 'open'>): Promise<Board> {
  // Only who looks pays for loading it.
  const { createBullBoard } = await import('@bull-board/api');
  const { BullMQAdapter } = await import('@bull-board/api/bullMQAdapter');
  const { ExpressAdapter } = await import('@bull-board/express');
  const queues = await access.open();
  const server = new ExpressAdapter().setBasePath(BOARD_PATH);
  createBullBoard({
    queues: listWorkers(queues.network).map(
      (name) => new BullMQAdapter(queues.queue(name) as never, { readOnlyMode: true }),
    ),
    // Its types come from two copies of one package.
    serverAdapter: server as never,
    options: {
      uiConfig: { boardTitle: `Sallyport ${queues.network} network`, hideRedisDetails: true },
    },
  });
  const app = server.getRouter() as Express;
  keepLocal(app);
  return { app };
}

type Render = (
  path: string,
  options: object,
  done: (error: Error | null, html?: string) => void,
) => void;

/** Its page names a font of another host, which is not there on either network. */
function keepLocal(app: Express): void {
  const { engines } = app as unknown as { engines: Record<string, Render> };
  const render = engines['.ejs'];
  if (!render) throw new Error('bull-board renders its page in another way');
  app.engine('ejs', (path: string, options: object, done) =>
    render(path, options, (error, html) =>
      done(error, html?.replace(/<link\s[^>]*href="https?:[^>]*>/g, '')),
    ),
  );
}
