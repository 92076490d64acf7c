// node scripts/bootstrap.mjs <check|test|demo|services|bench|drill> [args...]
// Makes a fresh clone ready (dependencies, build) and runs scripts/dist/<name>.js in this process.
// Plain JavaScript without dependencies; progress goes to stderr, stdout belongs to the script.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { withLock } from './process-lock.mjs';

const NAMES = ['check', 'test', 'demo', 'services', 'bench', 'drill'];
const WORKSPACES = ['shared', 'transfer', 'request-network', 'response-network', 'scripts'];
const CHECKED = ['check', 'test'];
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'];
const NODE_FLOOR = [20, 19];

const root = resolve(fileURLToPath(import.meta.url), '../..');
const lockfile = join(root, 'package-lock.json');
const mark = join(root, 'node_modules/.sallyport-lock');

async function main() {
  checkNode();
  const [name, ...args] = process.argv.slice(2);
  if (!NAMES.includes(name))
    throw new Stop(`usage: node scripts/bootstrap.mjs <${NAMES.join('|')}> [args...]`, 2);
  process.chdir(root);
  await prepare(name);
  const script = join(root, 'scripts/dist', `${name}.js`);
  if (!fs.existsSync(script)) throw new Stop(`scripts/src/${name}.ts does not exist yet`, 1);
  // In this very process: signals, exit code and terminal are the script's own.
  process.argv = [process.argv[0], script, ...args];
  await import(pathToFileURL(script).href);
}

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major > NODE_FLOOR[0] || (major === NODE_FLOOR[0] && minor >= NODE_FLOOR[1])) return;
  throw new Stop(
    `Node.js ${NODE_FLOOR.join('.')} or newer is needed, this is ${process.versions.node}. ` +
      'Install a newer one from https://nodejs.org and run the same command again.',
    1,
  );
}

async function prepare(name) {
  const state = join(root, '.sallyport');
  try {
    fs.mkdirSync(state, { recursive: true });
    fs.accessSync(state, fs.constants.W_OK);
  } catch (error) {
    throw new Stop(`${state} cannot be written (${error.code}): run as the owner of this clone`, 1);
  }
  await withLock(
    join(state, 'bootstrap.lock'),
    async () => {
      await install();
      await build(name);
    },
    { onWait: (pid) => say(`waiting for process ${pid}, which prepares this clone`) },
  );
}

async function install() {
  const hash = createHash('sha256').update(fs.readFileSync(lockfile)).digest('hex');
  const reason = staleReason(hash);
  if (reason === undefined) return;
  say(`installing dependencies with npm ci: ${reason}`);
  fs.rmSync(mark, { force: true });
  const started = Date.now();
  const npm = process.env.npm_execpath;
  const [command, first] = npm?.endsWith('npm-cli.js') ? [process.execPath, [npm]] : ['npm', []];
  // The environment may say production or ignore-scripts; this clone needs both its tools and
  // the links that the PostgreSQL package makes when it is installed.
  const flags = [
    '--prefer-offline',
    '--include=dev',
    '--ignore-scripts=false',
    '--no-audit',
    '--no-fund',
  ];
  const code = await run(command, [...first, 'ci', ...flags]);
  if (code !== 0)
    throw new Stop(
      `npm ci failed with code ${code}; its own words are above. Check that this machine reaches ` +
        'its npm registry and run the same command again.',
      1,
    );
  fs.writeFileSync(mark, `${hash}\n`);
  say(`installed in ${seconds(started)}`);
}

/** Why dependencies have to be installed, undefined when they fit package-lock.json. */
function staleReason(hash) {
  const modules = join(root, 'node_modules');
  if (!fs.existsSync(modules)) return 'node_modules is missing';
  if (fs.existsSync(mark)) {
    const fits = fs.readFileSync(mark, 'utf8').trim() === hash;
    return fits ? undefined : 'package-lock.json has changed';
  }
  // Somebody installed by hand: npm writes this file last, so its date tells.
  const written = fs.statSync(join(modules, '.package-lock.json'), { throwIfNoEntry: false });
  if (written === undefined) return 'node_modules is incomplete';
  if (written.mtimeMs < fs.statSync(lockfile).mtimeMs)
    return 'node_modules is older than package-lock.json';
  fs.writeFileSync(mark, `${hash}\n`);
  return undefined;
}

async function build(name) {
  const started = Date.now();
  for (const workspace of WORKSPACES) removeOrphans(join(root, workspace));
  const tsc = join(root, 'node_modules/typescript/bin/tsc');
  // Who runs the demo wants to see it soon; the gates check the types.
  const flags = CHECKED.includes(name) ? ['-b'] : ['-b', '--noCheck'];
  const code = await run(process.execPath, [tsc, ...flags]);
  if (code !== 0) throw new Stop('the build failed; the compiler says why above', 1);
  if (Date.now() - started > 2_000) say(`built in ${seconds(started)}`);
}

/** What is left of sources that were moved or removed: its tests would still be run. */
function removeOrphans(workspace) {
  const dist = join(workspace, 'dist');
  if (!fs.existsSync(dist)) return;
  for (const name of fs.readdirSync(dist, { recursive: true })) {
    const source = /^(.*?)(?:\.d\.ts|\.js)(?:\.map)?$/.exec(name)?.[1];
    if (source === undefined || fs.existsSync(join(workspace, 'src', `${source}.ts`))) continue;
    fs.rmSync(join(dist, name), { force: true });
  }
}

/** Runs a command with its output on stderr and answers its exit code; a signal ends both. */
function run(command, args) {
  return new Promise((done, fail) => {
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 2, 2] });
    let received;
    const forward = (signal) => {
      received = signal;
      child.kill(signal);
    };
    for (const signal of SIGNALS) process.on(signal, forward);
    const settle = (code) => {
      for (const signal of SIGNALS) process.off(signal, forward);
      if (received === undefined) done(code);
      else process.kill(process.pid, received);
    };
    child.once('error', (error) => {
      settle(127);
      fail(new Stop(`${command} cannot be run (${error.code}): install it and try again`, 1));
    });
    child.once('close', (code, signal) => settle(code ?? `of signal ${signal}`));
  });
}

function say(line) {
  process.stderr.write(`sallyport: ${line}\n`);
}

function seconds(started) {
  return `${((Date.now() - started) / 1000).toFixed(1)} s`;
}

/** A failure that its sentence explains completely; no stack is shown. */
class Stop extends Error {
  constructor(message, exitCode) {
    super(message);
    this.exitCode = exitCode;
  }
}

main().catch((error) => {
  if (error instanceof Stop) {
    say(error.message);
    process.exit(error.exitCode);
  }
  console.error(error);
  process.exit(1);
});
