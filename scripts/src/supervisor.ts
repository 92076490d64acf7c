import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** One program to keep alive. */
export type Program = {
  name: string;
  /** Script and arguments, run by this Node.js. */
  command: string[];
  env: NodeJS.ProcessEnv;
  logFile: string;
};

export type Supervised = { name: string; pid(): number | undefined; stop(): Promise<void> };

const PRELOAD = fileURLToPath(new URL('exit-with-parent.js', import.meta.url));
const RESTART_MS = 500;
const KILL_MS = 25_000;

/** Starts a program and starts it again whenever it ends, until it is stopped. */
export function supervise(program: Program, report: (line: string) => void): Supervised {
  let child: ChildProcess | undefined;
  let stopping = false;
  let timer: NodeJS.Timeout | undefined;

  const start = () => {
    const log = openSync(program.logFile, 'a', 0o600);
    child = spawn(process.execPath, ['--import', PRELOAD, ...program.command], {
      stdio: ['ignore', log, log, 'ipc'],
      env: program.env,
    });
    closeSync(log);
    child.once('exit', (code, signal) => {
      child = undefined;
      if (stopping) return;
      report(`${program.name} ended (${signal ?? `code ${code}`}); starting it again`);
      timer = setTimeout(start, RESTART_MS);
    });
  };
  start();

  return {
    name: program.name,
    pid: () => child?.pid,
    async stop() {
      stopping = true;
      clearTimeout(timer);
      const running = child;
      if (!running) return;
      const ended = new Promise((resolve) => running.once('exit', resolve));
      running.kill('SIGTERM');
      // Longer than a process takes to drain by itself.
      const giveUp = setTimeout(() => running.kill('SIGKILL'), KILL_MS);
      await ended;
      clearTimeout(giveUp);
    },
  };
}
