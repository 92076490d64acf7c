import { expect } from 'chai';
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { newId, rows, type Limits } from '@sallyport/shared';
import { QUERY, makeKey, openTestNetwork, type TestNetwork } from './testing.js';

const START = Date.UTC(2027, 5, 1);
const SUBMISSION = { dataset: 'claims', query: QUERY };
const REASON = { reason: 'a test' };
let network: TestNetwork;
let ada: string;

before(async () => {
  network = await openTestNetwork();
  ada = network.users.ada.id;
});
after(() => network.stop());

beforeEach(async () => {
  network.time.now = new Date(START);
  await network.limiter.flush();
  await network.db('rate_limits').delete();
  await network.db('limit_episodes').delete();
  await setLimits({ submit_per_minute: 10, submit_per_hour: 1_000, submit_per_day: 10_000 });
  network.limiter.drop();
});

async function setLimits(limits: Partial<Limits>): Promise<void> {
  await rows(network.db, 'update profile_types set limits = limits || ?::jsonb', [
    JSON.stringify(limits),
  ]);
}

const submit = async (as = network.users.ada.key) =>
  (await network.call('/v1/requests', { body: SUBMISSION, as })).status;
async function submits(count: number): Promise<number[]> {
  const statuses: number[] = [];
  for (let n = 0; n < count; n += 1) statuses.push(await submit());
  return statuses;
}
const act = async (name: string, body: object = {}, subject = ada) =>
  network.call(`/v1/admin/limits/${subject}:${name}`, {
    body: { ...REASON, ...body },
    as: await network.tokenOf('admin'),
  });
const view = async (path: string, role: 'admin' | 'auditor' | 'operator' = 'auditor') =>
  (await network.call(path, { as: await network.tokenOf(role) })).body;
async function lastAudit() {
  const [entry] = await rows<{ action: string; actor: string; details: Record<string, unknown> }>(
    network.db,
    'select action, actor, details from audit_log order by position desc limit 1',
  );
  return entry;
}

describe('GET /v1/me/limits', () => {
  it('tells every window and quota, and counts nothing', async () => {
    await submits(9);
    for (let n = 0; n < 3; n += 1) {
      const { status, body } = await network.call('/v1/me/limits');
      expect(status).to.equal(200);
      expect(body).to.include({ state: 'warning', max_cost_now: 1_000, blocked: null });
      expect(body).to.have.nested.property('windows[0].used', 9);
      expect(body).to.have.nested.property('open_requests.used').that.is.at.least(9);
    }
  });

  it('says that the next submit would be refused', async () => {
    await submits(11);
    const { body } = await network.call('/v1/me/limits');
    expect(body).to.include({ state: 'blocked', max_cost_now: 0 });
    expect(body).to.have.nested.property('windows[0].reason', 'ceiling');
  });
});

describe('reads', () => {
  it('are counted when they are answered, and not when nothing has changed', async () => {
    await setLimits({ read_per_minute: 3 });
    network.replica.drop();
    const as = network.users.bob.key;
    const { body } = await network.call('/v1/requests', { body: SUBMISSION, as });
    const path = `/v1/requests/${String(body['id'])}`;
    const headers = { 'if-none-match': '"1"' };
    const first = await network.call(path, { as });
    expect(first.headers.get('ratelimit-policy')).to.equal('"read-min";q=3;w=60');
    expect(first.headers.get('ratelimit')).to.equal('"read-min";r=2;t=0');
    for (let n = 0; n < 5; n += 1) {
      const { status, headers: told } = await network.call(path, { as, headers });
      expect([status, told.get('ratelimit')]).to.deep.equal([304, null]);
      expect((await network.call('/v1/me/limits', { as })).status).to.equal(200);
      expect((await network.call(`/v1/requests/${newId()}`, { as })).status).to.equal(404);
    }
    await network.call(path, { as });
    await network.call(path, { as });
    const { status, headers: told, body: problem } = await network.call(path, { as });
    expect([status, problem['code']]).to.deep.equal([429, 'rate-limited']);
    expect(Number(told.get('retry-after'))).to.be.within(1, 66);
    expect((await network.call('/v1/requests', { body: SUBMISSION, as })).status).to.equal(202);
    await setLimits({ read_per_minute: 1_000 });
    network.replica.drop();
    expect((await network.call(path, { as })).status).to.equal(200);
  });
});

describe('a key with limits of its own', () => {
  it('is charged together with its user, all windows or none', async () => {
    const key = await makeKey(network, ada, ['requests:write', 'requests:read']);
    await rows(
      network.db,
      `update api_keys set limits = '{"submit_per_hour": 2}' where last_four = ? and user_id = ?`,
      [key.slice(-4), ada],
    );
    const statuses = [await submit(key), await submit(key), await submit(key)];
    expect(statuses).to.deep.equal([202, 202, 429]);
    const { body } = await network.call('/v1/me/limits', { as: key });
    const windows = body['windows'] as { subject: string; window: string; used: number }[];
    const used = windows.map((one) => `${one.subject} ${one.window} ${one.used}`);
    expect(used).to.deep.equal(['user minute 2', 'user hour 2', 'user day 2', 'key hour 2']);
    expect(await submit()).to.equal(202);
  });
});

describe('/v1/admin/limits', () => {
  it('lists users with their use, grace and refusals, a page at a time', async () => {
    await submits(13);
    await network.limiter.flush();
    const { items } = await view('/v1/admin/limits?text=ADA');
    const [found] = items as Record<string, unknown>[];
    expect(found).to.include({ login: 'ada', state: 'blocked', episodes: 1, refused: 2 });
    const logins = [];
    for (let token = ''; ;) {
      const page = await view(`/v1/admin/limits?page_size=3${token}`, 'operator');
      logins.push(...(page['items'] as { login: string }[]).map(({ login }) => login));
      if (page['next_page_token'] === undefined) break;
      token = `&page_token=${String(page['next_page_token'])}`;
    }
    expect(logins).to.include.members(['ada', 'bob']);
    expect(new Set(logins).size).to.equal(logins.length);
    const { items: over } = await view('/v1/admin/limits?state=grace');
    expect((over as { login: string }[]).map(({ login }) => login)).to.deep.equal(['ada']);
  });

  it('shows the episodes of one', async () => {
    await submits(11);
    const { history } = await view(`/v1/admin/limits/${ada}`);
    expect(history).to.deep.equal([
      {
        window: 'minute',
        opened_at: new Date(START).toISOString(),
        ends_at: new Date(START + 300_000).toISOString(),
        rearm_at: new Date(START + 3_600_000).toISOString(),
      },
    ]);
  });

  it('19: after a reset the blocked user is normal, uncounted and armed', async () => {
    expect((await submits(12)).at(-1)).to.equal(429);
    const { status, body } = await act('reset');
    expect(status).to.equal(200);
    expect(body).to.have.nested.property('windows[0].used', 0);
    expect(body).to.have.nested.property('windows[0].grace.rearms_in_s', null);
    expect(await submit()).to.equal(202);
    const entry = await lastAudit();
    expect(entry).to.include({ action: 'limit.reset', actor: 'user:admin' });
    expect(entry?.details).to.have.nested.property('before.current[0]', 11);
    expect(entry?.details).to.have.nested.property('after.current[0]', null);
    expect(entry?.details).to.include(REASON);
  });

  it('grants grace to whom it is spent, up to the same ceiling, and ends it', async () => {
    await setLimits({ submit_per_day: 10 });
    await submits(11);
    network.time.now = new Date(START + 600_000);
    expect(await submit()).to.equal(429);
    await act('reset');
    await submits(10);
    await act('grant-grace', { minutes: 10 });
    expect(await submits(2)).to.deep.equal([202, 429]);
    await act('reset');
    await submits(10);
    await act('grant-grace', { minutes: 10, window: 'day' });
    await act('end-grace', { window: 'day' });
    expect(await submit()).to.equal(429);
    const { body } = await network.call('/v1/me/limits');
    expect(body).to.have.nested.property('windows[2].grace.spent', true);
  });

  it('overrides a limit at once, until its end, and takes it away', async () => {
    await submits(11);
    const until = new Date(START + 60_000).toISOString();
    const { body } = await act('override', { window: 'minute', factor: 2, until });
    expect(body).to.have.nested.property('windows[0].limit', 20);
    expect(await submit()).to.equal(202);
    network.time.now = new Date(START + 60_000);
    expect((await network.call('/v1/me/limits')).body).to.have.nested.property(
      'windows[0].limit',
      10,
    );
    await act('override', { window: 'hour', limit: 5 });
    expect((await network.call('/v1/me/limits')).body).to.have.nested.property(
      'windows[1].limit',
      5,
    );
    const { body: none } = await act('override', { factor: 1 });
    expect(none['overrides']).to.equal(null);
  });

  it('blocks with a reason and an end, and unblocks', async () => {
    const until = new Date(START + 60_000).toISOString();
    await act('block', { until, reason: 'too many of them' });
    const { status, body } = await network.call('/v1/requests', { body: SUBMISSION });
    expect([status, body['code']]).to.deep.equal([403, 'blocked']);
    expect(body).to.include({ until, reason: 'too many of them' });
    expect((await network.call('/v1/me/limits')).body).to.include({ state: 'admin_block' });
    await act('unblock');
    expect(await submit()).to.equal(202);
    await act('block', { until });
    network.time.now = new Date(START + 60_000);
    expect(await submit()).to.equal(202);
  });

  it('wants a reason, sense, somebody who is there and an admin', async () => {
    const refused = async (name: string, body: object, subject = ada) =>
      (await act(name, body, subject)).body['code'];
    expect(await refused('reset', { reason: ' ' })).to.equal('bad-field');
    expect(await refused('grant-grace', { minutes: 61 })).to.equal('bad-field');
    expect(await refused('override', { limit: 5 })).to.equal('bad-field');
    expect(await refused('override', { factor: 11 })).to.equal('bad-field');
    expect(await refused('override', { window: 'day', factor: 2, limit: 5 })).to.equal('bad-field');
    expect(await refused('block', { until: '2020-01-01T00:00:00Z' })).to.equal('bad-field');
    expect(await refused('block', { forever: true })).to.equal('unknown-field');
    expect(await refused('reset', {}, newId())).to.equal('not-found');
    for (const role of ['user', 'operator', 'auditor', 'reviewer'] as const) {
      const as = await network.tokenOf(role);
      const { status } = await network.call(`/v1/admin/limits/${ada}:reset`, { body: REASON, as });
      expect(status, role).to.equal(403);
    }
  });

  it('keeps every act of admins who race', async () => {
    await Promise.all([
      act('override', { window: 'hour', limit: 5 }),
      act('override', { window: 'day', limit: 6 }),
      act('block'),
      submit(),
    ]);
    const { overrides, blocked } = await view(`/v1/admin/limits/${ada}`);
    expect(overrides).to.have.all.keys('hour', 'day');
    expect(blocked).to.include(REASON);
  });
});

describe('GET /v1/status', () => {
  const SETTINGS = ['backpressure.carry_cycles'];
  const set = async (key: string, value: number) => {
    await network.db('settings').insert({ key, version: 1, value, updated_at: new Date(START) });
    network.replica.drop();
    await network.replica.rules();
  };
  const states = async (now: number) => {
    network.time.now = new Date(now);
    const { body } = await network.call('/v1/status');
    const bulk = await network.call('/v1/requests:bulk', {
      text: [1, 2].map(() => JSON.stringify(SUBMISSION)).join('\n'),
      headers: { 'content-type': 'application/x-ndjson' },
    });
    return [body['state'], bulk.status, await submit()];
  };
  afterEach(async () => {
    await network.db('settings').whereIn('key', SETTINGS).delete();
    network.replica.drop();
    await network.replica.rules();
  });

  it('is amber, then red, as the oldest request grows old; bulks are refused before others', async () => {
    await submit();
    network.backPressure.drop();
    await set('backpressure.carry_cycles', 1);
    const { body } = await network.call('/v1/status');
    expect(body['waiting_records']).to.be.at.least(1);
    const oldest = new Date(String(body['oldest_at'])).getTime();
    const DAY = 86_400_000;
    expect(await states(oldest + DAY - 1)).to.deep.equal(['green', 202, 202]);
    expect(await states(oldest + DAY)).to.deep.equal(['amber', 202, 202]);
    expect(await states(oldest + 2 * DAY)).to.deep.equal(['red', 503, 202]);
    expect(await states(oldest + 4 * DAY)).to.deep.equal(['red', 503, 503]);
    const { headers, body: problem } = await network.call('/v1/requests', { body: SUBMISSION });
    expect(problem).to.include({ code: 'queue-full', retryable: true });
    expect(Number(headers.get('retry-after'))).to.be.within(300, 330);
  });
});

describe('sallyport-request limits', () => {
  const run = async (...args: string[]) => {
    const { DATABASE_URL, STATE_DIR, NODE_NAME } = network.config;
    const bin = fileURLToPath(new URL('../bin/sallyport-request.js', import.meta.url));
    const env = { DATABASE_URL, STATE_DIR, NODE_NAME };
    const { stdout } = await promisify(execFile)(process.execPath, [bin, 'limits', ...args], {
      env,
    });
    return stdout;
  };

  it('does by login what admins do over HTTP, and shows it', async () => {
    const override = ['override', 'ada', '--window', 'hour', '--limit', '7', '--reason', 'a test'];
    expect(await run(...override)).to.match(/^hour +\w+ +0 +7 /m);
    const entry = await lastAudit();
    expect(entry?.action).to.equal('limit.override');
    expect(entry?.actor).to.match(/^cli:/);
    expect(await run('ls', '--login', 'ada')).to.match(/^ada +normal +0\/10 +0\/7 /m);
    const { body } = await network.call('/v1/me/limits');
    expect(body).to.have.nested.property('windows[1].limit', 7);
  });

  it('refuses what makes no sense', async () => {
    const refused = await run('grant-grace', 'ada', '--minutes', '61', '--reason', 'x').catch(
      (error: { code: number; stderr: string }) => error,
    );
    expect(refused).to.include({ code: 2 });
    expect((refused as { stderr: string }).stderr).to.match(/^usage: --minutes/);
  });
});
