import { connect } from 'node:net';
import { join } from 'node:path';
import { SallyportError } from '@sallyport/shared';
import { withLock } from '../process-lock.mjs';
import { checkElasticsearchUrl } from './elasticsearch-http.js';
import { checkDatabaseUrl, createDatabase, databaseUrl } from './services/database.js';
import { isAlive } from './services/daemon.js';
import { startElasticsearch, stopElasticsearch } from './services/elasticsearch.js';
import { cloneFolder, openPlace, type Place } from './services/place.js';
import { startPostgres, stopPostgres } from './services/postgres.js';
import { addUser, readState, writeState, type State } from './services/state.js';

export type ServicesOptions = {
  /** DATABASE_URL, REDIS_URL, ELASTICSEARCH_URL, ELASTICSEARCH_HOME, JAVA_HOME, XDG_CACHE_HOME. */
  env?: NodeJS.ProcessEnv;
  /** Memory of a newly started Elasticsearch; default 512, 256 is enough for tests. */
  elasticsearchHeapMb?: number;
  /** Progress, one line each; default stderr. */
  report?: (line: string) => void;
  /** Told as soon as PostgreSQL answers, long before Elasticsearch does. */
  onDatabases?: (databases: Databases) => void;
  /** The folder that has the services; default this clone. */
  clone?: string;
};

/** What is there as soon as PostgreSQL answers. */
export type Databases = Pick<Services, 'databaseUrl' | 'createDatabase' | 'redisUrl'>;

export type Services = {
  /** The URL of a database on the server; it need not exist. */
  databaseUrl(name: string): string;
  /** Makes the database unless it exists; answers its URL. Names: `[a-z_][a-z0-9_]*`. */
  createDatabase(name: string): Promise<string>;
  elasticsearchUrl: string;
  redisUrl: string | undefined;
  /** Leaves; what was started for this clone ends when the last of its users has left. */
  stop(): Promise<void>;
};

/**
 * PostgreSQL, Elasticsearch and, if there is one, Redis for development: those that the
 * environment names, else this clone's own, started or found running. A user that was killed
 * counts as gone; what it left behind is used again or ended.
 */
export async function startServices(options: ServicesOptions = {}): Promise<Services> {
  const env = options.env ?? process.env;
  const report = options.report ?? ((line) => process.stderr.write(`services: ${line}\n`));
  const given = {
    postgres: env['DATABASE_URL'] || undefined,
    elasticsearch: env['ELASTICSEARCH_URL'] || undefined,
    redis: env['REDIS_URL'] || undefined,
  };
  await checkGiven(given);
  if (given.postgres !== undefined && given.elasticsearch !== undefined) {
    options.onDatabases?.(databasesAt(given.postgres, given.redis));
    return services(given.postgres, given.elasticsearch, given.redis, async () => {});
  }

  const place = openPlace(options.clone ?? cloneFolder());
  const onWait = (pid: number) => report(`waiting for process ${pid}, which starts the services`);
  const lock = join(place.folder, 'lock');
  const started = await withLock(lock, () => startOwn(place, { ...options, env, report, given }), {
    onWait,
  });
  let left = false;
  return services(started.postgres, started.elasticsearch, given.redis, async () => {
    if (left) return;
    left = true;
    await withLock(lock, () => leave(place, started.user), { onWait });
  });
}

const LOOK_MS = 2_000;

/**
 * Looks every two seconds whether the services still run and starts those again that do not, on the
 * same ports with the same data. `stop` leaves as {@link Services.stop} does.
 */
export function keepServices(services: Services, options: ServicesOptions = {}): Services {
  let current = services;
  let stopped = false;
  const look = async (): Promise<void> => {
    const again = await startServices(options);
    await current.stop();
    current = again;
  };
  let looking: Promise<void> = Promise.resolve();
  const timer = setInterval(() => {
    looking = looking.then(async () => {
      if (!stopped) await look().catch((error: Error) => options.report?.(error.message));
    });
  }, LOOK_MS);
  return {
    ...services,
    async stop() {
      stopped = true;
      clearInterval(timer);
      await looking;
      await current.stop();
    },
  };
}

type Given = {
  postgres?: string | undefined;
  elasticsearch?: string | undefined;
  redis?: string | undefined;
};
type OwnOptions = ServicesOptions & {
  env: NodeJS.ProcessEnv;
  report: (line: string) => void;
  given: Given;
};

/** Starts what is not given, both at once, and notes this process as a user of it. */
async function startOwn(
  place: Place,
  options: OwnOptions,
): Promise<{ postgres: string; elasticsearch: string; user: string }> {
  const { env, report, given } = options;
  const state = readState(place);
  const user = addUser(state);
  const keep = (change: Partial<State>) => writeState(place, Object.assign(state, change));
  const openPostgres = async () => {
    const url =
      given.postgres ??
      (await startPostgres(place, {
        env,
        report,
        known: state.postgres,
        remember: (running) => keep({ postgres: running }),
      }));
    options.onDatabases?.(databasesAt(url, given.redis));
    return url;
  };
  const [postgres, elasticsearch] = await Promise.allSettled([
    openPostgres(),
    given.elasticsearch ??
      startElasticsearch(place, {
        env,
        report,
        known: state.elasticsearch,
        heapMb: options.elasticsearchHeapMb ?? 512,
        remember: (running) => keep({ elasticsearch: running }),
      }),
  ]);
  writeState(place, state);
  if (postgres.status === 'fulfilled' && elasticsearch.status === 'fulfilled')
    return { postgres: postgres.value, elasticsearch: elasticsearch.value, user };
  await leave(place, user);
  throw (postgres.status === 'rejected' ? postgres : (elasticsearch as PromiseRejectedResult))
    .reason;
}

/** Takes a user out; the last one ends what runs. */
async function leave(place: Place, user: string): Promise<void> {
  const state = readState(place);
  state.users = state.users.filter(({ id }) => id !== user);
  writeState(place, state);
  if (state.users.length > 0) return;
  const { postgres, elasticsearch } = state;
  await Promise.all([
    postgres !== undefined && isAlive(postgres.process) && stopPostgres(postgres),
    elasticsearch !== undefined &&
      isAlive(elasticsearch.process) &&
      stopElasticsearch(elasticsearch),
  ]);
}

async function checkGiven(given: Given): Promise<void> {
  await Promise.all([
    given.postgres !== undefined && checkDatabaseUrl(given.postgres),
    given.elasticsearch !== undefined && checkElasticsearchUrl(given.elasticsearch),
    given.redis !== undefined && checkRedisUrl(given.redis),
  ]);
}

/** Only that something listens: everything works without Redis, but not with a dead one. */
async function checkRedisUrl(url: string): Promise<void> {
  const next = 'Correct REDIS_URL, or leave it out: everything works without.';
  if (!URL.canParse(url))
    throw new SallyportError('services-unavailable', 'REDIS_URL is not a URL', { next });
  const { hostname, port } = new URL(url);
  const socket = connect({ host: hostname, port: Number(port || 6379), timeout: 5_000 });
  const reason = await new Promise<string | undefined>((done) => {
    socket.once('connect', () => done(undefined));
    socket.once('timeout', () => done('no answer in 5 s'));
    socket.once('error', (error: NodeJS.ErrnoException) => done(error.code ?? error.message));
  });
  socket.destroy();
  if (reason !== undefined)
    throw new SallyportError(
      'services-unavailable',
      `REDIS_URL: no Redis answers at ${new URL(url).host} (${reason})`,
      { next },
    );
}

function services(
  postgres: string,
  elasticsearchUrl: string,
  redisUrl: string | undefined,
  stop: () => Promise<void>,
): Services {
  return { ...databasesAt(postgres, redisUrl), elasticsearchUrl, stop };
}

function databasesAt(url: string, redisUrl: string | undefined): Databases {
  return {
    databaseUrl: (name) => databaseUrl(url, name),
    createDatabase: (name) => createDatabase(url, name),
    redisUrl,
  };
}
