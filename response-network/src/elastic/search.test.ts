import { randomUUID } from 'node:crypto';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Client } from '@elastic/elasticsearch';
import { expect } from 'chai';
import { eventually, requireEnvironment } from '@sallyport/shared/testing';
import { checkElastic, describeIndex, openElastic, type Elastic } from './client.js';
import { searchGroup, searchText } from './search.js';
import { makeTestIndex } from './testing.js';

const TIMEOUTS = { searchMs: 20_000, socketMs: 25_000, cancelMs: 30_000 };

describe('search', () => {
  const calls: string[] = [];
  let answer: (res: ServerResponse, url: string) => void;
  let reads: (body: string) => void = () => undefined;
  let elastic: Elastic;
  const server = createServer((req, res) => {
    let body = '';
    req.on('data', (chunk: Buffer) => (body += chunk.toString())).on('end', () => reads(body));
    calls.push(`${req.method} ${req.url} ${req.headers['x-opaque-id'] ?? ''}`.trim());
    res.setHeader('x-elastic-product', 'Elasticsearch');
    res.setHeader('content-type', 'application/json');
    answer(res, req.url ?? '');
  });
  before(async () => {
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    elastic = openElastic({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` });
  });
  after(async () => {
    await elastic.close();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  beforeEach(() => {
    calls.splice(0);
    reads = () => undefined;
  });

  const search = (change = {}) =>
    searchText(elastic, {
      index: 'claims',
      body: '{}',
      opaqueId: 'r-1',
      timeouts: TIMEOUTS,
      stopper: new AbortController(),
      maxBytes: 10_000,
      ...change,
    });
  const head = (timedOut: boolean, failed: number, extra = '') =>
    `{"took":3,"timed_out":${timedOut},${extra}"_shards":{"total":1,"successful":1,"skipped":0,"failed":${failed}},"hits":{"x":9007199254740993}}`;

  it('gives the text as it was sent', async () => {
    answer = (res) => res.end(head(false, 0, '"num_reduce_phases":2,'));
    const text = head(false, 0, '"num_reduce_phases":2,');
    expect(await search()).to.deep.equal({ ok: true, text, tookMs: 3 });
    expect(calls).to.deep.equal([
      'POST /claims/_search?allow_partial_search_results=false&filter_path=-hits.hits._index r-1',
    ]);
  });

  it('reads the head wherever it stands', async () => {
    const text = '{ "hits": {}, "_shards": {"failed": 0}, "timed_out": false, "took": 8 }';
    answer = (res) => res.end(text);
    expect(await search()).to.deep.equal({ ok: true, text, tookMs: 8 });
  });

  for (const [what, status, body, fault] of [
    ['a search that ran out of time', 200, head(true, 0), 'timeout'],
    ['failed shards', 200, head(false, 1), 'timeout'],
    ['no JSON', 200, 'welcome', 'internal'],
    ['a control character', 200, head(false, 0).replace('hits', 'h\u001eits'), 'internal'],
    ['too many buckets', 400, failure('too_many_buckets_exception'), 'query'],
    ['a missing index', 404, failure('index_not_found_exception'), 'internal'],
    ['a refused account', 403, failure('security_exception'), 'internal'],
    ['a tripped breaker', 500, failure('circuit_breaking_exception'), 'capacity'],
    ['a crash', 500, failure('null_pointer_exception'), 'internal'],
    ['a node that starts', 503, failure('cluster_block_exception'), 'unavailable'],
    ['a cluster without a master', 503, failure('master_not_discovered_exception'), 'unavailable'],
    ['shards without a copy', 503, failure('search_phase_execution_exception'), 'capacity'],
    [
      'an index that is blocked',
      503,
      failure('cluster_block_exception', 'index [a] blocked by: [SERVICE_UNAVAILABLE/9/x];'),
      'capacity',
    ],
    ['a proxy in trouble', 502, '<html>bad gateway</html>', 'unavailable'],
  ] as const) {
    it(`calls ${what} ${fault}`, async () => {
      answer = (res) => {
        res.statusCode = status;
        res.end(body);
      };
      expect(await search()).to.include({ ok: false, fault });
    });
  }

  it('calls a real index without shards a matter of capacity', async () => {
    const url = requireEnvironment('ELASTICSEARCH_URL');
    const client = new Client({ node: url });
    const real = openElastic({ url });
    const index = `sallyport-test-${randomUUID()}`;
    const settings = { 'index.routing.allocation.require._name': 'nowhere' };
    await client.indices.create({ index, settings, wait_for_active_shards: 0 });
    const found = await searchText(real, {
      index,
      body: '{}',
      opaqueId: 'r',
      timeouts: TIMEOUTS,
      stopper: new AbortController(),
      maxBytes: 10_000,
    });
    await client.indices.delete({ index });
    await Promise.all([client.close(), real.close()]);
    expect(found).to.include({ ok: false, fault: 'capacity', code: 'index-unavailable' });
  });

  it('ends when there is no room for more of the answer', async () => {
    answer = (res) => res.end(head(false, 0));
    const admitted: number[] = [];
    const admit = (bytes: number) => admitted.push(bytes) < 1;
    expect(await search({ admit })).to.include({ fault: 'capacity', code: 'memory-full' });
    expect(admitted).to.deep.equal([head(false, 0).length]);
  });

  it('closes the socket at its limit, then cancels what is left of the search', async () => {
    let closed = false;
    answer = (res, url) => {
      if (url.includes('_search')) return void res.on('close', () => (closed = true));
      if (url.includes('_cancel')) return void res.end('{}');
      res.end(
        '{"nodes":{"n":{"tasks":{"n:7":{"node":"n","id":7,"headers":{"X-Opaque-Id":"r-1"}},"n:8":{"node":"n","id":8,"headers":{"X-Opaque-Id":"r-2"}}}}}}',
      );
    };
    const timeouts = { searchMs: 10, socketMs: 30, cancelMs: 60 };
    expect(await search({ timeouts })).to.include({ ok: false, fault: 'timeout' });
    await eventually(() => closed && calls.some((call) => call.includes('_cancel')));
    expect(calls.filter((call) => call.includes('_cancel'))).to.deep.equal([
      'POST /_tasks/n%3A7/_cancel',
    ]);
  });

  it('stops when its caller does not want it any more', async () => {
    answer = (res, url) => void (url.includes('_search') || res.end('{"nodes":{}}'));
    const stopper = new AbortController();
    const searching = search({ stopper });
    await eventually(() => calls.length > 0);
    stopper.abort();
    expect(await searching).to.include({ ok: false, fault: 'aborted' });
  });

  it('calls a connection that breaks in the middle of the answer unavailable', async () => {
    answer = (res) => {
      res.setHeader('content-length', '1000');
      res.write('{"took":', () => res.destroy());
    };
    expect(await search()).to.include({ ok: false, fault: 'unavailable' });
  });

  describe('searchGroup', () => {
    const ask = (change = {}) =>
      searchGroup(elastic, {
        index: 'claims',
        bodies: ['{"a":1}', '{"a":2}'],
        opaqueId: 'r-1,r-2',
        timeouts: TIMEOUTS,
        stopper: new AbortController(),
        maxBytes: 10_000,
        ...change,
      });
    const list = (...texts: string[]) => `{"took":4,"responses":[${texts.join(',')}]}`;
    const tricky = head(false, 0).replace('"x"', '"]}\\"\\\\","y":["{",[]],"x"');

    it('asks once, and cuts the answers out as they were sent', async () => {
      let asked = '';
      reads = (body) => (asked = body);
      answer = (res) => res.end(list(tricky, head(false, 0)));
      expect(await ask()).to.deep.equal([
        { ok: true, text: tricky, tookMs: 3 },
        { ok: true, text: head(false, 0), tookMs: 3 },
      ]);
      const line = '{"allow_partial_search_results":false}';
      expect(asked).to.equal(`${line}\n{"a":1}\n${line}\n{"a":2}\n`);
      expect(calls).to.deep.equal([
        'POST /claims/_msearch?filter_path=-responses.hits.hits._index,-responses.status r-1,r-2',
      ]);
    });

    for (const [what, text] of [
      ['an error', failure('too_many_buckets_exception')],
      ['no time left', head(true, 0)],
      ['failed shards', head(false, 1)],
    ] as const) {
      it(`leaves out the one with ${what}`, async () => {
        answer = (res) => res.end(list(text, tricky));
        expect(await ask()).to.deep.equal([undefined, { ok: true, text: tricky, tookMs: 3 }]);
      });
    }

    for (const [what, status, text] of [
      ['too few answers', 200, list(tricky)],
      ['too many answers', 200, list(tricky, tricky, tricky)],
      ['an answer cut short', 200, list(tricky, tricky).slice(0, -3)],
      ['something after the answers', 200, `${list(tricky, tricky)}x`],
      ['no list', 200, 'welcome'],
      ['a refusal of the whole call', 400, failure('parsing_exception')],
      ['a string without end', 200, '{"took":4,"responses":[{"a":"'],
    ] as const) {
      it(`has no answers when there is ${what}`, async () => {
        answer = (res) => {
          res.statusCode = status;
          res.end(text);
        };
        expect(await ask()).to.deep.equal([undefined, undefined]);
      });
    }

    it('has no answers when together they are above the limit', async () => {
      answer = (res) => res.end(list(tricky, tricky));
      expect(await ask({ maxBytes: 200 })).to.deep.equal([undefined, undefined]);
    });

    it('stops as a whole when its caller does not want it any more', async () => {
      answer = (res, url) => void (url.includes('_msearch') || res.end('{"nodes":{}}'));
      const stopper = new AbortController();
      const searching = ask({ stopper });
      await eventually(() => calls.length > 0);
      stopper.abort();
      const [one, other] = await searching;
      expect([one, other]).to.deep.equal([one, one]);
      expect(one).to.include({ ok: false, fault: 'aborted' });
    });
  });

  it('calls nobody at the address unavailable', async () => {
    const nobody = openElastic({ url: 'http://127.0.0.1:1' });
    const found = await searchText(nobody, {
      index: 'claims',
      body: '{}',
      opaqueId: 'r',
      timeouts: TIMEOUTS,
      stopper: new AbortController(),
      maxBytes: 10,
    });
    await nobody.close();
    expect(found).to.include({ ok: false, fault: 'unavailable' });
  });

  it('calls an answer above the limit too large, told beforehand or not', async () => {
    for (const told of [true, false]) {
      answer = (res) => {
        if (told) res.setHeader('content-length', '20000');
        res.end('x'.repeat(20_000));
      };
      expect(await search()).to.include({ ok: false, fault: 'too-large' });
    }
  });
});

describe('describeIndex', () => {
  it('tells the fields of a real index, and says when there is none', async () => {
    const url = requireEnvironment('ELASTICSEARCH_URL');
    const elastic = openElastic({ url });
    const types = { code: { type: 'keyword' }, n: { type: 'short' }, ip: { type: 'binary' } };
    const index = await makeTestIndex(url, types, ['{"code":"a"}']);
    await checkElastic(elastic);
    const fields = await describeIndex(elastic, index.name);
    await index.remove();
    const missing = await describeIndex(elastic, index.name).catch((e: unknown) => e);
    await elastic.close();
    expect(fields).to.have.deep.members([
      { name: 'code', type: 'keyword' },
      { name: 'n', type: 'integer' },
    ]);
    expect(missing).to.have.property('code', 'not-found');
  });
});

function failure(type: string, reason = type): string {
  return JSON.stringify({ error: { type, reason, root_cause: [{ type, reason }] } });
}
