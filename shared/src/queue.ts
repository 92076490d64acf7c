import { setTimeout as delay } from 'node:timers/promises';
import type { Queue as BullQueue, Worker as BullWorker, WorkerOptions } from 'bullmq';
import type { Log } from './log.js';
import type { NetworkName } from './records.js';
import { listWorkers, type Cadence, type WorkerName } from './workers.js';

/** What of a BullMQ queue is used; the same on both backends. */
export type WorkerQueue = Pick<
  BullQueue,
  | 'add'
  | 'close'
  | 'drain'
  | 'getJobCounts'
  | 'getJobScheduler'
  | 'getJobs'
  | 'isPaused'
  | 'on'
  | 'pause'
  | 'removeJobScheduler'
  | 'resume'
  | 'setGlobalConcurrency'
  | 'upsertJobScheduler'
  | 'waitUntilReady'
>;
export type RunOptions = Pick<WorkerOptions, 'lockDuration' | 'stalledInterval'>;
export type RunLoop = Pick<BullWorker, 'close' | 'on' | 'waitUntilReady'>;

export type WorkerStatus = {
  name: WorkerName;
  paused: boolean;
  cadence: Cadence | null;
  next: Date | null;
  /** Runs in progress now, in whatever process. */
  running: number;
  /** Runs that are due and wait for their turn, and since when the first of them. */
  waiting: number;
  oldest: Date | null;
};

/** Where workers are woken, from any process of the network; the workers run where they are started. */
export type Queues = {
  readonly network: NetworkName;
  /** Where the jobs are. */
  readonly store: 'redis' | 'postgresql';
  /**
   * Runs a worker now. Any number of wakes while one waits are one run, and a wake during a run
   * leads to one more. Never rejects: a wake that is lost costs the time to the next tick.
   */
  wake(name: WorkerName): Promise<void>;
  /** Stops a worker from starting, in every process; what runs ends normally. */
  pause(name: WorkerName): Promise<void>;
  resume(name: WorkerName): Promise<void>;
  status(): Promise<WorkerStatus[]>;
  queue(name: WorkerName): WorkerQueue;
  /** Runs `process` for every job of the queue, one at a time. */
  consume(name: WorkerName, process: () => Promise<void>, options: RunOptions): RunLoop;
  close(): Promise<void>;
};

export type QueuesOptions = {
  network: NetworkName;
  databaseUrl: string;
  redisUrl?: string | undefined;
  /** Begins every Redis key of the queues; in PostgreSQL they have the schema `bullmq`. */
  prefix: string;
  log: Log;
};

/** Where the jobs are; the two kinds are in queue-store.ts. */
export type QueueStore = {
  newQueue(name: string): WorkerQueue;
  newLoop(name: string, process: () => Promise<void>, options: RunOptions): RunLoop;
  close(): Promise<void>;
};

const CLOSE_LIMIT_MS = 3_000;
const WAKE_LIMIT_MS = 5_000;
const MAX_WAITING = 100;
/** The job that the schedule of a queue adds; also the id of that schedule. */
export const TICK = 'tick';
/** No finished job is kept, so that none can stand in the way of the next. */
export const KEEP_NOTHING = { removeOnComplete: true, removeOnFail: true } as const;

/**
 * Opens the queues that wake the workers of a network: on Redis when there is one, else in
 * PostgreSQL. Nothing else knows which.
 * @throws SallyportError `store-unavailable` when the store does not answer within 5 s.
 */
export async function openQueues(options: QueuesOptions): Promise<Queues> {
  const { network, log } = options;
  // Only who works with queues pays for loading them: the command lines start without.
  const { openRedisStore, openPostgresStore } = await import('./queue-store.js');
  const store: QueueStore = options.redisUrl
    ? await openRedisStore(options.redisUrl, options.prefix, log)
    : await openPostgresStore(options.databaseUrl, log);
  const queues = new Map(listWorkers(network).map((name) => [name, store.newQueue(name)]));
  for (const [name, queue] of queues) {
    queue.on('error', (err) => log.debug({ err, worker: name }, 'queue store failed'));
  }
  const find = (name: WorkerName): WorkerQueue => {
    const queue = queues.get(name);
    if (!queue) throw new Error(`the ${network} network has no worker ${name}`);
    return queue;
  };
  return {
    network,
    store: options.redisUrl ? 'redis' : 'postgresql',
    queue: find,
    consume: (name, process, runOptions) => store.newLoop(name, process, runOptions),
    wake: (name) => wake(find(name), name, log),
    pause: (name) => find(name).pause(),
    resume: (name) => find(name).resume(),
    status: () => Promise.all([...queues].map(([name, queue]) => readStatus(name, queue))),
    async close() {
      const closing = [...queues.values()].map((queue) => queue.close().catch(() => undefined));
      await Promise.race([Promise.all(closing), limit(CLOSE_LIMIT_MS)]);
      await store.close();
    },
  };
}

async function wake(queue: WorkerQueue, name: WorkerName, log: Log): Promise<void> {
  const deduplication = { id: 'wake', keepLastIfActive: true };
  try {
    const added = queue.add('wake', {}, { deduplication, ...KEEP_NOTHING });
    await Promise.race([added, limit(WAKE_LIMIT_MS)]);
  } catch (err) {
    log.debug({ err, worker: name }, 'wake was lost');
  }
}

async function readStatus(name: WorkerName, queue: WorkerQueue): Promise<WorkerStatus> {
  const [paused, scheduler, counts, waiting] = await Promise.all([
    queue.isPaused(),
    queue.getJobScheduler(TICK),
    queue.getJobCounts('active'),
    listWaiting(queue),
  ]);
  const times = waiting.map(({ timestamp, delay: delayMs }) => timestamp + delayMs);
  return {
    name,
    paused,
    cadence: scheduler?.every ?? scheduler?.pattern ?? null,
    next: scheduler?.next ? new Date(scheduler.next) : null,
    running: counts['active'] ?? 0,
    waiting: waiting.length,
    oldest: times.length > 0 ? new Date(Math.min(...times)) : null,
  };
}

/** The runs that wait; the counts leave those of a paused queue out on one of the backends. */
export async function listWaiting(queue: WorkerQueue) {
  // Ticks and wakes are never more than one each.
  return queue.getJobs(['waiting'], 0, MAX_WAITING);
}

function limit(milliseconds: number): Promise<void> {
  return delay(milliseconds, undefined, { ref: false });
}
