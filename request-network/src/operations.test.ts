import { createHash } from 'node:crypto';
import { readFile, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import { newId, rows, verifyAudit, type Role } from '@sallyport/shared';
import { eventually, type TestAnswer } from '@sallyport/shared/testing';
import { exportStream, importBatches, sendRecords, trustCard } from '@sallyport/transfer';
import { carryAll, makeTestNode, type TestNode } from '@sallyport/transfer/testing';
import { requestApplies } from './apply.js';
import { QUERY, openTestNetwork, type TestNetwork } from './testing.js';

type Batch = { id: string; state: string; seq: number; file_name: string; direction: string };

describe('operations of the request network', () => {
  let red: TestNetwork;
  let blue: TestNode;

  const as = async (who: Role, path: string, body?: unknown): Promise<TestAnswer> =>
    red.call(path, {
      as: await red.tokenOf(who),
      ...(body === undefined ? {} : { body }),
    });
  const seal = async (): Promise<Batch> => {
    await red.call('/v1/requests', { body: { dataset: 'claims', query: QUERY } });
    await as('operator', '/v1/batches:seal', { stream: 'requests' });
    const { body } = await as('operator', '/v1/batches?direction=out&stream=requests&page_size=1');
    return (body['items'] as Batch[])[0] as Batch;
  };
  const audited = (action: string) =>
    rows<{ actor: string; details: Record<string, unknown> }>(
      red.db,
      'select actor, details from audit_log where action = ? order by position',
      [action],
    );

  before(async () => {
    red = await openTestNetwork();
    blue = await makeTestNode('response', { options: { crypt: () => 'none' } });
    blue.time.now = red.time.now;
    await trustCard(blue.test.db, blue, red.node.keys.card, 'test');
    await trustCard(red.db, red.node, blue.keys.card, 'test');
  });
  after(async () => {
    await blue.remove();
    await red.stop();
  });

  it('seals now, lists, and tells everything of a batch but what its records say', async () => {
    const batch = await seal();
    expect(batch).to.include({ direction: 'out', state: 'ready' });
    const { body } = await as('auditor', `/v1/batches/${batch.id}`);
    expect(body).to.include({ records: 1, stream: 'requests', handed_over_at: null });
    expect(body['statistics']).to.deep.include({ types: { request: 1 }, build_ms: 0 });
    expect((body['custody'] as { step: string }[]).map(({ step }) => step)).to.deep.equal([
      'sealed',
    ]);
    const records = await as('auditor', `/v1/batches/${batch.id}/records`);
    expect(records.body['items']).to.have.length(1);
    expect((records.body['items'] as unknown[])[0]).to.include({
      line: 1,
      type: 'request',
      fate: 'on_its_way',
    });
    expect(records.text).to.not.contain('state');
    expect((await audited('batch.seal')).at(-1)).to.include({ actor: 'user:operator' });
  });

  it('goes through the list page by page, each batch once', async () => {
    await seal();
    await seal();
    const seen: string[] = [];
    let token = '';
    for (let page = 0; page < 20; page += 1) {
      const { body } = await as('admin', `/v1/batches?page_size=1${token}`);
      seen.push(...(body['items'] as Batch[]).map(({ id }) => id));
      if (body['next_page_token'] === undefined) break;
      token = `&page_token=${String(body['next_page_token'])}`;
    }
    const { body } = await as('admin', '/v1/batches');
    expect(seen).to.deep.equal((body['items'] as Batch[]).map(({ id }) => id));
    const other = await as('operator', `/v1/batches?page_size=1${token}`);
    expect(other.body['code']).to.equal('bad-page-token');
  });

  it('streams the file with its digest; an auditor reading it hands nothing over', async () => {
    const batch = await seal();
    const bytes = await readFile(join(red.node.folders.store, batch.file_name));
    const digest = createHash('sha256').update(bytes).digest('base64');
    const read = await as('auditor', `/v1/batches/${batch.id}/file`);
    expect(read.headers.get('repr-digest')).to.equal(`sha-256=:${digest}:`);
    expect((await as('auditor', `/v1/batches/${batch.id}`)).body['state']).to.equal('ready');
    const part = await red.call(`/v1/batches/${batch.id}/file`, {
      as: await red.tokenOf('operator'),
      headers: { range: 'bytes=5-9' },
    });
    expect(part).to.include({ status: 206, text: bytes.toString('latin1', 5, 10) });
    expect(part.headers.get('content-range')).to.equal(`bytes 5-9/${bytes.length}`);
    const end = await red.call(`/v1/batches/${batch.id}/file`, {
      as: await red.tokenOf('operator'),
      headers: { range: `bytes=${bytes.length - 1}-` },
    });
    expect(end.status).to.equal(206);
    expect(end.headers.get('content-length')).to.equal('1');
    const cookie = `__Host-sallyport=${await red.tokenOf('operator')}`;
    const sibling = await red.call(`/v1/batches/${batch.id}/file`, {
      as: null,
      headers: { cookie, 'sec-fetch-site': 'same-site' },
    });
    expect(sibling.body).to.include({ status: 403, code: 'cross-site' });
    await as('operator', `/v1/batches/${batch.id}/file`);
    // Noted once its last byte has left, and what was fetched before was not all.
    const left = await eventually(async () => {
      const { body } = await as('operator', `/v1/batches/${batch.id}`);
      return body['state'] === 'handed_over' && body;
    });
    expect(left['handed_over_by']).to.equal('user:operator');
    const taken = await rows<{ taken: number }>(
      red.db,
      "select count(*)::integer as taken from audit_log where action = 'batch.hand-over'",
    );
    expect(taken).to.deep.equal([{ taken: 1 }]);
  });

  it('notes who took a batch on what, once', async () => {
    const { id } = await seal();
    const path = `/v1/batches/${id}:confirm-handover`;
    const first = await as('operator', path, { who: 'Tess', medium: 'stick 7' });
    expect(first.body).to.include({ handed_over_by: 'Tess', medium: 'stick 7' });
    const again = await as('admin', path, { who: 'Somebody else' });
    expect(again.body).to.include({ handed_over_by: 'Tess', medium: 'stick 7' });
    const entries = (await audited('batch.hand-over')).filter((each) => each.details['who']);
    expect(entries).to.have.length(1);
    expect(entries[0]?.actor).to.equal('user:operator');
  });

  it('publishes the same bytes again, and says so when they are gone', async () => {
    const { id, file_name: name } = await seal();
    await rm(join(red.node.folders.outbox, name));
    expect(await as('operator', `/v1/batches/${id}:resend`, {})).to.include({ status: 200 });
    expect(await readdir(red.node.folders.outbox)).to.contain(name);
    await rm(join(red.node.folders.store, name));
    const gone = await as('operator', `/v1/batches/${id}:resend`, {});
    expect(gone.body).to.include({ status: 410, code: 'store-bytes-missing' });
    const file = await as('operator', `/v1/batches/${id}/file`);
    expect(file.body['code']).to.equal('store-bytes-missing');
  });

  it('writes a batch off once a second person approves, never the same one', async () => {
    const { id } = await seal();
    const path = `/v1/batches/${id}:write-off`;
    expect((await as('operator', path, { reason: ' ' })).body['code']).to.equal('bad-field');
    const asked = await as('operator', path, { reason: 'The stick was lost.' });
    expect(asked).to.include({ status: 202 });
    expect((await as('operator', path, { reason: 'Again.' })).body).to.include({
      id: asked.body['id'],
      fresh: false,
    });
    const approve = `/v1/approvals/${String(asked.body['id'])}:approve`;
    const self = await as('operator', approve, {});
    expect(self.body).to.include({ status: 403, code: 'approval-same-person' });
    const waiting = await as('auditor', '/v1/approvals');
    expect(waiting.body['items']).to.have.length(1);
    expect((await as('admin', approve, {})).body).to.include({ decision: 'approved' });
    expect((await as('admin', approve, {})).body['code']).to.equal('version-conflict');
    const { body } = await as('operator', `/v1/batches/${id}`);
    expect(body['state']).to.equal('withdrawn');
    expect((await as('auditor', '/v1/approvals')).body['items']).to.deep.equal([]);
    expect((await verifyAudit(red.db)).ok).to.equal(true);
  });

  it('tells how the link stands', async () => {
    const { body } = await as('operator', '/v1/link');
    const sending = body['sending'] as Record<string, unknown>[];
    const requests = sending.find(({ stream }) => stream === 'requests');
    expect(requests?.['open_bytes']).to.be.a('number').above(0);
    expect(body['clock_offset']).to.deep.equal({ least_ms: null, most_ms: null });
  });

  it('gives out no readable results, and shows results of unknown requests as orphans', async () => {
    const id = newId();
    const at = blue.clock.now().toISOString();
    const data = {
      ...{ status: 'rejected' as const, failure: null, media_type: null, bytes: null },
      ...{ sha256: null, parts: 0, text: null, disclosure: null },
      ...{ dataset_version: null, policy_version: null },
      times: { received_at: at, started_at: null, finished_at: at, took_ms: null },
    };
    await sendRecords(blue.test.db, 'results', [{ type: 'result', id, data }], blue.clock.now());
    await exportStream(blue.test.db, blue, 'results');
    await carryAll(blue, red.node, (name) => name.includes('.results.'));
    await importBatches(red.db, red.node, requestApplies(red.replica));
    const list = await as('operator', '/v1/batches?direction=in&page_size=1');
    const [batch] = list.body['items'] as Batch[];
    const file = await as('operator', `/v1/batches/${batch?.id}/file`);
    expect(file.body).to.include({ status: 403, code: 'plain-results' });
    const records = await as('operator', `/v1/batches/${batch?.id}/records`);
    expect((records.body['items'] as unknown[])[0]).to.include({ id, fate: 'orphan' });
  });

  it('searches the requests of all users, without a result', async () => {
    const custom = { dataset: 'claims', query: QUERY, custom_id: 'row-7', tags: ['blue'] };
    const mine = await red.call('/v1/requests', { body: custom });
    const bobs = await red.call('/v1/requests', { as: red.users.bob.key, body: custom });
    const ids = async (query: string) => {
      const { body } = await as('auditor', `/v1/admin/requests?${query}`);
      return (body['items'] as { id: string }[]).map(({ id }) => id);
    };
    expect(await ids('custom_id=row-7')).to.have.members([mine.body['id'], bobs.body['id']]);
    expect(await ids('login=bob')).to.deep.equal([bobs.body['id']]);
    expect(await ids('login=nobody')).to.deep.equal([]);
    expect(await ids('text=row-7&tag=blue&login=ada')).to.deep.equal([mine.body['id']]);
    expect(await ids(`digest=${String(mine.body['query_digest'])}&login=bob`)).to.have.length(1);
    const { body } = await as('operator', `/v1/admin/requests/${String(bobs.body['id'])}`);
    expect(body['user']).to.deep.equal({ id: red.users.bob.id, login: 'bob' });
    expect((body['timeline'] as { event: string }[])[0]?.event).to.equal('submitted');
    expect((await as('user', '/v1/admin/requests')).status).to.equal(403);
    expect((await as('admin', '/v1/admin/requests?who=bob')).body['code']).to.equal(
      'unknown-field',
    );
  });

  it('tells its health in detail, to those who run it', async () => {
    const { body } = await as('auditor', '/healthz');
    expect(body['database']).to.include({ ok: true });
    expect(body['queues']).to.include({ ok: true, store: 'postgresql' });
    expect(body).to.have.property('audit', null);
    expect(body['disks']).to.have.property('inbox').that.includes({ ok: true });
    expect(body['schedules']).to.be.an('array').that.is.not.empty;
    expect(body['clock_offset']).to.have.keys('least_ms', 'most_ms');
    expect((await as('user', '/healthz')).status).to.equal(403);
    expect((await red.call('/healthz', { as: null })).status).to.equal(401);
    const ready = await red.call('/readyz', { as: null });
    expect(ready.body['checks']).to.have.property('postgresql', 'ok');
  });

  it('shows the queues in a browser, from this host alone, and lets nobody change them', async () => {
    const page = await as('admin', '/admin/queues/');
    expect(page.status, page.text).to.equal(200);
    expect(page.text).to.not.match(/(?:href|src)="https?:/);
    expect(page.headers.get('content-security-policy')).to.contain("default-src 'none'");
    const queues = await as('auditor', '/admin/queues/api/queues');
    expect(queues.text).to.contain('export-requests');
    const change = await as('admin', '/admin/queues/api/queues/export-requests/pause', {});
    expect(change.body['code']).to.equal('method-not-allowed');
    expect((await as('user', '/admin/queues/')).status).to.equal(403);
    expect((await red.call('/admin/queues/', { as: null })).status).to.equal(401);
    const outside = await as('admin', '/admin/queues/static/..%2f..%2f..%2fpackage.json');
    expect(outside.text).to.not.contain('"dependencies"');
  });

  it('answers users and reviewers 403, and auditors where something would change', async () => {
    const { id } = await seal();
    for (const path of ['/v1/batches', `/v1/batches/${id}/file`, '/v1/link', '/v1/quarantine']) {
      for (const who of ['user', 'reviewer'] as const) {
        expect((await as(who, path)).body['code'], `${who} ${path}`).to.equal('role-missing');
      }
    }
    const refused = await as('auditor', `/v1/batches/${id}:write-off`, { reason: 'No.' });
    expect(refused.body['code']).to.equal('role-missing');
    expect((await red.call('/v1/batches')).body['code']).to.equal('role-missing');
  });

  it('refuses what it does not know', async () => {
    const { id } = await seal();
    const nothing = `/v1/batches/${id.replace(/^.{4}/, '0000')}`;
    expect(await as('operator', nothing)).to.include({ status: 404 });
    expect((await as('operator', '/v1/batches?state=lost')).body['code']).to.equal('bad-field');
    expect((await as('operator', '/v1/batches:seal', { stream: 'results' })).body['code']).to.equal(
      'bad-field',
    );
    expect((await as('operator', `/v1/batches/${id}/file?all=1`)).body['code']).to.equal(
      'unknown-field',
    );
  });
});
