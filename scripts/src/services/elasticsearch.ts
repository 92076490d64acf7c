import {
  chmodSync,
  chownSync,
  copyFileSync,
  mkdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { SallyportError } from '@sallyport/shared';
import { callElasticsearch } from '../elasticsearch-http.js';
import { containerCommand } from './container.js';
import { endProcess, findProcesses, isAlive, startDaemon, tailOf, waitUntil } from './daemon.js';
import { findParts, type Parts } from './elasticsearch-parts.js';
import type { Place } from './place.js';
import { freePort } from './ports.js';
import type { Running } from './state.js';

const READY_LIMIT_MS = 180_000;
const PULL_LIMIT_MS = 600_000;
const REUSE_LIMIT_MS = 30_000;

/** Up in a third of the time on a busy machine; it would pay back only over hours of load. */
const QUICK_COMPILER = '-XX:TieredStopAtLevel=1';
/** The garbage collector's log would take up to 2 GB. */
const QUIET = ['-Xlog:disable', '-Xlog:all=warning:stderr'];

type StartOptions = {
  env: NodeJS.ProcessEnv;
  known: Running | undefined;
  heapMb: number;
  report: (line: string) => void;
  /** Told as soon as there is a process, long before it answers. */
  remember: (running: Running) => void;
};

/**
 * Makes sure that the clone's Elasticsearch runs and answers its URL: the one that runs already,
 * else ELASTICSEARCH_HOME, else the pinned distribution on a local Java, else a container.
 */
export async function startElasticsearch(place: Place, options: StartOptions): Promise<string> {
  const { known, report } = options;
  const folder = join(place.folder, 'elasticsearch');
  const conf = join(folder, 'config');
  const logFile = join(folder, 'elasticsearch.log');

  if (known !== undefined && isAlive(known.process)) {
    const url = await waitUntilReady(place, known, logFile, REUSE_LIMIT_MS);
    if (url !== undefined) return url;
    report('Elasticsearch does not answer and is started again');
    await endProcess(known.process, 'SIGTERM');
  }
  for (const orphan of findProcesses(`-Des.path.conf=${conf}`)) await endProcess(orphan, 'SIGTERM');

  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const parts = await findParts(place, options);
  const started = Date.now();
  for (let attempt = 1; ; attempt++) {
    // The port of last time keeps URLs valid over a restart; when it is taken, any.
    const port = attempt === 1 ? (known?.port ?? 0) : 0;
    const running = await launch(place, { ...options, folder, conf, logFile, parts, port });
    options.remember(running);
    const limitMs = parts === undefined ? PULL_LIMIT_MS : READY_LIMIT_MS;
    const url = await waitUntilReady(place, running, logFile, limitMs);
    if (url !== undefined) {
      options.remember({ ...running, port: Number(new URL(url).port) });
      report(`Elasticsearch answers after ${((Date.now() - started) / 1000).toFixed(1)} s`);
      return url;
    }
    await endProcess(running.process, 'SIGTERM');
    // The server of a killed launcher needs a moment to leave its data folder.
    const passing = /BindHttpException|node lock|LockObtainFailed|port is already allocated/;
    if (!passing.test(readText(logFile)) || attempt === 5) {
      throw new SallyportError(
        'services-unavailable',
        `Elasticsearch does not start; ${logFile} ends with\n${tailOf(logFile)}`,
        { next: 'Set ELASTICSEARCH_URL, or remove the folder of that log and start again.' },
      );
    }
    await delay(1_000);
  }
}

/** Ends the server of this record, its files written. */
export async function stopElasticsearch(running: Running): Promise<void> {
  await endProcess(running.process, 'SIGTERM');
}

type LaunchOptions = StartOptions & {
  folder: string;
  conf: string;
  logFile: string;
  parts: Parts | undefined;
  port: number;
};

async function launch(place: Place, options: LaunchOptions): Promise<Running> {
  const { folder, parts, logFile, env } = options;
  if (parts === undefined) {
    const port = await freePort(options.port);
    const { command, args } = containerCommand(place.name, port, options.heapMb);
    options.report('starting Elasticsearch in a container');
    const process = await startDaemon({ command, args, env, user: {}, cwd: folder, logFile });
    return { process, port };
  }
  options.report('starting Elasticsearch');
  configure(place, { ...options, home: parts.home });
  const process = await startDaemon({
    command: join(parts.home, 'bin/elasticsearch'),
    args: [],
    env: {
      PATH: env['PATH'],
      HOME: folder,
      ...(parts.java === undefined ? {} : { ES_JAVA_HOME: parts.java }),
      ES_PATH_CONF: options.conf,
      ES_TMPDIR: join(folder, 'tmp'),
      ES_JAVA_OPTS: [...memoryFlags(options.heapMb), QUICK_COMPILER, ...QUIET].join(' '),
      CLI_JAVA_OPTS: QUICK_COMPILER,
    },
    user: place.user,
    cwd: folder,
    logFile,
  });
  return { process };
}

function memoryFlags(heapMb: number): string[] {
  return [`-Xms${heapMb}m`, `-Xmx${heapMb}m`];
}

/** Writes the configuration; JSON strings are valid YAML, whatever the path holds. */
function configure(
  place: Place,
  options: { folder: string; conf: string; home: string; port: number },
): void {
  const { folder, conf, home } = options;
  const folders = [folder, conf, ...['data', 'logs', 'tmp'].map((name) => join(folder, name))];
  for (const path of folders) {
    mkdirSync(path, { recursive: true, mode: 0o700 });
    if (place.user.uid !== undefined) chownSync(path, place.user.uid, place.user.gid ?? 0);
  }
  const settings = {
    'cluster.name': place.name,
    'node.name': 'development',
    'discovery.type': 'single-node',
    'network.host': '127.0.0.1',
    'http.port': options.port,
    'transport.port': 0,
    'path.data': join(folder, 'data'),
    'path.logs': join(folder, 'logs'),
    'xpack.security.enabled': false,
    // A developer's disk is often nearly full, and the data here can be made again.
    'cluster.routing.allocation.disk.threshold_enabled': false,
  };
  const yaml = Object.entries(settings).map(([key, value]) => `${key}: ${JSON.stringify(value)}\n`);
  writeFileSync(join(conf, 'elasticsearch.yml'), yaml.join(''));
  for (const name of ['jvm.options', 'log4j2.properties'])
    copyFileSync(join(home, 'config', name), join(conf, name));
  for (const name of ['elasticsearch.yml', 'jvm.options', 'log4j2.properties'])
    chmodSync(join(conf, name), 0o644);
}

/** The URL once this process answers as our cluster; undefined when it ends or is too slow. */
async function waitUntilReady(
  place: Place,
  running: Running,
  logFile: string,
  limitMs: number,
): Promise<string | undefined> {
  let url: string | undefined;
  await waitUntil(async () => {
    const port = running.port ?? portInLog(logFile);
    const candidate = `http://127.0.0.1:${port}`;
    if (port !== undefined && (await isOurs(candidate, place.name))) url = candidate;
    return url !== undefined || !isAlive(running.process);
  }, limitMs);
  return url;
}

async function isOurs(url: string, name: string): Promise<boolean> {
  try {
    const health = await callElasticsearch(url, '_cluster/health?timeout=1s', { timeoutMs: 3_000 });
    return (
      health.status === 200 &&
      (JSON.parse(health.text) as { cluster_name?: string }).cluster_name === name
    );
  } catch {
    return false;
  }
}

function portInLog(logFile: string): number | undefined {
  const found = /HttpServerTransport.*publish_address \{[^}]*:(\d+)\}/.exec(readText(logFile));
  return found === null ? undefined : Number(found[1]);
}

function readText(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
