import { expect } from 'chai';
import { createHash } from 'node:crypto';
import { rows } from '@sallyport/shared';
import { eventually } from '@sallyport/shared/testing';
import { keepHouse } from './housekeeping.js';
import { failRecords, beforeRequeue } from './lost-requests.js';
import type { RequestView } from './request-schemas.js';
import { applyProgress, applyResultParts, applyResults } from './results.js';
import {
  PASSWORD,
  QUERY,
  makeKey,
  openTestNetwork,
  type IncomingRecord,
  type TestNetwork,
} from './testing.js';

const HOUR_MS = 3_600_000;
const NDJSON = { 'content-type': 'application/x-ndjson' };
let network: TestNetwork;

before(async () => {
  network = await openTestNetwork();
});
after(() => network.stop());

const submission = (more = {}) => ({ dataset: 'claims', query: QUERY, ...more });

async function submit(more = {}): Promise<RequestView> {
  const { status, body } = await network.call('/v1/requests', { body: submission(more) });
  expect(status).to.equal(202);
  return body as unknown as RequestView;
}

async function read(id: string): Promise<RequestView> {
  const { status, body } = await network.call(`/v1/requests/${id}`);
  expect(status).to.equal(200);
  return body as unknown as RequestView;
}

async function eventsOf(id: string): Promise<string[]> {
  const { body } = await network.call(`/v1/requests/${id}/timeline`);
  return (body['events'] as { event: string }[]).map((each) => each.event);
}

function result(id: string, text: string | null, more = {}): IncomingRecord {
  const at = network.time.now.toISOString();
  return {
    t: 'result',
    id,
    d: {
      status: 'delivered',
      failure: null,
      media_type: text === null ? null : 'application/json',
      bytes: text === null ? null : Buffer.byteLength(text),
      sha256: text === null ? null : createHash('sha256').update(text).digest('hex'),
      parts: 0,
      text,
      disclosure: null,
      dataset_version: 3,
      policy_version: 1,
      times: { received_at: at, started_at: at, finished_at: at, took_ms: 3 },
      ...more,
    },
  };
}

const part = (id: string, index: number, text: string): IncomingRecord => ({
  t: 'result.part',
  id,
  d: { index, text },
});
const deliver = (id: string, text: string | null, more = {}) =>
  network.apply([applyResults], [result(id, text, more)]);

describe('POST /v1/requests', () => {
  it('stores the request, its record and its event, and says where to look', async () => {
    const { status, headers, body } = await network.call('/v1/requests', {
      body: submission({ custom_id: 'row-9', tags: ['a', 'b "c"'], ttl_s: 3_600 }),
    });
    expect(status).to.equal(202);
    expect(headers.get('location')).to.equal(`/v1/requests/${String(body['id'])}`);
    expect(headers.get('etag')).to.equal('"1"');
    expect(Number(headers.get('retry-after'))).to.be.within(2, 120);
    const { body: found } = await network.call(String(headers.get('location')));
    expect(found).to.deep.equal(body);
    const [record] = await rows<{ line: string }>(
      network.db,
      'select line from outbox_records where record_id = ?',
      [String(body['id'])],
    );
    const sent = JSON.parse(record?.line ?? '{}') as { d: Record<string, unknown> };
    expect(sent.d).to.include({ dataset: 'claims', user_id: network.users.ada.id });
    expect(sent.d['query_digest']).to.equal(body['query_digest']);
    expect(await eventsOf(String(body['id']))).to.deep.equal(['submitted']);
  });

  it('puts urgent requests into their own stream', async () => {
    const { id } = await submit({ priority: 'urgent' });
    const [record] = await rows<{ stream: string }>(
      network.db,
      'select stream from outbox_records where record_id = ?',
      [id],
    );
    expect(record?.stream).to.equal('requests.urgent');
  });

  it('stores nothing that is only to be validated', async () => {
    const { status, body } = await network.call('/v1/requests?validate_only=true', {
      body: submission({ custom_id: 'dry' }),
    });
    expect(status).to.equal(200);
    expect(body).to.include({ allowed: true, tier: 'B' });
    const { body: list } = await network.call('/v1/requests?custom_id=dry');
    expect(list['items']).to.deep.equal([]);
  });

  it('refuses what the policy refuses, with a pointer into the body', async () => {
    const { status, body } = await network.call('/v1/requests', {
      body: submission({ query: { query: { regexp: { state: '.*' } } } }),
    });
    expect(status).to.equal(422);
    expect(body['code']).to.equal('query-kind-denied');
    expect(body)
      .to.have.nested.property('errors[0].pointer')
      .that.matches(/^\/query\/query/);
  });

  it('answers alike for a dataset of others and one that does not exist', async () => {
    for (const dataset of ['secrets', 'nothing']) {
      const { status, body } = await network.call('/v1/requests', {
        body: submission({ dataset }),
      });
      expect(status).to.equal(403);
      expect(body['code']).to.equal('dataset-forbidden');
    }
  });

  it('refuses NUL in a text', async () => {
    for (const change of [{ custom_id: 'a\0' }, { tags: ['\0'] }]) {
      const { status } = await network.call('/v1/requests', { body: submission(change) });
      expect(status).to.equal(400);
    }
  });

  it('refuses unknown fields, repeated keys and broken JSON', async () => {
    const unknown = await network.call('/v1/requests', { body: submission({ templat: 'x' }) });
    expect([unknown.status, unknown.body['code']]).to.deep.equal([422, 'unknown-field']);
    const twice = await network.call('/v1/requests', { text: '{"dataset":"a","dataset":"b"}' });
    expect([twice.status, twice.body['code']]).to.deep.equal([400, 'duplicate-key']);
    const broken = await network.call('/v1/requests', { text: '{"dataset":' });
    expect([broken.status, broken.body['code']]).to.deep.equal([400, 'malformed-json']);
  });

  it('replays the answer to a repeated Idempotency-Key and refuses another body', async () => {
    const headers = { 'idempotency-key': 'once' };
    const first = await network.call('/v1/requests', { body: submission(), headers });
    const again = await network.call('/v1/requests', { body: submission(), headers });
    expect(again.status).to.equal(202);
    expect(again.body).to.deep.equal(first.body);
    expect(again.headers.get('idempotency-replayed')).to.equal('true');
    const other = await network.call('/v1/requests', {
      body: submission({ tags: ['x'] }),
      headers,
    });
    expect([other.status, other.body['code']]).to.deep.equal([422, 'idempotency-key-reused']);
    const bob = await network.call('/v1/requests', {
      body: submission(),
      headers,
      as: network.users.bob.key,
    });
    expect(bob.body['id']).to.not.equal(first.body['id']);
  });

  it('stores one request however many calls with one key race', async () => {
    const headers = { 'idempotency-key': 'race' };
    const body = submission({ custom_id: 'race' });
    const answers = await Promise.all(
      Array.from({ length: 8 }, () => network.call('/v1/requests', { body, headers })),
    );
    for (const { status } of answers) expect(status).to.be.oneOf([202, 409]);
    const { body: list } = await network.call('/v1/requests?custom_id=race');
    expect(list['items']).to.have.length(1);
  });

  it('refuses a user who was disabled, although the process still remembers the key', async () => {
    const id = network.users.bob.id;
    const as = await makeKey(network, id, ['requests:write']);
    expect((await network.call('/v1/requests', { body: submission(), as })).status).to.equal(202);
    await network.db('users').where({ id }).update({ disabled: true });
    const { status, body } = await network.call('/v1/requests', { body: submission(), as });
    await network.db('users').where({ id }).update({ disabled: false });
    expect([status, body['code']]).to.deep.equal([401, 'unauthenticated']);
  });
});

describe('POST /v1/requests:bulk', () => {
  const bulk = (lines: unknown[], query = '', headers = {}) =>
    network.call(`/v1/requests:bulk${query}`, {
      text: lines.map((line) => JSON.stringify(line)).join('\n'),
      headers: { ...NDJSON, ...headers },
    });

  it('stores every line, in the order given', async () => {
    const lines = Array.from({ length: 250 }, (_, n) =>
      submission({ custom_id: `bulk-${n}`, tags: n % 2 ? ['odd', '{"\\'] : [] }),
    );
    const { status, body } = await bulk(lines);
    expect(status).to.equal(202);
    expect(body).to.include({ accepted: 250, refused: 0 });
    const ids = (body['items'] as { id: string }[]).map((item) => item.id);
    const records = await rows<{ record_id: string }>(
      network.db,
      'select record_id from outbox_records where record_id = any(?) order by position',
      [ids],
    );
    expect(records.map((record) => record.record_id)).to.deep.equal(ids);
    const last = await read(ids[249] ?? '');
    expect(last).to.deep.include({ custom_id: 'bulk-249', tags: ['odd', '{"\\'], version: 1 });
    expect(await eventsOf(ids[0] ?? '')).to.deep.equal(['submitted']);
  });

  it('stores nothing when one line is refused, and names it', async () => {
    const lines = [submission({ tags: ['atomic'] }), submission({ dataset: 'secrets' })];
    const { status, body } = await bulk(lines);
    expect([status, body['code']]).to.deep.equal([422, 'bulk-line-invalid']);
    expect(body).to.have.nested.property('errors[0].pointer', '/2/dataset');
    const { body: list } = await network.call('/v1/requests?tag=atomic');
    expect(list['items']).to.deep.equal([]);
  });

  it('stores the good lines with atomic=false and tells of each', async () => {
    const { status, body } = await bulk([submission(), 7, submission()], '?atomic=false');
    expect(status).to.equal(202);
    expect(body).to.include({ accepted: 2, refused: 1 });
    expect(body).to.have.nested.property('items[1].error.pointer', '/2');
  });

  it('refuses more than 1,000 lines, none at all, and another media type', async () => {
    const cut = await network.call('/v1/requests:bulk', { text: '{"a":', headers: NDJSON });
    expect(cut.status).to.equal(422);
    expect(cut.body['detail']).to.contain('Nothing was stored').and.not.contain('..');
    const many = await bulk(Array.from({ length: 1_001 }, () => submission()));
    expect([many.status, many.body['code']]).to.deep.equal([413, 'too-many-lines']);
    expect((await bulk([])).status).to.equal(422);
    const json = await network.call('/v1/requests:bulk', { body: submission() });
    expect(json.status).to.equal(415);
  });

  it('replays a repeated bulk', async () => {
    const headers = { 'idempotency-key': 'bulk-once' };
    const first = await bulk([submission()], '', headers);
    const again = await bulk([submission()], '', headers);
    expect(again.body).to.deep.equal(first.body);
    expect(again.headers.get('idempotency-replayed')).to.equal('true');
  });
});

describe('GET /v1/requests', () => {
  it('pages through the newest first, each once', async () => {
    const made: string[] = [];
    for (let n = 0; n < 5; n += 1) made.unshift((await submit({ tags: ['page'] })).id);
    const seen: string[] = [];
    let token = '';
    for (let page = 0; page < 3; page += 1) {
      const { body } = await network.call(`/v1/requests?tag=page&page_size=2${token}`);
      seen.push(...(body['items'] as RequestView[]).map((item) => item.id));
      token = `&page_token=${String(body['next_page_token'])}`;
    }
    expect(seen).to.deep.equal(made);
    expect(token).to.equal('&page_token=undefined');
  });

  it('refuses a page token of another filter or caller', async () => {
    await submit({ tags: ['tok'] });
    await submit({ tags: ['tok'] });
    const { body } = await network.call('/v1/requests?tag=tok&page_size=1');
    const token = `page_token=${String(body['next_page_token'])}`;
    for (const [path, as] of [
      [`/v1/requests?tag=other&${token}`, network.users.ada.key],
      [`/v1/requests?tag=tok&${token}`, network.users.bob.key],
      ['/v1/requests?page_token=nonsense', network.users.ada.key],
    ] as const) {
      const answer = await network.call(path, { as });
      expect([answer.status, answer.body['code']]).to.deep.equal([400, 'bad-page-token']);
    }
  });

  it('filters by status, text and range of creation', async () => {
    const { id } = await submit({ custom_id: 'needle_%' });
    const now = network.time.now;
    const from = now.toISOString();
    const before = new Date(now.getTime() + 1).toISOString();
    const query = `text=needle_%25&status=submitted&created_from=${from}&created_before=${before}`;
    const { body } = await network.call(`/v1/requests?${query}`);
    expect((body['items'] as RequestView[]).map((item) => item.id)).to.deep.equal([id]);
    const none = await network.call('/v1/requests?text=needle_%25&status=delivered&status=failed');
    expect(none.body['items']).to.deep.equal([]);
  });

  it('refuses texts and times that the database cannot hold, and takes the widest it can', async () => {
    for (const query of [
      'text=%00',
      'custom_id=a%00',
      'tag=%00',
      'created_from=0000-01-01T00:00:00Z',
      'created_before=2016-12-31T23:59:60Z',
      'created_from=2026-01-01T00:00:00%2B23:59',
    ]) {
      const { status, body } = await network.call(`/v1/requests?${query}`);
      expect([status, body['code']], query).to.deep.equal([422, 'bad-field']);
    }
    for (const time of ['0001-01-01T00:00:00%2B14:00', '9999-12-31T23:59:59.999999999-14:59']) {
      const { status } = await network.call(`/v1/requests?created_from=${time}`);
      expect(status, time).to.equal(200);
    }
  });
});

describe('GET /v1/requests/{id}', () => {
  it('answers 304 while the version is the one that the caller has', async () => {
    const { id } = await submit();
    const headers = { 'if-none-match': '"1"' };
    const same = await network.call(`/v1/requests/${id}`, { headers });
    expect([same.status, same.text]).to.deep.equal([304, '']);
    await network.bindWaiting('ready');
    const { status, body } = await network.call(`/v1/requests/${id}`, { headers });
    expect(status).to.equal(200);
    expect(body).to.include({ status: 'batched', version: 3, reason_code: 'waiting_operator' });
    expect(body).to.have.nested.property('batch.line');
  });

  it('reads the states of its batch through the batch', async () => {
    const { id } = await submit();
    const batch = await network.bindWaiting('building');
    expect(await read(id)).to.include({ status: 'submitted', version: 1, batch: null });
    const seen: string[] = [];
    for (const state of ['sealed', 'ready', 'handed_over', 'acked']) {
      await network.db('outbound_batches').where({ id: batch }).update({ state });
      seen.push((await read(id)).status);
    }
    expect(seen).to.deep.equal(['batched', 'batched', 'exported', 'processing']);
  });

  it('holds the answer until a batch changes the version', async () => {
    const { id } = await submit();
    const held = network.call(`/v1/requests/${id}?wait=25`);
    await eventually(() => network.waiters.size() > 0);
    await network.bindWaiting('ready');
    const { status, body } = await held;
    expect(status).to.equal(200);
    expect(body['status']).to.equal('batched');
    expect(network.waiters.size()).to.equal(0);
  });

  it('answers a wait at once when the caller is behind, and frees one who leaves', async () => {
    const { id } = await submit();
    const headers = { 'if-none-match': '"77"' };
    const { body } = await network.call(`/v1/requests/${id}?wait=25`, { headers });
    expect(body['version']).to.equal(1);
    const leaving = new AbortController();
    const held = network.call(`/v1/requests/${id}?wait=25`, { signal: leaving.signal });
    held.catch(() => undefined);
    await eventually(() => network.waiters.size() > 0);
    leaving.abort();
    await eventually(() => network.waiters.size() === 0);
  });

  it("answers 404 for somebody else's request, whatever is asked of it", async () => {
    const { id } = await submit();
    const as = network.users.bob.key;
    for (const path of ['', '/timeline', '/result', '/response']) {
      expect((await network.call(`/v1/requests/${id}${path}`, { as })).status).to.equal(404);
    }
    const cancel = await network.call(`/v1/requests/${id}:cancel`, { as, method: 'POST' });
    expect(cancel.status).to.equal(404);
  });
});

describe('applyResults', () => {
  it('delivers a result with exactly the text that was signed', async () => {
    const { id } = await submit();
    await network.bindWaiting('acked');
    const text = '{"took":1,"hits":{"hits":[{"_source":{"n":9007199254740993}}]}}';
    await deliver(id, text);
    const view = await read(id);
    expect(view).to.include({ status: 'delivered', stage: null });
    expect(view.result).to.include({ available: true, late: false, bytes: text.length });
    const answer = await network.call(`/v1/requests/${id}/result`);
    expect(answer.text).to.equal(text);
    const digest = createHash('sha256').update(text).digest('base64');
    expect(answer.headers.get('repr-digest')).to.equal(`sha-256=:${digest}:`);
    const etag = String(answer.headers.get('etag'));
    const same = await network.call(`/v1/requests/${id}/result`, {
      headers: { 'if-none-match': etag },
    });
    expect(same.status).to.equal(304);
    const lines = await network.call(`/v1/requests/${id}/response`, {
      headers: { accept: 'application/x-ndjson' },
    });
    expect(lines.text).to.equal('{"_source":{"n":9007199254740993}}\n');
    expect(await eventsOf(id)).to.deep.equal([
      'submitted',
      'batched',
      'processing',
      'received',
      'started',
      'finished',
      'delivered',
    ]);
  });

  it('keeps the first result and ignores a second', async () => {
    const { id } = await submit();
    await deliver(id, '{"first":1}');
    const { version } = await read(id);
    await deliver(id, '{"second":2}');
    expect((await network.call(`/v1/requests/${id}/result`)).text).to.equal('{"first":1}');
    expect((await read(id)).version).to.equal(version);
  });

  it('keeps a late result without touching the final status', async () => {
    const { id } = await submit();
    expect((await network.call(`/v1/requests/${id}:cancel`, { method: 'POST' })).status).to.equal(
      200,
    );
    await deliver(id, '{"late":1}');
    const view = await read(id);
    expect(view.status).to.equal('cancelled');
    expect(view.result).to.include({ available: true, late: true });
    expect((await network.call(`/v1/requests/${id}/result`)).text).to.equal('{"late":1}');
  });

  it('ends a request as failed, class integrity, when text and digest disagree', async () => {
    const { id } = await submit();
    await deliver(id, '{"a":1}', { sha256: 'f'.repeat(64) });
    const view = await read(id);
    expect(view.status).to.equal('failed');
    expect(view.failure).to.include({ class: 'integrity' });
    const answer = await network.call(`/v1/requests/${id}/result`);
    expect(answer.status).to.equal(409);
    expect(answer.text).to.contain('no-result');
  });

  it('tells why a request was rejected', async () => {
    const { id } = await submit();
    const failure = { class: null, code: 'dataset-forbidden', detail: 'The dataset is gone.' };
    await deliver(id, null, { status: 'rejected', failure });
    const view = await read(id);
    expect(view.status).to.equal('rejected');
    expect(view.failure).to.deep.equal(failure);
  });

  it('wakes whoever waits', async () => {
    const { id } = await submit();
    const held = network.call(`/v1/requests/${id}?wait=25`);
    await eventually(() => network.waiters.size() > 0);
    await deliver(id, '{}');
    expect((await held).body['status']).to.equal('delivered');
  });

  it('parks results of unknown requests and takes them up once the request is known', async () => {
    const { id } = await submit();
    const [row] = await network.db('requests').where({ id }).select('*');
    await network.db('requests').where({ id }).delete();
    await network.apply([applyResults, applyResultParts], [result(id, '{"parked":1}')]);
    expect(await network.db('orphans').where({ record_id: id })).to.have.length(1);
    await network.db('requests').insert(row);
    await network.apply([applyResults], []);
    expect((await read(id)).status).to.equal('delivered');
    expect(await network.db('orphans').where({ record_id: id })).to.have.length(0);
  });
});

describe('applyResultParts', () => {
  const text = 'äöü'.repeat(10);
  const whole = { parts: 3, text: null, bytes: 60, sha256: '' };
  whole.sha256 = createHash('sha256').update(text).digest('hex');
  const pieces = [text.slice(0, 7), text.slice(7, 20), text.slice(20)];
  const parts = (id: string) => pieces.map((piece, index) => part(id, index, piece));

  it('completes a result whose parts come after it', async () => {
    const { id } = await submit();
    await deliver(id, '', whole);
    const partial = await read(id);
    expect(partial.status).to.equal('submitted');
    expect(partial.result).to.include({ partial: true, available: false });
    const early = await network.call(`/v1/requests/${id}/result`);
    expect(early.status).to.equal(409);
    expect(Number(early.headers.get('retry-after'))).to.be.greaterThan(1);
    await network.apply([applyResultParts], parts(id).slice(1));
    expect((await read(id)).status).to.equal('submitted');
    await network.apply([applyResultParts], parts(id).slice(0, 2));
    expect((await read(id)).status).to.equal('delivered');
    expect((await network.call(`/v1/requests/${id}/result`)).text).to.equal(text);
  });

  it('completes a result whose parts came before it', async () => {
    const { id } = await submit();
    await network.apply([applyResultParts], parts(id));
    await deliver(id, '', whole);
    expect((await network.call(`/v1/requests/${id}/result`)).text).to.equal(text);
  });

  it('ends the request as failed when the parts do not agree with the digest', async () => {
    const { id } = await submit();
    await deliver(id, '', whole);
    const bad = parts(id);
    bad[1] = part(id, 1, 'x'.repeat(13));
    await network.apply([applyResultParts], bad);
    const view = await read(id);
    expect(view.status).to.equal('failed');
    expect(view.failure).to.include({ class: 'integrity' });
  });
});

describe('a result that the far side gives up', () => {
  it('ends as failed, however many of its parts had come', async () => {
    const { id } = await submit();
    const sha256 = createHash('sha256').update('ab').digest('hex');
    await deliver(id, '', { parts: 2, text: null, bytes: 2, sha256 });
    await network.apply([applyResultParts], [part(id, 0, 'a')]);
    const failure = { class: 'integrity', code: 'SCHEMA', detail: 'It was refused.' };
    const failed = { status: 'failed', failure, bytes: null, sha256: null, media_type: null };
    await deliver(id, null, failed);
    const view = await read(id);
    expect(view).to.deep.include({ status: 'failed', failure });
    expect(view.result).to.include({ partial: false, available: false });
    await network.apply([applyResultParts], [part(id, 1, 'b')]);
    expect((await read(id)).status).to.equal('failed');
    expect(await network.db('result_parts').where({ request_id: id })).to.have.length(0);
  });
});

describe('applyProgress', () => {
  const progress = (id: string, version: number, more = {}): IncomingRecord => ({
    t: 'request.progress',
    id,
    d: {
      version,
      status: 'processing',
      stage: 'executing',
      reason_code: null,
      times: { received_at: network.time.now.toISOString(), started_at: null },
      ...more,
    },
  });

  it('shows the newest stage and ignores older news', async () => {
    const { id } = await submit();
    const later = new Date(network.time.now.getTime() + HOUR_MS);
    await network.apply([applyProgress], [progress(id, 2, { stage: 'packing' })], {
      createdAt: later,
    });
    await network.apply([applyProgress], [progress(id, 1)]);
    const view = await read(id);
    expect(view).to.include({ status: 'processing', stage: 'packing', version: 2 });
    expect(view.known_as_of).to.equal(later.toISOString());
  });

  it('never moves a request that has ended', async () => {
    const { id } = await submit();
    await deliver(id, '{}');
    await network.apply([applyProgress], [progress(id, 9, { status: 'held', stage: 'review' })]);
    expect((await read(id)).status).to.equal('delivered');
  });
});

describe('POST /v1/requests/{id}:cancel', () => {
  const cancel = (id: string) => network.call(`/v1/requests/${id}:cancel`, { method: 'POST' });

  it('cancels at once while the record has not left, and may be repeated', async () => {
    const { id } = await submit();
    for (let time = 0; time < 2; time += 1) {
      const { status, body } = await cancel(id);
      expect([status, body['status'], body['version']]).to.deep.equal([200, 'cancelled', 2]);
    }
    expect(await network.db('outbox_records').where({ record_id: id })).to.have.length(0);
    expect(await eventsOf(id)).to.deep.equal(['submitted', 'cancelled']);
  });

  it('sends one cancellation after what has left, and the result tells what happened', async () => {
    const { id } = await submit();
    await network.bindWaiting('ready');
    for (let time = 0; time < 2; time += 1) {
      const { status, body } = await cancel(id);
      expect([status, body['status']]).to.deep.equal([202, 'cancelling']);
    }
    const sent = await network
      .db('outbox_records')
      .where({ record_id: id, type: 'request.cancel' });
    expect(sent).to.have.length(1);
    await deliver(id, '{}');
    const after = await cancel(id);
    expect([after.status, after.body['code']]).to.deep.equal([409, 'already-final']);
  });
});

describe('keepHouse', () => {
  const house = (now: Date) =>
    keepHouse(network.db, { now, settings: network.replica.settings(), log: network.log });

  it('expires what never left, and takes its record back', async () => {
    const { id } = await submit({ ttl_s: 3_600 });
    await house(new Date(network.time.now.getTime() + HOUR_MS - 1));
    expect((await read(id)).status).to.equal('submitted');
    await house(new Date(network.time.now.getTime() + HOUR_MS));
    expect((await read(id)).status).to.equal('expired');
    expect(await network.db('outbox_records').where({ record_id: id })).to.have.length(0);
  });

  it('gives up what has left only when no news came for long after the deadline', async () => {
    const { id } = await submit({ ttl_s: 3_600 });
    await network.bindWaiting('handed_over');
    await house(new Date(network.time.now.getTime() + 72 * HOUR_MS));
    expect((await read(id)).status).to.equal('exported');
    await house(new Date(network.time.now.getTime() + 73 * HOUR_MS));
    expect((await read(id)).status).to.equal('expired');
  });

  it('drops orphans after a day with an audit entry, and old idempotency keys', async () => {
    const stranger = '01970000-0000-7000-8000-000000000001';
    await network.apply([applyResults], [result(stranger, '{}')]);
    await network.call('/v1/requests', {
      body: submission(),
      headers: { 'idempotency-key': 'old' },
    });
    await house(new Date(network.time.now.getTime() + 8 * 24 * HOUR_MS));
    expect(await network.db('orphans')).to.have.length(0);
    expect(await network.db('idempotency_keys')).to.have.length(0);
    expect(await network.db('audit_log').where({ action: 'orphan.drop' })).to.have.length(1);
  });
});

describe('requestRules', () => {
  const lost = (id: string, code: string) =>
    ({ id, stream: 'requests', epoch: 1, seq: 1, code }) as const;
  const fail = (batch: string) =>
    network.db.transaction((tx) => failRecords(tx, lost(batch, 'SCHEMA'), network.time.now));
  const requeue = async (batch: string, { inTime = false, at = network.time.now } = {}) =>
    network.db.transaction(async (tx) => {
      const kept = await beforeRequeue(tx, [batch], { now: at, inTime });
      const bound = await tx('outbox_records')
        .where({ batch_id: batch })
        .whereNotIn('position', kept);
      await tx('outbox_records')
        .where({ batch_id: batch })
        .whereNotIn('position', kept)
        .update({ batch_id: null, batch_line: null });
      return (bound as { record_id: string }[]).map((row) => row.record_id);
    });

  it('fails the requests of a batch whose content the far side refused, but no ended ones', async () => {
    const [open, ended] = [await submit(), await submit()];
    const batch = await network.bindWaiting('rejected');
    await deliver(ended.id, '{}');
    await fail(batch);
    const view = await read(open.id);
    expect(view.status).to.equal('failed');
    expect(view.failure).to.include({ class: 'integrity', code: 'SCHEMA' });
    expect(await eventsOf(open.id)).to.include('failed');
    expect((await read(ended.id)).status).to.equal('delivered');
  });

  it('shows requests that leave again as submitted, with a version never seen before', async () => {
    const [open, ended] = [await submit(), await submit()];
    const batch = await network.bindWaiting('handed_over');
    await deliver(ended.id, '{}');
    const before = await read(open.id);
    expect(await requeue(batch)).to.deep.equal([open.id]);
    const after = await read(open.id);
    expect(after).to.include({ status: 'submitted', batch: null });
    expect(after.version).to.be.greaterThan(before.version);
    expect(await eventsOf(open.id)).to.include('queued_again');
    await network.bindWaiting('ready');
    expect((await read(open.id)).version).to.be.greaterThan(after.version);
  });

  it('lets only those leave again whose deadline allows, where that is asked', async () => {
    const [short, long] = [await submit({ ttl_s: 3_600 }), await submit({ ttl_s: 7_200 })];
    const batch = await network.bindWaiting('rejected');
    const at = new Date(network.time.now.getTime() + HOUR_MS);
    expect(await requeue(batch, { inTime: true, at })).to.deep.equal([long.id]);
    await fail(batch);
    expect((await read(short.id)).status).to.equal('failed');
    expect((await read(long.id)).status).to.equal('submitted');
  });

  it('sends a cancellation again while its request is open', async () => {
    const { id } = await submit();
    await network.bindWaiting('acked');
    await network.call(`/v1/requests/${id}:cancel`, { method: 'POST' });
    const batch = await network.bindWaiting('ready');
    expect(await requeue(batch)).to.deep.equal([id]);
    expect((await read(id)).status).to.equal('cancelling');
  });
});

describe('authentication', () => {
  it('opens a session for the right password and answers alike to all wrong ones', async () => {
    const logIn = (login: string, password: string) =>
      network.call('/v1/sessions', { body: { login, password }, as: null });
    const { status, body } = await logIn('ADA', PASSWORD);
    expect(status).to.equal(201);
    const me = await network.call('/v1/me', { as: String(body['token']) });
    expect(me.body).to.include({ login: 'ada' });
    const refused = await Promise.all([
      logIn('ada', 'wrong'),
      logIn('nobody', PASSWORD),
      logIn('eve', PASSWORD),
    ]);
    for (const answer of refused) {
      expect(answer.status).to.equal(401);
      expect(answer.body['detail']).to.equal(refused[0]?.body['detail']);
    }
  });

  it('ends a session when the generation of the credential rises', async () => {
    const { body } = await network.call('/v1/sessions', {
      body: { login: 'bob', password: PASSWORD },
      as: null,
    });
    const as = String(body['token']);
    expect((await network.call('/v1/requests', { body: submission(), as })).status).to.equal(202);
    const where = { user_id: network.users.bob.id };
    await network.db('credentials').where(where).update({ generation: 2 });
    expect((await network.call('/v1/requests', { body: submission(), as })).status).to.equal(401);
    await rows(network.db, `select pg_notify('sallyport_imported', 'identity')`);
    await eventually(async () => (await network.call('/v1/me', { as })).status === 401);
    await network.db('credentials').where(where).update({ generation: 1 });
  });

  it('lists only the datasets of the profile type', async () => {
    const { body } = await network.call('/v1/datasets');
    expect((body['items'] as { name: string }[]).map((item) => item.name)).to.deep.equal([
      'claims',
    ]);
  });
});
