import { fork } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import {
  inParallel,
  measurePairs,
  rate,
  ratioRow,
  type Bench,
  type Benchmark,
  type Row,
} from './benchmark.js';
import {
  BULK_LINES,
  CONNECTIONS,
  loadSubmits,
  makeUsers,
  submission,
  submitBulk,
} from './requests.js';
import { DATASET, settle, withSite, type Site } from './site.js';

/** Submitting over HTTP, one request a call and many. */
export const submitBenchmark: Benchmark = {
  names: ['submit', 'bulk'],
  run: (bench) =>
    withSite(bench, async (site) => {
      const url = await site.start('serve');
      const found: Row[] = [];
      if (bench.wants('submit')) found.push(await measureSubmit(bench, site, url));
      if (bench.wants('bulk')) found.push(await measureBulk(bench, site, url));
      return found;
    }),
};

/** `POST /v1/requests` against a bare Express route with one prepared INSERT. */
async function measureSubmit(bench: Bench, site: Site, url: string): Promise<Row> {
  await site.request.db.raw(
    `create table bench_inserts (id uuid primary key, dataset text not null, query text not null,
       created_at timestamptz not null)`,
  );
  const bare = fork(fileURLToPath(new URL('express-insert.js', import.meta.url)), {
    env: site.environment('request'),
  });
  const [port] = (await once(bare, 'message')) as [number];
  const keys = await makeUsers(site, CONNECTIONS);
  const load = async (target: string) => {
    await settle(site.request.db);
    return loadSubmits(bench, target, keys);
  };
  const pairs = await measurePairs(bench, 'submit', {
    baseline: () => load(`http://127.0.0.1:${port}/requests`),
    ours: () => load(`${url}/v1/requests`),
  });
  bare.disconnect();
  await once(bare, 'exit');
  return ratioRow('submit', 'requests/s', 0.5, pairs);
}

/** `POST /v1/requests:bulk` against INSERTs of the same rows, as many a statement, into one table. */
async function measureBulk(bench: Bench, site: Site, url: string): Promise<Row> {
  const count = bench.quick ? 4_000 : 40_000;
  const { db } = site.request;
  // A statement without outbox and events writes the same rows, and keeps them unique, in this.
  await db.raw('create table bench_rows (like requests)');
  await db.raw('alter table bench_rows add primary key (id)');
  const pool = new pg.Pool({ connectionString: site.request.config.DATABASE_URL, max: 2 });
  const columns = Object.keys(plainRow(0));
  const one = (n: number) => `(${columns.map((_, m) => `$${n * columns.length + m + 1}`).join()})`;
  const insert = {
    name: 'insert-rows',
    text: `insert into bench_rows (${columns.join()})
           values ${Array.from({ length: BULK_LINES }, (_, n) => one(n)).join()}`,
  };
  const calls = Array.from({ length: count / BULK_LINES }, (_, call) => call * BULK_LINES);
  const pairs = await measurePairs(bench, 'bulk', {
    async baseline() {
      await settle(db);
      return rate(count, () =>
        inParallel(calls, 2, (from) => {
          const some = Array.from({ length: BULK_LINES }, (_, n) => plainRow(from + n));
          return pool.query({ ...insert, values: some.flatMap((row) => Object.values(row)) });
        }),
      );
    },
    async ours() {
      await settle(db);
      return submitBulk(site, url, count);
    },
  });
  await pool.end();
  return ratioRow('bulk', 'requests/s', 0.3, pairs);
}

/** A row of `requests` as a submission makes it. */
function plainRow(n: number) {
  const { query, custom_id } = JSON.parse(submission(n)) as { query: object; custom_id: string };
  const now = new Date();
  return {
    id: randomUUID(),
    user_id: '00000000-0000-7000-8000-000000000000',
    dataset: DATASET,
    dataset_version: 1,
    policy_version: 1,
    tier: 'B',
    query: JSON.stringify(query),
    query_digest: `sha256:${'0'.repeat(64)}`,
    cost: 1,
    pinned_now: now,
    priority: 'normal',
    custom_id,
    tags: '{}',
    status: 'submitted',
    version: 1,
    progress_version: 0,
    known_as_of: now,
    created_at: now,
    expires_at: now,
    outbox_position: n,
  };
}
