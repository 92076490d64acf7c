import { createHmac, randomBytes } from 'node:crypto';
import { chmod, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  SallyportError,
  generateSessionKey,
  listen,
  loadSessionKey,
  openDatabase,
  requireMigrated,
  sharedMigrations,
  systemClock,
  type Clock,
  type Database,
  type Log,
  type SessionKey,
} from '@sallyport/shared';
import {
  foldersIn,
  openNode,
  transferMigrations,
  unlockBy,
  type Folders,
  type Node,
} from '@sallyport/transfer';
import type { Config } from './config.js';
import { createEstimates, type Estimates } from './estimates.js';
import { requestRules } from './lost-requests.js';
import { CHANGED_CHANNEL, IDENTITY_CHANGED } from './network-events.js';
import { openPrincipals, type Principals } from './principals.js';
import { openReplica, type Replica } from './replica.js';
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
  waiters: Waiters;
  estimates: Estimates;
  sessionKey: SessionKey;
  apiKeySecret: Buffer;
  pageSecret: Buffer;
  close(): Promise<void>;
};

const KEY_BYTES = 32;
const SESSION_KEY_FILE = 'session.jwk';
const API_KEYS_FILE = 'api-keys.key';

/** Where this network keeps its files. */
export function foldersOf(config: Config): Folders {
  return foldersIn(config.STATE_DIR, { inbox: config.INBOX_DIR, outbox: config.OUTBOX_DIR });
}

/** Makes the secrets of the HTTP side that are missing: the session key and the key of API keys. */
export async function makeSecrets(keysFolder: string): Promise<void> {
  await writeOnce(join(keysFolder, SESSION_KEY_FILE), generateSessionKey);
  await writeOnce(join(keysFolder, API_KEYS_FILE), () =>
    Promise.resolve(randomBytes(KEY_BYTES).toString('base64url')),
  );
}

/**
 * Opens the network once for a process.
 * @throws SallyportError `migrations-pending`, `keys-missing`, `config-invalid`.
 */
export async function openNetwork(
  config: Config,
  { log, clock = systemClock }: { log: Log; clock?: Clock },
): Promise<RequestNetwork> {
  const folders = foldersOf(config);
  const db = openDatabase(config.DATABASE_URL);
  try {
    await requireMigrated(db, MIGRATIONS);
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
    const waiters = createWaiters(db, log);
    const forget = () => {
      principals.drop();
      replica.drop();
    };
    const listener = listen(
      config.DATABASE_URL,
      {
        sallyport_imported: (stream) => {
          if (stream === 'identity') principals.drop();
          if (stream === 'identity' || stream === 'settings') replica.drop();
          waiters.check();
        },
        sallyport_sealed: () => waiters.check(),
        [CHANGED_CHANNEL]: (what) => {
          if (what === IDENTITY_CHANGED) principals.drop();
          waiters.check();
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
    const principals = openPrincipals({
      db,
      clock,
      log,
      sessionKey,
      issuer: node.name,
      apiKeySecret,
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
      waiters,
      estimates: createEstimates(db, clock),
      sessionKey,
      apiKeySecret,
      pageSecret: createHmac('sha256', apiKeySecret).update('page-token').digest(),
      async close() {
        await principals.close();
        await listener.close();
        await db.destroy();
      },
    };
  } catch (error) {
    await db.destroy();
    throw error;
  }
}

async function writeOnce(path: string, make: () => Promise<string>): Promise<void> {
  try {
    await writeFile(path, `${await make()}\n`, { flag: 'wx', mode: 0o600 });
    await chmod(path, 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
}

async function readSecret(folder: string, name: string): Promise<string> {
  try {
    return (await readFile(join(folder, name), 'utf8')).trim();
  } catch (cause) {
    throw new SallyportError('keys-missing', `The secret ${name} cannot be read.`, {
      cause,
      next: 'Run init once; it makes what is missing.',
    });
  }
}
