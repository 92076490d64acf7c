import { readFile } from 'node:fs/promises';
import { expect } from 'chai';
import {
  SallyportError,
  createLog,
  hashApiKey,
  newApiKey,
  openDatabase,
  openPrincipals,
  rows,
  type AuditEntry,
} from '@sallyport/shared';
import type { CallOptions, TestAnswer } from '@sallyport/shared/testing';
import { lookUpKeys } from './api-key-look-ups.js';
import { SCOPES } from './api-keys.js';
import { keepHouse } from './housekeeping.js';
import { QUERY, openTestNetwork, type TestNetwork } from './testing.js';

const DAY_MS = 86_400_000;
const SECOND_MS = 1_000;
const GUIDE = new URL('../../docs/guides/api-keys.md', import.meta.url);

type Who = Parameters<TestNetwork['tokenOf']>[0];
type Made = { id: string; key: string; expires_at: string } & Record<string, unknown>;

let network: TestNetwork;
before(async () => {
  network = await openTestNetwork();
});
afterEach(() => network.db('api_keys').where({ name: 'other' }).delete());
after(() => network.stop());

/** Calls as somebody with a session that is fresh at the clock of the test. */
async function call(who: Who, path: string, options: CallOptions = {}): Promise<TestAnswer> {
  return network.call(path, { as: await network.tokenOf(who), ...options });
}

async function make(body: object = {}, who: Who = 'ada'): Promise<Made> {
  const answer = await call(who, '/v1/me/keys', { body: { name: 'other', ...body } });
  expect(answer.status).to.equal(201);
  return answer.body as Made;
}

async function rotate(id: string, body: object = { overlap_s: 60 }, who: Who = 'ada') {
  return call(who, `/v1/me/keys/${id}:rotate`, { body });
}

async function statusOf(key: string): Promise<number> {
  return (await network.call('/v1/requests', { as: key })).status;
}

const codeOf = ({ status, body }: TestAnswer) => [status, body['code']];
const move = (ms: number) => (network.time.now = new Date(network.time.now.getTime() + ms));

async function lastAudit(subject: string): Promise<AuditEntry> {
  const [entry] = await rows<AuditEntry>(
    network.db,
    'select * from audit_log where subject = ? order by position desc limit 1',
    [subject],
  );
  return entry as AuditEntry;
}

describe('POST /v1/me/keys', () => {
  it('makes a key that is shown once and kept as a keyed hash alone', async () => {
    const made = await make({ name: 'reader', scopes: ['requests:read'] });
    expect(made.key).to.match(/^sp_test_[0-9A-Za-z]{22}_[0-9A-Za-z]{6}$/);
    const [stored] = await rows(network.db, 'select * from api_keys where id = ?', [made.id]);
    expect(stored).to.include({ hash: hashApiKey(made.key, network.apiKeySecret) });
    expect(JSON.stringify(stored)).to.not.contain(made.key);
    expect(await statusOf(made.key)).to.equal(200);
    await network.principals.flush();
    const { body } = await call('ada', '/v1/me/keys');
    const [listed] = body['items'] as Made[];
    expect(listed).to.include({ name: 'reader', state: 'active', last_four: made.key.slice(-4) });
    expect(listed?.['last_used_at']).to.match(/:00\.000Z$/);
    expect(JSON.stringify(body))
      .to.not.contain(made.key)
      .and.not.contain(stored && 'hash');
    expect(await lastAudit(made.id)).to.include({ action: 'key.create', actor: 'user:ada' });
  });

  it('gives it the default life of the settings, and at most the longest one', async () => {
    const now = network.time.now.getTime();
    const usual = await make();
    expect(new Date(usual.expires_at).getTime() - now).to.equal(90 * DAY_MS);
    const longest = new Date(now + 365 * DAY_MS);
    expect((await make({ expires_at: longest.toISOString() })).expires_at).to.equal(
      longest.toISOString(),
    );
    for (const ms of [longest.getTime() + 1, now, now - 1]) {
      const body = { name: 'other', expires_at: new Date(ms).toISOString() };
      const refused = await call('ada', '/v1/me/keys', { body });
      expect(codeOf(refused)).to.deep.equal([422, 'bad-field']);
    }
  });

  it('takes limits up to those of the user', async () => {
    const made = await make({ limits: { submit_per_hour: 10_000 } });
    expect(made['limits']).to.deep.equal({ submit_per_hour: 10_000 });
    const body = { name: 'other', limits: { submit_per_minute: 1_001 } };
    const refused = await call('ada', '/v1/me/keys', { body });
    expect((refused.body['errors'] as object[])[0]).to.include({
      pointer: '/limits/submit_per_minute',
      limit: 1_000,
      actual: 1_001,
    });
  });

  it('refuses members that are not the caller’s to set, and values nobody can', async () => {
    const bodies = [
      { user_id: network.users.bob.id },
      { login: 'bob' },
      { state: 'active' },
      { hash: 'x' },
      { key: newApiKey('test').key },
      { first_used_at: null },
      { scopes: ['admin'] },
      { scopes: [] },
      { scopes: ['requests:read', 'requests:read'] },
      { limits: {} },
      { limits: { open_requests: 1 } },
      { limits: { submit_per_day: 0 } },
      { name: '' },
      { expires_at: '2016-12-31T23:59:60Z' },
    ];
    for (const change of bodies) {
      const body = { name: 'other', ...change };
      expect((await call('ada', '/v1/me/keys', { body })).status).to.equal(422);
    }
    const { body } = await call('ada', '/v1/me/keys');
    const { id } = (body['items'] as Made[])[0] as Made;
    const renamed = { method: 'PATCH', body: { name: 'mine', scopes: SCOPES } };
    expect((await call('ada', `/v1/me/keys/${id}`, renamed)).body['code']).to.equal(
      'unknown-field',
    );
  });

  it('stops at 50 keys that have not ended, however many are made at once', async () => {
    const [live] = await rows<{ count: number }>(
      network.db,
      'select count(*)::integer as count from api_keys where user_id = ? and revoked_at is null',
      [network.users.bob.id],
    );
    const as = await network.tokenOf('bob');
    const body = { name: 'other' };
    const answers = await Promise.all(
      Array.from({ length: 55 }, () => network.call('/v1/me/keys', { as, body })),
    );
    const made = answers.filter(({ status }) => status === 201);
    expect(made.length).to.equal(50 - (live?.count ?? 0));
    const refused = answers.find(({ status }) => status !== 201) as TestAnswer;
    expect(codeOf(refused)).to.deep.equal([409, 'already-exists']);
  });
});

describe('an API key', () => {
  it('may do what its scopes name and nothing that names none', async () => {
    const all = network.users.ada.key;
    const body = { dataset: 'claims', query: QUERY };
    const submitted = await network.call('/v1/requests', { as: all, body });
    const id = String(submitted.body['id']);
    const calls: [scope: string, path: string, options: CallOptions][] = [
      ['requests:read', '/v1/requests', {}],
      ['requests:read', `/v1/requests/${id}`, {}],
      ['requests:read', `/v1/requests/${id}/timeline`, {}],
      ['requests:read', '/v1/me', {}],
      ['requests:read', '/v1/datasets', {}],
      ['results:read', `/v1/requests/${id}/result`, {}],
      ['requests:write', '/v1/requests', { body }],
      ['requests:write', '/v1/requests:bulk', { method: 'POST' }],
      ['requests:write', `/v1/requests/${id}:cancel`, { method: 'POST' }],
    ];
    for (const scope of SCOPES) {
      const { key } = await make({ scopes: [scope] });
      for (const [needed, path, options] of calls) {
        const { status } = await network.call(path, { ...options, as: key });
        expect([path, status === 403]).to.deep.equal([path, needed !== scope]);
      }
    }
    for (const path of ['/v1/me/keys', '/v1/me/notices']) {
      expect((await network.call(path, { as: all })).body['code']).to.equal('scope-missing');
    }
  });

  it('can be made for every scope that a route names, and for no other', async () => {
    const { body } = await network.call('/openapi.json', { as: null });
    type Operation = { security?: { apiKey?: string[] }[] };
    const operations = Object.values(body['paths'] as Record<string, Record<string, Operation>>);
    const named = operations
      .flatMap((each) => Object.values(each))
      .flatMap(({ security = [] }) => security.flatMap(({ apiKey = [] }) => apiKey));
    expect([...new Set(named)]).to.have.members(SCOPES);
  });

  it('gets the same answer unknown, mistyped, expired, disabled and revoked', async () => {
    const ends = new Date(network.time.now.getTime() + SECOND_MS).toISOString();
    const expired = await make({ expires_at: ends });
    const [disabled, revoked] = [await make(), await make()];
    for (const { key } of [expired, disabled, revoked]) expect(await statusOf(key)).to.equal(200);
    // It is remembered, and still not for longer than it lives.
    move(SECOND_MS);
    await call('admin', `/v1/admin/keys/${disabled.id}:disable`, { body: { reason: 'test' } });
    await call('ada', `/v1/me/keys/${revoked.id}`, { method: 'DELETE' });
    const { key } = newApiKey('test');
    const tried = [expired.key, disabled.key, revoked.key, key, `${key.slice(0, -1)}_`];
    tried.push(network.users.eve.key);
    const answers = await Promise.all(
      tried.map((as) =>
        network.call('/v1/requests', { as, headers: { 'x-request-id': 'the-same' } }),
      ),
    );
    for (const { status, text } of answers) {
      expect([status, text]).to.deep.equal([401, answers[0]?.text]);
    }
  });

  it('is not taken from the URL', async () => {
    const path = `/v1/requests?key=${network.users.ada.key}`;
    expect((await network.call(path, { as: null })).status).to.equal(401);
    expect(codeOf(await network.call(path))).to.deep.equal([422, 'unknown-field']);
  });

  it('is refused by a submit even while its process still remembers it', async () => {
    const { id, key } = await make();
    const submit = () =>
      network.call('/v1/requests', { as: key, body: { dataset: 'claims', query: QUERY } });
    expect((await submit()).status).to.equal(202);
    await network.db('api_keys').where({ id }).update({ disabled_at: network.time.now });
    expect((await submit()).status).to.equal(401);
  });

  it('costs no look-up when it is mistyped', async () => {
    const db = openDatabase('postgres://nobody@127.0.0.1:1/nothing');
    await db.destroy();
    const { clock, sessionKey } = network;
    const principals = openPrincipals({
      db,
      clock,
      log: createLog('test', 'silent'),
      network: 'request',
      sessionKey,
      issuer: 'red',
      keys: lookUpKeys(db, network.apiKeySecret, clock),
      hearsChanges: () => true,
    });
    const failureOf = async (key: string) =>
      Promise.resolve(principals.authenticate(`Bearer ${key}`)).catch((error: unknown) => error);
    const { key } = newApiKey('test');
    const mistyped = key.replace(/.$/, (last) => (last === '0' ? '1' : '0'));
    expect(await failureOf(mistyped)).to.include({ code: 'unauthenticated' });
    expect(await failureOf(key)).to.not.be.instanceOf(SallyportError);
    await principals.close();
  });

  it('has limits of its own besides those of its user', async () => {
    const { key } = await make({ limits: { submit_per_minute: 2 } });
    const submit = async (as: string) =>
      (await network.call('/v1/requests', { as, body: { dataset: 'claims', query: QUERY } }))
        .status;
    const statuses = [await submit(key), await submit(key), await submit(key)];
    expect(statuses).to.deep.equal([202, 202, 429]);
    expect(await submit((await make()).key)).to.equal(202);
  });

  it('is found by the regular expression of the guide for secret scanners', async () => {
    const guide = await readFile(GUIDE, 'utf8');
    const pattern = /```regexp\n(.*)\n```/.exec(guide)?.[1] ?? '(?!)';
    const keys = ['live', 'test', 'a1'].map((environment) => newApiKey(environment).key);
    const found = `KEY="${keys[0]}"\n${keys[1]} and ${keys[2]}.`.match(new RegExp(pattern, 'g'));
    expect(found).to.deep.equal(keys);
    const others = [
      'sp_live_short_123456',
      `x${keys[0]}x`,
      'sp_LIVE_0123456789012345678901_123456',
    ];
    for (const other of others) expect(other).to.not.match(new RegExp(pattern));
  });
});

describe('POST /v1/me/keys/{id}:rotate', () => {
  it('lets the old key work until the overlap after the first use of the new one', async () => {
    const old = await make({ scopes: ['requests:read'], limits: { submit_per_day: 9 } });
    const { status, body } = await rotate(old.id);
    const next = body as Made;
    expect(status).to.equal(201);
    expect(next).to.deep.include({
      name: 'other',
      scopes: ['requests:read'],
      limits: { submit_per_day: 9 },
      rotated_from: old.id,
    });
    move(40 * DAY_MS);
    expect(await statusOf(old.key)).to.equal(200);
    expect(await statusOf(next.key)).to.equal(200);
    const after = await call('ada', `/v1/me/keys/${old.id}`);
    expect(after.body).to.include({
      replaced_by: next.id,
      expires_at: new Date(network.time.now.getTime() + 60 * SECOND_MS).toISOString(),
    });
    expect(await lastAudit(old.id)).to.include({ action: 'key.replace', actor: 'user:ada' });
    move(60 * SECOND_MS - 1);
    expect(await statusOf(old.key)).to.equal(200);
    expect(await statusOf(next.key)).to.equal(200);
    move(1);
    expect(await statusOf(old.key)).to.equal(401);
    expect(await statusOf(next.key)).to.equal(200);
  });

  it('never lets it work past its own end', async () => {
    const ends = new Date(network.time.now.getTime() + DAY_MS).toISOString();
    const old = await make({ expires_at: ends });
    const { body } = await rotate(old.id, { overlap_s: 30 * 86_400 });
    expect(await statusOf(String(body['key']))).to.equal(200);
    expect((await call('ada', `/v1/me/keys/${old.id}`)).body['expires_at']).to.equal(ends);
    // The new one lives as long as the old one did.
    expect(body['expires_at']).to.equal(ends);
  });

  it('gives the newest of several, asked for one after another or at once', async () => {
    const old = await make();
    const first = (await rotate(old.id)).body as Made;
    const answers = await Promise.all([rotate(old.id), rotate(old.id), rotate(old.id)]);
    expect(answers.map(({ status }) => status)).to.deep.equal([201, 201, 201]);
    expect(await statusOf(old.key)).to.equal(200);
    const keys = [first, ...answers.map(({ body }) => body as Made)].map(({ key }) => key);
    const works = await Promise.all(keys.map(statusOf));
    expect(works.filter((status) => status === 200)).to.have.length(1);
    expect(codeOf(await rotate(old.id))).to.deep.equal([409, 'already-exists']);
  });

  it('ends every key before the one that is used, though some never were', async () => {
    const old = await make();
    const middle = (await rotate(old.id)).body as Made;
    const last = (await rotate(middle.id, { overlap_s: 0 })).body as Made;
    expect(await statusOf(last.key)).to.equal(200);
    expect(await Promise.all([old.key, middle.key].map(statusOf))).to.deep.equal([401, 401]);
  });

  it('refuses a key that has ended, is disabled or is somebody else’s', async () => {
    const { id } = await make();
    expect(codeOf(await rotate(id, { overlap_s: 1 }, 'bob'))).to.deep.equal([404, 'not-found']);
    await call('admin', `/v1/admin/keys/${id}:disable`, { body: { reason: 'lost laptop' } });
    expect(codeOf(await rotate(id))).to.deep.equal([403, 'blocked']);
    await call('ada', `/v1/me/keys/${id}`, { method: 'DELETE' });
    expect(codeOf(await rotate(id))).to.deep.equal([409, 'already-final']);
    for (const body of [{}, { overlap_s: -1 }, { overlap_s: 2_592_001 }, { overlap_s: 0, id }]) {
      expect((await rotate(id, body)).status).to.equal(422);
    }
  });
});

describe('/v1/me/keys/{id}', () => {
  it('shows, renames and revokes one’s own, and knows nobody else’s', async () => {
    const { id } = await make();
    const path = `/v1/me/keys/${id}`;
    for (const options of [{}, { method: 'PATCH', body: { name: 'x' } }, { method: 'DELETE' }]) {
      expect(codeOf(await call('bob', path, options))).to.deep.equal([404, 'not-found']);
    }
    const renamed = await call('ada', path, { method: 'PATCH', body: { name: 'nightly' } });
    expect(renamed.body).to.include({ name: 'nightly', state: 'active' });
    expect((await lastAudit(id)).details).to.deep.include({
      before: { name: 'other' },
      after: { name: 'nightly' },
    });
    for (const status of [204, 204]) {
      expect((await call('ada', path, { method: 'DELETE' })).status).to.equal(status);
    }
    expect((await call('ada', path)).body).to.include({ state: 'revoked' });
  });
});

describe('/v1/admin/keys', () => {
  it('lists the keys of all users by login, beginning, end and state, in pages', async () => {
    const { id, key } = await make();
    const find = async (query: string, who: Who = 'auditor') => {
      const { body } = await call(who, `/v1/admin/keys?${query}`);
      return (body['items'] as Made[]).map((each) => each.id);
    };
    for (const query of [
      'login=AD&state=active',
      `prefix=${key.slice(0, 12)}`,
      `last_four=${key.slice(-4)}&login=ada`,
    ]) {
      expect(await find(query)).to.include(id);
    }
    expect(await find('login=bob')).to.not.include(id);
    expect(await find('state=revoked', 'admin')).to.not.include(id);
    expect(await find('prefix=%25')).to.deep.equal([]);
    const first = await call('auditor', '/v1/admin/keys?page_size=1');
    const token = encodeURIComponent(String(first.body['next_page_token']));
    const next = `page_size=1&page_token=${token}`;
    expect(await find(next))
      .to.have.length(1)
      .and.not.include((first.body['items'] as Made[])[0]?.id);
    expect(codeOf(await call('admin', `/v1/admin/keys?${next}`))).to.deep.equal([
      400,
      'bad-page-token',
    ]);
    expect((await call('admin', `/v1/admin/keys/${id}`)).body).to.include({ id, login: 'ada' });
    expect(JSON.stringify(first.body)).to.not.contain('hash');
  });

  it('disables, enables and revokes with a reason, tells the user, and leaves a trail', async () => {
    const { id, key } = await make();
    const act = (what: string, body: object = { reason: 'seen in a public log' }) =>
      call('admin', `/v1/admin/keys/${id}:${what}`, { body });
    expect(codeOf(await act('disable', {}))).to.deep.equal([422, 'bad-field']);
    expect(codeOf(await act('disable', { reason: '  ' }))).to.deep.equal([422, 'bad-field']);
    expect((await act('disable')).body).to.include({ state: 'disabled' });
    expect(await lastAudit(id)).to.deep.include({
      action: 'key.disable',
      actor: 'user:admin',
      details: {
        login: 'ada',
        name: 'other',
        prefix: key.slice(0, 12),
        last_four: key.slice(-4),
        reason: 'seen in a public log',
        before: { state: 'active' },
        after: { state: 'disabled' },
      },
    });
    expect(await statusOf(key)).to.equal(401);
    const entry = await lastAudit(id);
    expect((await act('disable')).status).to.equal(200);
    expect(await lastAudit(id)).to.deep.equal(entry);
    expect((await act('enable')).body).to.include({ state: 'active' });
    expect(await statusOf(key)).to.equal(200);
    expect((await act('revoke')).body).to.include({ state: 'revoked' });
    expect(codeOf(await act('enable'))).to.deep.equal([409, 'already-final']);
    const { body } = await call('ada', '/v1/me/notices?page_size=3');
    const kinds = (body['items'] as { kind: string; subject: string }[]).map(
      ({ kind, subject }) => [kind, subject],
    );
    expect(kinds).to.deep.equal([
      ['key.revoke', id],
      ['key.enable', id],
      ['key.disable', id],
    ]);
  });

  it('is for admins, and to read for auditors', async () => {
    const { id } = await make();
    const body = { reason: 'test' };
    for (const who of ['ada', 'operator', 'reviewer', 'auditor'] as const) {
      const read = await call(who, '/v1/admin/keys');
      expect([who, read.status]).to.deep.equal([who, who === 'auditor' ? 200 : 403]);
      for (const what of ['disable', 'enable', 'revoke']) {
        const answer = await call(who, `/v1/admin/keys/${id}:${what}`, { body });
        expect(codeOf(answer)).to.deep.equal([403, 'role-missing']);
      }
    }
    const nobody = '/v1/admin/keys/0197c6a5-0000-7000-8000-000000000000';
    expect((await call('admin', nobody)).status).to.equal(404);
    expect((await call('admin', `${nobody}:revoke`, { body })).status).to.equal(404);
  });
});

describe('keepHouse', () => {
  const keep = async () => {
    const { settings } = await network.replica.rules();
    await keepHouse(network.db, { now: network.time.now, settings, log: network.log });
  };
  const warningsOf = async (id: string) => {
    const found = await network
      .db<{ title: string; kind: string; subject: string }>('notices')
      .select('title')
      .where('kind', 'key.expiring')
      .where('subject', id)
      .orderBy('position');
    return found.map(({ title }) => /within (.*)$/.exec(title)?.[1]);
  };

  it('warns of the end of a key once at 30, 14, 7 days and a day ahead', async () => {
    const long = await make();
    const short = await make({
      expires_at: new Date(network.time.now.getTime() + 10 * DAY_MS).toISOString(),
    });
    const rotated = await make();
    const { body } = await rotate(rotated.id, { overlap_s: 20 * 86_400 });
    expect(await statusOf(String(body['key']))).to.equal(200);
    for (let day = 0; day <= 91; day++) {
      await keep();
      if (day % 10 === 0) await keep();
      move(DAY_MS);
    }
    expect(await warningsOf(long.id)).to.deep.equal(['30 days', '14 days', '7 days', 'a day']);
    expect(await warningsOf(short.id)).to.deep.equal(['7 days', 'a day']);
    expect(await warningsOf(rotated.id)).to.deep.equal([]);
  });

  it('forgets keys 90 days after their end', async () => {
    const { id } = await make();
    await call('ada', `/v1/me/keys/${id}`, { method: 'DELETE' });
    move(90 * DAY_MS);
    await keep();
    expect((await call('ada', `/v1/me/keys/${id}`)).status).to.equal(200);
    move(1);
    await keep();
    expect((await call('ada', `/v1/me/keys/${id}`)).status).to.equal(404);
  });
});
