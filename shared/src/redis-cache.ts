import { Redis } from 'ioredis';
import type { CacheLimits, CacheScope, CacheTally } from './byte-cache.js';
import type { Clock } from './clock.js';
import type { Log } from './log.js';

/**
 * The second level of a cache, shared by all processes of a network. It never fails and never makes
 * anybody wait long: what Redis does not give in time is simply not there. Its user checks what comes
 * out of it.
 */
export type SharedCache = {
  get(key: string): Promise<Buffer | undefined>;
  put(key: string, bytes: Buffer): Promise<void>;
  count(scope: CacheScope): Promise<CacheTally>;
  drop(scope: CacheScope): Promise<CacheTally>;
  /** Drops what is too old from the books, and the oldest until it fits. */
  trim(): Promise<void>;
  /** Undefined when Redis does not answer. */
  size(): Promise<(CacheTally & { evictions: number }) | undefined>;
  close(): void;
};

const CONNECT_LIMIT_MS = 2_000;
const COMMAND_LIMIT_MS = 250;
const QUIET_MS = 60_000;
const SCAN_COUNT = 500;
const NOTHING: CacheTally = { entries: 0, bytes: 0 };

// The books: `index` has the keys by the time they were put, `sizes` their bytes, `facts` the sums.
const BOOKS = `
local index, sizes, facts, base = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local function forget(key)
  local bytes = redis.call('hget', sizes, key)
  redis.call('unlink', base .. key)
  if not bytes then return 0 end
  redis.call('hdel', sizes, key)
  redis.call('zrem', index, key)
  redis.call('hincrby', facts, 'bytes', -bytes)
  return tonumber(bytes)
end
local function trim(oldest, most, limit)
  for _, key in ipairs(redis.call('zrangebyscore', index, '-inf', oldest, 'limit', 0, limit)) do
    forget(key)
  end
  local evicted = 0
  while evicted < limit and tonumber(redis.call('hget', facts, 'bytes') or '0') > most do
    local key = redis.call('zrange', index, 0, 0)[1]
    if not key then break end
    forget(key)
    evicted = evicted + 1
  end
  redis.call('hincrby', facts, 'evictions', evicted)
end
`;
const PUT = `${BOOKS}
local key, bytes, ttl, now, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
forget(key)
redis.call('set', base .. key, bytes, 'px', ttl)
redis.call('zadd', index, now, key)
redis.call('hset', sizes, key, #bytes)
redis.call('hincrby', facts, 'bytes', #bytes)
trim(now - ttl, tonumber(most), 100)`;
const TRIM = `${BOOKS} trim(ARGV[1], tonumber(ARGV[2]), 1000)`;
const FORGET = `${BOOKS}
local entries, total = 0, 0
for _, key in ipairs(ARGV) do
  local bytes = forget(key)
  if bytes > 0 then entries = entries + 1 end
  total = total + bytes
end
return {entries, total}`;

/** Opens it; Redis is reached with the first use and again whenever it comes back. */
export function openSharedCache(
  url: string,
  options: { prefix: string; limits: () => CacheLimits; clock: Clock; log: Log },
): SharedCache {
  const { limits, clock } = options;
  // The braces keep all its keys together in a Redis cluster.
  const base = `{${options.prefix}}:`;
  const keys = [`${base}index`, `${base}sizes`, `${base}facts`, `${base}entry:`];
  const redis = new Redis(url, {
    lazyConnect: true,
    connectTimeout: CONNECT_LIMIT_MS,
    commandTimeout: COMMAND_LIMIT_MS,
    maxRetriesPerRequest: 0,
    retryStrategy: (tries) => Math.min(tries * 200, 5_000),
  });
  let quietUntil = 0;
  const warn = (err: unknown) => {
    const level = performance.now() < quietUntil ? 'debug' : 'warn';
    if (level === 'warn') quietUntil = performance.now() + QUIET_MS;
    options.log[level]({ err }, 'the second level of the cache failed, going on without');
  };
  redis.on('error', warn);
  const script = (text: string, ...values: (string | number | Buffer)[]) =>
    redis.eval(text, keys.length, ...keys, ...values);
  /** Runs the work, or does without when Redis is not there. */
  const attempt = async <T>(work: () => Promise<T>): Promise<T | undefined> => {
    try {
      if (redis.status === 'wait') await redis.connect();
      if (redis.status !== 'ready') return undefined;
      return await work();
    } catch (err) {
      warn(err);
      return undefined;
    }
  };

  /** Calls back with the keys in the scope, page by page. */
  const scan = async (scope: CacheScope, use: (keys: string[]) => Promise<void>) => {
    if (scope.key !== undefined) return use([scope.key]);
    const pattern = `${scope.dataset ?? '*'}/${scope.user ?? '*'}/*`;
    let cursor = '0';
    do {
      const [next, found] = await redis.hscan(
        keys[1] as string,
        cursor,
        'MATCH',
        pattern,
        'COUNT',
        SCAN_COUNT,
      );
      const page = found.filter((_each, n) => n % 2 === 0);
      if (page.length > 0) await use(page);
      cursor = next;
    } while (cursor !== '0');
  };

  return {
    get: (key) => attempt(async () => (await redis.getBuffer(`${keys[3]}${key}`)) ?? undefined),
    async put(key, bytes) {
      const { maxBytes, ttlMs } = limits();
      if (bytes.length > maxBytes) return;
      const values = [key, bytes, ttlMs, clock.now().getTime(), maxBytes];
      await attempt(() => script(PUT, ...values));
    },
    async count(scope) {
      const tally = { ...NOTHING };
      await attempt(() =>
        scan(scope, async (page) => {
          const sizes = await redis.hmget(keys[1] as string, ...page);
          for (const size of sizes) {
            if (size === null) continue;
            tally.entries += 1;
            tally.bytes += Number(size);
          }
        }),
      );
      return tally;
    },
    async drop(scope) {
      const tally = { ...NOTHING };
      await attempt(() =>
        scan(scope, async (page) => {
          const [entries, bytes] = (await script(FORGET, ...page)) as [number, number];
          tally.entries += entries;
          tally.bytes += bytes;
        }),
      );
      return tally;
    },
    async trim() {
      const { maxBytes, ttlMs } = limits();
      await attempt(() => script(TRIM, clock.now().getTime() - ttlMs, maxBytes));
    },
    async size() {
      return attempt(async () => {
        const [entries, facts] = await Promise.all([
          redis.zcard(keys[0] as string),
          redis.hgetall(keys[2] as string),
        ]);
        return {
          entries,
          bytes: Number(facts['bytes'] ?? 0),
          evictions: Number(facts['evictions'] ?? 0),
        };
      });
    },
    close: () => redis.disconnect(),
  };
}
