import { expect } from 'chai';
import { createHash } from 'node:crypto';
import {
  createLog,
  defaultSettings,
  rows,
  startServer,
  type RunningServer,
} from '@sallyport/shared';
import { callJson, eventually } from '@sallyport/shared/testing';
import { createRequestApp } from './app.js';
import { openNetwork, type RequestNetwork } from './network.js';
import { applyResults } from './results.js';
import { dropOld } from './retention.js';
import { QUERY, openTestNetwork, type TestNetwork } from './testing.js';

const TEXT = '{"took":1,"hits":{"hits":[{"_id":"1"},{"_id":"2"}]}}';
let network: TestNetwork;
let other: RequestNetwork;
let otherServer: RunningServer;

before(async () => {
  network = await openTestNetwork();
  const { config, clock } = network;
  other = await openNetwork(config, { log: createLog('other', 'silent'), clock });
  otherServer = await startServer(createRequestApp(other), { host: '127.0.0.1', port: 0 });
  await eventually(() => other.principals.ready());
});
after(async () => {
  await otherServer.close(100);
  await other.close();
  await network.stop();
});

async function submit(): Promise<string> {
  const { body } = await network.call('/v1/requests', {
    body: { dataset: 'claims', query: QUERY },
  });
  return String(body['id']);
}

async function deliver(text = TEXT): Promise<string> {
  const id = await submit();
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
  return id;
}

const read = (id: string, options = {}) => network.call(`/v1/requests/${id}/result`, options);
const readAtOther = (id: string) =>
  callJson(otherServer.url, `/v1/requests/${id}/result`, { as: network.users.ada.key });
const purge = (id: string, options = {}) => read(id, { method: 'DELETE', ...options });
/** What only somebody with a cache does not notice. */
const changeText = (id: string) =>
  rows(network.db, `update results set text = translate(text, 'hx', 'yy') where request_id = ?`, [
    id,
  ]);

describe('GET /v1/requests/{id}/result', () => {
  it('gives again what was read once without asking for the text, in both forms', async () => {
    const id = await deliver();
    const first = await read(id);
    await changeText(id);
    const again = await read(id);
    expect(again.text).to.equal(TEXT);
    for (const name of ['etag', 'content-type', 'content-length', 'repr-digest']) {
      expect(again.headers.get(name), name).to.equal(first.headers.get(name));
    }
    const lines = { headers: { accept: 'application/x-ndjson' } };
    for (let n = 0; n < 3; n += 1) {
      expect((await read(id, lines)).text).to.equal('{"_id":"1"}\n{"_id":"2"}\n');
    }
    const etag = first.headers.get('etag') ?? '';
    const same = await read(id, { headers: { 'if-none-match': etag } });
    expect(same.status).to.equal(304);
    for (const { headers } of [first, same]) {
      expect(headers.get('vary')).to.equal('Origin, Accept');
    }
  });

  it('never gives somebody what is not theirs, however often it was read', async () => {
    const id = await deliver();
    for (let n = 0; n < 3; n += 1) await read(id);
    expect((await read(id, { as: network.users.bob.key })).status).to.equal(404);
    expect((await read(id, { as: null })).status).to.equal(401);
    expect((await read(id)).text).to.equal(TEXT);
  });

  it('reads what is too large for the cache from the database every time', async () => {
    const text = JSON.stringify({ hits: 'x'.repeat(700_000) });
    await network.db('settings').insert({
      key: 'cache.entry_max_bytes',
      version: 1,
      value: '4096',
      updated_at: network.time.now,
    });
    network.replica.drop();
    await network.replica.rules();
    const id = await deliver(text);
    expect((await read(id)).text).to.equal(text);
    await changeText(id);
    expect((await read(id)).text).to.equal(text.replaceAll(/[hx]/g, 'y'));
    await network.db('settings').where({ key: 'cache.entry_max_bytes' }).delete();
    network.replica.drop();
    await network.replica.rules();
  });

  it('notes when it was read first', async () => {
    const id = await deliver();
    await read(id);
    const fetched = await eventually(async () => {
      const [row] = await rows<{ fetched_at: Date | null }>(
        network.db,
        'select fetched_at from results where request_id = ?',
        [id],
      );
      return row?.fetched_at ?? undefined;
    });
    expect(fetched).to.deep.equal(network.time.now);
  });
});

describe('DELETE /v1/requests/{id}/result', () => {
  it('deletes the text for good, in every process, and may be repeated', async () => {
    const id = await deliver();
    const { version } = (await network.call(`/v1/requests/${id}`)).body;
    for (let n = 0; n < 3; n += 1) {
      expect((await readAtOther(id)).text).to.equal(TEXT);
      expect((await read(id)).text).to.equal(TEXT);
    }
    expect((await purge(id)).status).to.equal(204);
    expect((await purge(id)).status).to.equal(204);
    expect((await read(id)).body).to.deep.equal({});
    expect((await read(id)).status).to.equal(410);
    await eventually(async () => (await readAtOther(id)).status === 410);
    const { body } = await network.call(`/v1/requests/${id}`);
    expect(body).to.deep.include({ status: 'delivered', version: Number(version) + 1 });
    expect(body['result']).to.include({ available: false });
    const timeline = (await network.call(`/v1/requests/${id}/timeline`)).body['events'];
    const events = (timeline as { event: string; actor: string | null }[]).slice(-1);
    expect(events).to.have.length(1);
    expect(events[0]).to.include({ event: 'result_purged', actor: 'ada' });
    const [row] = await rows<{ text: string | null }>(
      network.db,
      'select text from results where request_id = ?',
      [id],
    );
    expect(row).to.deep.equal({ text: null });
  });

  it('is refused for what is not there, not theirs, or not a result yet', async () => {
    const id = await deliver();
    expect((await purge(id, { as: network.users.bob.key })).status).to.equal(404);
    expect((await read(id)).text).to.equal(TEXT);
    const open = await submit();
    const early = await network.call(`/v1/requests/${open}`, { method: 'GET' });
    expect(early.body['status']).to.equal('submitted');
    expect((await purge(open)).status).to.equal(409);
    await network.call(`/v1/requests/${open}:cancel`, { method: 'POST' });
    expect((await purge(open)).status).to.equal(409);
  });
});

describe('POST /v1/requests/{id}:resubmit', () => {
  const resubmit = (id: string, options = {}) =>
    network.call(`/v1/requests/${id}:resubmit`, { method: 'POST', ...options });

  it('asks the same once more, linked to the first', async () => {
    const id = await deliver();
    const { status, headers, body } = await resubmit(id);
    expect(status).to.equal(202);
    expect(body).to.include({ status: 'submitted', retry_of: id });
    expect(headers.get('location')).to.equal(`/v1/requests/${String(body['id'])}`);
    expect(headers.get('ratelimit')).to.be.a('string');
    const first = (await network.call(`/v1/requests/${id}`)).body;
    const second = (await network.call(`/v1/requests/${String(body['id'])}`)).body;
    expect(second).to.include({ retry_of: id, query_digest: first['query_digest'] });
    expect(first['retry_of']).to.equal(null);
  });

  it('is done once with an Idempotency-Key', async () => {
    const id = await deliver();
    const options = { headers: { 'idempotency-key': 'again' } };
    const [one, two] = [await resubmit(id, options), await resubmit(id, options)];
    expect(two.body['id']).to.equal(one.body['id']);
    expect(two.headers.get('idempotency-replayed')).to.equal('true');
  });

  it('is refused while the request is open, to others, and without the right', async () => {
    const open = await submit();
    expect((await resubmit(open)).body).to.include({ code: 'result-not-ready' });
    const id = await deliver();
    expect((await resubmit(id, { as: network.users.bob.key })).status).to.equal(404);
    await network.db('profile_types').update({ datasets: ['secrets'] });
    network.replica.drop();
    expect((await resubmit(id)).body).to.include({ code: 'dataset-forbidden' });
    await network.db('profile_types').update({ datasets: ['claims'] });
    network.replica.drop();
  });
});

describe('dropOld', () => {
  const daysLater = (days: number) => new Date(network.time.now.getTime() + days * 86_400_000);
  const drop = (days: number) =>
    dropOld(network.db, { now: daysLater(days), settings: defaultSettings() });
  const keepDays = (days: number) => network.db('profile_types').update({ retention_days: days });

  it('purges results after the days of the profile type, in every process', async () => {
    await keepDays(50);
    const id = await deliver();
    expect((await readAtOther(id)).text).to.equal(TEXT);
    expect((await drop(49)).results).to.equal(0);
    expect((await drop(51)).results).to.be.above(0);
    expect((await read(id)).status).to.equal(410);
    await eventually(async () => (await readAtOther(id)).status === 410);
    expect((await drop(51)).results).to.equal(0);
    await keepDays(30);
  });

  it('forgets the timeline of what ended long ago, and nothing of what has not', async () => {
    const [ended, open] = [await deliver(), await submit()];
    await drop(366);
    const events = (id: string) =>
      rows(network.db, 'select 1 from request_events where request_id = ?', [id]);
    expect((await events(open)).length).to.be.above(0);
    // Its purge is younger than it is.
    expect(await events(ended)).to.have.lengthOf(1);
    expect((await network.call(`/v1/requests/${ended}`)).body['status']).to.equal('delivered');
  });
});
