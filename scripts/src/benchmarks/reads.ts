import { fork } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import autocannon from 'autocannon';
import { newId, rows } from '@sallyport/shared';
import {
  limitRow,
  measurePairs,
  ratioRow,
  type Bench,
  type Benchmark,
  type Row,
} from './benchmark.js';
import { BULK_LINES, CONNECTIONS, submission, submitBulk } from './requests.js';
import { settle, withSite, type Site } from './site.js';

const IDS = 500;
const P99_LIMIT_MS = 50;
/** What a search for a page of hits weighs. */
const RESULT_BYTES = 16 * 1024;

type Call = { path: string; headers: Record<string, string> };

/** Reading over HTTP: polling a request, and fetching a result that was fetched before. */
export const readsBenchmark: Benchmark = {
  names: ['poll', 'poll p99', 'cached-result'],
  run: (bench) =>
    withSite(bench, async (site) => {
      const text = resultText();
      const folder = await mkdtemp(join(tmpdir(), 'sallyport-bench-bytes-'));
      await writeFile(join(folder, 'result.json'), text);
      const url = await site.start('serve');
      const bare = fork(fileURLToPath(new URL('express-read.js', import.meta.url)), {
        env: { ...site.environment('request'), BENCH_BYTES: join(folder, 'result.json') },
      });
      const [port] = (await once(bare, 'message')) as [number];
      const targets = { ours: url, baseline: `http://127.0.0.1:${port}` };
      const found: Row[] = [];
      if (bench.wants('poll') || bench.wants('poll p99')) {
        found.push(...(await measurePolls(bench, site, targets)));
      }
      if (bench.wants('cached-result')) {
        found.push(await measureCachedResult(bench, site, { ...targets, text }));
      }
      bare.disconnect();
      await once(bare, 'exit');
      await rm(folder, { recursive: true });
      return found;
    }),
};

/** `GET /v1/requests/{id}` with its ETag against a bare Express route with one prepared SELECT. */
async function measurePolls(
  bench: Bench,
  site: Site,
  targets: { ours: string; baseline: string },
): Promise<Row[]> {
  await submitBulk(site, targets.ours, BULK_LINES);
  const found = await rows<{ id: string }>(
    site.request.db,
    `select id from requests order by id limit ${IDS}`,
  );
  await settle(site.request.db);
  const headers = { authorization: `Bearer ${site.user.apiKey}`, 'if-none-match': '"1"' };
  const calls = (base: string) => found.map(({ id }) => ({ path: `${base}/${id}`, headers }));
  const latencies: number[] = [];
  const pairs = await measurePairs(bench, 'poll', {
    baseline: async () => (await load(bench, targets.baseline, calls('/requests'))).rate,
    async ours() {
      const { rate, p99 } = await load(bench, targets.ours, calls('/v1/requests'));
      latencies.push(p99);
      return rate;
    },
  });
  // The first was the warm-up.
  const [, ...measured] = latencies;
  return [
    ratioRow('poll', 'polls/s', 0.6, pairs),
    limitRow('poll p99', 'ms', P99_LIMIT_MS, Math.max(...measured)),
  ];
}

/** A result that was fetched before against a bare Express route that sends the same bytes. */
async function measureCachedResult(
  bench: Bench,
  site: Site,
  { ours, baseline, text }: { ours: string; baseline: string; text: string },
): Promise<Row> {
  const id = await storeResult(site, ours, text);
  const path = `/v1/requests/${id}/result`;
  const headers = { authorization: `Bearer ${site.user.apiKey}` };
  const pairs = await measurePairs(bench, 'cached-result', {
    baseline: async () => (await load(bench, baseline, [{ path: '/result', headers }])).rate,
    ours: async () => (await load(bench, ours, [{ path, headers }])).rate,
  });
  return ratioRow('cached-result', 'results/s', 0.7, pairs);
}

async function load(
  bench: Bench,
  url: string,
  requests: Call[],
): Promise<{ rate: number; p99: number }> {
  const result = await autocannon({
    url,
    method: 'GET',
    requests,
    connections: CONNECTIONS,
    duration: bench.quick ? 2 : 8,
  });
  const good = result['2xx'] + result['3xx'];
  if (result['4xx'] + result['5xx'] + result.errors > 0 || good === 0) {
    const refused = result['4xx'] + result['5xx'];
    throw new Error(`${url}: ${refused} refusals, ${result.errors} errors, ${good} answers`);
  }
  return { rate: good / result.duration, p99: result.latency.p99 };
}

/** A delivered request of the user with this result, as if it had been imported. */
async function storeResult({ request, user }: Site, url: string, text: string): Promise<string> {
  const [row] = await rows<{ id: string }>(
    request.db,
    `select id from requests where user_id = ? limit 1`,
    [user.id],
  );
  const id = row?.id ?? (await submitOne(url, user.apiKey));
  await rows(
    request.db,
    `with moved as (update requests set status = 'delivered', finished_at = now() where id = :id)
     insert into results (request_id, status, media_type, bytes, sha256, parts, text, complete, late,
       times, batch_id, imported_at)
     values (:id, 'delivered', 'application/json', :bytes, :sha256, 0, :text, true, false, '{}',
       :batch, now())`,
    {
      id,
      bytes: Buffer.byteLength(text),
      sha256: createHash('sha256').update(text).digest('hex'),
      text,
      batch: newId(),
    },
  );
  return id;
}

async function submitOne(url: string, apiKey: string): Promise<string> {
  const answer = await fetch(`${url}/v1/requests`, {
    method: 'POST',
    headers: { authorization: `Bearer ${apiKey}`, 'content-type': 'application/json' },
    body: submission(1),
  });
  return ((await answer.json()) as { id: string }).id;
}

function resultText(): string {
  const hits: unknown[] = [];
  for (let n = 0; JSON.stringify(hits).length < RESULT_BYTES; n += 1) {
    hits.push({ _id: String(n), _source: { provider: `p${n}`, amount: n * 17, state: 'open' } });
  }
  return JSON.stringify({ took: 3, hits: { total: { value: hits.length }, hits } });
}
