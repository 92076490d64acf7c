import { createReadStream, createWriteStream } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import pg from 'pg';
import { from as copyFrom, to as copyTo } from 'pg-copy-streams';
import { newId, rows } from '@sallyport/shared';
import { applies } from '@sallyport/response-network';
import { exportStream, importBatches } from '@sallyport/transfer';
import {
  PAIRS,
  rate,
  ratioRow,
  sayPair,
  type Bench,
  type Benchmark,
  type Pair,
} from './benchmark.js';
import { fillOutbox, makePattern } from './requests.js';
import { settle, withSite, type Site } from './site.js';

/** Sealing what waits, and applying it on the far side; the files of one are the input of the other. */
export const batchesBenchmark: Benchmark = {
  names: ['export', 'import'],
  run: (bench) =>
    withSite(bench, async (site) => {
      const pairs = await measureBatches(bench, site);
      return [
        ratioRow('export', 'records/s', 0.4, pairs.exported),
        ratioRow('import', 'records/s', 0.25, pairs.imported),
      ].filter(({ name }) => bench.wants(name));
    }),
};

async function measureBatches(
  bench: Bench,
  site: Site,
): Promise<{ exported: Pair[]; imported: Pair[] }> {
  const count = bench.quick ? 10_000 : 100_000;
  const { request, response } = site;
  const folder = await mkdtemp(join(tmpdir(), 'sallyport-bench-lines-'));
  const path = join(folder, 'lines');
  await makePattern(site);
  await request.db.raw('create table bench_outbox (like outbox_records including all)');
  await response.db.raw('create table bench_requests (like requests including all)');
  const exported: Pair[] = [];
  const imported: Pair[] = [];
  for (let round = 0; round <= PAIRS; round++) {
    await fillOutbox(site, count);
    await request.db.raw('truncate bench_outbox');
    await request.db.raw(
      `insert into bench_outbox (link, stream, type, record_id, line)
       select link, stream, type, record_id, line from outbox_records order by position`,
    );
    await settle(request.db);
    const copied = await rate(count, () => copyOut(site, path));
    await settle(request.db);
    const ours = await rate(count, () => exportStream(request.db, request.node, 'requests'));
    const exportPair = { ours, baseline: copied };
    sayPair(bench, 'export', round, exportPair);

    await site.carry('request');
    await response.db.raw('truncate requests, bench_requests');
    await settle(response.db);
    const parsed = await rate(count, () => copyIn(site, path));
    await settle(response.db);
    const applied = await rate(count, () => importBatches(response.db, response.node, applies));
    const importPair = { ours: applied, baseline: parsed };
    sayPair(bench, 'import', round, importPair);

    await requireAll(site, count);
    if (round === 0) continue;
    exported.push(exportPair);
    imported.push(importPair);
  }
  await rm(folder, { recursive: true });
  return { exported, imported };
}

/** The baseline of an export: the lines by COPY into a file, and one update that binds them. */
async function copyOut({ request }: Site, path: string): Promise<void> {
  await withClient(request.config.DATABASE_URL, async (client) => {
    await client.query('begin');
    await client.query(
      `update bench_outbox o set batch_id = $1, batch_line = n.line
       from (select position, row_number() over (order by position) as line
             from bench_outbox where stream = 'requests' and batch_id is null) n
       where o.position = n.position`,
      [newId()],
    );
    const copy = client.query(
      copyTo(
        `copy (select line from bench_outbox order by batch_line)
         to stdout (format csv, quote e'\\x01', delimiter e'\\x02')`,
      ),
    );
    await pipeline(copy, createWriteStream(path));
    await client.query('commit');
  });
}

/** The baseline of an import: every line parsed, and COPY into a table with the same indexes. */
async function copyIn({ response }: Site, path: string): Promise<void> {
  await withClient(response.config.DATABASE_URL, async (client) => {
    await client.query('begin');
    const copy = client.query(
      copyFrom(
        `copy bench_requests (id, user_id, dataset, dataset_version, policy_version, tier,
           pinned_now, expires_at, priority, query, query_digest, state, version, attempts,
           not_before, batch_id, batch_line, received_at)
         from stdin (format csv, quote e'\\x01', delimiter e'\\x02')`,
      ),
    );
    await pipeline(Readable.from(parseLines(path)), copy);
    await client.query('commit');
  });
}

type RequestLine = { id: string; d: Record<string, string | number | null> };

async function* parseLines(path: string): AsyncGenerator<string> {
  const batch = newId();
  const now = new Date().toISOString();
  let gathered: string[] = [];
  let number = 0;
  for await (const line of createInterface({ input: createReadStream(path) })) {
    const { id, d } = JSON.parse(line) as RequestLine;
    number += 1;
    const values = [id, d['user_id'], d['dataset'], d['dataset_version'], d['policy_version']];
    values.push(d['tier'], d['pinned_now'], d['expires_at'], 1, d['query'], d['query_digest']);
    values.push('received', 1, 0, '-infinity', batch, number, now);
    gathered.push(values.join('\u0002'));
    if (gathered.length < 1_000) continue;
    yield `${gathered.join('\n')}\n`;
    gathered = [];
  }
  if (gathered.length > 0) yield `${gathered.join('\n')}\n`;
}

async function requireAll({ response }: Site, count: number): Promise<void> {
  const [found] = await rows<{ ours: number; baseline: number }>(
    response.db,
    `select (select count(*) from requests) as ours,
       (select count(*) from bench_requests) as baseline`,
  );
  if (found?.ours === count && found.baseline === count) return;
  throw new Error(`imported ${found?.ours} and ${found?.baseline} of ${count} records`);
}

async function withClient(url: string, use: (client: pg.Client) => Promise<void>): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    await use(client);
  } finally {
    await client.end();
  }
}
