import { setTimeout as delay } from 'node:timers/promises';
import {
  createPostgresBackend,
  createRedisBackend,
  DEFAULT_SCHEMA,
  Queue as BullQueue,
  runMigrations,
  Worker as BullWorker,
  type PgPool,
  type QueueOptions,
} from 'bullmq';
import { Redis } from 'ioredis';
import pg from 'pg';
import { SallyportError } from './errors.js';
import type { Log } from './log.js';
import type { QueueStore, RunLoop, WorkerQueue } from './queue.js';

const CONNECT_LIMIT_MS = 5_000;
const CLOSE_LIMIT_MS = 3_000;
/** How often a process looks whether the run of another process has ended. */
const MAXED_POLL_MS = 500;
const KEPT_EVENTS = 100;

/** Keeps the jobs in PostgreSQL, in a schema of their own. */
export async function openPostgresStore(url: string, log: Log): Promise<QueueStore> {
  // One pool for all queues of the process: each worker holds one connection to listen on.
  const pool = new pg.Pool({
    connectionString: url,
    connectionTimeoutMillis: CONNECT_LIMIT_MS,
    keepAlive: true,
    max: 20,
    options: `-c search_path=${DEFAULT_SCHEMA}`,
  });
  pool.setMaxListeners(0);
  pool.on('error', (err) => log.debug({ err }, 'an idle queue connection was lost'));
  try {
    const client = await pool.connect();
    await runMigrations(client).finally(() => client.release());
  } catch (cause) {
    await pool.end();
    throw unavailable('PostgreSQL', 'DATABASE_URL', cause);
  }
  const settings = { connection: pool as unknown as PgPool };
  return {
    newQueue: (name) => {
      const queue = new BullQueue(
        name,
        { ...settings, streams: { events: { maxLen: KEPT_EVENTS } } },
        createPostgresBackend,
      );
      return queue as unknown as WorkerQueue;
    },
    newLoop: (name, process, options) => {
      const loop = new BullWorker(name, process, { ...settings, ...options }, createPatientBackend);
      return loop as unknown as RunLoop;
    },
    close: () => Promise.race([pool.end(), limit(CLOSE_LIMIT_MS)]),
  };
}

/**
 * BullMQ's PostgreSQL backend returns from its wait at once while a job waits, even if the run of
 * another process holds it back, and so would ask again without pause; this one looks twice a second.
 */
const createPatientBackend: typeof createPostgresBackend = (name, options, factoryOptions) => {
  const backend = createPostgresBackend(name, options, factoryOptions);
  const waitForJob = backend.waitForJob.bind(backend);
  backend.waitForJob = async (timeoutS) => {
    if (!(await backend.isMaxed())) return waitForJob(timeoutS);
    await delay(MAXED_POLL_MS);
    return null;
  };
  return backend;
};

/** Keeps the jobs in Redis. */
export async function openRedisStore(url: string, prefix: string, log: Log): Promise<QueueStore> {
  let everReady = false;
  const redis = new Redis(url, {
    lazyConnect: true,
    connectTimeout: CONNECT_LIMIT_MS,
    maxRetriesPerRequest: null,
    retryStrategy: (tries) => (everReady ? Math.min(tries * 100, 2_000) : null),
  });
  redis.on('error', (err) => log.debug({ err }, 'the queue connection to redis failed'));
  try {
    await Promise.race([
      redis.connect().then(() => redis.ping()),
      limit(CONNECT_LIMIT_MS).then(() => Promise.reject(new Error('no answer in time'))),
    ]);
  } catch (cause) {
    redis.disconnect();
    throw unavailable('Redis', 'REDIS_URL', cause);
  }
  everReady = true;
  const settings: QueueOptions = { connection: redis, prefix };
  return {
    newQueue: (name) =>
      new BullQueue(
        name,
        { ...settings, streams: { events: { maxLen: KEPT_EVENTS } } },
        createRedisBackend,
      ),
    newLoop: (name, process, options) =>
      new BullWorker(name, process, { ...settings, ...options }, createRedisBackend),
    close: () => {
      redis.disconnect();
      return Promise.resolve();
    },
  };
}

function unavailable(store: string, variable: string, cause: unknown): SallyportError {
  return new SallyportError('store-unavailable', `The queues cannot be opened: ${store} fails.`, {
    cause,
    next: `Check that it runs and that ${variable} is right, then start again.`,
  });
}

function limit(milliseconds: number): Promise<void> {
  return delay(milliseconds, undefined, { ref: false });
}
