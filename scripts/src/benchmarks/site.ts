import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rename, copyFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { createLog, rows, type Database } from '@sallyport/shared';
import {
  openNetwork as openRequestNetwork,
  readEnvironment as readRequestEnvironment,
  type RequestNetwork,
} from '@sallyport/request-network';
import {
  applies,
  openNetwork as openResponseNetwork,
  readEnvironment as readResponseEnvironment,
  type ResponseNetwork,
} from '@sallyport/response-network';
import { exportStream, importBatches } from '@sallyport/transfer';
import { claimsFields } from '../demo-site.js';
import { loadClaims } from '../dataset.js';
import { callElasticsearch } from '../elasticsearch-http.js';
import { query } from '../services/database.js';
import { freePort } from '../services/ports.js';
import { supervise, type Supervised } from '../supervisor.js';
import { until, type Bench } from './benchmark.js';

const root = resolve(fileURLToPath(import.meta.url), '../../../..');
const run = promisify(execFile);

export type Network = 'request' | 'response';

/** Both networks with databases, folders, keys and one user, trusting each other; for one benchmark. */
export type Site = {
  /** As one process of each network has it open. */
  request: RequestNetwork;
  response: ResponseNetwork;
  /** The environment of a process of that network. */
  environment(network: Network): NodeJS.ProcessEnv;
  user: { id: string; apiKey: string };
  /** Starts a program of a network (`serve`, `up`) and both carriers or none; answers its URL. */
  start(command: 'serve' | 'up'): Promise<string>;
  stop(): Promise<void>;
  /** Brings what has left one network into the inbox of the other. */
  carry(from: Network): Promise<void>;
  /** Sends what waits in the stream of requests and applies it on the far side. */
  sendRequests(): Promise<void>;
};

export const DATASET = 'claims';
const LOGIN = 'bench';
const PASSWORD = 'correct horse battery staple';
const DOCUMENTS = 20_000;
const CARRIER_MS = 20;
/** Workers that run every second, so that the pipeline waits for nobody. */
const SCHEDULES = ['import-batches', 'export-requests', 'export-results', 'export-control'];

/** The highest limits there are: benchmarks measure the work, not the waiting. */
const NO_LIMITS = {
  submit_per_minute: 1_000_000,
  submit_per_hour: 10_000_000,
  submit_per_day: 100_000_000,
  read_per_minute: 1_000_000,
  open_requests: 1_000_000,
  stored_bytes: 1_099_511_627_776,
};

/** Makes a site, uses it and removes it, whatever happens. */
export async function withSite<T>(bench: Bench, use: (site: Site) => Promise<T>): Promise<T> {
  const services = await bench.services();
  const folder = await mkdtemp(join(tmpdir(), 'sallyport-bench-'));
  const index = `sallyport-bench-${process.pid}`;
  const database = (network: Network) => `sallyport_bench_${network}_${process.pid}`;
  const environments = {
    request: await environmentOf('request'),
    response: await environmentOf('response'),
  };
  let site: OpenSite | undefined;
  try {
    bench.say('preparing two networks');
    await loadClaims(services.elasticsearchUrl, index, bench.quick ? 2_000 : DOCUMENTS);
    const apiKey = await introduce({ environments, folder, index });
    site = await openSite({ environments, folder, apiKey, say: bench.say });
    return await use(site);
  } finally {
    await site?.stop();
    await site?.close();
    for (const network of ['request', 'response'] as const) {
      await query(
        services.databaseUrl('postgres'),
        `drop database if exists ${database(network)} with (force)`,
      );
    }
    await callElasticsearch(services.elasticsearchUrl, index, { method: 'DELETE' });
    await rm(folder, { recursive: true, force: true });
  }

  async function environmentOf(network: Network): Promise<NodeJS.ProcessEnv> {
    const stateDir = join(folder, network);
    await mkdir(stateDir);
    return {
      PATH: process.env['PATH'],
      HOME: process.env['HOME'],
      DATABASE_URL: await services.createDatabase(database(network)),
      ...(services.redisUrl && { REDIS_URL: services.redisUrl }),
      ...(network === 'response' && { ELASTICSEARCH_URL: services.elasticsearchUrl }),
      STATE_DIR: stateDir,
      NODE_NAME: `bench-${network}`,
      HTTP_PORT: String(await freePort()),
    };
  }
}

/** Makes everybody wait until the databases have nothing left to do of earlier rounds. */
export async function settle(...databases: Database[]): Promise<void> {
  for (const db of databases) {
    await db.raw('vacuum analyze');
    await db.raw('checkpoint').catch(() => undefined);
  }
}

type Prepared = { environments: Record<Network, NodeJS.ProcessEnv>; folder: string };
type OpenSite = Site & { close(): Promise<void> };

function script(network: Network): string {
  return join(root, `${network}-network`, 'bin', `sallyport-${network}.js`);
}

/** The first start of both networks by their command lines; answers an API key of the user. */
async function introduce({
  environments,
  folder,
  index,
}: Prepared & { index: string }): Promise<string> {
  const command = async (network: Network, args: string[], input = '') => {
    const child = run(process.execPath, [script(network), ...args, '--json'], {
      env: environments[network],
    });
    child.child.stdin?.end(input);
    return JSON.parse((await child).stdout) as Record<string, unknown>;
  };
  const [request, response] = await Promise.all([
    command('request', ['init']),
    command('response', ['init']),
  ]);
  const fields = join(folder, 'fields.json');
  await writeFile(fields, JSON.stringify(claimsFields()));
  await writeFile(join(folder, 'request.json'), JSON.stringify(request['card']));
  await writeFile(join(folder, 'response.json'), JSON.stringify(response['card']));
  const trust = (far: Network, fingerprint: unknown) => [
    'keys',
    'trust',
    join(folder, `${far}.json`),
    '--fingerprint',
    String(fingerprint),
  ];
  await Promise.all([
    command('request', trust('response', response['fingerprint'])),
    command('response', trust('request', request['fingerprint'])),
  ]);
  await command('response', [
    ...['dataset', 'create', DATASET, '--title', 'Claims', '--index', index],
    ...['--time-field', 'submitted_at', '--fields', fields],
  ]);
  const rights = ['--datasets', DATASET, '--tier', 'B', '--limits', JSON.stringify(NO_LIMITS)];
  await command('response', ['profile-type', 'set', 'default', ...rights]);
  await command('response', ['user', 'create', LOGIN, '--password-stdin'], `${PASSWORD}\n`);
  for (const worker of SCHEDULES) {
    await command('response', ['settings', 'set', `schedule.${worker}`, '1']);
  }
  await command('response', ['seal']);
  await carryFiles(join(folder, 'response', 'outbox'), join(folder, 'request', 'inbox'));
  await command('request', ['import']);
  return String((await command('request', ['api-key', 'create', LOGIN]))['key']);
}

async function openSite({
  environments,
  folder,
  apiKey,
  say,
}: Prepared & { apiKey: string; say: (line: string) => void }): Promise<OpenSite> {
  const log = createLog('bench', 'warn');
  const request = await openRequestNetwork(readRequestEnvironment(environments.request), { log });
  const response = await openResponseNetwork(readResponseEnvironment(environments.response), {
    log,
  });
  const [user] = await rows<{ id: string }>(request.db, 'select id from users where login = ?', [
    LOGIN,
  ]);
  if (!user) throw new Error('the user did not cross');
  const box = (network: Network, name: 'inbox' | 'outbox') => join(folder, network, name);
  const far = (network: Network): Network => (network === 'request' ? 'response' : 'request');
  const carry = (from: Network) => carryFiles(box(from, 'outbox'), box(far(from), 'inbox'));
  const url = `http://127.0.0.1:${environments.request['HTTP_PORT']}`;
  let running: Supervised[] = [];
  const program = (name: string, command: string[], env: NodeJS.ProcessEnv) =>
    supervise({ name, command, env, logFile: join(folder, `${name}.log`) }, say);
  const carrier = (from: Network) =>
    program(
      `carrier-of-${from}`,
      [
        join(root, 'transfer', 'bin', 'sallyport-carry.js'),
        ...['watch', box(from, 'outbox'), box(far(from), 'inbox')],
        ...['--interval', String(CARRIER_MS)],
      ],
      environments.request,
    );
  return {
    request,
    response,
    environment: (network) => environments[network],
    user: { id: user.id, apiKey },
    async start(command) {
      running = [program('request', [script('request'), command], environments.request)];
      if (command === 'up') {
        running.push(
          program('response', [script('response'), command], environments.response),
          carrier('request'),
          carrier('response'),
        );
      }
      await until('the server', async () => {
        const answer = await fetch(`${url}/readyz`).catch(() => undefined);
        return answer?.ok === true;
      });
      return url;
    },
    async stop() {
      await Promise.all(running.map((one) => one.stop()));
      running = [];
    },
    carry,
    async sendRequests() {
      await exportStream(request.db, request.node, 'requests');
      await carry('request');
      const { quarantined, failed } = await importBatches(response.db, response.node, applies);
      if (quarantined + failed > 0) throw new Error('the far side refused a batch');
    },
    async close() {
      await request.close();
      await response.close();
    },
  };
}

/** Moves the batch files of a folder; what was moved once does not come again. */
async function carryFiles(from: string, to: string): Promise<void> {
  for (const name of await readdir(from)) {
    if (!name.endsWith('.batch')) continue;
    const unfinished = join(to, `.${name}.tmp`);
    await copyFile(join(from, name), unfinished);
    await rename(unfinished, join(to, name));
    await rm(join(from, name));
  }
}
