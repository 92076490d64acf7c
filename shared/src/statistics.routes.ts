import { Type } from 'typebox';
import type { Clock } from './clock.js';
import type { Database } from './database.js';
import { SallyportError } from './errors.js';
import type { Routes } from './http-routes.js';
import type { Principal } from './principals.js';
import { READERS } from './role-sets.js';
import { DURATIONS, percentile, readSamples, type SampleData } from './samples.js';

/** What the statistics of a network are made from. */
export type StatisticsContext = {
  db: Database;
  clock: Clock;
  /** How much there is of what right now. */
  countNow(db: Database): Promise<SampleData>;
};

const UNIT_S: Readonly<Record<string, number>> = { m: 60, h: 3_600, d: 86_400 };
const WINDOW_MOST_S = 366 * 86_400;
const MAX_STEPS = 1_500;
const USUAL_STEPS = 120;
const MAX_LABELS = 100;
const REST = 'others';
const duration = (description: string) =>
  Type.String({ pattern: '^[1-9][0-9]{0,4}[mhd]$', description });

/** Counts by metric and label, and percentiles of durations by stage. */
type Figures = {
  counts: SampleData;
  stages: Record<string, { count: number; p50_ms: number; p95_ms: number; p99_ms: number }>;
};

/** What happened on a network, over time. */
export function addStatisticsRoutes(routes: Routes<Principal>, context: StatisticsContext): void {
  const { db, clock, countNow } = context;
  routes.add({
    method: 'get',
    path: '/v1/admin/stats',
    summary: 'What happened over a window, in steps: requests, stages, batches, cache, limits',
    roles: READERS,
    query: Type.Object(
      {
        window: Type.Optional(duration('a whole number of m, h or d, such as 24h')),
        step: Type.Optional(duration('a whole number of m, h or d, such as 5m')),
      },
      { additionalProperties: false },
    ),
    responses: { 200: { description: 'Counts by metric and label; percentiles by stage.' } },
    async handler({ query }) {
      const windowS = secondsOf(query.window ?? '24h');
      const stepS = query.step === undefined ? usualStep(windowS) : secondsOf(query.step);
      requireRange(windowS, stepS);
      const now = clock.now();
      const to = new Date(Math.ceil(now.getTime() / 60_000) * 60_000);
      const start = Math.floor((to.getTime() / 1_000 - windowS) / stepS) * stepS;
      const span = { from: new Date(start * 1_000), to };
      const steps = await readSamples(db, span, stepS);
      return {
        status: 200,
        body: {
          from: span.from.toISOString(),
          to: to.toISOString(),
          step_s: stepS,
          steps: steps.map(({ at, data }) => ({ at: at.toISOString(), ...figuresOf(data) })),
          totals: figuresOf(addUp(steps.map(({ data }) => data))),
          now: await countNow(db),
        },
      };
    },
  });
}

function secondsOf(text: string): number {
  return Number(text.slice(0, -1)) * (UNIT_S[text.slice(-1)] ?? NaN);
}

/** The shortest of the usual steps that gives a chart's worth of points. */
function usualStep(windowS: number): number {
  const steps = [60, 300, 900, 3_600, 21_600, 86_400];
  return steps.find((step) => windowS / step <= USUAL_STEPS) ?? 604_800;
}

function requireRange(windowS: number, stepS: number): void {
  if (windowS <= WINDOW_MOST_S && stepS <= windowS && windowS / stepS <= MAX_STEPS) return;
  throw new SallyportError(
    'bad-field',
    `A window of ${windowS} s in steps of ${stepS} s is not possible.`,
    {
      next: `At most 366d and ${MAX_STEPS} steps, none longer than the window.`,
      errors: [{ pointer: '/step', code: 'bad-field', detail: 'does not fit the window' }],
    },
  );
}

function addUp(all: SampleData[]): SampleData {
  const sum: SampleData = {};
  for (const data of all) {
    for (const [metric, labels] of Object.entries(data)) {
      const into = (sum[metric] ??= {});
      for (const [label, value] of Object.entries(labels)) into[label] = (into[label] ?? 0) + value;
    }
  }
  return sum;
}

function figuresOf(data: SampleData): Figures {
  const figures: Figures = { counts: {}, stages: {} };
  for (const [metric, labels] of Object.entries(data)) {
    if (!metric.startsWith(DURATIONS)) {
      figures.counts[metric] = limitLabels(labels);
      continue;
    }
    figures.stages[metric.slice(DURATIONS.length)] = {
      count: Object.values(labels).reduce((sum, count) => sum + count, 0),
      p50_ms: percentile(labels, 0.5),
      p95_ms: percentile(labels, 0.95),
      p99_ms: percentile(labels, 0.99),
    };
  }
  return figures;
}

function limitLabels(labels: Record<string, number>): Record<string, number> {
  const sorted = Object.entries(labels).sort(([, a], [, b]) => b - a);
  if (sorted.length <= MAX_LABELS) return labels;
  const rest = sorted.slice(MAX_LABELS).reduce((sum, [, value]) => sum + value, 0);
  return { ...Object.fromEntries(sorted.slice(0, MAX_LABELS)), [REST]: rest };
}
