import { appendAudit } from './audit.js';
import type { Clock } from './clock.js';
import type { Database, Transaction } from './database.js';
import { SallyportError } from './errors.js';
import type { QueueAccess } from './queue-access.js';
import { listWaiting, type WorkerQueue, type WorkerStatus } from './queue.js';
import type { NetworkName } from './records.js';
import { keepSchedule } from './running-workers.js';
import {
  listWorkerProcesses,
  readWorkerStates,
  storeSchedulePaused,
  type WorkerProcess,
  type WorkerState,
} from './worker-states.js';
import { WORKERS, listWorkers, type WorkerName } from './workers.js';

/** Who acts on a queue, and why. */
export type QueueAct = { actor: string; reason: string };

/** What the administration of the queues of a network works with. */
export type QueueAdmin = {
  db: Database;
  clock: Clock;
  network: NetworkName;
  queues: Pick<QueueAccess, 'open'>;
  cadences: Cadences;
};

/** How often the workers of a network run, as its settings have it, in seconds. */
export type Cadences = {
  read(name: WorkerName): Promise<number>;
  /** Sets it as this network may: for both, or for itself alone. */
  set(tx: Transaction, change: QueueAct & { name: WorkerName; seconds: number }): Promise<void>;
};

/** A worker with its queue, its schedule and its last run. */
export type QueueView = WorkerStatus & {
  does: string;
  /** In force, and that of the table. */
  cadenceS: number;
  defaultS: number;
  state: WorkerState | undefined;
};

export type QueueOverview = { queues: QueueView[]; processes: WorkerProcess[] };

/**
 * Every worker of the network as it stands.
 * @throws SallyportError `store-unavailable`.
 */
export async function readQueues(admin: QueueAdmin): Promise<QueueOverview> {
  const queues = await admin.queues.open();
  const states = await readWorkerStates(admin.db);
  const views: QueueView[] = [];
  for (const status of await queues.status()) {
    const { does, cadence } = WORKERS[status.name];
    views.push({
      ...status,
      does,
      cadenceS: await admin.cadences.read(status.name),
      defaultS: cadence / 1_000,
      state: states.get(status.name),
    });
  }
  return { queues: views, processes: await listWorkerProcesses(admin.db) };
}

/**
 * The worker of this name.
 * @throws SallyportError `not-found`.
 */
export function findWorker(network: NetworkName, name: string): WorkerName {
  const found = listWorkers(network).find((known) => known === name);
  if (found) return found;
  throw new SallyportError('not-found', `There is no worker ${name.slice(0, 64)} here.`, {
    next: `The workers of this network are ${listWorkers(network).join(', ')}.`,
  });
}

/** Stops a worker from starting, in every process; a run that is under way ends normally. */
export function pauseQueue(admin: QueueAdmin, name: WorkerName, act: QueueAct): Promise<void> {
  return change(admin, { ...act, name, action: 'queue.pause' }, (queue) => queue.pause());
}

/** Lets a worker start again. */
export function resumeQueue(admin: QueueAdmin, name: WorkerName, act: QueueAct): Promise<void> {
  return change(admin, { ...act, name, action: 'queue.resume' }, (queue) => queue.resume());
}

/**
 * Pauses a worker and tells how many of its runs are still under way: it is empty at 0.
 * @returns the runs in progress.
 */
export async function drainQueue(
  admin: QueueAdmin,
  name: WorkerName,
  act: QueueAct,
): Promise<number> {
  await change(admin, { ...act, name, action: 'queue.drain' }, (queue) => queue.pause());
  const queue = (await admin.queues.open()).queue(name);
  return (await queue.getJobCounts('active'))['active'] ?? 0;
}

/** Runs a worker again now, whatever became of its last run. */
export async function retryQueue(
  admin: QueueAdmin,
  name: WorkerName,
  act: QueueAct,
): Promise<void> {
  const queues = await admin.queues.open();
  await change(admin, { ...act, name, action: 'queue.retry' }, () => queues.wake(name));
}

/** How many runs a discard would take away now. */
export async function countDiscardable(admin: QueueAdmin, name: WorkerName): Promise<number> {
  return (await listWaiting((await admin.queues.open()).queue(name))).length;
}

/**
 * Takes away the runs that wait, if there are as many as its caller was told; the work itself stays
 * where it is, and the next tick finds it.
 * @throws SallyportError `version-conflict` when there are more or fewer.
 */
export async function discardQueue(
  admin: QueueAdmin,
  name: WorkerName,
  act: QueueAct & { expected: number },
): Promise<number> {
  const { expected, ...rest } = act;
  const found = await countDiscardable(admin, name);
  if (found !== expected) {
    throw new SallyportError('version-conflict', `${found} runs wait, not ${expected}.`, {
      next: 'Look at the preview again and repeat with its count.',
      extra: { found, expected },
    });
  }
  const facts = { ...rest, name, action: 'queue.discard', details: { discarded: found } };
  await change(admin, facts, (queue) => queue.drain());
  return found;
}

/** Runs a worker now. */
export async function runSchedule(
  admin: QueueAdmin,
  name: WorkerName,
  act: QueueAct,
): Promise<void> {
  const queues = await admin.queues.open();
  await change(admin, { ...act, name, action: 'schedule.run' }, () => queues.wake(name));
}

/** Lets a schedule rest, or go on: a worker is still run by what wakes it. */
export async function pauseSchedule(
  admin: QueueAdmin,
  name: WorkerName,
  act: QueueAct & { paused: boolean },
): Promise<void> {
  const { db, clock, cadences } = admin;
  const { paused, actor, reason } = act;
  const queues = await admin.queues.open();
  await db.transaction(async (tx) => {
    const before = await storeSchedulePaused(tx, name, paused);
    await appendAudit(tx, {
      at: clock.now(),
      actor,
      action: paused ? 'schedule.pause' : 'schedule.resume',
      subject: name,
      details: { reason, before: { paused: before }, after: { paused } },
    });
  });
  await keepSchedule(queues, name, paused ? null : (await cadences.read(name)) * 1_000);
}

/**
 * Sets how often a worker runs, in seconds, for this network; the setting keeps it.
 * @throws SallyportError `bad-field`.
 */
export async function setCadence(
  admin: QueueAdmin,
  name: WorkerName,
  act: QueueAct & { seconds: number },
): Promise<void> {
  const { db, cadences } = admin;
  const queues = await admin.queues.open();
  await db.transaction((tx) => cadences.set(tx, { ...act, name }));
  const resting = (await readWorkerStates(db)).get(name)?.schedule_paused ?? false;
  await keepSchedule(queues, name, resting ? null : act.seconds * 1_000);
}

/**
 * Notes an act on a queue, then does it; that it failed is noted too. The log is not held meanwhile,
 * for a store that does not answer would hold up all who write in it.
 */
async function change(
  { db, clock, queues }: QueueAdmin,
  act: QueueAct & { name: WorkerName; action: string; details?: Record<string, unknown> },
  work: (queue: WorkerQueue) => Promise<unknown>,
): Promise<void> {
  const { actor, reason, name, action, details } = act;
  const queue = (await queues.open()).queue(name);
  const before = { paused: await queue.isPaused() };
  const note = (verb: string, facts: Record<string, unknown>) =>
    db.transaction((tx) =>
      appendAudit(tx, { at: clock.now(), actor, action: verb, subject: name, details: facts }),
    );
  await note(action, { reason, before, ...details });
  try {
    await work(queue);
  } catch (error) {
    await note(`${action}-failed`, { reason });
    throw error;
  }
}
