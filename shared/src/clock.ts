/** Where time comes from; tests hand in their own. The database clock is read by the limiter only. */
export type Clock = { now(): Date };

/** The clock of this machine. */
export const systemClock: Clock = { now: () => new Date() };

const HOUR_MS = 3_600_000;

/** The work, but in one process at most once an hour; in between it gives undefined. */
export function hourly<T>(clock: Clock, work: () => Promise<T>): () => Promise<T | undefined> {
  let doneAt = -Infinity;
  return async () => {
    const now = clock.now().getTime();
    if (Math.abs(now - doneAt) < HOUR_MS) return undefined;
    const result = await work();
    doneAt = now;
    return result;
  };
}
