import { expect } from 'chai';
import { foldLogin, readCredential, rows } from '@sallyport/shared';
import { PASSWORD, openTestNetwork, type TestNetwork } from './testing.js';

/** Of {@link PASSWORD}, with bcrypt. */
const IMPORTED = '$2b$08$2j4uOAjORmZSum8BykxUiOCrmZiTSnJZ7i2mJpCBOqYIOmfVktywq';
const WRONG = 'wrong horse battery staple';

describe('logging in', () => {
  let network: TestNetwork;
  before(async () => {
    network = await openTestNetwork();
  });
  after(() => network.stop());
  beforeEach(() => network.db('login_attempts').delete());

  const logIn = (login: string, password = PASSWORD) =>
    network.call('/v1/sessions', { as: null, body: { login, password } });
  const setting = (key: string, value: number) =>
    network
      .db('settings')
      .where({ key })
      .update({ value: JSON.stringify(value) });
  const without = (answer: { body: Record<string, unknown>; status: number; headers: Headers }) => {
    const { request_id: _id, ...body } = answer.body;
    const headers = [...answer.headers].filter(([name]) => !/^(date|x-request-id)$/.test(name));
    return { status: answer.status, body, headers };
  };

  it('answers alike whether the name is unknown, the password wrong or the user disabled', async () => {
    const answers = await Promise.all([
      logIn('ada', WRONG),
      logIn('nobody'),
      logIn('eve'),
      logIn('ADA', WRONG),
    ]);
    expect(answers[0]).to.have.property('status', 401);
    for (const answer of answers) expect(without(answer)).to.deep.equal(without(answers[0]));
  });

  it('counts the attempts a minute of an account and of an address', async () => {
    await setting('login.account_per_minute', 2);
    network.replica.drop();
    for (const login of ['ada', 'nobody']) {
      expect((await logIn(login, WRONG)).status).to.equal(401);
      expect((await logIn(login, WRONG)).status).to.equal(401);
      const refused = await logIn(login);
      expect(refused.body).to.include({ status: 429, code: 'rate-limited' });
      expect(Number(refused.headers.get('retry-after'))).to.be.within(1, 60);
    }
    await setting('login.account_per_minute', 1_000);
    await setting('login.address_per_minute', 3);
    network.replica.drop();
    await network.db('login_attempts').delete();
    const answers = [];
    for (const login of ['a', 'b', 'c', 'd']) answers.push((await logIn(login)).status);
    expect(answers).to.deep.equal([401, 401, 401, 429]);
    await setting('login.address_per_minute', 10_000);
    network.replica.drop();
  });

  it('locks an account for an address after ten failures, whether it exists or not', async () => {
    for (const login of ['bob', 'nobody']) {
      const answers = await Promise.all(Array.from({ length: 10 }, () => logIn(login, WRONG)));
      expect(answers.every(({ status }) => status === 401)).to.equal(true);
      const locked = await logIn(login);
      expect(locked.body).to.include({ code: 'rate-limited' });
      expect(Number(locked.headers.get('retry-after'))).to.be.within(800, 900);
    }
    expect((await logIn('ada')).status).to.equal(201);
    const entries = await network.db<{ action: string; subject: string }>('audit_log');
    const ofBob = entries.filter(({ subject }) => subject === network.users.bob.id);
    expect(entries.filter(({ action }) => action === 'login.locked')).to.have.length(2);
    expect(ofBob.filter(({ action }) => action === 'login.failed')).to.have.length(4);
    await rows(network.db, `update login_attempts set expire = 0`);
    expect((await logIn('bob')).status).to.equal(201);
  });

  it('locks an account for all addresses after fifty failures', async () => {
    await logIn('bob', WRONG);
    const where = `key like 'failures-everywhere:%'`;
    await rows(network.db, `update login_attempts set points = 49 where ${where}`);
    await rows(network.db, `delete from login_attempts where not ${where}`);
    expect((await logIn('bob', WRONG)).status).to.equal(401);
    await rows(network.db, `delete from login_attempts where not ${where}`);
    expect((await logIn('bob')).body).to.include({ code: 'rate-limited' });
  });

  it('replaces an imported verifier by one of ours, and sends it', async () => {
    const userId = network.users.bob.id;
    await network.db('credentials').where({ user_id: userId }).update({ verifier: IMPORTED });
    expect((await logIn('bob', WRONG)).status).to.equal(401);
    const { status, body } = await logIn('bob');
    expect(status).to.equal(201);
    expect((await network.call('/v1/me', { as: String(body['token']) })).status).to.equal(200);
    const stored = await readCredential(network.db, userId);
    expect(stored).to.include({ generation: 1, counter: 1 });
    expect(stored?.verifier).to.match(/^\$argon2id\$/);
    const sent = await network
      .db<{ type: string; stream: string }>('outbox_records')
      .where({ stream: 'accounts' });
    expect(sent.map(({ type }) => type)).to.deep.equal(['account.credential']);
    expect((await logIn('bob')).status).to.equal(201);
  });

  it('refuses keys, tokens and passwords in the URL, and logs no URL', async () => {
    for (const name of ['token', 'key', 'api_key', 'password']) {
      const answer = await network.call(`/v1/me?${name}=x`);
      expect(answer.body).to.include({ status: 422, code: 'unknown-field' });
      expect((await network.call(`/v1/me?${name}=x`, { as: null })).status).to.equal(401);
    }
  });

  it('knows a name in whatever case and form it is written', () => {
    expect(foldLogin('ＡＤＡ')).to.equal('ada');
  });
});
