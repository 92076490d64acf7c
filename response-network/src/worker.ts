import {
  keepJournal,
  hourly,
  listen,
  pruneNotices,
  listWorkers,
  pruneSessions,
  maintainCache,
  startWorkers,
  takeSamples,
  type ClosingStep,
  type Queues,
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
import { createExecutor, type Executor } from './execute.js';
import { sampleExecutions } from './execution-samples.js';
import { freeExpiredLeases, tellProgress } from './executions.js';
import { applies, type ResponseNetwork } from './network.js';
import { expireRequests } from './requests.js';
import { purgeAnswers } from './retention.js';

/** Starts the workers of this network with what wakes them; the step stops them. */
export async function startWork(network: ResponseNetwork): Promise<ClosingStep> {
  const { config, log } = network;
  const executor = createExecutor({
    ...network,
    concurrencyMax: () => network.settings()['execute.concurrency_max'],
  });
  const queues = await network.queues.open();
  const running = await startWorkers({
    queues,
    workers: workersOf(network, executor, queues),
    cadence: async (name) => (await network.refreshSettings())[`schedule.${name}`] * 1_000,
    journal: keepJournal(network.db, network.clock),
    log,
  });
  const execute = () => {
    executor.look();
    void queues.wake('execute-queries');
  };
  const sweep = () => {
    running.sweep().catch((err: unknown) => log.warn({ err }, 'missed a changed setting'));
  };
  const stopCancelled = () => {
    executor.stopCancelled().catch((err: unknown) => log.warn({ err }, 'missed a cancellation'));
  };
  const listener = listen(
    config.DATABASE_URL,
    {
      sallyport_imported: execute,
      sallyport_cancel: stopCancelled,
      sallyport_settings: sweep,
    },
    {
      log,
      onGap: () => {
        execute();
        stopCancelled();
      },
    },
  );
  const inbox = watchInbox(network.node, () => void queues.wake('import-batches'));
  void queues.wake('import-batches');
  log.info(
    { workers: listWorkers('response'), queues: config.REDIS_URL ? 'redis' : 'postgresql' },
    'workers started',
  );
  return {
    name: 'workers',
    async close() {
      inbox.close();
      await listener.close();
      executor.drain();
      await running.close();
      await closeSecondOpinion();
    },
  };
}

/** What each worker of this network does in one run; the queues are where it asks for another. */
export function workersOf(
  network: ResponseNetwork,
  executor: Executor,
  queues: Pick<Queues, 'wake'>,
): Partial<Record<WorkerName, WorkerRun>> {
  const { db, node, clock, log } = network;
  const retain = hourly(clock, async () => {
    const settings = network.settings();
    const now = clock.now();
    const dropped = {
      answers: await purgeAnswers(db, { now, settings }),
      files: await pruneArchive(node, settings['retention.batches_days']),
    };
    log.info(dropped, 'dropped what was kept long enough');
  });
  return {
    'import-batches': (signal) => importBatches(db, node, applies, { signal }),
    'execute-queries': async (signal) => {
      await network.refreshSettings();
      const report = await executor.run(signal);
      if (report.answered > 0) log.info(report, 'requests executed');
      if (report.more) await queues.wake('execute-queries');
    },
    'export-results': (signal) => exportStreams(db, node, ['results', 'results.bulk'], { signal }),
    'export-identity': (signal) => exportStream(db, node, 'identity', { signal }),
    'export-settings': (signal) => exportStream(db, node, 'settings', { signal }),
    'export-control': async () => {
      await db.transaction((tx) => tellProgress(tx, clock.now()));
      await exportControl(db, node);
      await resendMissing(db, node);
    },
    monitor: async () => {
      await network.counters.flush();
      await takeSamples(db, {
        samplers: [sampleExecutions, sampleBatches],
        now: clock.now(),
        settings: network.settings(),
      });
    },
    'maintain-cache': () => maintainCache(db, network.cache, clock.now()),
    housekeeping: async () => {
      const freed = await freeExpiredLeases(db, clock.now());
      const { expired } = await expireRequests(db, clock.now());
      await pruneSessions(db, clock.now());
      const { 'retention.notices_days': days } = network.settings();
      const pruned =
        (await pruneNotices(db, { now: clock.now(), days })) +
        (await pruneStore(db, node)) +
        (await pruneOutbox(db, node)) +
        (await pruneCustody(db, node)) +
        (await pruneUploads(db, node));
      await watchAuditLog(db, node);
      await retain();
      if (freed + expired + pruned > 0) log.info({ freed, expired, pruned }, 'house kept');
    },
  };
}
