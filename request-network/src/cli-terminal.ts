import { createInterface } from 'node:readline/promises';
import { text as readAll } from 'node:stream/consumers';
import { Writable } from 'node:stream';
import type { RequestView } from './request-schemas.js';

/** The lines of standard input that no question has taken yet. */
let piped: string[] | undefined;

/** Asks a question on the terminal; without one, the answer is the next line of standard input. */
export async function ask(question: string, { secret = false } = {}): Promise<string> {
  if (!process.stdin.isTTY) {
    piped ??= (await readAll(process.stdin)).split('\n');
    return (piped.shift() ?? '').replace(/\r$/, '');
  }
  process.stderr.write(question);
  // A terminal interface echoes through its output; a secret's goes nowhere.
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() });
  const terminal = createInterface({
    input: process.stdin,
    output: secret ? silent : process.stderr,
    terminal: true,
  });
  try {
    return await terminal.question('');
  } finally {
    terminal.close();
    if (secret) process.stderr.write('\n');
  }
}

/** Everything on standard input. */
export async function readInput(): Promise<string> {
  return readAll(process.stdin);
}

const STEPS = ['submitted', 'batched', 'exported', 'processing', 'delivered'];
const BAR_WIDTH = 20;

/** Where a request stands, as one line. */
export function describeProgress(view: RequestView): string {
  const parts = [view.id, view.status];
  if (view.stage) parts.push(view.stage);
  if (view.reason_code) parts.push(view.reason_code.replaceAll('_', ' '));
  if (view.failure) parts.push(`${view.failure.code}: ${view.failure.detail}`);
  parts.push(`as of ${view.known_as_of}`);
  if (view.eta) parts.push(`answer likely by ${view.eta.p50}, at the latest ${view.eta.p90}`);
  return parts.join(' · ');
}

/** Shows progress on standard error: a bar that moves on a terminal, else a line per change. */
export function showProgress(view: RequestView): void {
  const line = describeProgress(view);
  if (!process.stderr.isTTY) {
    process.stderr.write(`${line}\n`);
    return;
  }
  const step = STEPS.indexOf(view.status);
  const filled = Math.round(
    ((step === -1 ? STEPS.length - 2 : step) / (STEPS.length - 1)) * BAR_WIDTH,
  );
  const bar = '█'.repeat(filled).padEnd(BAR_WIDTH, '░');
  const width = process.stderr.columns || 80;
  process.stderr.write(`\r\x1b[2K${`${bar} ${line}`.slice(0, width - 1)}`);
}

/** Ends a progress line, so that what follows stands on its own. */
export function endProgress(): void {
  if (process.stderr.isTTY) process.stderr.write('\n');
}
