import type { NetworkName } from './records.js';

/** When a worker runs by itself: every so many milliseconds, or by a cron expression (UTC). */
export type Cadence = number | string;

export type WorkerSpec = {
  network: NetworkName | 'both';
  /** Until settings say otherwise. */
  cadence: Cadence;
  /** A run that takes longer is told to stop and counts as failed. */
  timeLimitMs: number;
  /** One sentence for operators. */
  does: string;
};

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;

/** Every background job there is. None overlaps itself; each can be run now, paused and resumed. */
export const WORKERS = {
  'import-batches': {
    network: 'both',
    cadence: 30 * SECOND_MS,
    timeLimitMs: 30 * MINUTE_MS,
    does: 'Verifies the batch files in the inbox and applies their records.',
  },
  'export-requests': {
    network: 'request',
    cadence: 30 * SECOND_MS,
    timeLimitMs: 15 * MINUTE_MS,
    does: 'Seals waiting requests and cancellations into batches.',
  },
  'export-accounts': {
    network: 'request',
    cadence: 60 * SECOND_MS,
    timeLimitMs: 5 * MINUTE_MS,
    does: 'Seals what users changed of their own accounts into batches.',
  },
  'export-results': {
    network: 'response',
    cadence: 30 * SECOND_MS,
    timeLimitMs: 15 * MINUTE_MS,
    does: 'Seals waiting results into batches.',
  },
  'execute-queries': {
    network: 'response',
    cadence: 30 * SECOND_MS,
    timeLimitMs: 15 * MINUTE_MS,
    does: 'Runs received requests against Elasticsearch and stores their results.',
  },
  'export-identity': {
    network: 'response',
    cadence: 60 * SECOND_MS,
    timeLimitMs: 5 * MINUTE_MS,
    does: 'Seals changes of users, profile types and credentials into batches.',
  },
  'export-settings': {
    network: 'response',
    cadence: 120 * SECOND_MS,
    timeLimitMs: 5 * MINUTE_MS,
    does: 'Seals changes of settings, datasets and templates into batches.',
  },
  'export-control': {
    network: 'both',
    cadence: 60 * SECOND_MS,
    timeLimitMs: 5 * MINUTE_MS,
    does: 'Tells the far side what arrived and that this side is alive.',
  },
  housekeeping: {
    network: 'both',
    cadence: 60 * SECOND_MS,
    timeLimitMs: 10 * MINUTE_MS,
    does: 'Expires what is past its deadline and frees what nobody holds any more.',
  },
  monitor: {
    network: 'both',
    cadence: 60 * SECOND_MS,
    timeLimitMs: 5 * MINUTE_MS,
    does: 'Samples what happened in the last minutes, for the statistics.',
  },
  'maintain-cache': {
    network: 'both',
    cadence: 60 * MINUTE_MS,
    timeLimitMs: 5 * MINUTE_MS,
    does: 'Drops from the cache what is too old or too much.',
  },
} as const satisfies Record<string, WorkerSpec>;

export type WorkerName = keyof typeof WORKERS;

/** The workers of one network, in the order of the table. */
export function listWorkers(network: NetworkName): WorkerName[] {
  const names = Object.keys(WORKERS) as WorkerName[];
  return names.filter((name) => [network, 'both'].includes(WORKERS[name].network));
}
