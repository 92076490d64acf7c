import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, readdirSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { SallyportError } from '@sallyport/shared';
import { isAlive, processStamp, type ProcessRecord } from '../../process-lock.mjs';
import type { ServiceUser } from './place.js';

export { isAlive, type ProcessRecord };

type Daemon = {
  command: string;
  args: string[];
  env: NodeJS.ProcessEnv;
  user: ServiceUser;
  cwd: string;
  logFile: string;
};

/** Starts a process that outlives us and a Ctrl-C in our terminal; its output goes to `logFile`. */
export async function startDaemon(daemon: Daemon): Promise<ProcessRecord> {
  const log = openSync(daemon.logFile, 'w', 0o640);
  try {
    const child = spawn(daemon.command, daemon.args, {
      ...daemon.user,
      env: daemon.env,
      cwd: daemon.cwd,
      detached: true,
      stdio: ['ignore', log, log],
    });
    const pid = await new Promise<number>((done, fail) => {
      child.once('spawn', () => done(child.pid as number));
      child.once('error', fail);
    });
    child.unref();
    return { pid, stamp: processStamp(pid) ?? '' };
  } finally {
    closeSync(log);
  }
}

/** Ends a process: first `signal`, after 15 s SIGKILL; answers once it is gone. */
export async function endProcess(record: ProcessRecord, signal: NodeJS.Signals): Promise<void> {
  for (const [step, limitMs] of [
    [signal, 15_000],
    ['SIGKILL', 5_000],
  ] as const) {
    if (!isAlive(record)) return;
    try {
      process.kill(record.pid, step);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
    if (await waitUntil(() => !isAlive(record), limitMs)) return;
  }
  throw new SallyportError('services-unavailable', `process ${record.pid} does not end`);
}

/** Processes of this machine that were started with exactly this argument (Linux only). */
export function findProcesses(argument: string): ProcessRecord[] {
  if (process.platform !== 'linux') return [];
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
    .filter((pid) => commandLine(pid).includes(argument))
    .flatMap((pid) => {
      const stamp = processStamp(pid);
      return stamp === undefined ? [] : [{ pid, stamp }];
    });
}

/** Polls until `check` holds; false when it did not within `limitMs`. */
export async function waitUntil(
  check: () => boolean | Promise<boolean>,
  limitMs: number,
): Promise<boolean> {
  const deadline = Date.now() + limitMs;
  while (!(await check())) {
    if (Date.now() > deadline) return false;
    await delay(50);
  }
  return true;
}

/** The last lines of a service's log, to be shown when it does not start. */
export function tailOf(logFile: string): string {
  try {
    return readFileSync(logFile, 'utf8').trimEnd().split('\n').slice(-8).join('\n');
  } catch {
    return '(no log)';
  }
}

function commandLine(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
  } catch {
    return [];
  }
}
