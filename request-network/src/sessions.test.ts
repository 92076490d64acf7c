import { expect } from 'chai';
import { pruneSessions } from '@sallyport/shared';
import { PASSWORD, QUERY, openTestNetwork, type TestNetwork } from './testing.js';

const MINUTE_MS = 60_000;
const DAY_MS = 24 * 60 * MINUTE_MS;
const UNAUTHENTICATED = { status: 401, code: 'unauthenticated' };

type Tokens = { token: string; refresh_token: string; refresh_expires_at: string };

describe('sessions', () => {
  let network: TestNetwork;
  before(async () => {
    network = await openTestNetwork();
  });
  after(() => network.stop());

  const logIn = async (login = 'ada') => {
    const body = { login, password: PASSWORD };
    const answer = await network.call('/v1/sessions', { as: null, body });
    expect(answer.status).to.equal(201);
    return answer.body as Tokens & { must_change_password: boolean };
  };
  const refresh = (token: string) =>
    network.call('/v1/sessions:refresh', { as: null, body: { refresh_token: token } });
  const pass = (ms: number) => {
    network.time.now = new Date(network.time.now.getTime() + ms);
  };
  const statusOf = async (as: string) => (await network.call('/v1/me', { as })).status;
  const submit = (as: string) =>
    network.call('/v1/requests', { as, body: { dataset: 'claims', query: QUERY } });
  const logOut = (as: string, which: '/current' | '' = '/current') =>
    network.call(`/v1/sessions${which}`, { as, method: 'DELETE' });
  const audited = (action: string) => network.db('audit_log').where({ action });

  it('are refreshed with a token that is good once', async () => {
    const first = await logIn();
    pass(16 * MINUTE_MS);
    expect(await statusOf(first.token)).to.equal(401);
    const { status, body } = await refresh(first.refresh_token);
    expect(status).to.equal(200);
    expect(await statusOf(String(body['token']))).to.equal(200);
    expect(body['refresh_token']).to.not.equal(first.refresh_token);
  });

  it('end altogether when a used refresh token comes back', async () => {
    const first = await logIn();
    const { body: second } = await refresh(first.refresh_token);
    pass(11_000);
    expect((await refresh(first.refresh_token)).body).to.include(UNAUTHENTICATED);
    expect((await refresh(String(second['refresh_token']))).body).to.include(UNAUTHENTICATED);
    expect(await statusOf(String(second['token']))).to.equal(401);
    expect((await submit(first.token)).status).to.equal(401);
    expect(await audited('session.reuse')).to.have.length(1);
  });

  it('go on when the same refresh token comes twice at once, for one of the two', async () => {
    const { refresh_token: token } = await logIn();
    const answers = await Promise.all([refresh(token), refresh(token), refresh(token)]);
    expect(answers.map(({ status }) => status).sort()).to.deep.equal([200, 409, 409]);
    const lost = answers.find(({ status }) => status === 409);
    expect(lost?.body).to.include({ code: 'in-flight', retryable: true });
    const won = answers.find(({ status }) => status === 200)?.body as Tokens;
    expect((await refresh(won.refresh_token)).status).to.equal(200);
  });

  it('end after days without use, and after some more however much they are used', async () => {
    const idle = await logIn();
    pass(7 * DAY_MS);
    expect((await refresh(idle.refresh_token)).status).to.equal(401);
    let token = (await logIn()).refresh_token;
    for (let days = 0; days < 24; days += 6) {
      pass(6 * DAY_MS);
      token = String((await refresh(token)).body['refresh_token']);
    }
    pass(6 * DAY_MS);
    expect((await refresh(token)).body).to.include(UNAUTHENTICATED);
    await pruneSessions(network.db, new Date(network.time.now.getTime() + 2 * DAY_MS));
    expect(await network.db('refresh_tokens')).to.have.length(0);
  });

  it('are refused from the moment of the log-out, by the submit itself too', async () => {
    const [one, other] = [await logIn(), await logIn()];
    expect((await submit(one.token)).status).to.equal(202);
    expect((await logOut(one.token)).status).to.equal(204);
    expect(await statusOf(one.token)).to.equal(401);
    expect((await refresh(one.refresh_token)).status).to.equal(401);
    expect((await logOut(one.token)).status).to.equal(401);
    expect((await submit(other.token)).status).to.equal(202);
    // What a process remembers is only a shortcut: the statement that stores asks again.
    await network.db('sessions').update({ ended_at: network.time.now });
    expect((await submit(other.token)).status).to.equal(401);
  });

  it('are listed to their user, and end everywhere at once', async () => {
    const [one, other, stranger] = [await logIn('bob'), await logIn('bob'), await logIn('ada')];
    const { body } = await network.call('/v1/sessions', { as: one.token });
    const items = body['items'] as { current: boolean; address: string }[];
    expect(items.map(({ current }) => current).sort()).to.deep.equal([false, true]);
    expect((await logOut(one.token, '')).status).to.equal(204);
    expect(await statusOf(one.token)).to.equal(401);
    expect(await statusOf(other.token)).to.equal(401);
    expect(await statusOf(stranger.token)).to.equal(200);
  });

  it('allow nothing but a new password while the old one was set by somebody else', async () => {
    const who = { login: 'bob' };
    await network.db('users').where(who).update({ must_change_password: true });
    const { token, must_change_password: must } = await logIn('bob');
    expect(must).to.equal(true);
    expect((await network.call('/v1/me', { as: token })).body).to.include({
      must_change_password: true,
    });
    for (const answer of [await submit(token), await network.call('/v1/sessions', { as: token })]) {
      expect(answer.body).to.include({ status: 403, code: 'password-change-required' });
    }
    expect((await logOut(token)).status).to.equal(204);
    await network.db('users').where(who).update({ must_change_password: false });
  });

  it('of a console live in cookies that no script can read, and leave with the log-out', async () => {
    const own = { 'sec-fetch-site': 'same-origin' };
    const body = { login: 'ada', password: PASSWORD, cookie: true };
    const refused = await network.call('/v1/sessions', { as: null, body });
    expect(refused.body).to.include({ status: 403, code: 'cross-site' });
    const opened = await network.call('/v1/sessions', { as: null, body, headers: own });
    expect(opened.body).to.have.keys('expires_at', 'refresh_expires_at', 'must_change_password');
    const cookies = (answer: { headers: Headers }) => answer.headers.getSetCookie();
    for (const each of cookies(opened)) {
      expect(each).to.match(/^__Host-sallyport.*; Path=\/; HttpOnly; Secure; SameSite=Strict; Max/);
    }
    const jar = (answer: { headers: Headers }) => ({
      cookie: cookies(answer)
        .map((each) => each.split(';')[0])
        .join('; '),
    });
    const headers = { ...own, ...jar(opened) };
    expect((await network.call('/v1/me', { as: null, headers })).status).to.equal(200);
    const path = '/v1/sessions:refresh';
    const foreign = await network.call(path, { as: null, body: {}, headers: jar(opened) });
    expect(foreign.body).to.include({ code: 'cross-site' });
    const next = await network.call(path, { as: null, body: {}, headers });
    expect(next.body).to.have.keys('expires_at', 'refresh_expires_at');
    const current = { as: null, method: 'DELETE', headers: { ...own, ...jar(next) } };
    const gone = await network.call('/v1/sessions/current', current);
    expect(cookies(gone)).to.satisfy((all: string[]) =>
      all.every((each) => /=;.*Max-Age=0/.test(each)),
    );
    expect((await network.call('/v1/me', { as: null, headers: jar(next) })).status).to.equal(401);
  });

  it('of an API key are none: keys neither list nor end sessions', async () => {
    for (const method of ['GET', 'DELETE']) {
      const answer = await network.call('/v1/sessions', { method });
      expect(answer.body).to.include({ status: 403, code: 'scope-missing' });
    }
  });
});
