import { performance } from 'node:perf_hooks';
import { rows } from '@sallyport/shared';
import {
  missingRow,
  PAIRS,
  ratioRow,
  sayPair,
  until,
  type Bench,
  type Benchmark,
  type Pair,
  type Row,
} from './benchmark.js';
import { makeExecution, receive } from './execution.js';
import { crossByNncp, hasNncp } from './nncp.js';
import { makePattern, submitBulk } from './requests.js';
import { withSite, type Site } from './site.js';

/**
 * Requests submitted over HTTP to a network of its own process, carried, received by the other, and
 * answered. Received is measured against NNCP, delivered against the executor alone.
 */
export const crossingBenchmark: Benchmark = {
  names: ['crossing', 'delivery'],
  run: (bench) =>
    withSite(bench, async (site) => {
      const pairs = await measureCrossings(bench, site);
      const found: Row[] = [];
      if (bench.wants('crossing')) {
        const has = pairs.received.length > 0;
        if (!has) bench.say('crossing: nncp is not installed (Debian: apt-get install nncp)');
        found.push(
          has
            ? ratioRow('crossing', 'requests/s', 10, pairs.received)
            : missingRow('crossing', 'requests/s', 10),
        );
      }
      if (bench.wants('delivery')) {
        found.push(ratioRow('delivery', 'requests/s', 0.4, pairs.delivered));
      }
      return found;
    }),
};

type Rates = { received: number; delivered: number };

async function measureCrossings(
  bench: Bench,
  site: Site,
): Promise<{ received: Pair[]; delivered: Pair[] }> {
  const count = bench.quick ? 1_000 : 10_000;
  const packets = bench.quick ? 50 : 300;
  const alone = bench.quick ? 200 : 2_000;
  const compare = {
    nncp: bench.wants('crossing') && (await hasNncp()),
    alone: bench.wants('delivery'),
  };
  const execute = makeExecution(site);
  await makePattern(site);
  const received: Pair[] = [];
  const delivered: Pair[] = [];
  for (let round = 0; round <= PAIRS; round++) {
    const rates = await crossOver(site, count);
    const measured = round > 0;
    if (compare.nncp) {
      const pair = { ours: rates.received, baseline: await crossByNncp(packets) };
      sayPair(bench, 'crossing', round, pair);
      if (measured) received.push(pair);
    }
    if (compare.alone) {
      await receive(site, alone);
      const pair = { ours: rates.delivered, baseline: await execute(alone) };
      sayPair(bench, 'delivery', round, pair);
      if (measured) delivered.push(pair);
    }
  }
  return { received, delivered };
}

/** Submits with everything running and waits until all were received, then until all are answered. */
async function crossOver(site: Site, count: number): Promise<Rates> {
  await empty(site);
  const url = await site.start('up');
  try {
    // Processes that have just started are still being compiled.
    await submitBulk(site, url, 500);
    await until('the first answers', async () => (await countDelivered(site)) === 500);
    const before = await countReceived(site);
    const startedAt = performance.now();
    const rateSince = () => (count * 1_000) / (performance.now() - startedAt);
    await submitBulk(site, url, count);
    await until('requests to arrive', async () => (await countReceived(site)) === before + count, {
      everyMs: 20,
    });
    const received = rateSince();
    await until('answers', async () => (await countDelivered(site)) === 500 + count, {
      everyMs: 100,
    });
    return { received, delivered: rateSince() };
  } finally {
    await site.stop();
  }
}

async function empty({ request, response }: Site): Promise<void> {
  await request.db.raw('truncate requests, request_events, results, result_parts, outbox_records');
  await response.db.raw('truncate requests, results, result_parts, outbox_records');
}

async function countReceived({ response }: Site): Promise<number> {
  const [found] = await rows<{ records: number }>(
    response.db,
    `select coalesce(sum(records), 0)::integer as records from inbound_batches
     where stream = 'requests' and state = 'applied'`,
  );
  return found?.records ?? 0;
}

async function countDelivered({ request }: Site): Promise<number> {
  const [found] = await rows<{ delivered: number }>(
    request.db,
    `select count(*)::integer as delivered from requests where status = 'delivered'`,
  );
  return found?.delivered ?? 0;
}
