import { fork } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { rows } from '@sallyport/shared';
import { applies } from '@sallyport/response-network';
import { exportControl, exportStream, importBatches } from '@sallyport/transfer';
import { limitRow, secondsOf, until, type Bench, type Benchmark, type Row } from './benchmark.js';
import { fillOutbox, makePattern } from './requests.js';
import { settle, withSite, type Site } from './site.js';

const RECORDS = 20;
const DUPLICATES = 200;

/** Very many small batches, batches that were seen before, and what a kill costs. */
export const smallBatchesBenchmark: Benchmark = {
  names: ['small-batches', 'duplicate', 'recovery'],
  run: (bench) =>
    withSite(bench, async (site) => {
      await makePattern(site);
      const found = [await measureSmall(bench, site)];
      if (bench.wants('duplicate')) found.push(await measureDuplicates(bench, site));
      if (bench.wants('recovery')) found.push(await measureRecovery(bench, site));
      return found.filter(({ name }) => bench.wants(name));
    }),
};

/** So many batches of 20 requests, with one of lane P0 that comes last by name and is taken first. */
async function measureSmall(bench: Bench, site: Site): Promise<Row> {
  const count = bench.quick ? 300 : 10_000;
  const { response } = site;
  bench.say('small-batches: sealing');
  await sealSmall(site, count);
  await sealControl(site);
  await site.carry('request');
  await settle(response.db);
  const seconds = await secondsOf(() => importBatches(response.db, response.node, applies));
  const [first] = await rows<{ stream: string }>(
    response.db,
    'select stream from inbound_batches order by id limit 1',
  );
  const [applied] = await rows<{ batches: number }>(
    response.db,
    `select count(*)::integer as batches from inbound_batches
     where stream = 'requests' and state = 'applied'`,
  );
  if (applied?.batches !== count) throw new Error(`${applied?.batches} of ${count} were applied`);
  if (first?.stream === 'requests') throw new Error('a batch of lane P0 was not taken first');
  bench.say(`small-batches: ${count} in ${seconds.toFixed(1)} s`);
  return limitRow('small-batches', 's', 60, seconds);
}

/** Seals a batch of lane P0: there is always something new to acknowledge. */
async function sealControl({ request }: Site): Promise<void> {
  await request.db.raw('update links set ack_version = ack_version + 1');
  await exportControl(request.db, request.node);
}

/** Seals one batch of 20 requests after the other. */
async function sealSmall(site: Site, count: number): Promise<void> {
  const { request } = site;
  await fillOutbox(site, count * RECORDS);
  await request.db.raw('create table bench_waiting as select * from outbox_records');
  await request.db.raw('create index on bench_waiting (position)');
  await request.db.raw('truncate outbox_records');
  const [start] = await rows<{ first: number }>(
    request.db,
    'select min(position) as first from bench_waiting',
  );
  for (let n = 0; n < count; n++) {
    const first = (start?.first ?? 0) + n * RECORDS;
    await rows(
      request.db,
      `insert into outbox_records (link, stream, type, record_id, line)
       select link, stream, type, record_id, line from bench_waiting
       where position >= ? and position < ? order by position`,
      [first, first + RECORDS],
    );
    await exportStream(request.db, request.node, 'requests');
  }
}

/** One batch that was applied long ago, brought again and again. */
async function measureDuplicates(bench: Bench, site: Site): Promise<Row> {
  const { db, node } = site.response;
  const name = (await readdir(node.folders.archive)).find((file) => file.includes('.requests.'));
  if (!name) throw new Error('nothing was archived');
  const times: number[] = [];
  for (let n = 0; n < DUPLICATES; n++) {
    await copyFile(join(node.folders.archive, name), join(node.folders.inbox, name));
    const startedAt = performance.now();
    const report = await importBatches(db, node, applies);
    times.push(performance.now() - startedAt);
    if (report.duplicates !== 1) throw new Error('it was not seen as a duplicate');
  }
  const median = times.toSorted((a, b) => a - b)[DUPLICATES >> 1] ?? NaN;
  bench.say(`duplicate: median of ${DUPLICATES} ${median.toFixed(2)} ms`);
  return limitRow('duplicate', 'ms', 5, median);
}

/**
 * An importer is killed in the middle of a large batch; from the start of the next process until it
 * has put things in order and applied a small batch of a faster lane.
 */
async function measureRecovery(bench: Bench, site: Site): Promise<Row> {
  const { request, response } = site;
  await fillOutbox(site, bench.quick ? 10_000 : 50_000);
  await exportStream(request.db, request.node, 'requests');
  await site.carry('request');
  const importer = () =>
    fork(fileURLToPath(new URL('memory-process.js', import.meta.url)), ['import'], {
      env: site.environment('response'),
    });
  const first = importer();
  const staged = () => readdir(response.node.folders.staging);
  await until('the import to begin', async () => (await staged()).length > 0, { everyMs: 5 });
  first.kill('SIGKILL');
  await once(first, 'exit');
  await sealControl(site);
  await site.carry('request');
  const control = async () => {
    const [found] = await rows<{ batches: number }>(
      response.db,
      `select count(*)::integer as batches from inbound_batches where stream = 'control'`,
    );
    return found?.batches ?? 0;
  };
  const before = await control();
  const second = importer();
  const seconds = await secondsOf(() =>
    until('the control batch', async () => (await control()) > before, { everyMs: 5 }),
  );
  await once(second, 'exit');
  bench.say(`recovery: ${seconds.toFixed(2)} s`);
  return limitRow('recovery', 's', 2, seconds);
}
