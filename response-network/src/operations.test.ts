import { createHash } from 'node:crypto';
import { readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { join } from 'node:path';
import { expect } from 'chai';
import { newId, rows, type Role } from '@sallyport/shared';
import { eventually, type TestAnswer } from '@sallyport/shared/testing';
import { exportStream, importBatches, sendRecords, trustCard } from '@sallyport/transfer';
import { makeTestNode, requestRecord, type TestNode } from '@sallyport/transfer/testing';
import { applies } from './network.js';
import { openTestApi, type TestApi } from './testing.js';

type Import = {
  id: string;
  state: string;
  received_bytes: number;
  verdict: { outcome: string; records: number | null } | null;
  quarantine: string | null;
  batch: string | null;
  lines: { line: number; code: string }[];
};

const OCTETS = { 'content-type': 'application/octet-stream' };
const PART = { 'content-type': 'application/partial-upload' };

describe('operations of the response network', () => {
  let blue: TestApi;
  let red: TestNode;
  let crypt: 'age' | 'none';

  const as = async (who: Role, path: string, body?: unknown): Promise<TestAnswer> =>
    blue.call(path, { as: await blue.tokenOf(who), ...(body === undefined ? {} : { body }) });
  const send = async (
    bytes: Uint8Array,
    headers: Record<string, string> = {},
    path = '/v1/imports',
  ): Promise<{ status: number; headers: Headers; body: Import & { code?: string } }> => {
    const answer = await fetch(`${blue.url}${path}`, {
      method: path === '/v1/imports' ? 'POST' : 'PATCH',
      headers: { authorization: `Bearer ${await blue.tokenOf('operator')}`, ...OCTETS, ...headers },
      body: bytes,
    });
    return {
      status: answer.status,
      headers: answer.headers,
      body: (await answer.json()) as Import,
    };
  };
  const makeBatch = async (
    change: () => PromiseLike<unknown> = async () => {},
  ): Promise<Buffer> => {
    const known = new Set(await readdir(red.folders.outbox));
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    await change();
    await exportStream(red.test.db, red, 'requests');
    const name = (await readdir(red.folders.outbox)).find((each) => !known.has(each)) ?? '';
    return readFile(join(red.folders.outbox, name));
  };
  const importAll = () => importBatches(blue.db, blue.node, applies);
  const verdictOf = async (id: string): Promise<Import> =>
    (await as('auditor', `/v1/imports/${id}`)).body as Import;
  const auditOf = (id: string) =>
    rows<{ actor: string; action: string; details: Record<string, unknown> }>(
      blue.db,
      'select actor, action, details from audit_log where subject = ? order by position',
      [id],
    );
  /** Nothing but whole uploads may ever lie there under a name that an importer opens. */
  const inbox = () => readdir(blue.node.folders.inbox);

  before(async () => {
    crypt = 'age';
    blue = await openTestApi();
    red = await makeTestNode('request', { options: { crypt: () => crypt } });
    red.time.now = blue.time.now;
    await trustCard(blue.db, blue.node, red.keys.card, 'test');
    await trustCard(red.test.db, red, blue.node.keys.card, 'test');
  });
  after(async () => {
    await red.remove();
    await blue.stop();
  });

  it('takes a batch in and tells the verdict', async () => {
    const bytes = await makeBatch();
    const sha256 = createHash('sha256').update(bytes).digest('base64');
    const sent = await send(bytes, { 'repr-digest': `sha-256=:${sha256}:` });
    expect(sent.status).to.equal(202);
    expect(sent.headers.get('location')).to.equal(`/v1/imports/${sent.body.id}`);
    expect(sent.body).to.include({ state: 'received', verdict: null });
    expect(await inbox()).to.deep.equal([`upload-${sent.body.id}.batch`]);
    await importAll();
    const judged = await verdictOf(sent.body.id);
    expect(judged.verdict).to.include({ outcome: 'APPLIED', records: 1 });
    expect(await inbox()).to.deep.equal([]);
    const batch = await as('operator', `/v1/batches/${judged.batch}`);
    expect(batch.body).to.include({ direction: 'in', state: 'applied' });
    expect(batch.body['statistics']).to.include({ faults: 0, error_rate: 0 });
    const records = await as('operator', `/v1/batches/${judged.batch}/records`);
    expect((records.body['items'] as unknown[])[0]).to.include({ line: 1, fate: 'applied' });
    const file = await as('operator', `/v1/batches/${judged.batch}/file`);
    expect(file.headers.get('repr-digest')).to.equal(`sha-256=:${sha256}:`);
  });

  it('gives out no requests that came readable', async () => {
    crypt = 'none';
    const bytes = await makeBatch().finally(() => (crypt = 'age'));
    const { body } = await send(bytes);
    await importAll();
    const { batch, verdict } = await verdictOf(body.id);
    expect(verdict?.outcome).to.equal('APPLIED');
    const file = await as('operator', `/v1/batches/${batch}/file`);
    expect(file.body).to.include({ status: 403, code: 'plain-results' });
    const records = await as('operator', `/v1/batches/${batch}/records`);
    expect((records.body['items'] as unknown[])[0]).to.include({ line: 1, fate: 'applied' });
  });

  it('reports the lines that were refused alone', async () => {
    const spoil = () =>
      red.test.db.raw(
        `update outbox_records set line = replace(line, '"tier":"B"', '"tier":"Z"')
         where batch_id is null`,
      );
    const { body } = await send(await makeBatch(spoil));
    await importAll();
    const { batch, lines } = await verdictOf(body.id);
    expect(lines).to.have.length(1);
    expect(lines[0]).to.include({ line: 1, code: 'SCHEMA' });
    const records = await as('auditor', `/v1/batches/${batch}/records`);
    expect((records.body['items'] as unknown[])[0]).to.include({ fate: 'malformed' });
    const { statistics } = (await as('auditor', `/v1/batches/${batch}`)).body;
    expect(statistics).to.include({ faults: 1, error_rate: 1 });
  });

  it('says duplicate of a file that comes twice, and applies it once', async () => {
    const bytes = await makeBatch();
    const [first, second] = await Promise.all([send(bytes), send(bytes)]);
    expect([first.status, second.status]).to.deep.equal([202, 202]);
    expect(await inbox()).to.have.length(2);
    await importAll();
    const verdicts = [await verdictOf(first.body.id), await verdictOf(second.body.id)];
    expect(verdicts.map(({ verdict }) => verdict?.outcome).sort()).to.deep.equal([
      'APPLIED',
      'DUPLICATE',
    ]);
    const third = await send(bytes);
    await importAll();
    expect((await verdictOf(third.body.id)).verdict?.outcome).to.equal('DUPLICATE');
  });

  it('quarantines what is no batch, which nobody can release', async () => {
    const sent = await send(Buffer.from('{"no":"batch"}\n'));
    await importAll();
    const judged = await verdictOf(sent.body.id);
    expect(judged.verdict?.outcome).to.equal('BAD_HEADER');
    const path = `/v1/quarantine/${judged.quarantine}`;
    expect((await as('auditor', path)).body).to.include({ bytes: 'whole' });
    const release = await as('operator', `${path}:release`, { reason: 'Try again.' });
    expect(release.body).to.include({ code: 'batch-refused', batch_code: 'BAD_HEADER' });
    expect((await as('auditor', `${path}:reject`, { reason: 'No.' })).status).to.equal(403);
    const rejected = await as('admin', `${path}:reject`, { reason: 'Noise.' });
    expect(rejected.body).to.include({ decision: 'rejected', decided_by: 'user:admin' });
    const left = await as('operator', '/v1/quarantine');
    expect(left.body['items']).to.deep.equal([]);
    expect((await as('operator', '/v1/quarantine?all=true')).body['items']).to.have.length(1);
  });

  it('keeps what arrived before a cut, and goes on from there', async () => {
    const bytes = await makeBatch();
    const half = Math.floor(bytes.length / 2);
    const token = await blue.tokenOf('operator');
    const headers = {
      authorization: `Bearer ${token}`,
      ...OCTETS,
      'content-length': bytes.length,
    };
    const call = request(`${blue.url}/v1/imports`, { method: 'POST', headers });
    call.on('error', () => undefined);
    call.write(bytes.subarray(0, half));
    const cut = await eventually(async () => {
      const { body } = await as('operator', '/v1/imports?page_size=1');
      const [newest] = body['items'] as Import[];
      return newest?.state === 'receiving' && newest;
    });
    call.destroy();
    await eventually(async () => (await verdictOf(cut.id)).received_bytes === half);
    expect(await inbox()).to.deep.equal([]);
    const path = `/v1/imports/${cut.id}`;
    const wrong = await send(
      bytes,
      { ...PART, 'upload-offset': '0', 'upload-complete': '?1' },
      path,
    );
    expect(wrong.body).to.include({ code: 'upload-offset', offset: half });
    const rest = await send(
      bytes.subarray(half),
      { ...PART, 'upload-offset': String(half), 'upload-complete': '?1' },
      path,
    );
    expect(rest.status).to.equal(202);
    await importAll();
    expect((await verdictOf(cut.id)).verdict?.outcome).to.equal('APPLIED');
    const again = await send(
      Buffer.from('x'),
      { ...PART, 'upload-offset': String(bytes.length), 'upload-complete': '?1' },
      path,
    );
    expect(again.body.code).to.equal('already-final');
  });

  it('lets an upload begin with nothing, grow, and be given up', async () => {
    const opened = await send(new Uint8Array(), { 'upload-complete': '?0', 'upload-length': '9' });
    expect(opened.status).to.equal(201);
    const path = `/v1/imports/${opened.body.id}`;
    const more = await send(
      Buffer.from('12345'),
      { ...PART, 'upload-offset': '0', 'upload-complete': '?0' },
      path,
    );
    expect(more.headers.get('upload-offset')).to.equal('5');
    const short = await send(
      Buffer.from('6'),
      { ...PART, 'upload-offset': '5', 'upload-complete': '?1' },
      path,
    );
    expect(short.body.code).to.equal('body-incomplete');
    const admin = await blue.tokenOf('admin');
    expect((await blue.call(path, { as: admin, method: 'DELETE' })).status).to.equal(204);
    expect((await as('operator', path)).status).to.equal(404);
    expect(await auditOf(opened.body.id)).to.deep.equal([
      {
        actor: 'user:admin',
        action: 'import.cancel',
        details: { bytes: 6, opened_by: 'user:operator' },
      },
    ]);
    expect(await readdir(blue.node.folders.staging)).to.deep.equal([]);
  });

  it('names whoever sent the last bytes, and takes no others once it lies in the inbox', async () => {
    const part = Buffer.from('{"a":1}\n');
    const opened = await send(new Uint8Array(), { 'upload-complete': '?0' });
    const { id } = opened.body;
    const path = `/v1/imports/${id}`;
    // As a process leaves it that dies between moving the file and noting it.
    const lying = join(blue.node.folders.inbox, `upload-${id}.batch`);
    await writeFile(lying, part);
    const last = { ...PART, 'upload-offset': '0', 'upload-complete': '?1' };
    const other = await send(Buffer.from('{"b":2}\n'), last, path);
    expect(other.body.code).to.equal('digest-mismatch');
    await rows(blue.db, 'update imports set received_bytes = 0 where id = ?', [id]);
    const authorization = `Bearer ${await blue.tokenOf('admin')}`;
    expect((await send(part, { ...last, authorization }, path)).status).to.equal(202);
    expect(await auditOf(id)).to.have.length(1);
    expect((await auditOf(id))[0]).to.deep.include({
      actor: 'user:admin',
      action: 'import.upload',
    });
    await rm(lying);
    expect(await readdir(blue.node.folders.staging)).to.deep.equal([]);
  });

  it('takes four files at a time, and says when to try again', async () => {
    const headers = {
      authorization: `Bearer ${await blue.tokenOf('operator')}`,
      ...OCTETS,
      'content-length': 9,
    };
    const slow = Array.from({ length: 4 }, () => {
      const call = request(`${blue.url}/v1/imports`, { method: 'POST', headers });
      call.on('error', () => undefined);
      call.write('1');
      return call;
    });
    // Each has its file once it holds a place; asking earlier could take the place of the last.
    await eventually(async () => (await readdir(blue.node.folders.staging)).length === slow.length);
    const ask = () =>
      send(
        Buffer.from('x'),
        { ...PART, 'upload-offset': '0', 'upload-complete': '?0' },
        `/v1/imports/${newId()}`,
      );
    const refused = await ask();
    expect(refused.status).to.equal(503);
    expect(refused.body.code).to.equal('queue-full');
    expect(refused.headers.get('retry-after')).to.equal('5');
    for (const call of slow) call.destroy();
    await eventually(async () => (await ask()).status === 404);
    const admin = await blue.tokenOf('admin');
    await eventually(async () => {
      const { body } = await as('operator', '/v1/imports?page_size=10');
      const open = (body['items'] as Import[]).filter(({ state }) => state === 'receiving');
      for (const { id } of open) {
        await blue.call(`/v1/imports/${id}`, { as: admin, method: 'DELETE' });
      }
      return open.length === 0;
    });
  });

  it('refuses other media types, sizes, digests and headers, and leaves nothing', async () => {
    const bytes = Buffer.from('{"a":1}\n');
    expect((await send(bytes, { 'content-type': 'text/plain' })).body.code).to.equal(
      'unsupported-media-type',
    );
    expect((await send(bytes, { 'content-encoding': 'gzip' })).body.code).to.equal(
      'unsupported-media-type',
    );
    const large = { 'upload-complete': '?0', 'upload-length': '5000000000' };
    expect((await send(new Uint8Array(), large)).body.code).to.equal('body-too-large');
    const wrong = createHash('sha256').update('other').digest('base64');
    const digest = await send(bytes, { 'repr-digest': `sha-256=:${wrong}:` });
    expect(digest.body.code).to.equal('digest-mismatch');
    const fresh = digest.headers.get('location') ?? '';
    const token = await blue.tokenOf('admin');
    expect((await blue.call(fresh, { as: token, method: 'DELETE' })).status).to.equal(204);
    expect((await send(bytes, { 'upload-complete': 'yes' })).body.code).to.equal('bad-header');
    const more = { 'upload-complete': '?0', 'upload-length': '3' };
    expect((await send(bytes, more)).body.code).to.equal('body-too-large');
    expect(await inbox()).to.deep.equal([]);
    expect(await readdir(blue.node.folders.staging)).to.deep.equal([]);
  });

  it('searches what came across, ends it and lets it be tried again, with a reason', async () => {
    const one = requestRecord();
    Object.assign(one.data, { expires_at: new Date(Date.now() + 86_400_000).toISOString() });
    await sendRecords(red.test.db, 'requests', [one], red.clock.now());
    await send(await makeBatch());
    await importAll();
    const reason = 'It is not wanted.';
    const found = await as('auditor', '/v1/admin/executions?state=received&dataset=claims');
    expect((found.body['items'] as { id: string }[]).map(({ id }) => id)).to.contain(one.id);
    const path = `/v1/admin/executions/${one.id}`;
    await blue.db('requests').where({ id: one.id }).update({ attempts: 3 });
    expect((await as('operator', `${path}:retry`, { reason })).status).to.equal(403);
    expect((await as('admin', `${path}:retry`, { reason })).body).to.include({ attempts: 0 });
    await blue.db('requests').where({ id: one.id }).update({ state: 'running' });
    expect((await as('admin', `${path}:retry`, { reason })).body['code']).to.equal('in-flight');
    const stopping = await as('admin', `${path}:kill`, { reason });
    expect(stopping.status).to.equal(202);
    expect(stopping.body['cancel_asked_at']).to.be.a('string');
    await blue.db('requests').where({ id: one.id }).update({ state: 'received' });
    const killed = await as('admin', `${path}:kill`, { reason });
    expect(killed.status).to.equal(200);
    expect(killed.body).to.include({ state: 'done', status: 'cancelled', age_ms: null });
    expect((await as('admin', `${path}:kill`, { reason })).body['code']).to.equal('already-final');
    expect((await as('admin', `${path}:kill`, {})).body['code']).to.equal('bad-field');
  });

  it('tells its health in detail, Elasticsearch included', async () => {
    const { body } = await as('operator', '/healthz');
    expect(body['services']).to.have.property('elasticsearch').that.includes({ ok: true });
    expect(body['database']).to.include({ ok: true });
    expect((await as('reviewer', '/healthz')).status).to.equal(403);
  });

  it('answers users, reviewers and auditors 403', async () => {
    for (const who of ['user', 'reviewer', 'auditor'] as const) {
      const answer = await blue.call('/v1/imports', {
        as: await blue.tokenOf(who),
        text: 'x',
        headers: OCTETS,
      });
      expect(answer.status, who).to.equal(403);
    }
  });
});
