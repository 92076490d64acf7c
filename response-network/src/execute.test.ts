import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect } from 'chai';
import { createLog, newId, openCache, openCounters, POLICY_TABLE } from '@sallyport/shared';
import { eventually } from '@sallyport/shared/testing';
import { openElastic, type Elastic } from './elastic/client.js';
import { claimRequests, freeExpiredLeases, leaseMs, tellProgress } from './executions.js';
import { applyCancellations, applyRequests } from './requests.js';
import { storeOutcomes } from './results.js';
import { BIG_INTEGER, makeTestNetwork, type TestNetwork } from './testing.js';

const NEVER = new AbortController().signal;
const ANSWER =
  '{"took":1,"timed_out":false,"_shards":{"total":1,"successful":1,"skipped":0,"failed":0},"hits":{}}';

describe('execution', () => {
  let network: TestNetwork;
  before(async () => {
    network = await makeTestNetwork(applyRequests);
  });
  after(() => network.stop());
  beforeEach(() =>
    network.test.db.raw('truncate requests, results, result_parts, outbox_records, cancellations'),
  );

  const run = (signal = NEVER) => network.executor().run(signal);
  const answerOf = async (id: string) => String((await network.result(id))?.['text']);
  const failureOf = async (id: string) =>
    (await network.result(id))?.['failure'] as {
      class: string | null;
      code: string;
      detail: string;
    };

  describe('run', () => {
    it('answers with the text of Elasticsearch, every digit of it', async () => {
      const query = { query: { range: { amount: { gte: 1_000 } } }, size: 5 };
      const [id = ''] = await network.arrive(network.request({}, query));
      expect(await run()).to.include({ answered: 1, putBack: 0 });
      const text = await answerOf(id);
      expect(text)
        .to.match(/^\{"took":/)
        .and.include(`"amount":${BIG_INTEGER}`);
      expect(await network.state(id)).to.include({ state: 'done', lease_token: null });
      const [record] = await network.outbox(id);
      expect(record).to.include({ stream: 'results', t: 'result' });
      expect(record?.d).to.deep.include({ status: 'delivered', failure: null, parts: 0, text });
    });

    it('aggregates', async () => {
      const query = { size: 0, aggs: { codes: { terms: { field: 'code' } } } };
      const [id = ''] = await network.arrive(network.request({}, query));
      await run();
      expect(JSON.parse(await answerOf(id))).to.have.nested.property(
        'aggregations.codes.buckets[0].doc_count',
        5,
      );
    });

    it('hands out no field that the dataset does not list', async () => {
      const [id = ''] = await network.arrive(network.request({}, { size: 20 }));
      await run();
      expect(await answerOf(id))
        .to.include('"code"')
        .and.not.include('secret');
    });

    it('searches only what the row rule lets through', async () => {
      const { db } = network.test;
      const rule = (filter: object | null) =>
        db('dataset_sources').update({ row_filter: filter && JSON.stringify(filter) });
      await rule({ term: { code: 'c1' } });
      const query = { query: { term: { code: 'c2' } } };
      const [own = '', all = ''] = await network.arrive(
        network.request({}, query),
        network.request(),
      );
      await run();
      await rule(null);
      const total = async (id: string) =>
        (JSON.parse(await answerOf(id)) as { hits: { total: { value: number } } }).hits.total.value;
      expect([await total(own), await total(all)]).to.deep.equal([0, 5]);
    });

    it('answers the same search again without searching, while that is on and nothing changed', async () => {
      const { test, time, elastic } = network;
      const log = createLog('test', 'silent');
      const clock = { now: () => time.now };
      const counters = openCounters(test.db, { clock, log });
      const limits = { maxBytes: 1_000_000, entryMaxBytes: 100_000, ttlMs: 60_000 };
      const cache = await openCache({
        name: 'digests',
        db: test.db,
        clock,
        log,
        counters,
        settings: () => limits,
      });
      const ask = async (user: string) => {
        const [id = ''] = await network.arrive(network.request({ user_id: user }));
        await network.executor(elastic, { cache }).run(NEVER);
        return (await network.result(id)) ?? {};
      };
      const { ada, bob, eve } = network.users;
      const first = await ask(ada.id);
      const again = await ask(bob.id);
      expect(again).to.include({ status: 'delivered', text: first['text'], took_ms: null });
      expect(await ask(eve.id)).to.include({ status: 'rejected', text: null });
      await test.db('datasets').update({ epoch: 2 });
      expect((await ask(bob.id))['took_ms']).to.be.a('number');
      await test.db('dataset_sources').update({ row_filter: '{"term":{"code":"c1"}}' });
      const filtered = await ask(ada.id);
      expect(filtered['took_ms']).to.be.a('number');
      expect(filtered['text']).not.to.equal(first['text']);
      limits.maxBytes = 0;
      expect((await ask(ada.id))['took_ms']).to.be.a('number');
      await test.db('dataset_sources').update({ row_filter: null });
      await test.db('datasets').update({ epoch: 1 });
      await cache.close();
      await counters.close();
    });

    it('answers a thousand once each', async () => {
      const ids = await network.arrive(
        ...Array.from({ length: 1_000 }, (_, n) =>
          network.request({ user_id: n % 2 ? network.users.ada.id : network.users.bob.id }),
        ),
      );
      await Promise.all([run(), run()]);
      const sent = await network.outbox();
      expect(new Set(sent.map(({ id }) => id))).to.have.property('size', ids.length);
      expect(sent).to.have.length(ids.length);
      expect(sent.every(({ d }) => d['status'] === 'delivered')).to.equal(true);
    });

    it('passes on a refusal that quotes many characters, and the answers beside it', async () => {
      const long = { query: { term: { at: `a${'😀'.repeat(500)}` } } };
      const bad = network.request({}, long);
      const good = Array.from({ length: 5 }, () => network.request());
      await network.arrive(bad, ...good);
      expect(await run()).to.include({ answered: 6, putBack: 0 });
      expect(await failureOf(bad.id)).to.include({ class: 'query', code: 'query-refused' });
      for (const { id } of good) {
        expect(await network.result(id)).to.include({ status: 'delivered' });
      }
    });

    it('fails alone what cannot be sent', async () => {
      const [bad = '', good = ''] = await network.arrive(network.request(), network.request());
      const outcomeOf = (requestId: string, code: string) => ({
        requestId,
        status: 'rejected' as const,
        failure: { class: null, code, detail: '' },
        text: null,
        datasetVersion: null,
        policyVersion: null,
        receivedAt: network.time.now,
        startedAt: null,
        finishedAt: network.time.now,
        tookMs: null,
      });
      const outcomes = [outcomeOf(bad, 'half \ud83d'), outcomeOf(good, 'whole')];
      await storeOutcomes(network.test.db, outcomes, 'unstarted');
      expect(await failureOf(bad)).to.include({ class: 'internal', code: 'result-unsendable' });
      expect(await failureOf(good)).to.include({ code: 'whole' });
    });

    it('stops when its time is up, and says that there is more', async () => {
      await network.arrive(...Array.from({ length: 50 }, () => network.request()));
      const first = await network.executor(undefined, { runMs: 0 }).run(NEVER);
      expect(first.more).to.equal(true);
      expect(await run()).to.deep.equal({ answered: 50 - first.answered, putBack: 0, more: false });
    });

    it('gives back what it has not started when it is told to stop', async () => {
      const ids = await network.arrive(...Array.from({ length: 50 }, () => network.request()));
      expect(await run(AbortSignal.abort())).to.include({ answered: 0 });
      for (const id of ids) {
        expect(await network.state(id)).to.include({ state: 'received', attempts: 0 });
      }
    });
  });

  describe('run refuses', () => {
    const refused = async (id: string) => {
      await run();
      expect(await network.result(id)).to.include({ status: 'rejected', text: null });
      return failureOf(id);
    };

    it('a disabled user', async () => {
      const [id = ''] = await network.arrive(network.request({ user_id: network.users.eve.id }));
      expect(await refused(id)).to.include({ code: 'dataset-forbidden' });
    });

    it('a user that is not known here', async () => {
      const [id = ''] = await network.arrive(network.request({ user_id: newId() }));
      expect(await refused(id)).to.include({ code: 'dataset-forbidden' });
    });

    it('a dataset that the profile type does not name any more', async () => {
      const [id = ''] = await network.arrive(network.request());
      const { db } = network.test;
      await db('profile_types').update({ datasets: [] });
      const failure = await refused(id);
      await db('profile_types').update({ datasets: ['claims'] });
      expect(failure).to.include({ class: null, code: 'dataset-forbidden' });
    });

    it('a tier above the one the user has now', async () => {
      const [id = ''] = await network.arrive(network.request({ tier: 'C' }));
      expect(await refused(id)).to.include({ code: 'tier-forbidden' });
    });

    it('a query whose digest is not its own', async () => {
      const digest = `sha256:${'0'.repeat(64)}`;
      const [id = ''] = await network.arrive(network.request({ query_digest: digest }));
      expect(await refused(id)).to.include({ code: 'query-invalid' });
    });

    it('a field that the dataset has lost, naming both versions', async () => {
      const [id = ''] = await network.arrive(
        network.request({}, { query: { term: { code: 'c1' } } }),
      );
      const { db } = network.test;
      const fields = JSON.stringify(network.dataset.fields);
      await db('datasets').update({ fields: '[]', version: 5 });
      const failure = await refused(id);
      await db('datasets').update({ fields, version: network.dataset.version });
      expect(failure.code).to.equal('field-denied');
      expect(failure.detail).to.include('version 4 of claims').and.include('in force are 5');
    });
  });

  describe('after a crash', () => {
    const claim = (token: string, limit = 10) =>
      claimRequests(network.test.db, {
        leaseToken: token,
        limit,
        served: new Map(),
        now: network.time.now,
      });

    it('a lease that ran out is taken over, and the answer of its old holder is not taken', async () => {
      const [id = ''] = await network.arrive(network.request());
      const [dead, { db }] = [newId(), network.test];
      expect(await claim(dead)).to.have.length(1);
      const expired = new Date(network.time.now.getTime() + leaseMs('B') + 1);
      expect(await freeExpiredLeases(db, new Date(expired.getTime() - 2))).to.equal(0);
      expect(await freeExpiredLeases(db, expired)).to.equal(1);
      await run();
      const late = {
        requestId: id,
        status: 'delivered' as const,
        failure: null,
        text: '{"late":true}',
        datasetVersion: 1,
        policyVersion: 1,
        receivedAt: network.time.now,
        startedAt: network.time.now,
        finishedAt: network.time.now,
        tookMs: 1,
      };
      expect(await storeOutcomes(db, [late], { leaseToken: dead })).to.deep.equal([]);
      expect(await network.outbox(id)).to.have.length(1);
      expect(await network.state(id)).to.include({ attempts: 2 });
    });

    it('a request that never ends is given up', async () => {
      const [id = ''] = await network.arrive(network.request());
      await network.test.db('requests').where({ id }).update({ attempts: 10 });
      await run();
      expect(await failureOf(id)).to.include({ class: 'internal', code: 'attempts-exhausted' });
    });

    it('two claims at the same time never share a request', async () => {
      await network.arrive(...Array.from({ length: 40 }, () => network.request()));
      const claims = await Promise.all(Array.from({ length: 4 }, () => claim(newId(), 10)));
      const ids = claims.flat().map(({ id }) => id);
      expect(new Set(ids)).to.have.property('size', ids.length);
    });
  });

  describe('beside others at work', () => {
    it('news and old leases wait for nobody who holds a row', async () => {
      const [held = ''] = await network.arrive(network.request(), network.request());
      const { db, now } = { db: network.test.db, now: network.time.now };
      await claimRequests(db, { leaseToken: newId(), limit: 2, served: new Map(), now });
      const counts = await db.transaction(async (holder) => {
        await holder('requests').where({ id: held }).forUpdate();
        return db.transaction(async (tx) => {
          await tx.raw("set local lock_timeout = '1s'");
          const later = new Date(now.getTime() + 3_600_000);
          return [await tellProgress(tx, now), await freeExpiredLeases(tx, later)];
        });
      });
      expect(counts).to.deep.equal([1, 1]);
    });

    it('a run that fails leaves nothing under its lease', async () => {
      const ids = await network.arrive(network.request(), network.request());
      await network.test.db.raw('alter table results rename to results_away');
      const failure = await run().catch((error: unknown) => error);
      await network.test.db.raw('alter table results_away rename to results');
      expect(failure).to.have.property('code', '42P01');
      for (const id of ids) {
        expect(await network.state(id)).to.include({ state: 'received', attempts: 1 });
      }
    });
  });

  describe('claimRequests', () => {
    it('takes urgent ones first, then shares between users', async () => {
      const ada = Array.from({ length: 30 }, () => network.request());
      const bob = network.request({ user_id: network.users.bob.id });
      const urgent = network.request({ priority: 'urgent' });
      await network.arrive(...ada, bob, urgent);
      const claimed = await claimRequests(network.test.db, {
        leaseToken: newId(),
        limit: 3,
        served: new Map(),
        now: network.time.now,
      });
      const ids = claimed.map(({ id }) => id);
      expect(ids).to.include(urgent.id).and.include(bob.id);
    });

    it('lets whoever was served less go first', async () => {
      const [ada, bob] = [network.request(), network.request({ user_id: network.users.bob.id })];
      await network.arrive(ada, bob);
      const [first] = await claimRequests(network.test.db, {
        leaseToken: newId(),
        limit: 1,
        served: new Map([[network.users.ada.id, 10]]),
        now: network.time.now,
      });
      expect(first?.id).to.equal(bob.id);
    });
  });

  describe('run with Elasticsearch in trouble', () => {
    type Reply = (res: ServerResponse, req: IncomingMessage) => void;
    let reply: Reply;
    let searches = 0;
    let elastic: Elastic;
    const server = createServer((req, res) => {
      searches += 1;
      res.setHeader('x-elastic-product', 'Elasticsearch');
      res.setHeader('content-type', 'application/json');
      reply(res, req);
    });
    before(async () => {
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      elastic = openElastic({
        url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      });
    });
    after(async () => {
      await elastic.close();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    });

    const error = (status: number, type: string) => (res: ServerResponse) => {
      res.statusCode = status;
      res.end(JSON.stringify({ error: { type, reason: type, root_cause: [{ type }] }, status }));
    };
    const tryOnce = async (id: string) => {
      await network.test.db('requests').where({ id }).update({ not_before: '-infinity' });
      return network.executor(elastic).run(NEVER);
    };

    it('waits and tries again when it is too busy, and gives up in the end', async () => {
      reply = error(429, 'es_rejected_execution_exception');
      const [id = ''] = await network.arrive(network.request());
      for (let attempt = 1; attempt < 8; attempt += 1) {
        expect(await tryOnce(id)).to.include({ answered: 0, putBack: 1 });
        const state = await network.state(id);
        expect(state).to.include({ state: 'received', attempts: attempt });
        const wait = Number(state?.['not_before']) - network.time.now.getTime();
        expect(wait).to.equal(1_000 * 2 ** attempt);
      }
      await tryOnce(id);
      expect(await failureOf(id)).to.include({ class: 'capacity' });
    });

    it('lets requests of an index without shards wait, and the others go on', async () => {
      reply = error(503, 'search_phase_execution_exception');
      const [id = ''] = await network.arrive(network.request());
      expect(await tryOnce(id)).to.include({ answered: 0, putBack: 1 });
      expect(await network.state(id)).to.include({ state: 'received', attempts: 1 });
    });

    it('takes what arrives during a long search when it is told to look', async () => {
      const open: ServerResponse[] = [];
      reply = (res) => void open.push(res);
      await network.arrive(network.request());
      const executor = network.executor(elastic);
      const running = executor.run(NEVER);
      await eventually(() => open.length === 1);
      // The pass looks once more before it rests.
      await network.arrive(network.request());
      await eventually(() => {
        executor.look();
        return open.length === 2;
      });
      for (const res of open) res.end(ANSWER);
      expect(await running).to.include({ answered: 2 });
    });

    it('starts nothing while answers that are not stored fill the memory', async () => {
      const stored: Promise<number>[] = [];
      reply = (res, req) => {
        if (req.url?.includes('_msearch')) {
          error(429, 'busy')(res);
          return;
        }
        const count = network.test.db('results').then((found: unknown[]) => found.length);
        stored.push(count);
        void count.then(() => res.end(ANSWER));
      };
      await network.arrive(...Array.from({ length: 3 }, () => network.request()));
      const change = { memoryBytes: ANSWER.length - 1, concurrencyMax: () => 1 };
      expect(await network.executor(elastic, change).run(NEVER)).to.include({ answered: 3 });
      expect(await Promise.all(stored)).to.deep.equal([0, 1, 2]);
    });

    describe('with several in one call', () => {
      const group = (res: ServerResponse, answers: string[]) =>
        res.end(`{"took":1,"responses":[${answers.join(',')}]}`);
      const arrive = () => network.arrive(network.request(), network.request(), network.request());
      const statuses = async (ids: string[]) =>
        Promise.all(ids.map(async (id) => (await network.result(id))?.['status']));

      it('asks again alone for what had no answer, and keeps the others', async () => {
        const asked: string[] = [];
        reply = (res, { url = '' }) => {
          asked.push(url.includes('_msearch') ? 'group' : 'alone');
          if (url.includes('_msearch')) group(res, [ANSWER, '{"error":{"type":"x"}}', ANSWER]);
          else error(400, 'parsing_exception')(res);
        };
        const ids = await arrive();
        expect(await network.executor(elastic).run(NEVER)).to.include({ answered: 3, putBack: 0 });
        expect((await statuses(ids)).toSorted()).to.deep.equal([
          'delivered',
          'delivered',
          'failed',
        ]);
        expect(asked).to.deep.equal(['group', 'alone']);
      });

      it('lets the others have theirs when one is cancelled', async () => {
        const open: ServerResponse[] = [];
        reply = (res) => void open.push(res);
        const requests = [network.request(), network.request(), network.request()];
        const ids = await network.arrive(...requests);
        const executor = network.executor(elastic);
        const running = executor.run(NEVER);
        await eventually(() => open.length === 1);
        const [first] = requests;
        if (!first) throw new Error('no request');
        const data = { user_id: first.data.user_id, expires_at: first.data.expires_at };
        await network.apply(applyCancellations, [{ type: 'request.cancel', id: first.id, data }]);
        await executor.stopCancelled();
        for (const res of open) group(res, [ANSWER, ANSWER, ANSWER]);
        expect(await running).to.include({ answered: 3, putBack: 0 });
        expect(await statuses(ids)).to.deep.equal(['cancelled', 'delivered', 'delivered']);
      });

      it('gives them all back when the process must end', async () => {
        let open = 0;
        reply = (_res, { url = '' }) => void (open += url.includes('_msearch') ? 1 : 0);
        const ids = await arrive();
        const stop = new AbortController();
        const running = network.executor(elastic).run(stop.signal);
        await eventually(() => open === 1);
        stop.abort();
        expect(await running).to.include({ answered: 0, putBack: 3 });
        for (const id of ids) {
          expect(await network.state(id)).to.include({ state: 'received', attempts: 0 });
        }
      });

      it('asks alone for what is dear', async () => {
        const asked: string[] = [];
        reply = (res, { url = '' }) => {
          asked.push(url);
          res.end(ANSWER);
        };
        const dear = { size: 0, aggs: { codes: { terms: { field: 'code', size: 1_000 } } } };
        await network.arrive(network.request({}, dear), network.request({}, dear));
        await network.executor(elastic).run(NEVER);
        expect(asked).to.have.length(2);
      });
    });

    it('does not start before its time', async () => {
      reply = error(429, 'circuit_breaking_exception');
      const [id = ''] = await network.arrive(network.request());
      await tryOnce(id);
      const before = searches;
      expect(await network.executor(elastic).run(NEVER)).to.include({ answered: 0, putBack: 0 });
      expect(searches).to.equal(before);
    });

    it('retries a timeout once', async () => {
      reply = error(504, 'search_timeout_exception');
      const [id = ''] = await network.arrive(network.request());
      await tryOnce(id);
      expect(await network.result(id)).to.equal(undefined);
      await tryOnce(id);
      expect(await failureOf(id)).to.include({ class: 'timeout', code: 'search-timeout' });
    });

    it('does not retry a query that Elasticsearch refuses', async () => {
      reply = error(400, 'parsing_exception');
      const [id = ''] = await network.arrive(network.request());
      await tryOnce(id);
      expect(await failureOf(id)).to.include({ class: 'query', code: 'query-refused' });
    });

    it('never passes on a partial answer', async () => {
      reply = (res) =>
        res.end(
          '{"took":1,"timed_out":false,"_shards":{"total":2,"successful":1,"skipped":0,"failed":1},"hits":{}}',
        );
      const [id = ''] = await network.arrive(network.request());
      await tryOnce(id);
      await tryOnce(id);
      expect(await failureOf(id)).to.include({ class: 'timeout', code: 'shards-failed' });
    });

    it('fails an answer that is too large', async () => {
      const head =
        '{"took":1,"timed_out":false,"_shards":{"total":1,"successful":1,"skipped":0,"failed":0},"hits":"';
      reply = (res) => res.end(`${head}${'x'.repeat(POLICY_TABLE.tiers.B.resultBytes)}"}`);
      const [id = ''] = await network.arrive(network.request());
      await tryOnce(id);
      expect(await failureOf(id)).to.include({ class: 'query', code: 'result-too-large' });
    });

    it('cuts a large answer into parts that make the same text again', async () => {
      const head =
        '{"took":1,"timed_out":false,"_shards":{"total":1,"successful":1,"skipped":0,"failed":0},"hits":"';
      const whole = `${head}${'"\\\\é😀'.repeat(150_000).replaceAll('"', '')}"}`;
      reply = (res) => res.end(whole);
      const [id = ''] = await network.arrive(network.request());
      await tryOnce(id);
      const [result, ...parts] = await network.outbox(id);
      expect(result?.d).to.deep.include({ parts: parts.length, text: null });
      expect(result?.d['bytes']).to.equal(Buffer.byteLength(whole));
      expect(parts.map(({ d }) => d['index'])).to.deep.equal(parts.map((_, n) => n));
      expect(parts.map(({ d }) => d['text']).join('') === whole).to.equal(true);
      const stored = await network.test
        .db('result_parts')
        .where({ request_id: id })
        .orderBy('part');
      expect(stored.map((row: { text: string }) => row.text).join('') === whole).to.equal(true);
    });

    it('lets requests wait, uncounted, while it is away', async () => {
      reply = (res) => res.destroy();
      const ids = await network.arrive(...Array.from({ length: 5 }, () => network.request()));
      const failure = await tryOnce(ids[0] ?? '').catch((e: unknown) => e);
      expect(failure).to.have.property('code', 'elasticsearch-unavailable');
      for (const id of ids) {
        expect(await network.state(id)).to.include({ state: 'received', attempts: 0 });
      }
      network.time.now = new Date(network.time.now.getTime() + 10_000);
      await run();
      expect(await network.outbox()).to.have.length(5);
    });

    it('stops a search that is cancelled, and says so', async () => {
      const open = new Set<ServerResponse>();
      reply = (res, req) => {
        if (!req.url?.includes('_search')) return void res.end('{"nodes":{}}');
        open.add(res);
        res.on('close', () => open.delete(res));
      };
      const request = network.request();
      const [id = ''] = await network.arrive(request);
      const executor = network.executor(elastic);
      const running = executor.run(NEVER);
      await eventually(() => open.size === 1);
      expect(await tellOnce()).to.deep.equal([
        { status: 'processing', stage: 'executing', version: 2 },
      ]);
      expect(await tellOnce()).to.deep.equal([]);
      const data = { user_id: request.data.user_id, expires_at: request.data.expires_at };
      await network.apply(applyCancellations, [{ type: 'request.cancel', id, data }]);
      await executor.stopCancelled();
      expect(await running).to.include({ answered: 1, putBack: 0 });
      expect(await network.result(id)).to.include({ status: 'cancelled' });
      await eventually(() => open.size === 0);
    });

    it('gives back a search that is running when the process must end', async () => {
      let open = 0;
      reply = (_res, req) => void (open += req.url?.includes('_search') ? 1 : 0);
      const [id = ''] = await network.arrive(network.request());
      const stop = new AbortController();
      const running = network.executor(elastic).run(stop.signal);
      await eventually(() => open === 1);
      stop.abort();
      await running;
      expect(await network.state(id)).to.include({ state: 'received', attempts: 0 });
    });

    async function tellOnce() {
      const { db } = network.test;
      const before = (await network.outbox()).length;
      await db.transaction((tx) => tellProgress(tx, network.time.now));
      return (await network.outbox()).slice(before).map(({ d }) => ({
        status: d['status'],
        stage: d['stage'],
        version: d['version'],
      }));
    }
  });
});
