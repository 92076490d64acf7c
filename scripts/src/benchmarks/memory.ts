import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { limitRow, type Bench, type Benchmark, type Row } from './benchmark.js';
import { fillOutbox, makePattern } from './requests.js';
import { withSite, type Site } from './site.js';

/** How much a process grows that exports, or imports, a million records. */
export const memoryBenchmark: Benchmark = {
  names: ['memory-export', 'memory-import'],
  run: (bench) =>
    withSite(bench, async (site) => {
      await makePattern(site);
      bench.say('memory: filling the outbox');
      await fillOutbox(site, bench.quick ? 100_000 : 1_000_000);
      const rows = [await measure(bench, site, 'export')];
      await site.carry('request');
      if (bench.wants('memory-import')) rows.push(await measure(bench, site, 'import'));
      return rows.filter(({ name }) => bench.wants(name));
    }),
};

async function measure(bench: Bench, site: Site, task: 'export' | 'import'): Promise<Row> {
  bench.say(`memory: ${task} in a process of its own`);
  const child = fork(fileURLToPath(new URL('memory-process.js', import.meta.url)), [task], {
    env: site.environment(task === 'export' ? 'request' : 'response'),
  });
  const ended = once(child, 'exit');
  const [told] = (await Promise.race([once(child, 'message'), ended])) as [unknown];
  await ended;
  if (typeof told !== 'object' || told === null) throw new Error(`memory of ${task}: no figure`);
  const { growthMiB, records } = told as { growthMiB: number; records: number };
  bench.say(`memory: ${task} of ${records} records grew by ${growthMiB.toFixed(1)} MiB`);
  return limitRow(`memory-${task}`, 'MiB', 150, growthMiB);
}
