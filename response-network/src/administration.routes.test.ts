import { expect } from 'chai';
import { verifyAudit } from '@sallyport/shared';
import { openTestApi, type TestApi } from './testing.js';

const BECAUSE = 'asked for by the owner';

describe('administration over HTTP', () => {
  let api: TestApi;
  before(async () => {
    api = await openTestApi();
  });
  after(() => api.stop());

  const list = async (path: string) => {
    const { body, status } = await api.call(path);
    expect(status).to.equal(200);
    return body['items'] as Record<string, unknown>[];
  };
  const idOf = async (login: string) =>
    String((await list(`/v1/admin/users?text=${login}`))[0]?.['id']);
  const etagOf = async (path: string) => (await api.call(path)).headers.get('etag') ?? '';
  const change = async (path: string, body: object, method = 'PATCH', ifMatch?: string) => {
    const headers = {
      'if-match': ifMatch ?? (await etagOf(path.replace(/[:?][a-z-_]*(=.*)?$/, ''))),
    };
    return api.call(path, { method, body, headers });
  };
  const make = async (path: string, body: object) => {
    const made = await api.call(path, { body });
    expect(made.status, made.text).to.equal(201);
    return { ...made, at: made.headers.get('location') ?? '' };
  };
  const member = (login: string, more: object = {}) => ({
    login,
    profile_type: 'analysts',
    roles: ['request:user'],
    ...more,
  });

  it('gives a name to one of those who take it at the same moment', async () => {
    const source = { index_name: 'somewhere' };
    for (const [path, body] of [
      ['/v1/admin/users', member('zoe')],
      ['/v1/admin/profile-types', { name: 'zoologists' }],
      ['/v1/admin/datasets', { name: 'zoo', source }],
    ] as const) {
      const all = await Promise.all([1, 2, 3, 4].map(() => api.call(path, { body })));
      const codes = all.map(({ status, body: { code } }) => `${status} ${String(code ?? '')}`);
      expect(codes.sort(), path).to.deep.equal([
        '201 ',
        ...Array.from({ length: 3 }, () => '409 already-exists'),
      ]);
    }
  });

  describe('users', () => {
    it('are made with a password that is shown once, found, changed and rolled back', async () => {
      const { at, body } = await make('/v1/admin/users', member('Grace', { email: 'g@navy.mil' }));
      expect(body['one_time_password']).to.match(/^([a-z2-9]{5}-){3}[a-z2-9]{5}$/);
      expect(await list('/v1/admin/users?text=NAVY')).to.have.lengthOf(1);
      expect(await list('/v1/admin/users?role=request:user&disabled=true')).to.have.lengthOf(0);
      const roles = ['request:user', 'request:operator'];
      const changed = await change(at, { display_name: 'Grace H.', roles, reason: BECAUSE });
      expect(changed.body).to.deep.include({ version: 2, display_name: 'Grace H.', roles });
      expect(changed.headers.get('etag')).to.equal('"2"');
      const diff = await api.call(`${at}/diff?from=1&to=2`);
      const paths = (diff.body['changes'] as { path: string }[]).map(({ path }) => path);
      expect(paths).to.deep.equal(['/display_name', '/profile_version', '/roles']);
      const back = await change(`${at}:roll-back`, { version: 1, reason: BECAUSE }, 'POST');
      expect(back.body).to.deep.include({ version: 3, roles: ['request:user'] });
      const versions = await list(`${at}/versions`);
      expect(versions[0]).to.include({ version: 3, actor: 'user:admin', reason: BECAUSE });
      expect(versions).to.have.lengthOf(3);
    });

    it('have an e-mail address in its form', async () => {
      const odd = await api.call('/v1/admin/users', { body: member('odd', { email: 'nobody' }) });
      expect([odd.status, odd.body['code']]).to.deep.equal([422, 'bad-field']);
    });

    it('come in pages whose tokens are bound to the filter', async () => {
      const first = await api.call('/v1/admin/users?page_size=2');
      const token = String(first.body['next_page_token']);
      const second = (await list(`/v1/admin/users?page_size=2&page_token=${token}`)) as {
        login: string;
      }[];
      const logins = [...(first.body['items'] as { login: string }[]), ...second].map(
        ({ login }) => login,
      );
      expect(logins).to.deep.equal(['admin', 'auditor', 'grace', 'operator']);
      const other = await api.call(`/v1/admin/users?page_size=2&disabled=true&page_token=${token}`);
      expect(other.body['code']).to.equal('bad-page-token');
    });

    it('are changed only from the version that was read, and by known members', async () => {
      const path = `/v1/admin/users/${await idOf('operator')}`;
      const body = { display_name: 'Op' };
      expect((await api.call(path, { method: 'PATCH', body })).status).to.equal(428);
      const etag = await etagOf(path);
      const both = await Promise.all([
        change(path, { display_name: 'One' }, 'PATCH', etag),
        change(path, { display_name: 'Two' }, 'PATCH', etag),
      ]);
      expect(both.map(({ status }) => status).sort()).to.deep.equal([200, 409]);
      for (const extra of [{ version: 9 }, { id: path }, { disabled: true }, { verifier: 'x' }]) {
        expect((await change(path, { ...body, ...extra })).body['code']).to.equal('unknown-field');
      }
      const silent = await change(path, { roles: [] });
      expect(silent.body).to.deep.include({ code: 'bad-field' });
    });

    it('are shut out, let in and given new passwords, each with a reason', async () => {
      const { at } = await make('/v1/admin/users', member('mallory'));
      expect((await api.call(`${at}:disable`, { body: {} })).status).to.equal(422);
      const act = (name: string) => api.call(`${at}:${name}`, { body: { reason: BECAUSE } });
      expect((await act('disable')).body).to.include({ disabled: true });
      expect((await act('disable')).status).to.equal(200);
      expect((await act('enable')).body).to.include({ disabled: false });
      expect((await act('reset-password')).body['one_time_password']).to.be.a('string');
      expect((await act('end-sessions')).status).to.equal(200);
      const actions = await api
        .db<{ subject: string; action: string; details: object }>('audit_log')
        .where({
          subject: at.split('/').at(-1) ?? '',
        });
      expect(actions.map(({ action }) => action)).to.include.members([
        'user.create',
        'user.disable',
        'user.enable',
        'user.reset-password',
        'user.end-sessions',
      ]);
      expect(JSON.stringify(actions)).not.to.include('argon2');
    });

    it('never lose the last who may administer them, nor shut themselves out', async () => {
      const id = await idOf('admin');
      const self = await api.call(`/v1/admin/users/${id}:disable`, { body: { reason: BECAUSE } });
      expect(self.body['code']).to.equal('own-account');
      const roles = { roles: ['response:auditor'], reason: BECAUSE };
      const last = await change(`/v1/admin/users/${id}`, roles);
      expect(last.body['code']).to.equal('last-admin');
    });

    it('lose every session at once when they are shut out', async () => {
      const token = await api.tokenOf('reviewer');
      expect((await api.call('/v1/me/notices', { as: token })).status).to.equal(200);
      const path = `/v1/admin/users/${await idOf('reviewer')}`;
      await api.call(`${path}:disable`, { body: { reason: BECAUSE } });
      expect((await api.call('/v1/me/notices', { as: token })).status).to.equal(401);
      await api.call(`${path}:enable`, { body: { reason: BECAUSE } });
    });
  });

  describe('profile types', () => {
    it('show what a change would do without doing it', async () => {
      const { at } = await make('/v1/admin/profile-types', {
        name: 'visitors',
        datasets: ['x', 'y'],
      });
      await make('/v1/admin/users', member('vera', { profile_type: 'visitors' }));
      const preview = await change(`${at}?dry_run=true`, { datasets: ['x'] });
      expect(preview.body).to.deep.include({
        changes: [{ path: '/datasets', before: ['x', 'y'], after: ['x'] }],
        impact: {
          users: 1,
          losing_rights: 1,
          open_requests: 0,
          recent_requests: 0,
          newly_refused: 0,
        },
      });
      expect((await api.call(at)).body).to.deep.include({ version: 1, datasets: ['x', 'y'] });
      const changed = await change(at, { limits: { submit_per_minute: 7 } });
      expect(changed.body).to.include({ version: 2 });
      expect(changed.body['limits']).to.include({ submit_per_minute: 7, warn_percent: 80 });
      const back = await change(`${at}:roll-back`, { version: 1, reason: BECAUSE }, 'POST');
      expect(back.body['limits']).to.include({ submit_per_minute: 60 });
      const off = await api.call(`${at}:disable`, { body: { reason: BECAUSE } });
      expect(off.body).to.include({ disabled: true, version: 4 });
      const wide = { limits: { warn_percent: 10 } };
      expect((await change(at, wide)).body['code']).to.equal('bad-field');
    });
  });

  describe('datasets', () => {
    it('are published, changed and rolled back with their place', async () => {
      const wanted = {
        name: 'visits',
        fields: [{ name: 'at', type: 'date' }],
        source: { index_name: 'visits-2026', row_filter: null },
      };
      const { at, body } = await make('/v1/admin/datasets', wanted);
      expect(body['source']).to.deep.equal(wanted.source);
      const filter = { source: { row_filter: { term: { region: 'north' } } } };
      const preview = await change(`${at}?dry_run=true`, filter);
      expect(preview.body['changes']).to.deep.equal([
        { path: '/source/row_filter', before: null, after: filter.source.row_filter },
      ]);
      expect((await change(at, { ...filter, reloaded: true })).body).to.include({ epoch: 2 });
      const back = await change(`${at}:roll-back`, { version: 1, reason: BECAUSE }, 'POST');
      expect(back.body).to.deep.include({ version: 3, epoch: 2, source: wanted.source });
      const again = await api.call('/v1/admin/datasets', { body: wanted });
      expect(again.body['code']).to.equal('already-exists');
    });
  });

  describe('settings', () => {
    it('are described, set, unset and rolled back', async () => {
      const at = '/v1/admin/settings/banner.text';
      expect((await api.call(at)).body).to.include({ value: '', source: 'default', local: true });
      expect((await change(at, { value: 'Hello' }, 'PUT')).body).to.include({ source: 'synced' });
      expect((await change(at, { value: 5 }, 'PUT')).body['code']).to.equal('bad-field');
      expect((await change(at, { value: 'x' }, 'PUT', '"0"')).status).to.equal(409);
      const unset = await change(`${at}:unset`, { reason: BECAUSE }, 'POST');
      expect(unset.body).to.include({ value: '', version: 2 });
      const back = await change(`${at}:roll-back`, { version: 1, reason: BECAUSE }, 'POST');
      expect(back.body).to.include({ value: 'Hello', version: 3 });
      const preview = await change(`${at}?dry_run=true`, { value: 'Bye' }, 'PUT');
      expect(preview.body['changes']).to.deep.equal([
        { path: '/value', before: 'Hello', after: 'Bye' },
      ]);
      expect((await api.call(at)).body).to.include({ value: 'Hello' });
      const found = await list('/v1/admin/settings?text=banner&source=synced');
      expect(found.map(({ key }) => key)).to.deep.equal(['banner.text']);
      expect((await api.call('/v1/admin/settings/no.such')).status).to.equal(404);
    });
  });

  it('is written by admins, and read by operators and auditors too', async () => {
    for (const thing of ['users', 'profile-types', 'datasets', 'settings']) {
      const statuses = await Promise.all(
        (['user', 'reviewer', 'operator', 'auditor', 'admin'] as const).map(async (role) => {
          const as = await api.tokenOf(role);
          return (await api.call(`/v1/admin/${thing}`, { as })).status;
        }),
      );
      expect(statuses, thing).to.deep.equal([403, 403, 200, 200, 200]);
    }
    for (const role of ['operator', 'auditor'] as const) {
      const as = await api.tokenOf(role);
      const made = await api.call('/v1/admin/users', { as, body: member('nobody') });
      expect(made.status).to.equal(403);
    }
  });

  it('leaves a whole audit log', async () => {
    expect(await verifyAudit(api.db)).to.include({ ok: true });
  });
});
