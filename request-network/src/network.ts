import { fileURLToPath } from 'node:url';
import {
  accessQueues,
  changeLocalSetting,
  listen,
  loadSessionKey,
  openDatabase,
  requireMigrated,
  sharedMigrations,
  systemClock,
  type Clock,
  type Database,
  type Log,
  type QueueAccess,
  type QueueAdmin,
  type SessionKey,
  CACHE_CHANNEL,
  CHANGED_CHANNEL,
  IDENTITY_CHANGED,
  LIMITS_CHANGED,
  RULES_CHANGED,
  API_KEYS_FILE,
  SESSION_KEY_FILE,
  openCache,
  openCounters,
  openPrincipals,
  openReadLimits,
  type ReadLimits,
  pageSecretOf,
  readSecret,
  type Cache,
  type CacheSettings,
  type Counters,
  requireBreachedList,
  type Principals,
  type Settings,
} from '@sallyport/shared';
import {
  foldersIn,
  openNode,
  transferMigrations,
  unlockBy,
  type Folders,
  type Node,
} from '@sallyport/transfer';
import { lookUpKeys } from './api-key-look-ups.js';
import type { Config } from './config.js';
import { openBackPressure, type BackPressure } from './back-pressure.js';
import { createEstimates, type Estimates } from './estimates.js';
import { openLimiter, type Limiter } from './limiter.js';
import { requestRules } from './lost-requests.js';
import { openReplica, type Replica } from './replica.js';
import { createResultReader, type ResultReader } from './result-reader.js';
import { createWaiters, type Waiters } from './waiters.js';

/** The migrations of this network, in order. */
export const MIGRATIONS = [
  sharedMigrations,
  transferMigrations,
  fileURLToPath(new URL('../migrations/', import.meta.url)),
];

/** Written into manifests and the OpenAPI document. */
export const VERSION = '0.1.0';

/** Everything that one process of the request network has open. */
export type RequestNetwork = {
  config: Config;
  db: Database;
  node: Node;
  clock: Clock;
  log: Log;
  replica: Replica;
  principals: Principals;
  limiter: Limiter;
  backPressure: BackPressure;
  reads: ReadLimits;
  waiters: Waiters;
  estimates: Estimates;
  counters: Counters;
  /** Texts of results. */
  cache: Cache;
  results: ResultReader;
  sessionKey: SessionKey;
  apiKeySecret: Buffer;
  pageSecret: Buffer;
  queues: QueueAccess;
  queueAdmin: QueueAdmin;
  close(): Promise<void>;
};

/** Where this network keeps its files. */
export function foldersOf(config: Config): Folders {
  return foldersIn(config.STATE_DIR, { inbox: config.INBOX_DIR, outbox: config.OUTBOX_DIR });
}

/**
 * Opens the network once for a process.
 * @throws SallyportError `migrations-pending`, `keys-missing`, `config-invalid`.
 */
export async function openNetwork(
  config: Config,
  { log, clock = systemClock, limiterClock }: { log: Log; clock?: Clock; limiterClock?: Clock },
): Promise<RequestNetwork> {
  const folders = foldersOf(config);
  const db = openDatabase(config.DATABASE_URL);
  try {
    await requireMigrated(db, MIGRATIONS);
    await requireBreachedList(config.BREACHED_PASSWORDS_FILE);
    const sessionKey = await loadSessionKey(await readSecret(folders.keys, SESSION_KEY_FILE));
    const apiKeySecret = Buffer.from(await readSecret(folders.keys, API_KEYS_FILE), 'base64url');
    const replica = await openReplica(db, log);
    const { settings } = replica;
    const build = VERSION;
    const node = await openNode({
      role: 'request',
      folders,
      settings,
      clock,
      log,
      build,
      network: requestRules,
      unlock: unlockBy(config.KEYS_PASSPHRASE_FILE),
      escrow: config.ESCROW_RECIPIENT,
    });
    const queues = accessQueues({
      network: 'request',
      databaseUrl: config.DATABASE_URL,
      redisUrl: config.REDIS_URL,
      prefix: 'sallyport-request',
      log,
    });
    const queueAdmin: QueueAdmin = {
      ...{ db, clock, queues, network: 'request' },
      cadences: {
        read: async (name) => (await replica.rules()).settings[`schedule.${name}`],
        async set(tx, { name, seconds, actor, reason }) {
          const wanted = { key: `schedule.${name}`, value: seconds, reason };
          await changeLocalSetting(tx, wanted, { actor, now: clock.now() });
        },
      },
    };
    const waiters = createWaiters(db, log);
    const counters = openCounters(db, { clock, log });
    const cache = await openCache({
      name: 'results',
      db,
      clock,
      log,
      counters,
      settings: () => cacheSettings(replica.settings()),
      redisUrl: config.REDIS_URL,
    });
    const results = createResultReader({ db, cache, hearsChanges: () => listener.connected() });
    const reads = await openReadLimits({
      redisUrl: config.REDIS_URL,
      prefix: 'sallyport-request-reads',
      log,
    });
    const forget = () => {
      principals.drop();
      replica.drop();
      limiter.drop();
      results.forget();
    };
    const listener = listen(
      config.DATABASE_URL,
      {
        sallyport_imported: (stream) => {
          if (stream === 'identity') principals.drop();
          if (stream === 'identity' || stream === 'settings') {
            replica.drop();
            limiter.drop();
          }
          results.forget();
          waiters.check();
        },
        sallyport_sealed: () => waiters.check(),
        [CHANGED_CHANNEL]: (what) => {
          if (what === IDENTITY_CHANGED) principals.drop();
          if (what === RULES_CHANGED) replica.drop();
          if (what === RULES_CHANGED || what === LIMITS_CHANGED) limiter.drop();
          if (what === RULES_CHANGED) backPressure.drop();
          results.forget();
          waiters.check();
        },
        [CACHE_CHANNEL]: (message) => {
          results.forget();
          cache.hear(message);
        },
      },
      {
        log,
        onGap: () => {
          forget();
          waiters.check();
        },
      },
    );
    const backPressure = openBackPressure(db, { clock, settings: replica.settings });
    const limiter = openLimiter({ db, clock, log, counters, limiterClock, backPressure });
    const principals = openPrincipals({
      db,
      clock,
      log,
      network: 'request',
      sessionKey,
      issuer: node.name,
      keys: lookUpKeys(db, apiKeySecret, clock),
      hearsChanges: () => listener.connected(),
    });
    return {
      config,
      db,
      node,
      clock,
      log,
      replica,
      principals,
      limiter,
      backPressure,
      reads,
      waiters,
      estimates: createEstimates(db, clock),
      counters,
      cache,
      results,
      sessionKey,
      apiKeySecret,
      pageSecret: pageSecretOf(apiKeySecret),
      queues,
      queueAdmin,
      async close() {
        await queues.close();
        await principals.close();
        await limiter.close();
        reads.close();
        await listener.close();
        await cache.close();
        await counters.close();
        await db.destroy();
      },
    };
  } catch (error) {
    await db.destroy();
    throw error;
  }
}

function cacheSettings(settings: Settings): CacheSettings {
  return {
    maxBytes: settings['cache.results_bytes'],
    entryMaxBytes: settings['cache.entry_max_bytes'],
    ttlMs: settings['cache.results_ttl_s'] * 1_000,
  };
}
