import { fork } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { rows } from '@sallyport/shared';
import { applies } from '@sallyport/response-network';
import {
  ZERO_DIGEST,
  batchName,
  exportControl,
  exportStream,
  importBatches,
  readHeader,
  type Manifest,
} from '@sallyport/transfer';
import { readHeaderLine, signManifest, writeBody } from '@sallyport/transfer/testing';
import { limitRow, secondsOf, until, type Bench, type Benchmark, type Row } from './benchmark.js';
import { fillOutbox, makePattern } from './requests.js';
import { settle, withSite, type Site } from './site.js';

const RECORDS = 20;
const DUPLICATES = 2_000;

/** Very many small batches, batches that were seen before, and what a kill costs. */
export const smallBatchesBenchmark: Benchmark = {
  names: ['small-batches', 'duplicate', 'recovery'],
  async run(bench) {
    const found: Row[] = [];
    if (bench.wants('small-batches') || bench.wants('duplicate')) {
      found.push(...(await withSite(bench, (site) => measureSmall(bench, site))));
    }
    if (bench.wants('recovery')) {
      found.push(await withSite(bench, (site) => measureRecovery(bench, site)));
    }
    return found.filter(({ name }) => bench.wants(name));
  },
};

/** So many batches of 20 requests, with one of lane P0 that comes last by name and is taken first. */
async function measureSmall(bench: Bench, site: Site): Promise<Row[]> {
  const count = bench.quick ? 300 : 10_000;
  const { response } = site;
  await makePattern(site);
  bench.say('small-batches: signing');
  await sealControl(site);
  await site.carry('request');
  await signSmall(site, count);
  await settle(response.db);
  const seconds = await secondsOf(() => importBatches(response.db, response.node, applies));
  const [first] = await rows<{ stream: string }>(
    response.db,
    'select stream from inbound_batches order by id limit 1',
  );
  const [applied] = await rows<{ batches: number; records: number }>(
    response.db,
    `select count(*)::integer as batches, (select count(*)::integer from requests) as records
     from inbound_batches where stream = 'requests' and state = 'applied'`,
  );
  if (applied?.batches !== count || applied.records !== count * RECORDS) {
    throw new Error(`${applied?.batches} of ${count} were applied, ${applied?.records} records`);
  }
  if (first?.stream === 'requests') throw new Error('a batch of lane P0 was not taken first');
  bench.say(`small-batches: ${count} in ${seconds.toFixed(1)} s`);
  const found = [limitRow('small-batches', 's', 60, seconds)];
  if (bench.wants('duplicate')) found.push(await measureDuplicates(bench, site));
  return found;
}

/** Seals a batch of lane P0: there is always something new to acknowledge. */
async function sealControl({ request }: Site): Promise<void> {
  await request.db.raw('update links set ack_version = ack_version + 1');
  await exportControl(request.db, request.node);
}

/**
 * Puts batches of 20 requests into the inbox, signed one after the other as the request network would
 * have: its own export takes a transaction for each, which is not what is measured here.
 */
async function signSmall(site: Site, count: number): Promise<void> {
  const { request, response } = site;
  const { node } = request;
  await fillOutbox(site, count * RECORDS);
  const [newest = ''] = (await readdir(response.node.folders.inbox)).filter((name) =>
    name.includes('.control.'),
  );
  const { line } = await readHeaderLine(join(response.node.folders.inbox, newest));
  const { manifest: control } = readHeader(line);
  const recipients = [response.node.keys.card.age];
  const packing = { enc: 'gzip', crypt: 'age', recipients } as const;
  let prev = ZERO_DIGEST;
  for (let seq = 1; seq <= count; seq++) {
    const lines = await rows<{ line: string }>(
      request.db,
      `delete from outbox_records where position in (
         select position from outbox_records order by position limit ${RECORDS}) returning line`,
    );
    const body = Buffer.from(lines.map((record) => `${record.line}\n`).join(''));
    const path = join(node.folders.staging, 'bench.body');
    const packed = await writeBody(() => Readable.from([body]), { path, ...packing });
    const manifest: Manifest = {
      ...control,
      ...{ stream: 'requests', seq, prev, records: RECORDS, types: { request: RECORDS } },
      kind: 'delta',
      notAfter: new Date(Date.now() + 86_400_000).toISOString(),
      body: packed,
      ack: { ...control.ack, no: control.ack.no + seq },
    };
    const signed = await signManifest(manifest, node.keys);
    prev = signed.digest;
    await writeFile(
      join(response.node.folders.inbox, batchName(manifest, signed.digest)),
      Buffer.concat([signed.line, Buffer.from('\n'), await readFile(path)]),
    );
    await rm(path);
  }
}

/** Batches that were applied before, brought again all together. */
async function measureDuplicates(bench: Bench, site: Site): Promise<Row> {
  const { db, node } = site.response;
  const archived = await readdir(node.folders.archive);
  const again = archived.filter((file) => file.includes('.requests.')).slice(0, DUPLICATES);
  for (const name of again) {
    await copyFile(join(node.folders.archive, name), join(node.folders.inbox, name));
  }
  const seconds = await secondsOf(async () => {
    const report = await importBatches(db, node, applies);
    if (report.duplicates !== again.length) throw new Error('not all were seen as duplicates');
  });
  const each = (seconds * 1_000) / again.length;
  bench.say(`duplicate: ${again.length} at ${each.toFixed(2)} ms each`);
  return limitRow('duplicate', 'ms', 5, each);
}

/**
 * An importer is killed in the middle of a large batch; from the start of the next process until it
 * has put things in order and applied a small batch of a faster lane.
 */
async function measureRecovery(bench: Bench, site: Site): Promise<Row> {
  const { request, response } = site;
  await makePattern(site);
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
