import { performance } from 'node:perf_hooks';
import type { Services } from '../development-services.js';

/** One line of the table; `ratio` is value through baseline, `null` where there is no baseline. */
export type Row = {
  name: string;
  value: number | null;
  unit: string;
  baseline: number | null;
  ratio: number | null;
  /** The least ratio or, in rows without a baseline, the limit of the value; 0: none. */
  target: number;
  ok: boolean;
};

/** What a benchmark works with. */
export type Bench = {
  /** Small sizes: shows that everything runs, measures little. */
  quick: boolean;
  wants(name: string): boolean;
  services(): Promise<Services>;
  /** Progress, one line each. */
  say(line: string): void;
};

/** Rows that are measured together. */
export type Benchmark = { names: readonly string[]; run(bench: Bench): Promise<Row[]> };

/** One measurement of ours and of its baseline, right after each other. */
export type Pair = { ours: number; baseline: number };

/** Measured pairs of a row; one more before them warms up. */
export const PAIRS = 3;

/** Measures both in turn, A B A B; the first pair only warms up. */
export async function measurePairs(
  bench: Bench,
  name: string,
  { ours, baseline }: { ours: () => Promise<number>; baseline: () => Promise<number> },
): Promise<Pair[]> {
  const pairs: Pair[] = [];
  for (let round = 0; round <= PAIRS; round++) {
    const pair = { baseline: await baseline(), ours: await ours() };
    sayPair(bench, name, round, pair);
    if (round > 0) pairs.push(pair);
  }
  return pairs;
}

/** Tells the progress of a row; round 0 is the warm-up. */
export function sayPair(bench: Bench, name: string, round: number, pair: Pair): void {
  const what = round === 0 ? 'warm-up' : `${round} of ${PAIRS}`;
  const ratio = (pair.ours / pair.baseline).toFixed(2);
  bench.say(`${name} ${what}: ${Math.round(pair.ours)} / ${Math.round(pair.baseline)} = ${ratio}`);
}

/** A row of rates: medians, and the median of the pairs' ratios. */
export function ratioRow(name: string, unit: string, target: number, pairs: Pair[]): Row {
  const ratio = median(pairs.map((pair) => pair.ours / pair.baseline));
  return {
    name,
    value: round(median(pairs.map((pair) => pair.ours))),
    unit,
    baseline: round(median(pairs.map((pair) => pair.baseline))),
    ratio: Math.round(ratio * 1_000) / 1_000,
    target,
    ok: ratio >= target,
  };
}

/** A row whose value must reach the target. */
export function floorRow(name: string, unit: string, target: number, value: number): Row {
  return { ...limitRow(name, unit, target, value), ok: value >= target };
}

/** A row whose value must stay below the target. */
export function limitRow(name: string, unit: string, target: number, value: number): Row {
  return {
    name,
    value: round(value),
    unit,
    baseline: null,
    ratio: null,
    target,
    ok: value < target,
  };
}

/** A row that could not be measured here. */
export function missingRow(name: string, unit: string, target: number): Row {
  return { name, value: null, unit, baseline: null, ratio: null, target, ok: false };
}

/** How many of `count` per second the work does. */
export async function rate(count: number, work: () => Promise<unknown>): Promise<number> {
  return count / (await secondsOf(work));
}

/** The time a piece of work takes. */
export async function secondsOf(work: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await work();
  return (performance.now() - startedAt) / 1_000;
}

/** Runs the work for each item, so many at a time. */
export async function inParallel<T>(
  items: readonly T[],
  width: number,
  work: (item: T) => Promise<unknown>,
): Promise<void> {
  const left = items.values();
  await Promise.all(
    Array.from({ length: width }, async () => {
      for (const item of left) await work(item);
    }),
  );
}

/** Asks until it holds, every `everyMs`. */
export async function until(
  what: string,
  check: () => Promise<boolean>,
  { everyMs = 50, limitMs = 300_000 } = {},
): Promise<void> {
  const endsAt = performance.now() + limitMs;
  while (!(await check())) {
    if (performance.now() > endsAt) throw new Error(`waited ${limitMs / 1_000} s for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}

/** The middle of the values. */
export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return ((sorted[(sorted.length - 1) >> 1] ?? NaN) + (sorted[sorted.length >> 1] ?? NaN)) / 2;
}

function round(value: number): number {
  return value >= 100 ? Math.round(value) : Math.round(value * 100) / 100;
}
