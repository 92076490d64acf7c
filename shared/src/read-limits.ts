import {
  RateLimiterMemory,
  RateLimiterRedis,
  type RateLimiterAbstract,
} from 'rate-limiter-flexible';
import { SallyportError } from './errors.js';
import type { ReadTicket } from './http-routes.js';
import type { Log } from './log.js';

/** How often users of one network read, counted by calendar of their own: a minute from the first. */
export type ReadLimits = {
  /**
   * Lets a user read who has not read so often as the limit within a minute; nothing is counted
   * before the ticket's `count`, so that what was not answered costs nothing.
   * @throws SallyportError `rate-limited`.
   */
  enter(userId: string, limit: number): ReadTicket;
  close(): void;
};

type Known = { used: number; endsAt: number };

const SPAN_S = 60;
const MS = 1_000;
const JITTER = 0.1;
const MAX_KNOWN = 10_000;
const CONNECT_LIMIT_MS = 2_000;
const COMMAND_LIMIT_MS = 250;
/** The library refuses beyond its points; the limits here are those of the users. */
const POINTS = Number.MAX_SAFE_INTEGER;

/**
 * Opens the counts of one process. With Redis the processes share them: each learns the sum with what
 * it adds itself, and nobody waits for it. Without, or while Redis fails, each counts for itself.
 */
export async function openReadLimits({
  redisUrl,
  prefix,
  log,
}: {
  redisUrl?: string | undefined;
  prefix: string;
  log: Log;
}): Promise<ReadLimits> {
  const known = new Map<string, Known>();
  const { counter, close } = await openCounter(redisUrl, { prefix, log });

  const remember = (userId: string, entry: Known) => {
    if (known.size >= MAX_KNOWN) known.clear();
    known.set(userId, entry);
  };
  const count = (userId: string) => {
    const entry = known.get(userId);
    // What is counted here holds until the counter has told the sum.
    if (entry && entry.endsAt > performance.now()) entry.used += 1;
    else remember(userId, { used: 1, endsAt: performance.now() + SPAN_S * MS });
    counter
      .consume(userId, 1)
      .then(({ consumedPoints, msBeforeNext }) =>
        remember(userId, { used: consumedPoints, endsAt: performance.now() + msBeforeNext }),
      )
      .catch((err: unknown) => log.debug({ err }, 'could not count a read'));
  };

  return {
    close,
    enter(userId, limit) {
      const entry = known.get(userId);
      const now = performance.now();
      const leftMs = entry ? entry.endsAt - now : 0;
      const used = entry && leftMs > 0 ? entry.used : 0;
      const endsInS = leftMs > 0 ? Math.ceil(leftMs / MS) : SPAN_S;
      if (used >= limit) throw refuse({ used, limit, endsInS });
      const remaining = limit - used - 1;
      return {
        headers: {
          'RateLimit-Policy': `"read-min";q=${limit};w=${SPAN_S}`,
          RateLimit: `"read-min";r=${remaining};t=${remaining > 0 ? 0 : endsInS}`,
        },
        count: () => count(userId),
      };
    },
  };
}

async function openCounter(
  redisUrl: string | undefined,
  { prefix, log }: { prefix: string; log: Log },
): Promise<{ counter: RateLimiterAbstract; close(): void }> {
  const memory = new RateLimiterMemory({ keyPrefix: prefix, points: POINTS, duration: SPAN_S });
  if (redisUrl === undefined) return { counter: memory, close: () => undefined };
  // Only who has Redis pays for loading its client.
  const { Redis } = await import('ioredis');
  const redis = new Redis(redisUrl, {
    lazyConnect: true,
    enableOfflineQueue: false,
    connectTimeout: CONNECT_LIMIT_MS,
    commandTimeout: COMMAND_LIMIT_MS,
    maxRetriesPerRequest: 0,
    retryStrategy: (tries) => Math.min(tries * 200, 5_000),
  });
  redis.on('error', (err) => log.debug({ err }, 'the connection that counts reads failed'));
  redis.connect().catch(() => undefined);
  const counter = new RateLimiterRedis({
    storeClient: redis,
    keyPrefix: prefix,
    points: POINTS,
    duration: SPAN_S,
    insuranceLimiter: memory,
  });
  return { counter, close: () => redis.disconnect() };
}

function refuse({ used, limit, endsInS }: { used: number; limit: number; endsInS: number }) {
  const waitS = endsInS + Math.floor(endsInS * JITTER * Math.random());
  return new SallyportError('rate-limited', `You have read ${used} times in a minute.`, {
    next: `Try again in ${waitS} s; ask with If-None-Match, and as seldom as Retry-After says.`,
    retryAfterS: waitS,
    extra: { 'violated-policies': ['read-min'], state: 'blocked', reason: 'ceiling' },
    headers: {
      'RateLimit-Policy': `"read-min";q=${limit};w=${SPAN_S}`,
      RateLimit: `"read-min";r=0;t=${endsInS};sp-state=blocked`,
    },
  });
}
