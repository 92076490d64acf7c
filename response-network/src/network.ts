import { userInfo } from 'node:os';
import { fileURLToPath } from 'node:url';
import {
  API_KEYS_FILE,
  CACHE_CHANNEL,
  CHANGED_CHANNEL,
  IDENTITY_CHANGED,
  RULES_CHANGED,
  SESSION_KEY_FILE,
  accessQueues,
  createLog,
  defaultSettings,
  listen,
  loadSessionKey,
  openCache,
  openCounters,
  openDatabase,
  openPrincipals,
  pageSecretOf,
  readSecret,
  readSettings,
  requireBreachedList,
  requireMigrated,
  sharedMigrations,
  systemClock,
  type Cache,
  type CacheSettings,
  type Clock,
  type Counters,
  type Log,
  type Principals,
  type QueueAccess,
  type QueueAdmin,
  type SessionKey,
  type Settings,
} from '@sallyport/shared';
import {
  foldersIn,
  makeFolders,
  openNode,
  transferMigrations,
  unlockBy,
  type ApplyTable,
  type Folders,
  type OpenNetwork,
} from '@sallyport/transfer';
import type { Config } from './config.js';
import { openElastic, type Elastic } from './elastic/client.js';
import { responseRules } from './lost-results.js';
import { applyOwnCredentials, applyOwnProfiles } from './own-accounts.js';
import { applyCancellations, applyRequests } from './requests.js';
import { outrankForgotten } from './restored-state.js';
import { changeSetting } from './setting-rules.js';
import { snapshotsBy } from './snapshots.js';

/** Everything a process of this network works with, opened once. */
export type ResponseNetwork = OpenNetwork & {
  config: Config;
  elastic: Elastic;
  clock: Clock;
  log: Log;
  principals: Principals;
  counters: Counters;
  /** Answers by what was searched for. */
  cache: Cache;
  sessionKey: SessionKey;
  pageSecret: Buffer;
  queues: QueueAccess;
  queueAdmin: QueueAdmin;
  /** As of the last {@link refreshSettings}. */
  settings(): Settings;
  refreshSettings(): Promise<Settings>;
};

export const VERSION = '0.1.0';

/** The migrations of this network, in order. */
export const migrations = [
  sharedMigrations,
  transferMigrations,
  fileURLToPath(new URL('../migrations/', import.meta.url)),
];

/** What each record that arrives does. */
export const applies: ApplyTable = {
  request: applyRequests,
  'request.cancel': applyCancellations,
  'account.credential': applyOwnCredentials,
  'account.profile': applyOwnProfiles,
};

/** The folders that the configuration names. */
export function foldersOf(config: Config): Folders {
  return foldersIn(config.STATE_DIR, { inbox: config.INBOX_DIR, outbox: config.OUTBOX_DIR });
}

/**
 * Opens the database, the keys and the way to Elasticsearch, which need not answer yet.
 * @throws SallyportError `migrations-pending`, `keys-missing`.
 */
export async function openNetwork(
  config: Config,
  {
    clock = systemClock,
    log = createLog('sallyport-response', config.LOG_LEVEL),
  }: { clock?: Clock; log?: Log } = {},
): Promise<ResponseNetwork> {
  const db = openDatabase(config.DATABASE_URL);
  const elastic = openElastic({
    url: config.ELASTICSEARCH_URL,
    apiKey: config.ELASTICSEARCH_API_KEY,
    username: config.ELASTICSEARCH_USERNAME,
    password: config.ELASTICSEARCH_PASSWORD,
  });
  const queues = accessQueues({
    network: 'response',
    databaseUrl: config.DATABASE_URL,
    redisUrl: config.REDIS_URL,
    prefix: 'sallyport-response',
    log,
  });
  const close = async () => {
    await queues.close();
    await elastic.close();
    await db.destroy();
  };
  let settings = defaultSettings();
  const refreshSettings = async () => (settings = await readSettings(db, log));
  const warnStale = (err: unknown) => log.warn({ err }, 'missed a changed setting');
  try {
    await requireMigrated(db, migrations);
    await requireBreachedList(config.BREACHED_PASSWORDS_FILE);
    await refreshSettings();
    const folders = foldersOf(config);
    await makeFolders(folders);
    const node = await openNode({
      role: 'response',
      folders,
      settings: () => settings,
      clock,
      log,
      build: VERSION,
      network: { ...responseRules, afterRestore: outrankForgotten },
      snapshots: snapshotsBy(clock, userInfo().username),
      unlock: unlockBy(config.KEYS_PASSPHRASE_FILE),
      escrow: config.ESCROW_RECIPIENT,
    });
    const sessionKey = await loadSessionKey(await readSecret(folders.keys, SESSION_KEY_FILE));
    const pageSecret = pageSecretOf(
      Buffer.from(await readSecret(folders.keys, API_KEYS_FILE), 'base64url'),
    );
    const counters = openCounters(db, { clock, log });
    const cache = await openCache({
      name: 'digests',
      db,
      clock,
      log,
      counters,
      settings: () => cacheSettings(settings),
    });
    const listener = listen(
      config.DATABASE_URL,
      {
        sallyport_imported: (stream) => {
          if (stream === 'accounts') principals.drop();
        },
        [CHANGED_CHANNEL]: (what) => {
          if (what === IDENTITY_CHANGED) principals.drop();
          if (what === RULES_CHANGED) refreshSettings().catch(warnStale);
        },
        [CACHE_CHANNEL]: (message) => cache.hear(message),
      },
      { log, onGap: () => principals.drop() },
    );
    const principals = openPrincipals({
      db,
      clock,
      log,
      network: 'response',
      sessionKey,
      issuer: node.name,
      hearsChanges: () => listener.connected(),
    });
    const queueAdmin: QueueAdmin = {
      ...{ db, clock, queues, network: 'response' },
      cadences: {
        read: async (name) => (await refreshSettings())[`schedule.${name}`],
        async set(tx, { name, seconds, actor, reason }) {
          const wanted = { key: `schedule.${name}`, value: seconds };
          await changeSetting(tx, wanted, { actor, reason, now: clock.now() });
        },
      },
    };
    return {
      config,
      db,
      node,
      elastic,
      clock,
      log,
      principals,
      counters,
      cache,
      sessionKey,
      pageSecret,
      queues,
      queueAdmin,
      settings: () => settings,
      refreshSettings,
      async close() {
        await principals.close();
        await listener.close();
        await cache.close();
        await counters.close();
        await close();
      },
    };
  } catch (error) {
    await close();
    throw error;
  }
}

function cacheSettings(settings: Settings): CacheSettings {
  const ttlS = settings['cache.digests_ttl_s'];
  return {
    maxBytes: ttlS === 0 ? 0 : settings['cache.digests_bytes'],
    entryMaxBytes: settings['cache.entry_max_bytes'],
    ttlMs: ttlS * 1_000,
  };
}
