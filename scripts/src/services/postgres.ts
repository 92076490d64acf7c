import { randomBytes } from 'node:crypto';
import { execFile } from 'node:child_process';
import {
  chownSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { SallyportError } from '@sallyport/shared';
import { query } from './database.js';
import { endProcess, findProcesses, isAlive, startDaemon, tailOf, waitUntil } from './daemon.js';
import type { Place, ServiceUser } from './place.js';
import { freePort } from './ports.js';
import { findBinaries } from './postgres-binaries.js';
import type { Running } from './state.js';

const USER = 'sallyport';
const SETTINGS = {
  listen_addresses: '127.0.0.1',
  unix_socket_directories: '',
  max_connections: '200',
  shared_buffers: '256MB',
  fsync: 'on',
};

type StartOptions = {
  env: NodeJS.ProcessEnv;
  known: Running | undefined;
  report: (line: string) => void;
  /** Told as soon as there is a process, long before it answers. */
  remember: (running: Running) => void;
};

/**
 * Makes sure that the clone's PostgreSQL runs and answers the URL of its database `postgres`:
 * the one that runs already, else the same data and, when it is free, the same port as last time.
 */
export async function startPostgres(place: Place, options: StartOptions): Promise<string> {
  const { known, report } = options;
  const folder = join(place.folder, 'postgres');
  const data = join(folder, 'data');
  const { postgres, initdb } = await findBinaries(place.user, options.env);
  const password = await initialise({ folder, data, initdb, user: place.user, report });

  if (known?.port !== undefined && isAlive(known.process)) {
    const url = urlOf(known.port, password);
    if (await waitUntil(() => answersFrom(url, data), 20_000)) return url;
    report('PostgreSQL does not answer and is started again');
    await endProcess(known.process, 'SIGINT');
  }
  for (const orphan of findProcesses(data)) await endProcess(orphan, 'SIGINT');
  // Nobody serves this data now; a process that got the number in it must not stop the start.
  rmSync(join(data, 'postmaster.pid'), { force: true });

  const logFile = join(folder, 'postgres.log');
  for (let attempt = 1; ; attempt++) {
    const port = await freePort(attempt === 1 ? known?.port : undefined);
    const process = await startDaemon({
      command: postgres,
      args: ['-D', data, '-p', String(port), ...settingArguments()],
      env: { PATH: options.env['PATH'], LC_ALL: 'C', TZ: 'UTC' },
      user: place.user,
      cwd: folder,
      logFile,
    });
    options.remember({ process, port });
    const url = urlOf(port, password);
    let ready = false;
    await waitUntil(async () => {
      ready = await answersFrom(url, data);
      return ready || !isAlive(process);
    }, 60_000);
    if (ready) return url;
    await endProcess(process, 'SIGINT');
    // Somebody took the port, or the shared memory of a killed server is not free yet.
    const words = tailOf(logFile);
    const passing = /could not bind|Address already in use|shared memory block/.test(words);
    if (!passing || attempt === 5) {
      throw new SallyportError(
        'services-unavailable',
        `PostgreSQL does not start; ${logFile} ends with\n${words}`,
        { next: 'Set DATABASE_URL to a PostgreSQL 15 or newer, or remove the data folder.' },
      );
    }
    await delay(500);
  }
}

/** Ends the server of this record as PostgreSQL wants it: clients cut off, data written. */
export async function stopPostgres(running: Running): Promise<void> {
  await endProcess(running.process, 'SIGINT');
}

type InitialiseOptions = {
  folder: string;
  data: string;
  initdb: string;
  user: ServiceUser;
  report: (line: string) => void;
};

/** Makes the data folder when there is none, in one step; answers the password. */
async function initialise(options: InitialiseOptions): Promise<string> {
  const { folder, data, user } = options;
  const passwordFile = join(folder, 'password');
  if (existsSync(data)) {
    if (existsSync(passwordFile)) return readFileSync(passwordFile, 'utf8').trim();
    throw new SallyportError('services-unavailable', `${passwordFile} is missing`, {
      next: `Remove ${folder}; a new, empty one is made at the next start.`,
    });
  }

  options.report('making a PostgreSQL database folder');
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  if (user.uid !== undefined) chownSync(folder, user.uid, user.gid ?? user.uid);
  const password = randomBytes(18).toString('base64url');
  const fresh = `${data}.new`;
  rmSync(fresh, { recursive: true, force: true });
  rmSync(passwordFile, { force: true });
  writeFileSync(passwordFile, `${password}\n`, { mode: 0o600 });
  if (user.uid !== undefined) chownSync(passwordFile, user.uid, user.gid ?? user.uid);
  const args = ['-D', fresh, '-U', USER, `--pwfile=${passwordFile}`, '--auth=scram-sha-256'];
  const locale = ['--encoding=UTF8', '--locale=C', '--locale-provider=builtin'];
  try {
    await promisify(execFile)(options.initdb, [...args, ...locale, '--builtin-locale=C.UTF-8'], {
      ...user,
      cwd: folder,
      env: { PATH: process.env['PATH'], LC_ALL: 'C' },
    });
  } catch (error) {
    throw new SallyportError(
      'services-unavailable',
      `PostgreSQL cannot make its folder ${fresh}: ${(error as Error).message}`,
      { cause: error, next: 'Set DATABASE_URL to a PostgreSQL 15 or newer.' },
    );
  }
  renameSync(fresh, data);
  return password;
}

/** True when the server at `url` knows our password and serves this very folder. */
async function answersFrom(url: string, data: string): Promise<boolean> {
  try {
    const [row] = await query<{ folder: string }>(
      url,
      `select current_setting('data_directory') as folder`,
    );
    return row?.folder === data;
  } catch {
    return false;
  }
}

function settingArguments(): string[] {
  return Object.entries(SETTINGS).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
}

function urlOf(port: number, password: string): string {
  return `postgres://${USER}:${password}@127.0.0.1:${port}/postgres`;
}
