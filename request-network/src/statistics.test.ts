import { expect } from 'chai';
import { createHash } from 'node:crypto';
import { maintainCache, rows, takeSamples, type SampleData } from '@sallyport/shared';
import { sampleBatches } from '@sallyport/transfer';
import { sampleRequests } from './request-samples.js';
import { applyResults } from './results.js';
import { QUERY, openTestNetwork, type TestNetwork } from './testing.js';

const MINUTE_MS = 60_000;
let network: TestNetwork;
let admin: string;

before(async () => {
  network = await openTestNetwork();
  network.time.now = new Date(Math.floor(network.time.now.getTime() / MINUTE_MS) * MINUTE_MS);
  admin = await network.tokenOf('admin');
});
after(() => network.stop());

async function submit(as = network.users.ada.key): Promise<string> {
  const body = { dataset: 'claims', query: QUERY };
  return String((await network.call('/v1/requests', { as, body })).body['id']);
}

async function deliver(id: string, text = '{"a":1}'): Promise<void> {
  const at = network.time.now.toISOString();
  const d = {
    status: 'delivered' as const,
    failure: null,
    media_type: 'application/json',
    bytes: Buffer.byteLength(text),
    sha256: createHash('sha256').update(text).digest('hex'),
    parts: 0,
    text,
    disclosure: null,
    dataset_version: 3,
    policy_version: 1,
    times: { received_at: at, started_at: at, finished_at: at, took_ms: 3 },
  };
  await network.apply([applyResults], [{ t: 'result', id, d }]);
}

const pass = (ms: number) => (network.time.now = new Date(network.time.now.getTime() + ms));
const read = (id: string) => network.call(`/v1/requests/${id}/result`);

async function sample(): Promise<number> {
  const { db, replica, clock } = network;
  const { settings } = await replica.rules();
  const samplers = [sampleRequests, sampleBatches];
  return takeSamples(db, { samplers, now: clock.now(), settings });
}

type Figures = { counts: SampleData; stages: Record<string, { count: number; p50_ms: number }> };

describe('GET /v1/admin/stats', () => {
  it('adds up what happened in every minute, once', async () => {
    const mine = [await submit(), await submit()];
    await submit(network.users.bob.key);
    pass(MINUTE_MS);
    for (const id of mine) await deliver(id);
    for (let n = 0; n < 3; n += 1) await read(mine[0] as string);
    await network.counters.flush();
    pass(2 * MINUTE_MS);
    expect(await sample()).to.be.greaterThan(1);
    expect(await sample()).to.equal(0);
    const { status, body } = await network.call('/v1/admin/stats?window=1h&step=1m', { as: admin });
    expect(status).to.equal(200);
    const totals = body['totals'] as Figures;
    expect(totals.counts).to.deep.include({
      'requests.status': { submitted: 3, delivered: 2 },
      'requests.dataset': { claims: 3 },
      'requests.user': { ada: 2, bob: 1 },
      cache: { hit: 2, miss: 1 },
      limiter: { normal: 3 },
    });
    expect(totals.counts['batches']).to.deep.equal({ 'results in': 2 });
    expect(totals.stages['total']).to.include({ count: 2 });
    expect(totals.stages['total']?.p50_ms).to.be.within(MINUTE_MS * 0.95, MINUTE_MS * 1.05);
    const steps = body['steps'] as (Figures & { at: string })[];
    const withDelivered = steps.filter(({ counts }) => counts['requests.status']?.['delivered']);
    expect(withDelivered).to.have.length(1);
    expect(body['now']).to.deep.include({ requests: { submitted: 1 } });
  });

  it('keeps hours when their minutes are gone', async () => {
    pass(40 * 86_400_000);
    await sample();
    const [left] = await rows<{ hours: number; minutes: number }>(
      network.db,
      `select count(*) filter (where grain = 'hour')::integer as hours,
         count(*) filter (where grain = 'minute' and at < ?)::integer as minutes from samples`,
      [new Date(network.time.now.getTime() - 30 * 86_400_000)],
    );
    expect(left?.minutes).to.equal(0);
    expect(left?.hours).to.be.greaterThan(0);
    const token = await network.tokenOf('auditor');
    const { body } = await network.call('/v1/admin/stats?window=60d&step=1d', { as: token });
    const totals = body['totals'] as Figures;
    expect(totals.counts['requests.status']).to.deep.equal({ submitted: 3, delivered: 2 });
  });

  it('is refused to users, and for windows that are too long or too fine', async () => {
    expect((await network.call('/v1/admin/stats')).status).to.equal(403);
    admin = await network.tokenOf('admin');
    for (const query of ['window=400d', 'window=30d&step=1m', 'window=1h&step=2h', 'window=ever']) {
      const { status } = await network.call(`/v1/admin/stats?${query}`, { as: admin });
      expect(status, query).to.equal(422);
    }
  });
});

describe('/v1/admin/cache', () => {
  const clear = (body: object, path = '/v1/admin/cache:clear') =>
    network.call(path, { as: admin, body: { reason: 'a test', ...body } });

  it('shows what is held, previews a clear, and clears what the scope names', async () => {
    const ids = [await submit(), await submit(network.users.bob.key)];
    for (const id of ids) await deliver(id);
    await read(ids[0] as string);
    await network.call(`/v1/requests/${ids[1]}/result`, { as: network.users.bob.key });
    const shown = await network.call('/v1/admin/cache', { as: await network.tokenOf('operator') });
    expect(shown.body).to.include({ name: 'results' });
    const preview = await clear({ scope: 'user', user: 'bob' }, '/v1/admin/cache:clear?dry_run=1');
    expect(preview.status).to.equal(422);
    const dry = await clear({ scope: 'user', user: 'bob' }, '/v1/admin/cache:clear?dry_run=true');
    expect(dry.body).to.include({ entries: 1, dry_run: true });
    const done = await clear({ scope: 'user', user: 'bob' });
    expect(done.body).to.include({ entries: 1, dry_run: false });
    expect((await clear({ scope: 'user', user: 'bob' })).body).to.include({ entries: 0 });
    const left = await clear({ scope: 'dataset', dataset: 'claims' });
    expect(left.body['entries']).to.be.greaterThan(0);
    expect((await clear({ scope: 'all' })).body).to.include({ entries: 0 });
    expect((await read(ids[0] as string)).text).to.equal('{"a":1}');
    const audited = await rows<{ details: { reason: string } }>(
      network.db,
      `select details from audit_log where action = 'cache.clear' and actor = 'user:admin'`,
    );
    expect(audited.map(({ details }) => details.reason)).to.include('a test');
  });

  it('drops what is too old when it is optimised', async () => {
    await maintainCache(network.db, network.cache, network.clock.now());
    const answer = await network.call('/v1/admin/cache:optimise', {
      as: admin,
      body: { reason: 'a test' },
    });
    expect(answer.status).to.equal(200);
    expect(answer.body['max_bytes']).to.be.greaterThan(0);
  });

  it('refuses a scope that does not fit, unknown users, and whoever is no admin', async () => {
    expect((await clear({ scope: 'all', user: 'bob' })).status).to.equal(422);
    expect((await clear({ scope: 'user' })).status).to.equal(422);
    expect((await clear({ scope: 'user', user: 'nobody' })).status).to.equal(404);
    for (const role of ['user', 'operator', 'auditor', 'reviewer'] as const) {
      const as = await network.tokenOf(role);
      const body = { scope: 'all', reason: 'a test' };
      const { status } = await network.call('/v1/admin/cache:clear', { as, body });
      expect(status, role).to.equal(403);
    }
  });
});
