import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  createReadStream,
  existsSync,
  mkdirSync,
  renameSync,
  rmSync,
  accessSync,
  constants,
  statSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { SallyportError } from '@sallyport/shared';
import { withLock } from '../../process-lock.mjs';
import { findCommand, installSentence } from './java.js';
import { openToAll } from './modes.js';
import { isRoot, openCache } from './place.js';

const FETCH_LIMIT_MS = 900_000;
const UNPACK_LIMIT_MS = 300_000;

/** One Elasticsearch distribution, pinned by its digest. */
export type Distribution = { version: string; artifact: string; sha256: string };

/** The server with few modules, as Elastic publishes it on Maven Central; Apache Maven fetches it. */
export const ELASTICSEARCH: Distribution = {
  version: '8.19.9',
  artifact: 'org.elasticsearch.distribution.integ-test-zip:elasticsearch:8.19.9:zip',
  sha256: '6a0603db2b0406776dcf15df248294941f310e9183ca18a219bc8c6d57546ff0',
};

const COPY_GOAL = 'org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy';

/** Puts the zip of the distribution into `folder`; `anew` must not trust any earlier download. */
export type FetchZip = (distribution: Distribution, folder: string, anew: boolean) => Promise<void>;

type InstallOptions = {
  distribution: Distribution;
  cache: string;
  env: NodeJS.ProcessEnv;
  fetchZip: FetchZip;
  report: (line: string) => void;
};

/** The folder of a complete distribution in one of the caches, or undefined. */
export function findDistribution(distribution: Distribution, caches: string[]): string | undefined {
  return caches
    .map((cache) => join(cache, folderName(distribution)))
    .find((home) => existsSync(join(home, 'bin/elasticsearch')) && isTrusted(home));
}

/**
 * Fetches, checks and unpacks the distribution into the cache and answers its folder. Several
 * processes may do so at once; the folder appears complete or not at all. A wrong digest is
 * fetched once more, then it is `checksum-mismatch`.
 */
export async function installDistribution(options: InstallOptions): Promise<string> {
  const { distribution, env, report } = options;
  const cache = openCache(options.cache);
  const home = join(cache, folderName(distribution));
  return withLock(
    join(cache, 'elasticsearch.lock'),
    async () => {
      if (existsSync(home)) return home;
      const work = join(cache, `${folderName(distribution)}.new`);
      rmSync(work, { recursive: true, force: true });
      mkdirSync(work);
      try {
        const zip = await fetchChecked(options, work);
        report('unpacking Elasticsearch');
        await unpack(zip, work, env);
        const unpacked = join(work, folderName(distribution));
        openToAll(unpacked);
        renameSync(unpacked, home);
        return home;
      } finally {
        rmSync(work, { recursive: true, force: true });
      }
    },
    { onWait: (pid) => report(`waiting for process ${pid}, which fetches Elasticsearch`) },
  );
}

/** Fetches with Apache Maven, `java` being the Java it runs on. */
export function fetchWithMaven(maven: string, java: string, env: NodeJS.ProcessEnv): FetchZip {
  return async (distribution, folder, anew) => {
    // A repository of its own: what Maven has kept is no longer believed, or cannot be kept.
    const own = anew || !canWriteHome();
    const repository = own ? [`-Dmaven.repo.local=${join(folder, 'repository')}`] : [];
    await run(
      maven,
      [
        '-B',
        '-q',
        '-ntp',
        COPY_GOAL,
        ...repository,
        `-Dartifact=${distribution.artifact}`,
        `-DoutputDirectory=${folder}`,
      ],
      { cwd: folder, env: { ...env, JAVA_HOME: java }, limitMs: FETCH_LIMIT_MS },
    ).catch((error: unknown) => {
      throw new SallyportError(
        'services-unavailable',
        `Maven could not fetch ${distribution.artifact}: ${(error as Error).message}`,
        {
          cause: error,
          next: 'Check that Maven reaches its repository, or set ELASTICSEARCH_URL.',
        },
      );
    });
  };
}

async function fetchChecked(options: InstallOptions, work: string): Promise<string> {
  const { distribution, report } = options;
  const zip = join(work, `elasticsearch-${distribution.version}.zip`);
  let found = '';
  for (const anew of [false, true]) {
    report(`fetching Elasticsearch ${distribution.version} (94 MB, once for all clones)`);
    await options.fetchZip(distribution, work, anew);
    found = await digestFile(zip);
    if (found === distribution.sha256) return zip;
    report(`the download has SHA-256 ${found}, expected ${distribution.sha256}`);
    rmSync(zip, { force: true });
  }
  throw new SallyportError(
    'checksum-mismatch',
    `${distribution.artifact} has SHA-256 ${found}, expected ${distribution.sha256}, twice`,
    { next: 'Ask who runs your Maven repository or proxy, or set ELASTICSEARCH_URL.' },
  );
}

/** Unpacks with what the machine has; the digest has been checked, so the names are safe. */
async function unpack(zip: string, folder: string, env: NodeJS.ProcessEnv): Promise<void> {
  const tools: [string, string[]][] = [
    ['unzip', ['-q', zip]],
    ['jar', ['xf', zip]],
    ['bsdtar', ['-xf', zip]],
    ['python3', ['-m', 'zipfile', '-e', zip, '.']],
  ];
  for (const [name, args] of tools) {
    const command = findCommand(name, env);
    if (command === undefined) continue;
    await run(command, args, { cwd: folder, env, limitMs: UNPACK_LIMIT_MS });
    return;
  }
  throw new SallyportError(
    'services-unavailable',
    `nothing here unpacks a zip file (${tools.map(([name]) => name).join(', ')})`,
    { next: installSentence(env) },
  );
}

async function digestFile(file: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(file), hash);
  return hash.digest('hex');
}

/** Runs a command to its end; fails with the last lines it wrote. */
async function run(
  command: string,
  args: string[],
  options: { cwd: string; env: NodeJS.ProcessEnv; limitMs: number },
): Promise<void> {
  const { cwd, env, limitMs: timeout } = options;
  const child = spawn(command, args, { cwd, env, timeout, stdio: ['ignore', 'pipe', 'pipe'] });
  let words = '';
  const keep = (chunk: Buffer) => {
    words = `${words}${chunk.toString('utf8')}`.slice(-2_000);
  };
  child.stdout.on('data', keep);
  child.stderr.on('data', keep);
  await new Promise<void>((done, fail) => {
    child.once('error', fail);
    child.once('close', (code, signal) => {
      if (code === 0) done();
      else fail(new Error(`${command} ended with ${code ?? signal}\n${words.trim()}`));
    });
  });
}

function canWriteHome(): boolean {
  try {
    accessSync(homedir(), constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** A distribution is run only when it is our own or root has put it there. */
function isTrusted(home: string): boolean {
  const { uid } = statSync(home);
  return uid === 0 || (!isRoot() && uid === process.getuid?.());
}

function folderName(distribution: Distribution): string {
  return `elasticsearch-${distribution.version}`;
}
