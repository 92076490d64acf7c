import { parseArgs } from 'node:util';
import { formatTable } from '@sallyport/shared';
import { batchesBenchmark } from './benchmarks/batches.js';
import { missingRow, type Bench, type Benchmark, type Row } from './benchmarks/benchmark.js';
import { crossingBenchmark } from './benchmarks/crossing.js';
import { executionBenchmark } from './benchmarks/execution.js';
import { filesBenchmark } from './benchmarks/files.js';
import { firstAnswerBenchmark } from './benchmarks/first-answer.js';
import { keyAuthBenchmark } from './benchmarks/key-auth.js';
import { loginBenchmark } from './benchmarks/login.js';
import { limiterBenchmark } from './benchmarks/limiter.js';
import { mediaBenchmark } from './benchmarks/media.js';
import { memoryBenchmark } from './benchmarks/memory.js';
import { readsBenchmark } from './benchmarks/reads.js';
import { smallBatchesBenchmark } from './benchmarks/small-batches.js';
import { submitBenchmark } from './benchmarks/submit.js';
import { startServices, type Services } from './development-services.js';

/**
 * `npm run bench [-- NAME…] [--json] [--quick]`: every figure beside its baseline in the same run.
 * Progress goes to standard error, the table to standard output; with `--json` one line of JSON.
 * Exit 0 if every row reaches its target.
 */
const BENCHMARKS: readonly Benchmark[] = [
  submitBenchmark,
  limiterBenchmark,
  keyAuthBenchmark,
  loginBenchmark,
  readsBenchmark,
  batchesBenchmark,
  smallBatchesBenchmark,
  filesBenchmark,
  mediaBenchmark,
  executionBenchmark,
  crossingBenchmark,
  memoryBenchmark,
  firstAnswerBenchmark,
];
const NAMES = BENCHMARKS.flatMap(({ names }) => names);

const { values: options, positionals: wanted } = parseArgs({
  allowPositionals: true,
  options: { json: { type: 'boolean' }, quick: { type: 'boolean' } },
});

process.exitCode = await main();

async function main(): Promise<number> {
  const unknown = wanted.filter((name) => !NAMES.includes(name));
  if (unknown.length > 0) {
    say(`there is no benchmark ${unknown.join(', ')}; there are ${NAMES.join(', ')}`);
    return 2;
  }
  let services: Services | undefined;
  const bench: Bench = {
    quick: options.quick ?? false,
    wants: (name) => wanted.length === 0 || wanted.includes(name),
    services: async () => (services ??= await startServices({ report: say })),
    say,
  };
  const rows: Row[] = [];
  for (const benchmark of BENCHMARKS) {
    if (!benchmark.names.some(bench.wants)) continue;
    // The clones of these start their own; ours would only be in the way.
    if (benchmark === firstAnswerBenchmark) {
      await services?.stop();
      services = undefined;
    }
    rows.push(...(await run(benchmark, bench)));
  }
  await services?.stop();
  process.stdout.write(
    options.json ? `${JSON.stringify({ benchmarks: rows })}\n` : `${showTable(rows)}\n`,
  );
  return rows.every(({ ok }) => ok) ? 0 : 1;
}

/** A benchmark that fails leaves the others alone. */
async function run(benchmark: Benchmark, bench: Bench): Promise<Row[]> {
  try {
    return await benchmark.run(bench);
  } catch (error) {
    say(`failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
    return benchmark.names.filter(bench.wants).map((name) => missingRow(name, '', 0));
  }
}

function showTable(rows: Row[]): string {
  const number = (value: number | null) => value?.toLocaleString('en') ?? '–';
  const lines = rows.map((row) => [
    row.name,
    `${number(row.value)} ${row.unit}`,
    number(row.baseline),
    row.ratio === null ? '–' : `${row.ratio.toFixed(2)} ×`,
    showTarget(row),
    row.ok ? 'ok' : 'MISSED',
  ]);
  return formatTable(['NAME', 'VALUE', 'BASELINE', 'RATIO', 'TARGET', ''], lines);
}

function showTarget({ value, baseline, ratio, target, unit, ok }: Row): string {
  if (target === 0) return '–';
  if (baseline !== null || ratio !== null || value === null) return `≥ ${target} ×`;
  const least = ok === value >= target;
  return `${least ? '≥' : '<'} ${target} ${unit}`;
}

function say(line: string): void {
  process.stderr.write(`bench: ${line}\n`);
}
