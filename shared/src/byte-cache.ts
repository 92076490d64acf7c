import { LRUCache } from 'lru-cache';

/** Which entries of a cache: of a dataset, of a user, or one alone; without members, all of them. */
export type CacheScope = { dataset?: string; user?: string; key?: string };
export type CacheTally = { entries: number; bytes: number };
/** What a level may hold; 0 bytes turn it off. */
export type CacheLimits = { maxBytes: number; ttlMs: number };

/** The first level of a cache: bytes in the memory of one process, the least used ones go first. */
export type ByteCache = {
  get(key: string): Buffer | undefined;
  put(key: string, bytes: Buffer): void;
  count(scope: CacheScope): CacheTally;
  drop(scope: CacheScope): CacheTally;
  /** Drops what is too old. */
  trim(): void;
  size(): CacheTally & { evictions: number };
};

/** Begins the name of another form of the same bytes, as lines are one of a result. */
export const FORM_MARK = '#';
/** An entry costs a little more than its bytes. */
const OVERHEAD_BYTES = 512;

/**
 * The key of an entry: whose it is, and what. Scopes are read from it, so neither the dataset nor the
 * user has a slash; `what` may.
 */
export function cacheKey(parts: { dataset: string; user: string; what: string }): string {
  return `${parts.dataset}/${parts.user}/${parts.what}`;
}

/** Whether a key lies in the scope, in whatever form. */
function isInScope(key: string, scope: CacheScope): boolean {
  const [dataset, user] = key.split('/', 2);
  if (scope.dataset !== undefined && scope.dataset !== dataset) return false;
  if (scope.user !== undefined && scope.user !== user) return false;
  return scope.key === undefined || scope.key === key.split(FORM_MARK, 1)[0];
}

/** Makes an empty one; the limits are asked for with every put, so that settings work at once. */
export function createByteCache(limits: () => CacheLimits): ByteCache {
  let evictions = 0;
  let inForce = limits();
  let entries = makeEntries(inForce);

  function makeEntries({ maxBytes, ttlMs }: CacheLimits) {
    return new LRUCache<string, Buffer>({
      maxSize: Math.max(1, maxBytes),
      sizeCalculation: (bytes) => bytes.length + OVERHEAD_BYTES,
      ttl: ttlMs,
      dispose: (_bytes, _key, reason) => {
        if (reason === 'evict') evictions += 1;
      },
    });
  }

  const obeyLimits = () => {
    const wanted = limits();
    if (wanted.maxBytes === inForce.maxBytes && wanted.ttlMs === inForce.ttlMs) return;
    inForce = wanted;
    entries = makeEntries(wanted);
  };

  const find = (scope: CacheScope): [string, Buffer][] =>
    [...entries.entries()].filter(([key]) => isInScope(key, scope));

  return {
    get: (key) => entries.get(key),
    put(key, bytes) {
      obeyLimits();
      entries.set(key, bytes);
    },
    count: (scope) => tally(find(scope)),
    drop(scope) {
      const found = find(scope);
      for (const [key] of found) entries.delete(key);
      return tally(found);
    },
    trim() {
      obeyLimits();
      entries.purgeStale();
    },
    size: () => ({ entries: entries.size, bytes: entries.calculatedSize, evictions }),
  };
}

function tally(found: [string, Buffer][]): CacheTally {
  return {
    entries: found.length,
    bytes: found.reduce((sum, [, bytes]) => sum + bytes.length + OVERHEAD_BYTES, 0),
  };
}
