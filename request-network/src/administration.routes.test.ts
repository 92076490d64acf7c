import { expect } from 'chai';
import { settingRecordId, storeSetting, verifyAudit } from '@sallyport/shared';
import { requestApplies } from './apply.js';
import { openTestNetwork, QUERY, type TestNetwork } from './testing.js';

const BECAUSE = 'tried out here first';

describe('administration of the request network over HTTP', () => {
  let network: TestNetwork;
  let admin: string;
  before(async () => {
    network = await openTestNetwork();
    admin = await network.tokenOf('admin');
  });
  after(() => network.stop());

  const get = async (path: string, as = admin) => network.call(path, { as });
  const local = async (key: string, body: object, method = 'PUT', ifMatch?: string) => {
    const path = `/v1/admin/settings/${key}`;
    const etag = ifMatch ?? (await get(path)).headers.get('etag') ?? '';
    const headers = { 'if-match': etag };
    return network.call(`${path}/local`, { as: admin, method, body, headers });
  };

  it('shows users, profile types, datasets and settings to operators, admins and auditors', async () => {
    for (const thing of ['users', 'profile-types', 'datasets', 'settings']) {
      const statuses = await Promise.all(
        (['ada', 'reviewer', 'operator', 'auditor', 'admin'] as const).map(
          async (who) => (await get(`/v1/admin/${thing}`, await network.tokenOf(who))).status,
        ),
      );
      expect(statuses, thing).to.deep.equal([403, 403, 200, 200, 200]);
    }
    const ada = await get(`/v1/admin/users/${network.users.ada.id}`);
    expect(ada.body).to.deep.include({ login: 'ada', profile_type: 'analysts', version: 1 });
    expect(ada.headers.get('etag')).to.equal('"1"');
    expect(ada.text).not.to.include('argon2');
  });

  it('changes nothing that the response network owns', async () => {
    const path = `/v1/admin/users/${network.users.ada.id}`;
    for (const [method, at] of [
      ['PATCH', path],
      ['POST', '/v1/admin/users'],
      ['PUT', '/v1/admin/settings/session.minutes'],
    ]) {
      const answer = await network.call(at ?? '', { as: admin, method: method ?? '', body: {} });
      expect(answer.status).to.equal(405);
    }
  });

  it('overrides a local setting at once, shows it as such, and ends that', async () => {
    const key = 'schedule.export-requests';
    await network.db.transaction((tx) => storeSetting(tx, { key, value: 40 }, network.time.now));
    const set = await local(key, { value: 5, reason: BECAUSE });
    expect(set.body).to.include({
      ...{ value: 5, source: 'local', local_value: 5, synced_value: 40, default: 30 },
    });
    expect((await network.replica.rules()).settings[key]).to.equal(5);
    const ended = await local(key, { reason: BECAUSE }, 'DELETE');
    expect(ended.body).to.include({ value: 40, source: 'synced', local_value: null });
  });

  it('refuses to override what is not local, out of range, stale, or without a reason', async () => {
    const code = async (answer: Promise<{ body: Record<string, unknown> }>) =>
      (await answer).body['code'];
    const set = (value: unknown, more: object = { reason: BECAUSE }) => ({ value, ...more });
    expect(await code(local('session.minutes', set(20)))).to.equal('bad-field');
    expect(await code(local('schedule.housekeeping', set(0)))).to.equal('bad-field');
    expect(await code(local('schedule.housekeeping', set(9, {})))).to.equal('bad-field');
    expect(await code(local('schedule.housekeeping', set(9), 'PUT', '"7"'))).to.equal(
      'version-conflict',
    );
    const both = await Promise.all(
      [8, 9].map((value) => local('schedule.housekeeping', set(value), 'PUT', '"0"')),
    );
    expect(both.map(({ status }) => status).sort()).to.deep.equal([200, 409]);
  });

  it('tells users what they submitted, by day', async () => {
    const usage = async (as: string) => (await get('/v1/me/usage', as)).body['items'];
    const bob = await network.tokenOf('bob');
    const submit = { as: bob, body: { dataset: 'claims', query: QUERY } };
    for (let n = 0; n < 2; n += 1) {
      expect((await network.call('/v1/requests', submit)).status).to.equal(202);
    }
    const day = network.time.now.toISOString().slice(0, 10);
    expect(await usage(bob)).to.deep.equal([{ day, submitted: 2, delivered: 0, open: 2 }]);
    expect(await usage(await network.tokenOf('ada'))).to.deep.equal([]);
  });

  it('keeps the versions that arrive, and those that begin again', async () => {
    const { settings } = await network.replica.rules();
    expect(settings['session.minutes']).to.equal(15);
    const record = (version: number, value: number) => ({
      t: 'setting' as const,
      id: settingRecordId('session.minutes'),
      d: { key: 'session.minutes', version, value },
    });
    const { setting } = requestApplies(network.replica);
    await network.apply(setting ? [setting] : [], [record(1, 20)]);
    await network.apply(setting ? [setting] : [], [record(2, 25)]);
    const diff = await get('/v1/admin/settings/session.minutes/diff?from=1&to=2');
    expect(diff.body['changes']).to.deep.equal([{ path: '/value', before: 20, after: 25 }]);
    await network.db('settings').where({ key: 'session.minutes' }).update({ version: 0 });
    await network.apply(setting ? [setting] : [], [record(1, 30)]);
    await network.apply(setting ? [setting] : [], [record(1, 35)]);
    const again = await get('/v1/admin/settings/session.minutes/diff?from=1&to=2');
    expect(again.body['changes']).to.deep.equal([{ path: '/value', before: 30, after: 25 }]);
    expect(await verifyAudit(network.db)).to.include({ ok: true });
  });
});
