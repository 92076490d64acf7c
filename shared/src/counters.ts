import type { Clock } from './clock.js';
import { rows, type Database } from './database.js';
import type { Log } from './log.js';

/** What happens in one process and leaves no row behind, counted for the samples. */
export type Counters = {
  /** Costs nothing but memory; few different labels, never one of a user or a request. */
  count(metric: string, label: string, by?: number): void;
  /** Writes down what was counted since the last time; also runs by itself. */
  flush(): Promise<void>;
  close(): Promise<void>;
};

const FLUSH_MS = 15_000;
const MAX_DIFFERENT = 1_000;
const MINUTE_MS = 60_000;

/** Opens the counters of this process. */
export function openCounters(db: Database, { clock, log }: { clock: Clock; log: Log }): Counters {
  let counted = new Map<string, Map<string, number>>();
  let different = 0;

  const count: Counters['count'] = (metric, label, by = 1) => {
    let labels = counted.get(metric);
    if (!labels) counted.set(metric, (labels = new Map()));
    const before = labels.get(label);
    if (before === undefined) {
      if (different >= MAX_DIFFERENT) return;
      different += 1;
    }
    labels.set(label, (before ?? 0) + by);
  };

  const flush = async () => {
    if (different === 0) return;
    const taken = counted;
    counted = new Map();
    different = 0;
    try {
      await addCounts(db, minuteOf(clock.now()), taken);
    } catch (error) {
      for (const [metric, labels] of taken) {
        for (const [label, value] of labels) count(metric, label, value);
      }
      throw error;
    }
  };
  const warn = (err: unknown) => log.warn({ err }, 'could not write down what was counted');
  const timer = setInterval(() => void flush().catch(warn), FLUSH_MS);
  timer.unref();

  return {
    count,
    flush,
    async close() {
      clearInterval(timer);
      await flush().catch(warn);
    },
  };
}

/** The beginning of the minute in which a moment lies. */
export function minuteOf(at: Date): Date {
  return new Date(Math.floor(at.getTime() / MINUTE_MS) * MINUTE_MS);
}

async function addCounts(
  db: Database,
  minute: Date,
  counted: Map<string, Map<string, number>>,
): Promise<void> {
  const lines = [...counted].flatMap(([metric, labels]) =>
    [...labels].map(([label, value]) => ({ metric, label, value })),
  );
  // In one order, so that two processes cannot wait for each other.
  await rows(
    db,
    `insert into counts as c (minute, metric, label, value)
     select ?::timestamptz, metric, label, value
     from json_to_recordset(?) as t (metric text, label text, value bigint)
     order by metric, label
     on conflict (minute, metric, label) do update set value = c.value + excluded.value`,
    [minute, JSON.stringify(lines)],
  );
}
