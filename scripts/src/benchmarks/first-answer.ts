import { spawn, spawnSync } from 'node:child_process';
import { chmod, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  limitRow,
  missingRow,
  secondsOf,
  type Bench,
  type Benchmark,
  type Row,
} from './benchmark.js';

const root = resolve(fileURLToPath(import.meta.url), '../../../..');
/** Where the development services of root keep what they fetched. */
const SHARED_CACHE = '/var/cache/sallyport';

/** A clean clone of the last commit, until `npm run demo -- --once` has shown every answer. */
export const firstAnswerBenchmark: Benchmark = {
  names: ['first-answer-full', 'first-answer-empty'],
  async run(bench) {
    const found: Row[] = [];
    if (bench.wants('first-answer-empty')) {
      found.push(await measure(bench, 'first-answer-empty', 180, true));
    }
    if (bench.wants('first-answer-full')) {
      // Once more before, so that the caches are as full as this commit makes them.
      await measure(bench, 'first-answer-full', 60, false);
      found.push(await measure(bench, 'first-answer-full', 60, false));
    }
    return found;
  },
};

async function measure(
  bench: Bench,
  name: string,
  target: number,
  emptyCaches: boolean,
): Promise<Row> {
  if (emptyCaches && !canHideCache()) {
    bench.say(`${name}: hiding ${SHARED_CACHE} needs root and unshare (util-linux)`);
    return missingRow(name, 's', target);
  }
  const folder = await mkdtemp(join(tmpdir(), 'sallyport-bench-clone-'));
  // As in most places that people clone into, the users that services run as may enter.
  await chmod(folder, 0o755);
  try {
    const seconds = await secondsOf(async () => {
      await run(bench, ['git', 'clone', '--quiet', root, join(folder, 'clone')], {});
      const demo = ['npm', 'run', 'demo', '--', '--once', '--json'];
      const command = emptyCaches ? await withEmptyCaches(folder, demo) : { args: demo, env: {} };
      await run(bench, command.args, { cwd: join(folder, 'clone'), env: command.env });
    });
    bench.say(`${name}: ${seconds.toFixed(1)} s`);
    return limitRow(name, 's', target, seconds);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function canHideCache(): boolean {
  return spawnSync('unshare', ['--mount', 'true']).status === 0;
}

/**
 * The command with every cache of ours empty: npm's, Maven's and, hidden by an empty folder mounted
 * over it for this command alone, the one that all clones share.
 */
async function withEmptyCaches(
  folder: string,
  command: string[],
): Promise<{ args: string[]; env: NodeJS.ProcessEnv }> {
  const empty = join(folder, 'empty-cache');
  await mkdir(empty, { mode: 0o755 });
  await mkdir(SHARED_CACHE, { recursive: true });
  const mount = `mount --bind "$0" ${SHARED_CACHE} && exec "$@"`;
  return {
    args: ['unshare', '--mount', 'sh', '-c', mount, empty, ...command],
    env: {
      npm_config_cache: join(folder, 'npm-cache'),
      MAVEN_OPTS: `-Dmaven.repo.local=${join(folder, 'maven')}`,
      XDG_CACHE_HOME: join(folder, 'xdg'),
    },
  };
}

/** Runs a command to its end, its words among our progress. */
async function run(
  bench: Bench,
  [command = '', ...args]: string[],
  { cwd = root, env = {} }: { cwd?: string; env?: NodeJS.ProcessEnv },
): Promise<void> {
  // A clone on a machine of its own knows nothing of the services of this run.
  const { DATABASE_URL: _1, REDIS_URL: _2, ELASTICSEARCH_URL: _3, ...inherited } = process.env;
  const child = spawn(command, args, {
    cwd,
    env: { ...inherited, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let words = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk: Buffer) => (words = `${words}${chunk}`.slice(-4_000)));
  }
  const code = await new Promise<number>((done, fail) => {
    child.once('error', fail);
    child.once('close', (status) => done(status ?? 1));
  });
  if (code === 0) return;
  bench.say(words);
  throw new Error(`${command} ${args.join(' ')} ended with ${code}`);
}
