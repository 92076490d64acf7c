import { userInfo } from 'node:os';
import { fileURLToPath } from 'node:url';
import {
  createLog,
  defaultSettings,
  openDatabase,
  readSettings,
  requireMigrated,
  sharedMigrations,
  systemClock,
  type Clock,
  type Log,
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
import { applyCancellations, applyRequests } from './requests.js';
import { outrankForgotten } from './restored-state.js';
import { snapshotsBy } from './snapshots.js';

/** Everything a process of this network works with, opened once. */
export type ResponseNetwork = OpenNetwork & {
  config: Config;
  elastic: Elastic;
  clock: Clock;
  log: Log;
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
  const close = async () => {
    await elastic.close();
    await db.destroy();
  };
  let settings = defaultSettings();
  const refreshSettings = async () => (settings = await readSettings(db, log));
  try {
    await requireMigrated(db, migrations);
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
    return {
      config,
      db,
      node,
      elastic,
      clock,
      log,
      settings: () => settings,
      refreshSettings,
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}
