import type { Card } from '@sallyport/transfer';
import type { Carrier } from './carrier.js';
import type { Oracle } from './oracle.js';
import type { Side } from './sides.js';
import type { Site } from './site.js';

/** A run of the model: the networks, who carries between them, and what is known of them. */
export type Run = {
  site: Site;
  carrier: Carrier;
  oracle: Oracle;
  /** The number of the present step. */
  step: number;
  trace: string[];
  wrong: string[];
  /** Keys that a person has distrusted because their owner had lost them. */
  revoked: Set<string>;
  /** Every card that a network ever had, by key. */
  cards: Map<string, Card>;
  /** Since when the other network waits for a key that only people can bring. */
  strangerSince: Partial<Record<Side, number>>;
};

export const MINUTE_MS = 60_000;
export const HOUR_MS = 3_600_000;
export const DAY_MS = 24 * HOUR_MS;
const TRACED = 60;

/** Writes a line of the trace. */
export function note(run: Run, line: string): void {
  const at = run.site.time.now.toISOString().slice(0, 16);
  run.trace.push(`${run.step} ${at} ${line}`);
}

/** Notes something that must not be. */
export function blame(run: Run, sentence: string): void {
  run.wrong.push(`step ${run.step}: ${sentence}`);
  note(run, `WRONG ${sentence}`);
}

/** Tells what is wrong, and the last steps before the first of it. */
export function tell({ trace, wrong }: Run, seed: number, say: (line: string) => void): void {
  say(`seed ${seed}; the steps before the first that is wrong, and after:`);
  const first = trace.findIndex((line) => line.includes(' WRONG '));
  const from = first < 0 ? trace.length - TRACED : first - TRACED;
  for (const line of trace.slice(Math.max(0, from)).slice(0, TRACED + 10)) say(line);
  for (const sentence of wrong.slice(0, 20)) say(`WRONG ${sentence}`);
}
