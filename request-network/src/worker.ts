import {
  openQueues,
  pruneSessions,
  startWorkers,
  type ClosingStep,
  type Queues,
  type RunningWorkers,
  type WorkerName,
  type WorkerRun,
} from '@sallyport/shared';
import {
  closeSecondOpinion,
  exportControl,
  exportStreams,
  importBatches,
  pruneCustody,
  pruneOutbox,
  pruneStore,
  resendMissing,
  watchAuditLog,
  watchInbox,
} from '@sallyport/transfer';
import { requestApplies } from './apply.js';
import { keepHouse } from './housekeeping.js';
import type { RequestNetwork } from './network.js';

const QUEUE_PREFIX = 'sallyport-request';

/** Starts the workers of the request network in this process. */
export async function startRequestWorkers(network: RequestNetwork): Promise<ClosingStep> {
  const { db, log, replica, node } = network;
  const queues = await openRequestQueues(network);
  // Cadences that crossed take effect with the batch that brought them.
  const importAndObey = async (signal: AbortSignal) => {
    const { streams } = await importBatches(db, node, requestApplies(replica), { signal });
    if (!streams.includes('settings')) return;
    replica.drop();
    await running.sweep();
  };
  const running: RunningWorkers = await startWorkers({
    queues,
    workers: { ...requestWorkers(network), 'import-batches': importAndObey },
    cadence: async (name) => (await replica.rules()).settings[`schedule.${name}`] * 1_000,
    log,
  });
  const watcher = watchInbox(node, () => void queues.wake('import-batches'));
  void queues.wake('import-batches');
  return {
    name: 'workers',
    async close() {
      watcher.close();
      await running.close();
      await closeSecondOpinion();
      await queues.close();
    },
  };
}

/**
 * Wakes the exporter from a process that only serves. The queues are opened with the first urgent
 * request; a wake that is lost costs the time to the next tick.
 */
export function createUrgentWaker(network: RequestNetwork): ClosingStep & { wake(): void } {
  let opened: Promise<Queues> | undefined;
  const wake = async () => {
    opened ??= openRequestQueues(network);
    await (await opened).wake('export-requests');
  };
  return {
    name: 'urgent requests',
    wake() {
      wake().catch((err: unknown) => {
        opened = undefined;
        network.log.debug({ err }, 'exporter was not woken');
      });
    },
    close: async () => (await opened?.catch(() => undefined))?.close(),
  };
}

function openRequestQueues({ config, log }: RequestNetwork): Promise<Queues> {
  return openQueues({
    network: 'request',
    databaseUrl: config.DATABASE_URL,
    redisUrl: config.REDIS_URL,
    prefix: QUEUE_PREFIX,
    log,
  });
}

/** What each worker of the request network does in one run. */
export function requestWorkers(network: RequestNetwork): Partial<Record<WorkerName, WorkerRun>> {
  const { db, node, log, clock, replica } = network;
  const applies = requestApplies(replica);
  return {
    'import-batches': (signal) => importBatches(db, node, applies, { signal }),
    'export-requests': (signal) =>
      exportStreams(db, node, ['requests.urgent', 'requests'], { signal }),
    'export-control': async () => {
      await exportControl(db, node);
      await resendMissing(db, node);
    },
    async housekeeping() {
      const { settings } = await replica.rules();
      await keepHouse(db, { now: clock.now(), settings, log });
      await pruneSessions(db, clock.now());
      await pruneStore(db, node);
      await pruneOutbox(db, node);
      await pruneCustody(db, node);
      await watchAuditLog(db, node);
    },
  };
}
