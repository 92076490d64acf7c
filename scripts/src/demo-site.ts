import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { CLAIMS_MAPPING } from './dataset.js';
import type { Databases } from './development-services.js';
import { query } from './services/database.js';
import { supervise, type Supervised } from './supervisor.js';

const root = resolve(fileURLToPath(import.meta.url), '../../..');
const run = promisify(execFile);

export const DEMO_USER = 'demo';
export const DEMO_DATASET = 'claims';
export const DEMO_INDEX = 'sallyport-demo-claims';

export type Network = 'request' | 'response';
const NETWORKS: readonly Network[] = ['request', 'response'];

/** What the demo remembers between two starts; 0600, under `.sallyport/`. */
type Memory = { password: string; ports: Record<Network, number> };

/** Both networks of the demo: their folders, databases, commands and processes. */
export type Site = {
  password: string;
  apiUrl: string;
  folder(network: Network): string;
  /** Runs an administration command of one network with `--json`; answers what it says. */
  command(network: Network, args: string[], input?: string): Promise<Record<string, unknown>>;
  /** Starts both networks and two carriers, and keeps them running. */
  start(elasticsearchUrl: string, report: (line: string) => void): void;
  processes(): readonly Supervised[];
  databaseUrl(network: Network): string;
  stop(): Promise<void>;
};

/** Where a site keeps its files, and how its databases are called. */
export type SitePlace = { state: string; database: string };

/** The place of `npm run demo` in this clone. */
export const DEMO_PLACE: SitePlace = {
  state: join(root, '.sallyport'),
  database: 'sallyport_demo',
};

/** Prepares folders and databases; what an earlier start left is used again, if it is whole. */
export async function openSite(
  databases: Databases,
  report: (line: string) => void,
  { fresh, place: { state, database } }: { fresh: boolean; place: SitePlace },
): Promise<Site> {
  mkdirSync(state, { recursive: true });
  const folder = (network: Network) => join(state, network);
  const name = (network: Network) => `${database}_${network}`;
  const whole = await isWhole(databases, name, folder);
  if (fresh || !whole) {
    if (!fresh && NETWORKS.some((network) => existsSync(folder(network)))) {
      report('the databases and folders of an earlier demo do not fit: starting afresh');
    }
    for (const network of NETWORKS) {
      rmSync(folder(network), { recursive: true, force: true });
      await query(
        databases.databaseUrl('postgres'),
        `drop database if exists ${name(network)} with (force)`,
      );
    }
  }
  const memory = await remember(join(state, 'demo.json'));
  const urls = {
    request: await databases.createDatabase(name('request')),
    response: await databases.createDatabase(name('response')),
  };
  for (const network of NETWORKS) mkdirSync(folder(network), { recursive: true });
  // Until the start nobody asks it: the commands that prepare the site need none.
  let elasticsearchUrl = 'http://127.0.0.1:9200';
  // Each network is told its own database and folders, and nothing of the other's.
  const environment = (network: Network): NodeJS.ProcessEnv => ({
    PATH: process.env['PATH'],
    HOME: process.env['HOME'],
    ...(databases.redisUrl && { REDIS_URL: databases.redisUrl }),
    DATABASE_URL: urls[network],
    STATE_DIR: folder(network),
    NODE_NAME: `demo-${network}`,
    HTTP_PORT: String(memory.ports[network]),
    LOG_LEVEL: 'info',
    ...(network === 'response' && { ELASTICSEARCH_URL: elasticsearchUrl }),
  });
  const script = (network: Network) =>
    join(root, `${network}-network`, 'bin', `sallyport-${network}.js`);
  let running: Supervised[] = [];
  return {
    password: memory.password,
    apiUrl: `http://127.0.0.1:${memory.ports.request}`,
    folder,
    async command(network, args, input) {
      const child = run(process.execPath, [script(network), ...args, '--json'], {
        env: environment(network),
        maxBuffer: 16 * 1024 * 1024,
      });
      child.child.stdin?.end(input ?? '');
      const { stdout } = await child;
      return JSON.parse(stdout) as Record<string, unknown>;
    },
    start(url, say) {
      elasticsearchUrl = url;
      for (const network of NETWORKS) {
        writeEnvironment(join(state, `${network}.env`), environment(network));
      }
      const carry = join(root, 'transfer', 'bin', 'sallyport-carry.js');
      const program = (label: string, command: string[], env: NodeJS.ProcessEnv) =>
        supervise({ name: label, command, env, logFile: join(state, `${label}.log`) }, say);
      const carrier = (label: string, from: Network, to: Network) =>
        program(
          label,
          [
            ...[carry, 'watch', join(folder(from), 'outbox'), join(folder(to), 'inbox')],
            ...['--interval', '200', '--state', join(state, `${label}.json`)],
          ],
          { PATH: process.env['PATH'] },
        );
      running = [
        program('response-network', [script('response'), 'up'], environment('response')),
        program('request-network', [script('request'), 'up'], environment('request')),
        carrier('carrier-out', 'request', 'response'),
        carrier('carrier-back', 'response', 'request'),
      ];
    },
    processes: () => running,
    databaseUrl: (network) => urls[network],
    async stop() {
      await Promise.all(running.map((one) => one.stop()));
    },
  };
}

/** The fields of the demo's dataset, as the response network publishes them. */
export function claimsFields(): { name: string; type: string }[] {
  return Object.entries(CLAIMS_MAPPING.properties).map(([name, { type }]) => ({ name, type }));
}

async function isWhole(
  databases: Databases,
  name: (network: Network) => string,
  folder: (network: Network) => string,
): Promise<boolean> {
  for (const network of NETWORKS) {
    if (!existsSync(join(folder(network), 'keys'))) return false;
    try {
      const url = databases.databaseUrl(name(network));
      const [found] = await query<{ links: string | null }>(
        url,
        `select to_regclass('links')::text as links`,
      );
      if (!found?.links) return false;
    } catch {
      return false;
    }
  }
  return true;
}

/** Keeps the variables of a network for people who run its commands from a shell. */
function writeEnvironment(path: string, { PATH: _path, HOME: _home, ...own }: NodeJS.ProcessEnv) {
  const lines = Object.entries(own).map(
    ([name, value = '']) => `${name}='${value.replaceAll("'", "'\\''")}'\n`,
  );
  writeFileSync(path, lines.join(''), { mode: 0o600 });
  chmodSync(path, 0o600);
}

async function remember(path: string): Promise<Memory> {
  const known = existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as Memory) : undefined;
  const memory: Memory = {
    password: known?.password ?? randomBytes(9).toString('base64url'),
    ports: {
      request: await freePort(known?.ports.request),
      response: await freePort(known?.ports.response),
    },
  };
  writeFileSync(path, `${JSON.stringify(memory)}\n`, { mode: 0o600 });
  chmodSync(path, 0o600);
  return memory;
}

/** The wanted port if it is free, else any that is. */
async function freePort(wanted = 0): Promise<number> {
  const server = createServer();
  const port = await new Promise<number>((done) => {
    server.once('error', () => done(0));
    server.listen(wanted, '127.0.0.1', () => {
      const address = server.address();
      done(typeof address === 'object' && address ? address.port : 0);
    });
  });
  await new Promise((closed) => server.close(closed));
  return port === 0 && wanted !== 0 ? freePort() : port;
}
