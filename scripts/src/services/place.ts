import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  accessSync,
  chmodSync,
  constants,
  lstatSync,
  mkdirSync,
  realpathSync,
  statSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SallyportError } from '@sallyport/shared';

/** The uid of `nobody` on every usual Linux: neither PostgreSQL nor Elasticsearch runs as root. */
const NOBODY = 65534;
const ROOT_CACHE = '/var/cache/sallyport';

/** Whom a service runs as; empty means "as we do". Fits the options of `spawn`. */
export type ServiceUser = { uid?: number; gid?: number };

/** Where the services of one clone keep their files, and their name among those of other clones. */
export type Place = { name: string; folder: string; user: ServiceUser };

/** The folder of this clone. */
export function cloneFolder(): string {
  return realpathSync(resolve(fileURLToPath(import.meta.url), '../../../..'));
}

/** Makes the state folder of a clone's services, where the user they run as can reach it. */
export function openPlace(clone: string): Place {
  const name = `sallyport-${createHash('sha256').update(clone).digest('hex').slice(0, 12)}`;
  const inClone = join(clone, '.sallyport', 'services');
  if (!isRoot()) return { name, folder: ownFolder(inClone), user: {} };

  mkdirSync(inClone, { recursive: true });
  const { uid, gid } = statSync(inClone);
  // A plain user has started them here before, and the data is theirs.
  if (uid !== 0) return { name, folder: inClone, user: { uid, gid } };
  const user = { uid: NOBODY, gid: NOBODY };
  chmodSync(inClone, 0o711);
  if (canEnter(inClone, user)) return { name, folder: inClone, user };
  const folder = ownFolder(join('/var/tmp', name));
  chmodSync(folder, 0o711);
  return { name, folder, user };
}

/** True when that user can enter the folder, or run the file; asked of the system, not guessed. */
export function canEnter(path: string, user: ServiceUser): boolean {
  if (user.uid === undefined) return true;
  return spawnSync('/bin/sh', ['-c', 'test -x "$0"', path], { ...user, cwd: '/' }).status === 0;
}

/** Where downloads are kept for all clones of this user. */
export function cacheFolder(env: NodeJS.ProcessEnv): string {
  if (isRoot()) return ROOT_CACHE;
  return join(env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'sallyport');
}

/** Caches to look into, root's too: what stands there complete can be used by everybody. */
export function readableCaches(env: NodeJS.ProcessEnv): string[] {
  return [...new Set([cacheFolder(env), ROOT_CACHE])];
}

/** Makes the cache folder; `cache-unwritable` with the way out where that is not possible. */
export function openCache(folder: string): string {
  try {
    mkdirSync(folder, { recursive: true });
    if (isRoot()) chmodSync(folder, 0o755);
    accessSync(folder, constants.W_OK | constants.X_OK);
    return folder;
  } catch (error) {
    throw new SallyportError(
      'cache-unwritable',
      `the cache folder ${folder} cannot be written (${(error as NodeJS.ErrnoException).code})`,
      {
        cause: error,
        next: isRoot()
          ? 'Mount it writable, or set ELASTICSEARCH_URL.'
          : 'Set XDG_CACHE_HOME to a folder you can write, or set ELASTICSEARCH_URL.',
      },
    );
  }
}

export function isRoot(): boolean {
  return process.getuid?.() === 0;
}

/** A folder that is ours alone: under a shared parent somebody else could have made it first. */
function ownFolder(folder: string): string {
  try {
    mkdirSync(folder, { recursive: true });
    const found = lstatSync(folder);
    if (found.isDirectory() && found.uid === (process.getuid?.() ?? found.uid)) return folder;
  } catch (error) {
    throw notOurs(folder, error);
  }
  throw notOurs(folder);
}

function notOurs(folder: string, cause?: unknown): SallyportError {
  return new SallyportError(
    'services-unavailable',
    `${folder} belongs to another user or cannot be made`,
    { cause, next: 'Run as that user, or remove the folder.' },
  );
}
