import { expect } from 'chai';
import { readCredential } from '@sallyport/shared';
import { PASSWORD, openTestNetwork, type TestNetwork } from './testing.js';

const NEXT = 'a new horse battery staple';

describe('one’s own account', () => {
  let network: TestNetwork;
  before(async () => {
    network = await openTestNetwork();
  });
  after(() => network.stop());

  const logIn = async (login: string, password = PASSWORD) => {
    const answer = await network.call('/v1/sessions', { as: null, body: { login, password } });
    return { status: answer.status, token: String(answer.body['token']) };
  };
  const change = (as: string, body: object) => network.call('/v1/me/password', { as, body });
  const sent = async () => {
    const found = await network
      .db<{ line: string; stream: string }>('outbox_records')
      .where({ stream: 'accounts' });
    return found.map(({ line }) => JSON.parse(line) as { t: string; d: Record<string, unknown> });
  };

  it('gets a new password that works at once, travels, and ends every other session', async () => {
    const [one, other] = [await logIn('ada'), await logIn('ada')];
    const body = { current: PASSWORD, new: NEXT };
    expect((await change(one.token, body)).status).to.equal(204);
    expect((await network.call('/v1/me', { as: one.token })).status).to.equal(200);
    expect((await network.call('/v1/me', { as: other.token })).status).to.equal(401);
    expect((await logIn('ada')).status).to.equal(401);
    expect((await logIn('ada', NEXT)).status).to.equal(201);
    const stored = await readCredential(network.db, network.users.ada.id);
    expect(stored).to.include({ generation: 1, counter: 1 });
    const [record] = await sent();
    expect(record).to.deep.include({ t: 'account.credential' });
    expect(record?.d).to.deep.equal({ generation: 1, counter: 1, verifier: stored?.verifier });
    const again = await change(one.token, body);
    expect(again.body).to.include({ status: 422, code: 'bad-field' });
    expect(again.body['errors']).to.have.nested.property('[0].pointer', '/current');
  });

  it('keeps its password when the new one breaks a rule', async () => {
    const { token } = await logIn('bob');
    for (const wanted of ['short', PASSWORD, 'x'.repeat(1_025)]) {
      const answer = await change(token, { current: PASSWORD, new: wanted });
      expect(answer.body).to.include({ status: 422, code: 'bad-field' });
      expect(answer.body['errors']).to.have.nested.property('[0].pointer', '/new');
    }
    expect((await logIn('bob')).status).to.equal(201);
  });

  it('lets one of two changes at once win', async () => {
    const { token } = await logIn('bob');
    const wanted = ['first horse battery staple', 'second horse battery staple'];
    const answers = await Promise.all(
      wanted.map((each) => change(token, { current: PASSWORD, new: each })),
    );
    const statuses = answers.map(({ status }) => status);
    expect(statuses.filter((status) => status === 204)).to.have.length(1);
    expect(statuses.filter((status) => status !== 204)[0]).to.be.oneOf([409, 422]);
    const works = await Promise.all(wanted.map(async (each) => (await logIn('bob', each)).status));
    expect(works).to.deep.equal(statuses.map((status) => (status === 204 ? 201 : 401)));
  });

  it('may do everything again once a password that somebody else set is changed', async () => {
    await network.db('users').where({ login: 'operator' }).update({ must_change_password: true });
    const { token } = await logIn('operator');
    const sessions = () => network.call('/v1/sessions', { as: token });
    expect((await sessions()).body).to.include({ code: 'password-change-required' });
    const board = await network.call('/admin/queues/', { as: token });
    expect(board.body).to.include({ code: 'password-change-required' });
    expect((await change(token, { current: PASSWORD, new: NEXT })).status).to.equal(204);
    expect((await sessions()).status).to.equal(200);
    const me = await network.call('/v1/me', { as: token });
    expect(me.body).to.include({ must_change_password: false });
  });

  it('changes its profile, which travels; what is not its own it cannot change', async () => {
    const { token } = await logIn('ada', NEXT);
    const patch = (body: object) => network.call('/v1/me', { as: token, method: 'PATCH', body });
    const wanted = { display_name: 'Ada L.', email: 'ada@example.org', notices: { key: ['app'] } };
    expect((await patch(wanted)).body).to.deep.include(wanted);
    expect((await network.call('/v1/me', { as: token })).body).to.deep.include(wanted);
    const profile = (await sent()).find(({ t }) => t === 'account.profile');
    expect(profile?.d).to.deep.equal({ ...wanted, language: null, profile_version: 1 });
    for (const body of [
      { roles: [] },
      { login: 'root' },
      { profile_version: 9 },
      {},
      { email: 'x' },
    ]) {
      expect((await patch(body)).status).to.equal(422);
    }
  });

  it('is not changed with an API key', async () => {
    const answer = await network.call('/v1/me/password', { body: { current: 'x', new: 'y' } });
    expect(answer.body).to.include({ status: 403, code: 'scope-missing' });
  });
});
