import type { Database, Log } from '@sallyport/shared';
import { readVersions } from './request-views.js';

/** Those who wait until the version of a request changes. */
export type Waiters = {
  /**
   * Registers before the caller reads the request, so that no change falls in between; undefined
   * when too many wait already.
   */
  enter(requestId: string): Waiter | undefined;
  /** Looks at every waited-for request with one query and wakes those whose version changed. */
  check(): void;
  size(): number;
};

export type Waiter = {
  /** True as soon as the request has another version; false after the limit or on abort. */
  changed(from: number, options: { limitMs: number; signal: AbortSignal }): Promise<boolean>;
  leave(): void;
};

type Entry = { requestId: string; version: number | undefined; dirty: boolean; wake?: () => void };

const MAX_WAITERS = 10_000;

/** Makes the waiting room of one process; `check` is called when batches were imported or sealed. */
export function createWaiters(db: Database, log: Log): Waiters {
  const entries = new Set<Entry>();
  let checking = false;
  let again = false;

  const wakeChanged = async () => {
    for (const entry of entries) entry.dirty = entry.wake === undefined;
    const ids = new Set<string>();
    for (const entry of entries) if (entry.wake) ids.add(entry.requestId);
    if (ids.size === 0) return;
    const versions = await readVersions(db, [...ids]);
    for (const entry of entries) {
      if (entry.wake && versions.get(entry.requestId) !== entry.version) entry.wake();
    }
  };

  const check = async () => {
    if (checking) {
      again = true;
      return;
    }
    checking = true;
    do {
      again = false;
      await wakeChanged().catch((err: unknown) => log.warn({ err }, 'could not check who waits'));
    } while (again);
    checking = false;
  };

  return {
    size: () => entries.size,
    check: () => void check(),
    enter(requestId) {
      if (entries.size >= MAX_WAITERS) return undefined;
      const entry: Entry = { requestId, version: undefined, dirty: false };
      entries.add(entry);
      return {
        leave: () => void entries.delete(entry),
        changed: (from, { limitMs, signal }) => waitFor(entry, from, limitMs, signal),
      };
    },
  };
}

function waitFor(
  entry: Entry,
  from: number,
  limitMs: number,
  signal: AbortSignal,
): Promise<boolean> {
  // A check between entering and reading may have been about this very change: look again.
  if (entry.dirty) {
    entry.dirty = false;
    return Promise.resolve(true);
  }
  return new Promise((resolve) => {
    const end = (changed: boolean) => {
      clearTimeout(timer);
      signal.removeEventListener('abort', abort);
      delete entry.wake;
      resolve(changed);
    };
    const abort = () => end(false);
    const timer = setTimeout(abort, limitMs);
    signal.addEventListener('abort', abort, { once: true });
    entry.version = from;
    entry.wake = () => end(true);
    if (signal.aborted) abort();
  });
}
