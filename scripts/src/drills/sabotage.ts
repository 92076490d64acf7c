import { setTimeout } from 'node:timers/promises';

/** What a sabotage answers instead of doing an operation. */
export const SKIPPED = Symbol('skipped');

/** Breaks one guarded step of the product on purpose, from outside. */
export type Sabotage = {
  /** Does something else than the file operation; undefined: what was meant. */
  file?(op: string, path: string, run: () => Promise<unknown>): Promise<never> | undefined;
  sql?(text: string): string;
  /** Waits before a file operation, so that two at work drift apart. */
  stall?(): Promise<void>;
  /** After each commit. */
  committed?(): Promise<void>;
};

/** Every sabotage by its name; `no-advisory-lock` alone must do no harm. */
export const SABOTAGES: Readonly<Record<string, () => Sabotage>> = {
  'skip-store-fsync': () => skipFsync(/\/store\/\.[^/]+\.part$/),
  'skip-store-folder-fsync': () => skipFsync(/\/store$/),
  'skip-claim-fsync': () => skipFsync(/\/staging\/import-[^/]+\.tmp$/),
  'skip-outbox-fsync': () => skipFsync(/\/outbox\/\.[^/]+\.part$/),
  'commit-before-rename': delayRename,
  'no-advisory-lock': () => ({ stall, sql: withoutAdvisoryLock }),
  'no-row-lock': () => ({
    stall,
    sql: (text) => withoutAdvisoryLock(text).replace(/\s+for update(?! skip)\b/gi, ' '),
  }),
  'no-compare-and-set': () => ({
    stall,
    sql: (text) =>
      withoutAdvisoryLock(text).replace(
        /state = 'building' and build_token = (\$\d+)(?=\s+returning id\b)/i,
        '$1::uuid is not null',
      ),
  }),
};

/** The sabotages under which two that work on the same thing meet. */
export const UNLOCKED: readonly string[] = [
  'no-advisory-lock',
  'no-row-lock',
  'no-compare-and-set',
];

async function stall(): Promise<void> {
  if (Math.random() < 0.2) await setTimeout(Math.random() * 40);
}

function skipFsync(files: RegExp): Sabotage {
  return {
    file: (op, path) =>
      op === 'fsync' && files.test(path) ? Promise.resolve(SKIPPED as never) : undefined,
  };
}

/** The store's rename happens only once 'sealed' is committed. */
function delayRename(): Sabotage {
  const delayed: (() => Promise<unknown>)[] = [];
  return {
    file(op, path, run) {
      if (op !== 'rename' || !/\/store\/[^/]+\.batch$/.test(path)) return undefined;
      delayed.push(run);
      return Promise.resolve(SKIPPED as never);
    },
    async committed() {
      for (const run of delayed.splice(0)) await run();
    },
  };
}

function withoutAdvisoryLock(text: string): string {
  return text
    .replace(/pg_try_advisory_lock\([^)]*\([^)]*\)\)/, '(hashtextextended($1, 0) is not null)')
    .replace(/pg_advisory_unlock\([^)]*\([^)]*\)\)/, '(hashtextextended($1, 0) is not null)');
}
