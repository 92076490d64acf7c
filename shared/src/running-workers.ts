import { SallyportError } from './errors.js';
import type { Log } from './log.js';
import { KEEP_NOTHING, TICK, type Queues } from './queue.js';
import type { WorkerJournal } from './worker-states.js';
import { WORKERS, type Cadence, type WorkerName } from './workers.js';

/** One run of a worker: it does what there is to do, and stops early when the signal fires. */
export type WorkerRun = (signal: AbortSignal) => Promise<unknown>;

export type WorkerOptions = {
  queues: Queues;
  workers: Partial<Record<WorkerName, WorkerRun>>;
  /** Asked at the start and in every sweep, so that a changed setting takes effect by itself. */
  cadence: (name: WorkerName) => Cadence | Promise<Cadence>;
  log: Log;
  /** Where runs and signs of life are written down, and which schedules rest is read. */
  journal?: WorkerJournal;
  /** How often lost schedules are looked for and put back. */
  sweepMs?: number;
  /** After the death of a process, another takes over within about twice this time. */
  lockMs?: number;
  /** Overrides the table's time limits (tests). */
  timeLimitMs?: number;
  /** How long a run may take to stop once its signal fired. */
  graceMs?: number;
};

export type RunningWorkers = {
  /** Puts back schedules that the queue store has lost. */
  sweep(): Promise<void>;
  /** Takes no new runs, waits up to the limit for those in progress, then fires their signals. */
  close(limitMs?: number): Promise<void>;
};

type Run = {
  name: WorkerName;
  run: WorkerRun;
  timeLimitMs: number;
  graceMs: number;
  journal: WorkerJournal | undefined;
};

const DRAIN_LIMIT_MS = 12_000;
/** So late, or so far beyond its cadence, no tick is that will still come. */
const OVERDUE_MS = 3_000;
const EARLY_SWEEP_MS = 5_000;

/**
 * Starts workers of a network in this process and keeps their schedules alive. No worker overlaps
 * itself, however many processes have started it.
 */
export async function startWorkers(options: WorkerOptions): Promise<RunningWorkers> {
  const { queues, log, journal, sweepMs = 30_000, lockMs = 30_000, graceMs = 5_000 } = options;
  const names = Object.keys(options.workers) as WorkerName[];
  const closing = new AbortController();

  const sweep = async () => {
    await journal?.alive(names);
    const resting = await journal?.pausedSchedules();
    for (const name of names) {
      await keepSchedule(queues, name, resting?.has(name) ? null : await options.cadence(name));
    }
  };
  await sweep();
  const loops = names.map((name) => {
    const run = options.workers[name] as WorkerRun;
    const timeLimitMs = options.timeLimitMs ?? WORKERS[name].timeLimitMs;
    const process = limitRuns({ name, run, timeLimitMs, graceMs, journal }, closing.signal, log);
    const locks = { lockDuration: lockMs, stalledInterval: Math.ceil(lockMs / 2) };
    const loop = queues.consume(name, process, locks);
    const warn = limitWarnings(name, log);
    loop.on('error', warn);
    loop.on('stalled', () => log.warn({ worker: name }, 'took over a run whose process is gone'));
    return loop;
  });
  await Promise.all(loops.map((loop) => loop.waitUntilReady()));

  let sweeping: Promise<void> = Promise.resolve();
  const warnSweep = limitWarnings('sweep', log);
  const look = () => {
    sweeping = sweeping.then(sweep).catch(warnSweep);
  };
  const timer = setInterval(look, sweepMs);
  // What a stopped process left is seen soon, not with the first regular sweep.
  const early = setTimeout(look, EARLY_SWEEP_MS);

  return {
    sweep,
    async close(limitMs = DRAIN_LIMIT_MS) {
      clearInterval(timer);
      clearTimeout(early);
      const closed = Promise.all(loops.map((loop) => loop.close().catch(() => undefined)));
      const abort = setTimeout(() => closing.abort(new Error('the process is stopping')), limitMs);
      const giveUp = new Promise((resolve) => setTimeout(resolve, limitMs + graceMs).unref());
      await Promise.race([closed, giveUp]);
      clearTimeout(abort);
      await journal?.gone().catch((err: unknown) => log.debug({ err }, 'end was not noted'));
    },
  };
}

/**
 * Makes the schedule of a worker what it should be, null for none; touches nothing when it is already. A run that is
 * under way while its schedule changes writes the old next time back, and a process that ends at the
 * wrong moment can leave a tick that nobody takes: both are seen from the next time and mended.
 */
export async function keepSchedule(
  queues: Pick<Queues, 'queue'>,
  name: WorkerName,
  cadence: Cadence | null,
): Promise<void> {
  const queue = queues.queue(name);
  await queue.setGlobalConcurrency(1);
  if (cadence === null) {
    await queue.removeJobScheduler(TICK);
    return;
  }
  const found = await queue.getJobScheduler(TICK);
  if (found && (found.every ?? found.pattern) === cadence) {
    const counts = await queue.getJobCounts('active', 'waiting', 'delayed');
    const alive = Object.values(counts).some((count) => count > 0);
    if (alive && ((counts['active'] ?? 0) > 0 || isPlausible(found.next, cadence))) return;
  }
  const repeat = typeof cadence === 'number' ? { every: cadence } : { pattern: cadence, tz: 'UTC' };
  try {
    await queue.upsertJobScheduler(TICK, repeat, { name: TICK, opts: KEEP_NOTHING });
  } catch (cause) {
    if (typeof cadence === 'number') throw cause;
    throw new SallyportError('bad-field', `The cadence "${cadence}" of ${name} is not valid.`, {
      cause,
      next: 'Give milliseconds or a cron expression of five or six fields.',
    });
  }
}

function isPlausible(next: number | undefined, cadence: Cadence): boolean {
  const inMs = (next ?? 0) - Date.now();
  return inMs > -OVERDUE_MS && (typeof cadence !== 'number' || inMs <= cadence + OVERDUE_MS);
}

/** Wraps a run in its time limit; the wrapper rejects when the run failed or took too long. */
function limitRuns(spec: Run, closing: AbortSignal, log: Log): () => Promise<void> {
  const { name, run, timeLimitMs, graceMs, journal } = spec;
  let stuck = false;
  const noteEnd = async (startedAt: number, error?: Error) => {
    await journal
      ?.ended({ name, ms: elapsed(startedAt), error })
      .catch((err: unknown) => log.debug({ err, worker: name }, 'run was not noted'));
  };
  return async () => {
    const startedAt = performance.now();
    const overdue = new AbortController();
    const signal = AbortSignal.any([overdue.signal, closing]);
    const timers: NodeJS.Timeout[] = [];
    const after = (milliseconds: number, act: () => void) =>
      timers.push(setTimeout(act, milliseconds));
    try {
      if (stuck) throw new Error('an earlier run in this process has not stopped yet');
      // Fetched just before closing began: a signal that fired already tells its listeners nothing.
      closing.throwIfAborted();
      after(timeLimitMs, () =>
        overdue.abort(new Error(`the run took longer than ${timeLimitMs} ms`)),
      );
      const ended = (async () => run(signal))().finally(() => (stuck = false));
      const givenUp = new Promise<never>((_resolve, reject) => {
        signal.addEventListener('abort', () => {
          after(graceMs, () => {
            stuck = true;
            reject(signal.reason as Error);
          });
        });
      });
      await Promise.race([ended, givenUp]);
      overdue.signal.throwIfAborted();
      log.debug({ worker: name, ms: elapsed(startedAt) }, 'worker run ended');
      await noteEnd(startedAt);
    } catch (err) {
      const level = closing.aborted ? 'debug' : 'warn';
      log[level]({ err, worker: name, ms: elapsed(startedAt) }, 'worker run failed');
      if (!closing.aborted) await noteEnd(startedAt, err as Error);
      throw err;
    } finally {
      timers.forEach((timer) => clearTimeout(timer));
    }
  };
}

/** A store that is down fails every loop several times a second: one warning a minute is enough. */
function limitWarnings(name: string, log: Log): (err: Error) => void {
  let quietUntil = 0;
  return (err) => {
    const level = performance.now() < quietUntil ? 'debug' : 'warn';
    if (level === 'warn') quietUntil = performance.now() + 60_000;
    log[level]({ err, worker: name }, 'the queue store failed, trying again');
  };
}

function elapsed(startedAt: number): number {
  return Math.round(performance.now() - startedAt);
}
