import { expect } from 'chai';
import { createApp, startServer, type RunningServer } from './http.js';
import { authorizationOf } from './http-browsers.js';
import { createRoutes } from './http-routes.js';
import { createLog } from './log.js';
import { unauthenticated } from './session-tokens.js';

describe('browsers', () => {
  let server: RunningServer;
  const routes = createRoutes((req) => {
    if (authorizationOf(req) !== 'Bearer good') throw unauthenticated();
    return { id: 'ada', roles: ['user'], scopes: 'all' };
  });
  const shared = {
    path: '/v1/thing',
    summary: 'A route.',
    roles: ['user'],
    responses: { 200: { description: 'Done.' } },
  } as const;
  routes.add({
    ...shared,
    method: 'get',
    handler: ({ req }) => Promise.resolve({ status: 200, body: { address: req.ip } }),
  });
  routes.add({ ...shared, method: 'post', handler: () => Promise.resolve({ status: 200 }) });

  before(async () => {
    const app = createApp({
      title: 'Test',
      version: '1',
      log: createLog('test', 'silent'),
      config: { CORS_ORIGINS: 'https://tools.example, http://other.example:81' },
      routes: [routes],
    });
    server = await startServer(app, { host: '127.0.0.1', port: 0 });
  });
  after(() => server.close(100));

  const call = async (method: string, headers: Record<string, string>) => {
    const answer = await fetch(`${server.url}/v1/thing`, { method, headers });
    const text = await answer.text();
    const code = text.startsWith('{') ? (JSON.parse(text) as { code?: string }).code : undefined;
    return { status: answer.status, headers: answer.headers, code };
  };
  const cookie = '__Host-sallyport=good';
  const cors = (headers: Headers) =>
    [...headers.keys()].filter((name) => name.startsWith('access-'));

  it('may read with a cookie, and change something from a page of the same origin alone', async () => {
    expect((await call('GET', { cookie: `a=b; ${cookie}` })).status).to.equal(200);
    const own = new URL(server.url).origin;
    for (const headers of [{ 'sec-fetch-site': 'same-origin' }, { origin: own }]) {
      expect((await call('POST', { cookie, ...headers })).status).to.equal(200);
    }
    for (const headers of [
      {},
      { 'sec-fetch-site': 'same-site', origin: own },
      { 'sec-fetch-site': 'cross-site' },
      { 'sec-fetch-site': 'none' },
      { origin: 'https://evil.example' },
      { origin: 'https://tools.example' },
      { origin: 'null' },
    ]) {
      const refused = await call('POST', { cookie, ...headers });
      expect(refused).to.include({ status: 403, code: 'cross-site' });
    }
  });

  it('need none of that with a token, which goes before a cookie', async () => {
    const authorization = 'Bearer good';
    expect((await call('POST', { authorization, cookie: 'x' })).status).to.equal(200);
    expect((await call('POST', { authorization: 'Bearer bad', cookie })).status).to.equal(401);
  });

  it('cannot hold an API key in the cookie', async () => {
    expect((await call('GET', { cookie: '__Host-sallyport=sp_live_x' })).status).to.equal(401);
    expect((await call('GET', { cookie: 'sallyport=good' })).status).to.equal(401);
  });

  it('may ask from the configured origins, without credentials', async () => {
    const origin = 'https://tools.example';
    const asked = await call('OPTIONS', { origin, 'access-control-request-method': 'POST' });
    expect(asked.status).to.equal(204);
    expect(asked.headers.get('access-control-allow-origin')).to.equal(origin);
    expect(asked.headers.get('access-control-allow-headers')).to.contain('Authorization');
    const answer = await call('GET', { origin, authorization: 'Bearer good' });
    expect(answer.headers.get('access-control-allow-origin')).to.equal(origin);
    expect(answer.headers.get('vary')).to.equal('Origin');
    expect(cors(answer.headers)).to.not.include('access-control-allow-credentials');
  });

  it('get no permission from other origins', async () => {
    for (const origin of ['https://evil.example', 'https://tools.example.evil', 'null']) {
      const asked = await call('OPTIONS', { origin, 'access-control-request-method': 'POST' });
      expect(cors(asked.headers)).to.deep.equal([]);
      expect(asked.headers.get('vary')).to.equal('Origin');
    }
  });

  it('are known by their own address: nobody is believed about another unless configured', async () => {
    const answer = await fetch(`${server.url}/v1/thing`, {
      headers: { authorization: 'Bearer good', 'x-forwarded-for': '203.0.113.9' },
    });
    expect(await answer.json()).to.deep.equal({ address: '127.0.0.1' });
  });
});
