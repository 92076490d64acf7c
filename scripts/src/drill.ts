import { parseArgs } from 'node:util';
import { startServices } from './development-services.js';
import { runCrashLoop } from './drills/crash.js';
import { runDiskFaults } from './drills/disk.js';
import { runFaults } from './drills/faults-suite.js';
import { runFuzz } from './drills/fuzz.js';
import { runModel } from './drills/model.js';
import { SABOTAGES } from './drills/sabotage.js';

/**
 * `npm run drill [-- --only NAME,…] [--seed N] [--cycles N] [--cases N] [--days N] [--long]
 * [--sabotage NAME] [--json]`: everything that tries to make the crossing lose, repeat or believe something. Progress
 * goes to standard error; with `--json` one line on standard output. Exit 0 only if all was clean.
 */
type Drill = {
  name: string;
  run(): Promise<{ figures: Record<string, number>; clean: boolean; findings: string[] }>;
};

const { values: options } = parseArgs({
  options: {
    only: { type: 'string' },
    seed: { type: 'string' },
    cycles: { type: 'string' },
    cases: { type: 'string' },
    days: { type: 'string' },
    long: { type: 'boolean', default: false },
    sabotage: { type: 'string' },
    json: { type: 'boolean', default: false },
  },
});
const { long, sabotage } = options;
const seed = wholeNumber('seed', 1 + Math.floor(Math.random() * 1_000_000_000));
const cycles = wholeNumber('cycles', long ? 10_000 : 200);
const cases = wholeNumber('cases', long ? 1_000_000 : 20_000);
const days = wholeNumber('days', long ? 30 : 3);

const DRILLS: readonly Drill[] = [
  {
    name: 'faults',
    async run() {
      const { tried, passed, failed } = await runFaults({ say: sayFor('faults') });
      const findings = failed.map(({ number, name, found }) => `${number} ${name}: ${found}`);
      return { figures: { tried, passed }, clean: passed === tried, findings };
    },
  },
  {
    name: 'crash',
    async run() {
      const found = await runCrashLoop({ seed, cycles, sabotage, say });
      const { lost, doubled, wrong, kills, powerCuts } = found;
      const points = Object.keys(found.points).length;
      const places = Object.entries(found.points).map(([name, count]) => `${count} × ${name}`);
      say(`crash: died at ${places.join(', ')}`);
      return {
        figures: {
          cycles: found.cycles,
          lost,
          doubled,
          wrong: wrong.length,
          points,
          kills,
          powerCuts,
        },
        clean: lost + doubled + wrong.length === 0,
        findings: wrong,
      };
    },
  },
  {
    name: 'disk',
    async run() {
      const { points, tried, failed } = await runDiskFaults({ seed, long, sabotage, say });
      return {
        figures: { points: points.length, tried, failed: failed.length },
        clean: failed.length === 0,
        findings: failed,
      };
    },
  },
  {
    name: 'model',
    async run() {
      const { wrong, ...counted } = await runModel({ seed, days, say: sayFor('model') });
      const { unanswered, doubled, gaps } = counted;
      return {
        figures: { ...counted, wrong: wrong.length },
        clean: unanswered + doubled + gaps + wrong.length === 0,
        findings: wrong,
      };
    },
  },
  {
    name: 'fuzz',
    async run() {
      const figures = await runFuzz({ seed, cases, say: sayFor('fuzz') });
      const { crashes, applied, disagreements } = figures;
      return { figures, clean: crashes + applied + disagreements === 0, findings: [] };
    },
  },
];

process.exitCode = await main();

async function main(): Promise<number> {
  const wanted = options.only?.split(',') ?? DRILLS.map(({ name }) => name);
  const unknown = wanted.filter((name) => !DRILLS.some((drill) => drill.name === name));
  if (unknown.length > 0) {
    return refuse(`there is no drill ${unknown.join(', ')}; there are ${names(DRILLS)}`);
  }
  if (sabotage !== undefined && !(sabotage in SABOTAGES)) {
    return refuse(
      `there is no sabotage ${sabotage}; there are ${Object.keys(SABOTAGES).join(', ')}`,
    );
  }
  const services = await startServices({ report: say });
  try {
    process.env['DATABASE_URL'] = await services.createDatabase('sallyport');
    process.env['ELASTICSEARCH_URL'] = services.elasticsearchUrl;
    return await runAll(DRILLS.filter(({ name }) => wanted.includes(name)));
  } finally {
    await services.stop();
  }
}

async function runAll(drills: readonly Drill[]): Promise<number> {
  say(`seed ${seed}`);
  const all: Record<string, unknown> = {};
  let clean = true;
  for (const drill of drills) {
    const started = Date.now();
    const done = await drill.run();
    for (const finding of done.findings.slice(0, 20)) say(`${drill.name}: FOUND ${finding}`);
    const seconds = ((Date.now() - started) / 1000).toFixed(0);
    const verdict = done.clean
      ? 'clean'
      : `NOT CLEAN, again with --only ${drill.name} --seed ${seed}`;
    say(`${drill.name}: ${verdict} after ${seconds} s ${JSON.stringify(done.figures)}`);
    all[drill.name] = done.figures;
    clean &&= done.clean;
  }
  if (options.json) process.stdout.write(`${JSON.stringify({ ...all, seed })}\n`);
  return clean ? 0 : 1;
}

function wholeNumber(name: 'seed' | 'cycles' | 'cases' | 'days', otherwise: number): number {
  const given = options[name];
  if (given === undefined) return otherwise;
  if (/^[1-9]\d{0,9}$/.test(given)) return Number(given);
  say(`--${name} must be a whole number from 1, not ${given}`);
  process.exit(2);
}

function refuse(sentence: string): number {
  say(sentence);
  return 2;
}

function names(drills: readonly Drill[]): string {
  return drills.map(({ name }) => name).join(', ');
}

function sayFor(drill: string): (line: string) => void {
  return (line) => say(`${drill}: ${line}`);
}

function say(line: string): void {
  process.stderr.write(`drill: ${line}\n`);
}
