import type { ReadinessCheck } from './http.js';
import { openQueues, type Queues, type QueuesOptions } from './queue.js';
import type { WorkerName } from './workers.js';

/** The queues of a network, opened when a process first needs them. */
export type QueueAccess = {
  /** @throws SallyportError `store-unavailable`; the next call tries again. */
  open(): Promise<Queues>;
  /** Runs a worker soon. Never fails: a wake that is lost costs the time to the next tick. */
  wake(name: WorkerName): void;
  close(): Promise<void>;
};

/** Access to the queues of a network for processes that may never need them. */
export function accessQueues(options: QueuesOptions): QueueAccess {
  let opened: Promise<Queues> | undefined;
  const open = () => {
    opened ??= openQueues(options).catch((error: unknown) => {
      opened = undefined;
      throw error;
    });
    return opened;
  };
  return {
    open,
    wake(name) {
      open()
        .then((queues) => queues.wake(name))
        .catch((err: unknown) => options.log.debug({ err, worker: name }, 'worker was not woken'));
    },
    close: async () => (await opened?.catch(() => undefined))?.close(),
  };
}

/**
 * What the queues need of a store of their own: a network is ready without it, but degraded. In
 * PostgreSQL they need nothing that the network does not.
 */
export function queueReadiness(
  queues: Pick<QueueAccess, 'open'>,
  redisUrl: string | undefined,
): ReadinessCheck[] {
  if (redisUrl === undefined) return [];
  const check = async () => (await queues.open()).queue('import-batches').isPaused();
  return [{ name: 'redis', required: false, check }];
}
