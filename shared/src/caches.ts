import { appendAudit } from './audit.js';
import {
  createByteCache,
  type CacheLimits,
  type CacheScope,
  type CacheTally,
} from './byte-cache.js';
import type { Clock } from './clock.js';
import type { Counters } from './counters.js';
import { rows, type Database, type Transaction } from './database.js';
import { newId } from './ids.js';
import type { Log } from './log.js';
import type { SharedCache } from './redis-cache.js';

/** The caches there are: results on the request network, answers by query on the response network. */
export type CacheName = 'results' | 'digests';

/** The cache of a network as one process sees it: its own memory first, then, if there is one, Redis. */
export type Cache = {
  readonly name: CacheName;
  /** From the memory of this process; counts a hit. */
  get(key: string): Buffer | undefined;
  /** From Redis into the memory of this process; counts a hit or a miss. */
  fetch(key: string, isSound: (bytes: Buffer) => boolean): Promise<Buffer | undefined>;
  /** Into both levels, or only into this process. */
  put(key: string, bytes: Buffer, levels: 'all' | 'process'): void;
  /** Whether bytes of this length are kept at all. */
  admits(length: number): boolean;
  /** What a clear would drop: of this process and of Redis. */
  count(scope: CacheScope): Promise<CacheTally>;
  /** Drops it here and in Redis; {@link tellCache} reaches the other processes. */
  drop(scope: CacheScope): Promise<CacheTally>;
  /** Drops what is too old or too much, here and in Redis. */
  optimise(): Promise<void>;
  /** Does what a message on {@link CACHE_CHANNEL} asks for. */
  hear(message: string): void;
  stats(): Promise<CacheStats>;
  close(): Promise<void>;
};

export type CacheLevel = CacheTally & {
  level: 'process' | 'redis';
  /** Processes that reported lately; null for Redis. */
  processes: number | null;
  hits: number;
  evictions: number;
};
/** Sums over the processes that live, since each began. */
export type CacheStats = CacheTally & {
  name: CacheName;
  hits: number;
  misses: number;
  evictions: number;
  max_bytes: number;
  entry_max_bytes: number;
  ttl_s: number;
  levels: CacheLevel[];
};

export type CacheSettings = CacheLimits & { entryMaxBytes: number };

type Message = { do: 'drop'; scope: CacheScope } | { do: 'optimise' };

/** The channel on which processes tell each other what to drop. */
export const CACHE_CHANNEL = 'sallyport_cache';
const REPORT_MS = 30_000;
const REPORT_VALID_MS = 120_000;

export type CacheOptions = {
  name: CacheName;
  db: Database;
  clock: Clock;
  log: Log;
  counters: Counters;
  /** Asked whenever they matter, so that changed settings work at once. */
  settings: () => CacheSettings;
  /** Redis, for a second level. */
  redisUrl?: string | undefined;
};

/** Opens the cache of a process; Redis need not answer, now or ever. */
export async function openCache(options: CacheOptions): Promise<Cache> {
  const { name, db, clock, log, counters, settings } = options;
  const shared = await openSecondLevel(options);
  const process = createByteCache(settings);
  const id = newId();
  let hits = 0;
  let sharedHits = 0;
  let misses = 0;
  let used = false;

  const report = async () => {
    if (!used) return;
    const { entries, bytes, evictions } = process.size();
    await rows(
      db,
      `insert into cache_reports as c (process, cache, at, entries, bytes, hits, shared_hits, misses,
         evictions)
       values (?, ?, ?, ?, ?, ?, ?, ?, ?)
       on conflict (process) do update set at = excluded.at, entries = excluded.entries,
         bytes = excluded.bytes, hits = excluded.hits, shared_hits = excluded.shared_hits,
         misses = excluded.misses, evictions = excluded.evictions`,
      [id, name, clock.now(), entries, bytes, hits, sharedHits, misses, evictions],
    );
  };
  const warn = (err: unknown) => log.warn({ err, cache: name }, 'a cache could not do its work');
  const timer = setInterval(() => void report().catch(warn), REPORT_MS);
  timer.unref();

  const optimise = async () => {
    process.trim();
    await shared?.trim();
    await report();
  };

  return {
    name,
    get(key) {
      const bytes = process.get(key);
      if (!bytes) return undefined;
      hits += 1;
      used = true;
      counters.count('cache', 'hit');
      return bytes;
    },
    async fetch(key, isSound) {
      used = true;
      const found = await shared?.get(key);
      if (found && isSound(found)) {
        sharedHits += 1;
        counters.count('cache', 'hit');
        process.put(key, found);
        return found;
      }
      if (found) {
        log.warn({ cache: name }, 'dropped an entry of redis that is not what was put there');
        void shared?.drop({ key });
      }
      misses += 1;
      counters.count('cache', 'miss');
      return undefined;
    },
    put(key, bytes, levels) {
      used = true;
      process.put(key, bytes);
      if (levels === 'all') void shared?.put(key, bytes);
    },
    admits(length) {
      const { maxBytes, entryMaxBytes } = settings();
      return maxBytes > 0 && length <= entryMaxBytes;
    },
    async count(scope) {
      return sum([process.count(scope), ...(shared ? [await shared.count(scope)] : [])]);
    },
    async drop(scope) {
      return sum([process.drop(scope), ...(shared ? [await shared.drop(scope)] : [])]);
    },
    optimise,
    hear(text) {
      const message = JSON.parse(text) as Message;
      if (message.do === 'drop') process.drop(message.scope);
      else optimise().catch(warn);
    },
    async stats() {
      await report();
      const since = new Date(clock.now().getTime() - REPORT_VALID_MS);
      const reported = await readReports(db, name, since);
      const { maxBytes, entryMaxBytes, ttlMs } = settings();
      const levels: CacheLevel[] = [
        {
          level: 'process',
          processes: reported.processes,
          entries: reported.entries,
          bytes: reported.bytes,
          hits: reported.hits,
          evictions: reported.evictions,
        },
      ];
      const inRedis = await shared?.size();
      if (inRedis) {
        levels.push({ level: 'redis', processes: null, ...inRedis, hits: reported.shared_hits });
      }
      const add = (read: (level: CacheLevel) => number) =>
        levels.reduce((total, level) => total + read(level), 0);
      return {
        name,
        entries: add((level) => level.entries),
        bytes: add((level) => level.bytes),
        hits: add((level) => level.hits),
        misses: reported.misses,
        evictions: add((level) => level.evictions),
        max_bytes: maxBytes,
        entry_max_bytes: entryMaxBytes,
        ttl_s: Math.round(ttlMs / 1_000),
        levels,
      };
    },
    async close() {
      clearInterval(timer);
      shared?.close();
      if (used) await rows(db, 'delete from cache_reports where process = ?', [id]).catch(warn);
    },
  };
}

async function openSecondLevel(options: CacheOptions): Promise<SharedCache | undefined> {
  const { name, redisUrl, settings: limits, clock, log } = options;
  if (redisUrl === undefined) return undefined;
  // Only who has Redis pays for loading its client.
  const { openSharedCache } = await import('./redis-cache.js');
  return openSharedCache(redisUrl, { prefix: `sallyport:${name}`, limits, clock, log });
}

/** Tells every process of the network, this one too, once the transaction has committed. */
export async function tellCache(db: Database, message: Message): Promise<void> {
  await rows(db, 'select pg_notify(?, ?)', [CACHE_CHANNEL, JSON.stringify(message)]);
}

export type CacheAct = { actor: string; at: Date; reason: string };

/** Clears a part of the cache in every process and in Redis; answers what was here and in Redis. */
export async function clearCache(
  db: Database,
  cache: Cache,
  { scope, by }: { scope: CacheScope; by: CacheAct },
): Promise<CacheTally> {
  const dropped = await cache.drop(scope);
  await db.transaction(async (tx) => {
    await auditAct(tx, cache, { action: 'cache.clear', by, details: { scope, ...dropped } });
    await tellCache(tx, { do: 'drop', scope });
  });
  return dropped;
}

/** Drops what is too old or too much, in every process and in Redis. */
export async function optimiseCache(db: Database, cache: Cache, by: CacheAct): Promise<void> {
  await cache.optimise();
  await db.transaction(async (tx) => {
    await auditAct(tx, cache, { action: 'cache.optimise', by, details: {} });
    await tellCache(tx, { do: 'optimise' });
  });
}

/** What the worker `maintain-cache` does: as {@link optimiseCache}, and forgets dead processes. */
export async function maintainCache(db: Database, cache: Cache, now: Date): Promise<void> {
  await rows(db, 'delete from cache_reports where at < ?', [
    new Date(now.getTime() - REPORT_VALID_MS),
  ]);
  await cache.optimise();
  await tellCache(db, { do: 'optimise' });
}

async function auditAct(
  tx: Transaction,
  { name }: Cache,
  { action, by, details }: { action: string; by: CacheAct; details: Record<string, unknown> },
): Promise<void> {
  const { at, actor, reason } = by;
  await appendAudit(tx, { at, actor, action, subject: name, details: { reason, ...details } });
}

type Reported = CacheTally & {
  processes: number;
  hits: number;
  shared_hits: number;
  misses: number;
  evictions: number;
};

async function readReports(db: Database, name: CacheName, since: Date): Promise<Reported> {
  const [found] = await rows<Reported>(
    db,
    `select count(*)::integer as processes, coalesce(sum(entries), 0)::bigint as entries,
       coalesce(sum(bytes), 0)::bigint as bytes, coalesce(sum(hits), 0)::bigint as hits,
       coalesce(sum(shared_hits), 0)::bigint as shared_hits,
       coalesce(sum(misses), 0)::bigint as misses, coalesce(sum(evictions), 0)::bigint as evictions
     from cache_reports where cache = ? and at >= ?`,
    [name, since],
  );
  return found as Reported;
}

function sum(tallies: CacheTally[]): CacheTally {
  return {
    entries: tallies.reduce((total, { entries }) => total + entries, 0),
    bytes: tallies.reduce((total, { bytes }) => total + bytes, 0),
  };
}
