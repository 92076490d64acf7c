import { spawn, type ChildProcess, type StdioOptions } from 'node:child_process';
import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { startServices } from './development-services.js';

/**
 * `npm test`: the gates, then all tests on real services, then the coverage of each package. Options:
 * `--no-check` leaves the gates out, `--no-drills` the drills, `--integration` runs only what
 * talks to a database or to queues and measures nothing (for another PostgreSQL or Redis), file names
 * run just those.
 */
const root = resolve(fileURLToPath(import.meta.url), '../../..');
const PACKAGES = ['shared', 'transfer', 'request-network', 'response-network'];
const MOCHA = 'node_modules/mocha/bin/mocha.js';
const DRILLS = join('scripts', 'dist', 'drills');
/** What is about files, routes or a terminal: another database or queue changes nothing. */
const SAME_ANYWHERE =
  /^transfer\/dist\/(?:carrying|format|second-validator)\/|\/(?:abuse|access|administration|cli|http|passphrase)\.test\.js$/;
const COVERAGE = { lines: '85', branches: '80' };

const { values, positionals } = parseArgs({
  allowPositionals: true,
  allowNegative: true,
  options: {
    check: { type: 'boolean', default: true },
    drills: { type: 'boolean', default: true },
    integration: { type: 'boolean' },
  },
});
process.exitCode = await main();

async function main(): Promise<number> {
  const whole = !values.integration && positionals.length === 0;
  if (whole && values.check && (await run('scripts/dist/check.js', [])) !== 0) return 1;
  const services = await startServices({ elasticsearchHeapMb: 256 });
  try {
    const env = {
      DATABASE_URL: await services.createDatabase('sallyport'),
      ELASTICSEARCH_URL: services.elasticsearchUrl,
      ...(services.redisUrl && { TEST_REDIS_URL: services.redisUrl }),
    };
    const mocha = (files: string[], more: NodeJS.ProcessEnv = {}) =>
      run(MOCHA, files, { ...env, ...more });
    if (!whole) return await mocha(listTests());
    const isDrill = (file: string) => file.startsWith(DRILLS);
    const measured = listTests().filter((file) => !isDrill(file));
    // Processes that are killed by the hundred measure nothing, and mostly wait: they run beside.
    const drills = values.drills ? listTests().filter(isDrill) : [];
    const drilled = drills.length > 0 ? runBeside(MOCHA, drills, env) : undefined;
    const failed = await mocha(measured, { NODE_V8_COVERAGE: emptyFolder('coverage/raw') });
    const drillFailed = (await drilled)?.show();
    return failed || drillFailed || (await checkCoverage());
  } finally {
    await services.stop();
  }
}

function listTests(): string[] {
  if (positionals.length > 0) return positionals;
  const packages = values.integration ? PACKAGES : [...PACKAGES, 'scripts'];
  return packages.flatMap((name) =>
    readdirSync(join(root, name, 'dist'), { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.test.js'))
      .sort()
      .map((file) => join(name, 'dist', file))
      .filter((file) => !values.integration || !SAME_ANYWHERE.test(file)),
  );
}

async function checkCoverage(): Promise<number> {
  let failed = 0;
  for (const name of PACKAGES) {
    process.stderr.write(`\ncoverage of ${name}\n`);
    failed ||= await run('node_modules/c8/bin/c8.js', [
      'report',
      '--temp-directory=coverage/raw',
      `--reports-dir=coverage/${name}`,
      `--include=${name}/src/**`,
      '--exclude=**/*.test.ts',
      '--exclude=**/testing.ts',
      '--exclude-after-remap',
      '--reporter=text-summary',
      '--reporter=text',
      '--check-coverage',
      `--lines=${COVERAGE.lines}`,
      `--branches=${COVERAGE.branches}`,
    ]);
  }
  return failed;
}

function emptyFolder(name: string): string {
  const folder = join(root, name);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  return folder;
}

/** Runs a script whose output is kept until it is asked for; `show` writes it and gives its code. */
async function runBeside(
  script: string,
  args: string[],
  env: NodeJS.ProcessEnv,
): Promise<{ show(): number }> {
  const child = start(script, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
  const output: Buffer[] = [];
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on('data', (chunk: Buffer) => output.push(chunk));
  }
  const code = await exitOf(child);
  return {
    show() {
      process.stdout.write(Buffer.concat(output));
      return code;
    },
  };
}

function run(script: string, args: string[], env: NodeJS.ProcessEnv = {}): Promise<number> {
  return exitOf(start(script, args, { env, stdio: 'inherit' }));
}

function start(
  script: string,
  args: string[],
  { env, stdio }: { env: NodeJS.ProcessEnv; stdio: StdioOptions },
): ChildProcess {
  return spawn(process.execPath, [join(root, script), ...args], {
    cwd: root,
    stdio,
    env: { ...process.env, ...env },
  });
}

async function exitOf(child: ChildProcess): Promise<number> {
  return new Promise((resolveCode, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolveCode(code ?? 1));
  });
}
