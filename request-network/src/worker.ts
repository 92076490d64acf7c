import {
  keepJournal,
  hourly,
  pruneSessions,
  maintainCache,
  startWorkers,
  takeSamples,
  type ClosingStep,
  type RunningWorkers,
  type WorkerName,
  type WorkerRun,
} from '@sallyport/shared';
import {
  closeSecondOpinion,
  exportControl,
  exportStream,
  exportStreams,
  importBatches,
  pruneCustody,
  pruneOutbox,
  pruneArchive,
  pruneStore,
  pruneUploads,
  resendMissing,
  sampleBatches,
  watchAuditLog,
  watchInbox,
} from '@sallyport/transfer';
import { requestApplies } from './apply.js';
import { keepHouse } from './housekeeping.js';
import type { RequestNetwork } from './network.js';
import { dropOld } from './retention.js';
import { sampleRequests } from './request-samples.js';

/** Starts the workers of the request network in this process. */
export async function startRequestWorkers(network: RequestNetwork): Promise<ClosingStep> {
  const { db, log, replica, node } = network;
  const queues = await network.queues.open();
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
    journal: keepJournal(db, network.clock),
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
    },
  };
}

/** What each worker of the request network does in one run. */
export function requestWorkers(network: RequestNetwork): Partial<Record<WorkerName, WorkerRun>> {
  const { db, node, log, clock, replica } = network;
  const applies = requestApplies(replica);
  const retain = hourly(clock, async () => {
    const { settings } = await replica.rules();
    const now = clock.now();
    const dropped = {
      ...(await dropOld(db, { now, settings })),
      files: await pruneArchive(node, settings['retention.batches_days']),
    };
    log.info(dropped, 'dropped what was kept long enough');
  });
  return {
    'import-batches': (signal) => importBatches(db, node, applies, { signal }),
    'export-requests': (signal) =>
      exportStreams(db, node, ['requests.urgent', 'requests'], { signal }),
    'export-accounts': (signal) => exportStream(db, node, 'accounts', { signal }),
    'export-control': async () => {
      await exportControl(db, node);
      await resendMissing(db, node);
    },
    async monitor() {
      const { settings } = await replica.rules();
      await network.counters.flush();
      const samplers = [sampleRequests, sampleBatches];
      await takeSamples(db, { samplers, now: clock.now(), settings });
    },
    'maintain-cache': () => maintainCache(db, network.cache, clock.now()),
    async housekeeping() {
      const { settings } = await replica.rules();
      await keepHouse(db, { now: clock.now(), settings, log });
      await pruneSessions(db, clock.now());
      await pruneStore(db, node);
      await pruneOutbox(db, node);
      await pruneCustody(db, node);
      await pruneUploads(db, node);
      await watchAuditLog(db, node);
      await retain();
    },
  };
}
