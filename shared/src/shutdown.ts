import type { Log } from './log.js';

/** Something that was opened and must be closed; `close` may take its time within the limit. */
export type ClosingStep = { name: string; close: () => Promise<unknown> };

const SHUTDOWN_LIMIT_MS = 20_000;

/**
 * Closes what was opened, last first, on SIGTERM or SIGINT, and exits: 0 when every step succeeded,
 * else 1. Steps may be pushed while the process starts. After 20 s, or at a second signal, the
 * process exits at once. A bug that nobody caught is logged and ends the process with 1.
 */
export function onShutdown(
  steps: ClosingStep[],
  log: Log,
  { limitMs = SHUTDOWN_LIMIT_MS }: { limitMs?: number } = {},
): void {
  let stopping = false;
  const stop = (signal: NodeJS.Signals) => {
    if (stopping) {
      log.warn({ signal }, 'stopped at once');
      process.exit(1);
    }
    stopping = true;
    log.info({ signal }, 'stopping');
    setTimeout(() => {
      log.error({ limitMs }, 'stopping took too long');
      process.exit(1);
    }, limitMs).unref();
    void closeAll(steps, log).then((clean) => {
      log.info({ clean }, 'stopped');
      process.exit(clean ? 0 : 1);
    });
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
  const die = (err: unknown) => {
    log.fatal({ err }, 'unexpected error');
    process.exit(1);
  };
  process.on('uncaughtException', die);
  process.on('unhandledRejection', die);
}

async function closeAll(steps: ClosingStep[], log: Log): Promise<boolean> {
  let clean = true;
  for (const { name, close } of steps.toReversed()) {
    try {
      await close();
    } catch (err) {
      clean = false;
      log.error({ err, step: name }, 'closing failed');
    }
  }
  return clean;
}
