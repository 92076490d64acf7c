import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import type { Clock } from './clock.js';
import { rows, type Database, type Transaction } from './database.js';
import { shorten } from './text.js';
import type { WorkerName } from './workers.js';

/** How a run of a worker ended. */
export type EndedRun = { name: WorkerName; ms: number; error: Error | undefined };

/** Where a process writes down how its workers are; what it cannot write it does without. */
export type WorkerJournal = {
  /** The workers whose schedule rests. */
  pausedSchedules(): Promise<ReadonlySet<string>>;
  ended(run: EndedRun): Promise<void>;
  /** That the process lives, and which workers it runs. */
  alive(workers: readonly WorkerName[]): Promise<void>;
  /** That the process ends as it should. */
  gone(): Promise<void>;
};

/** What is known of a worker's runs. */
export type WorkerState = {
  name: string;
  schedule_paused: boolean;
  runs: number;
  failures: number;
  started_at: Date | null;
  ended_at: Date | null;
  succeeded_at: Date | null;
  error: string | null;
  process: string | null;
};
export type WorkerProcess = { name: string; workers: string[]; started_at: Date; seen_at: Date };

const MAX_ERROR = 500;
/** A process that is silent for so long is forgotten. */
const FORGET_MS = 86_400_000;

/** The journal of this process, one upsert for each run. */
export function keepJournal(db: Database, clock: Clock): WorkerJournal {
  const process = `${hostname()}-${randomBytes(4).toString('hex')}`;
  const startedAt = clock.now();
  return {
    async pausedSchedules() {
      const found = await rows<{ name: string }>(
        db,
        'select name from worker_states where schedule_paused',
      );
      return new Set(found.map(({ name }) => name));
    },
    async ended({ name, ms, error }) {
      const now = clock.now();
      await rows(db, NOTE_RUN, {
        name,
        startedAt: new Date(now.getTime() - ms),
        now,
        error: error ? shorten(error.message, MAX_ERROR) : null,
        process,
      });
    },
    async alive(workers) {
      const now = clock.now();
      await rows(
        db,
        `insert into worker_processes (name, workers, started_at, seen_at)
         values (:process, :workers, :startedAt, :now)
         on conflict (name) do update set seen_at = excluded.seen_at`,
        { process, workers: [...workers], startedAt, now },
      );
      await rows(db, 'delete from worker_processes where seen_at < ?', [
        new Date(now.getTime() - FORGET_MS),
      ]);
    },
    async gone() {
      await rows(db, 'delete from worker_processes where name = ?', [process]);
    },
  };
}

/** What is known of the runs of every worker that ever ran. */
export async function readWorkerStates(db: Database): Promise<Map<string, WorkerState>> {
  const found = await rows<WorkerState>(
    db,
    `select name, schedule_paused, runs, failures, started_at, ended_at, succeeded_at, error,
       process from worker_states`,
  );
  return new Map(found.map((state) => [state.name, state]));
}

/** The processes that run workers, those seen last first. */
export async function listWorkerProcesses(db: Database): Promise<WorkerProcess[]> {
  return rows<WorkerProcess>(
    db,
    `select name, workers, started_at, seen_at from worker_processes
     order by seen_at desc limit 100`,
  );
}

/** Lets the schedule of a worker rest, or go on; returns how it was before. */
export async function storeSchedulePaused(
  tx: Transaction,
  name: WorkerName,
  paused: boolean,
): Promise<boolean> {
  await rows(tx, 'insert into worker_states (name) values (?) on conflict do nothing', [name]);
  const [before] = await rows<{ paused: boolean }>(
    tx,
    'select schedule_paused as paused from worker_states where name = ? for update',
    [name],
  );
  await rows(tx, 'update worker_states set schedule_paused = ? where name = ?', [paused, name]);
  return before?.paused ?? false;
}

const NOTE_RUN = `
insert into worker_states as s (name, runs, failures, started_at, ended_at, succeeded_at, error, process)
values (:name, 1, case when cast(:error as text) is null then 0 else 1 end, :startedAt, :now,
  case when cast(:error as text) is null then cast(:now as timestamptz) end, :error, :process)
on conflict (name) do update set runs = s.runs + 1,
  failures = case when excluded.error is null then 0 else s.failures + 1 end,
  started_at = excluded.started_at, ended_at = excluded.ended_at, error = excluded.error,
  succeeded_at = coalesce(excluded.succeeded_at, s.succeeded_at), process = excluded.process`;
