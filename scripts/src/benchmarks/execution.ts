import type { Elastic } from '@sallyport/response-network';
import { createExecutor } from '@sallyport/response-network';
import { inParallel, measurePairs, rate, ratioRow, type Benchmark } from './benchmark.js';
import { fillOutbox, makePattern } from './requests.js';
import { settle, withSite, type Site } from './site.js';

const RAW_IN_FLIGHT = 16;

/** Small searches from claim to stored and sent result, against bare searches. */
export const executionBenchmark: Benchmark = {
  names: ['execution'],
  run: (bench) =>
    withSite(bench, async (site) => {
      const count = bench.quick ? 200 : 2_000;
      await makePattern(site);
      const { elastic } = site.response;
      const execute = makeExecution(site);
      // What the executor asked last is what the bare searches repeat, each by itself.
      const searches: Search[] = [];
      elastic.client.diagnostic.on('request', (_error, event) => {
        const { method, path, body } = event?.meta.request.params ?? {};
        if (method !== 'POST' || typeof body !== 'string') return;
        if (path?.endsWith('/_search')) searches.push({ path, body });
        if (!path?.endsWith('/_msearch')) return;
        const bodies = body.split('\n').filter((_, n) => n % 2 === 1);
        const one = path.replace('/_msearch', '/_search');
        searches.push(...bodies.map((each) => ({ path: one, body: each })));
      });
      const ours = async () => {
        await receive(site, count);
        searches.length = 0;
        return execute(count);
      };
      await ours();
      const pairs = await measurePairs(bench, 'execution', {
        baseline: () => {
          if (searches.length !== count) throw new Error(`${searches.length} searches were seen`);
          return searchAll(elastic, searches.splice(0));
        },
        ours,
      });
      return [ratioRow('execution', 'requests/s', 0.6, pairs)];
    }),
};

/** Has so many requests received on the response network, where they wait. */
export async function receive(site: Site, count: number): Promise<void> {
  await fillOutbox(site, count);
  await site.sendRequests();
  await settle(site.response.db);
}

/** An executor of a site; each call answers everything that waits and gives the rate. */
export function makeExecution({ response }: Site): (count: number) => Promise<number> {
  const executor = createExecutor({
    ...response,
    concurrencyMax: () => response.settings()['execute.concurrency_max'],
  });
  return (count) =>
    rate(count, async () => {
      const { answered, putBack } = await executor.run(new AbortController().signal);
      if (answered === count && putBack === 0) return;
      throw new Error(`answered ${answered} of ${count} requests, put back ${putBack}`);
    });
}

type Search = { path: string; body: string };

async function searchAll({ client }: Elastic, searches: Search[]): Promise<number> {
  return rate(searches.length, () =>
    inParallel(searches, RAW_IN_FLIGHT, ({ path, body }) =>
      client.transport.request(
        { method: 'POST', path, body },
        { headers: { 'content-type': 'application/json' } },
      ),
    ),
  );
}
