import { request as httpRequest } from 'node:http';
import { connect } from 'node:net';
import { expect } from 'chai';
import { Type } from 'typebox';
import { SallyportError } from './errors.js';
import { createApp, startServer, type ReadinessCheck, type RunningServer } from './http.js';
import { readBody } from './http-body.js';
import { createRoutes, type Actor } from './http-routes.js';
import { createLog } from './log.js';
import { eventually } from './testing.js';

const ID = '0197aaaa-0000-7000-8000-000000000000';
const Body = Type.Object({ name: Type.String({ maxLength: 5 }) }, { additionalProperties: false });
const Query = Type.Object(
  { wait: Type.Optional(Type.Integer({ minimum: 0 })) },
  { additionalProperties: false },
);
const ACTORS: Record<string, Actor> = {
  alice: { id: 'alice', roles: ['user'], scopes: 'all' },
  olga: { id: 'olga', roles: ['operator'], scopes: 'all' },
  key: { id: 'alice', roles: ['user'], scopes: ['read'] },
};

type Line = Record<string, unknown> & { level: string; msg: string };
type Problem = {
  code: string;
  type: string;
  status: number;
  detail: string;
  instance: string;
  request_id: string;
  retryable: boolean;
  retry_after_s?: number;
  errors?: { pointer: string; code: string }[];
  checks?: Record<string, string>;
};

describe('createApp', () => {
  let server: RunningServer;
  let lines: Line[];
  let checks: ReadinessCheck[];
  let failure: unknown;
  const waiting: (() => void)[] = [];

  const routes = createRoutes((req) => {
    const actor = ACTORS[req.headers.authorization?.replace('Bearer ', '') ?? ''];
    if (!actor) throw new SallyportError('unauthenticated', 'The credentials are not valid.');
    return actor;
  });
  const responses = { 200: { description: 'Done.', schema: Body } };
  const shared = { summary: 'A route.', roles: ['user'], scope: 'read', responses } as const;
  const echo = (call: { params: unknown; query: unknown; body: unknown }) =>
    Promise.resolve({
      status: 200,
      body: { params: call.params, query: call.query, body: call.body },
    });
  routes.add({ ...shared, method: 'get', path: '/v1/things/{id}', query: Query, handler: echo });
  routes.add({ ...shared, method: 'post', path: '/v1/things', body: Body, handler: echo });
  routes.add({ ...shared, method: 'post', path: '/v1/things:bulk', handler: echo });
  routes.add({ ...shared, method: 'post', path: '/v1/things/{id}:cancel', handler: echo });
  routes.add({
    ...shared,
    method: 'get',
    path: '/v1/named/{name}',
    params: { name: /^[a-z]+$/ },
    handler: echo,
  });
  routes.add({
    ...shared,
    method: 'put',
    path: '/v1/raw',
    rawBody: 'application/octet-stream',
    handler: async ({ req }) => {
      const bytes = await readBody(req, { sizeBytes: 10, timeMs: 100 });
      return { status: 201, headers: { Location: '/v1/raw' }, json: `{"size":${bytes.length}}` };
    },
  });
  routes.addPublic({
    method: 'post',
    path: '/v1/failing',
    summary: 'Fails.',
    responses,
    handler: () => Promise.reject(failure as Error),
  });
  routes.addPublic({
    method: 'get',
    path: '/v1/slow',
    summary: 'Waits.',
    responses: { 204: { description: 'Nothing.' } },
    handler: async () => {
      await new Promise<void>((resolve) => waiting.push(resolve));
      return { status: 204 };
    },
  });
  routes.addPublic({
    method: 'get',
    path: '/v1/cut',
    summary: 'Breaks half-way.',
    responses,
    handler: ({ res }) => {
      res.write('half');
      return Promise.reject(new Error('bug'));
    },
  });

  before(async () => {
    const log = createLog('test', 'debug', {
      write: (text: string) => void lines.push(JSON.parse(text) as Line),
    });
    const readiness = [
      { name: 'postgresql', required: true, check: () => checks[0]?.check() ?? Promise.resolve() },
      { name: 'redis', required: false, check: () => checks[1]?.check() ?? Promise.resolve() },
    ];
    const app = createApp({ title: 'Test', version: '1', log, routes: [routes], readiness });
    server = await startServer(app, { host: '127.0.0.1', port: 0 });
  });
  after(() => server.close(100));
  beforeEach(() => {
    lines = [];
    checks = [];
  });

  const call = (method: string, path: string, init: RequestInit & { as?: string } = {}) => {
    const headers = new Headers(init.headers);
    headers.set('Authorization', `Bearer ${init.as ?? 'alice'}`);
    return fetch(server.url + path, { ...init, method, headers });
  };
  const post = (path: string, body: string, type = 'application/json') =>
    call('POST', path, { body, headers: { 'Content-Type': type } });
  const expectProblem = async (answer: Response, status: number, code: string) => {
    const problem = (await answer.json()) as Problem;
    expect(problem).to.include({ status, code, type: `/problems/${code}` });
    expect(answer.status).to.equal(status);
    expect(answer.headers.get('content-type')).to.equal('application/problem+json');
    expect(problem.request_id).to.equal(answer.headers.get('x-request-id'));
    return problem;
  };
  const accessLines = () => lines.filter((line) => line.msg === 'call answered');

  it('answers a route with its parameters, query and body', async () => {
    const read = await call('GET', `/v1/things/${ID}?wait=25`);
    expect(await read.json()).to.deep.equal({ params: { id: ID }, query: { wait: 25 } });
    const written = await post('/v1/things', '{"name":"x"}', 'application/json; charset=utf-8');
    expect(await written.json()).to.deep.include({ body: { name: 'x' } });
  });

  it('tells paths with a colon apart', async () => {
    expect((await call('POST', '/v1/things:bulk')).status).to.equal(200);
    const cancelled = await call('POST', `/v1/things/${ID}:cancel`);
    expect(await cancelled.json()).to.deep.include({ params: { id: ID } });
    await expectProblem(await call('POST', `/v1/things/${ID}:other`), 404, 'not-found');
    await expectProblem(await call('GET', `/v1/things/${ID}:cancel`), 405, 'method-not-allowed');
  });

  it('answers 404 to an id that is none, to unknown paths and to damaged ones', async () => {
    for (const path of ['/v1/things/x', `/v1/things/${ID}/`, '/V1/things', '/v1/named/A', '/%ff']) {
      await expectProblem(await call('GET', path), 404, 'not-found');
    }
    await expectProblem(await call('GET', '/v1/named/%ff'), 404, 'not-found');
    expect((await call('GET', '/v1/named/abc')).status).to.equal(200);
  });

  it('answers 405 with what is allowed', async () => {
    const answer = await call('PATCH', '/v1/things');
    expect(answer.headers.get('allow')).to.equal('POST');
    await expectProblem(answer, 405, 'method-not-allowed');
  });

  it('refuses strangers, other roles and keys of another scope', async () => {
    const stranger = await call('GET', `/v1/things/${ID}`, { as: 'mallory' });
    expect(stranger.headers.get('www-authenticate')).to.equal('Bearer');
    await expectProblem(stranger, 401, 'unauthenticated');
    await expectProblem(
      await call('GET', '/v1/things/x', { as: 'mallory' }),
      401,
      'unauthenticated',
    );
    const operator = await call('GET', `/v1/things/${ID}`, { as: 'olga' });
    await expectProblem(operator, 403, 'role-missing');
    expect((await call('GET', `/v1/things/${ID}`, { as: 'key' })).status).to.equal(200);
  });

  it('refuses an API key without the scope', async () => {
    const strict = createRoutes(() => ACTORS['key'] as Actor);
    strict.add({ ...shared, scope: 'write', method: 'get', path: '/w', handler: echo });
    const { scope: _scope, ...sessionOnly } = shared;
    strict.add({ ...sessionOnly, method: 'get', path: '/s', handler: echo });
    const log = createLog('test', 'silent');
    const app = createApp({ title: 'Test', version: '1', log, routes: [strict] });
    const other = await startServer(app, { host: '127.0.0.1', port: 0 });
    await expectProblem(await fetch(`${other.url}/w`), 403, 'scope-missing');
    await expectProblem(await fetch(`${other.url}/s`), 403, 'scope-missing');
    await other.close();
  });

  it('refuses query parameters that are not known or not valid', async () => {
    const unknown = await call('GET', `/v1/things/${ID}?other=1`);
    await expectProblem(unknown, 422, 'unknown-field');
    await expectProblem(await call('POST', '/v1/things:bulk?x=1'), 422, 'unknown-field');
    await expectProblem(await call('GET', `/v1/things/${ID}?wait=x`), 422, 'bad-field');
  });

  it('refuses NUL in a query parameter', async () => {
    await expectProblem(await call('GET', `/v1/things/${ID}?wait=%00`), 422, 'bad-field');
  });

  it('refuses bodies of another type, shape or syntax', async () => {
    await expectProblem(await post('/v1/things', 'x', 'text/plain'), 415, 'unsupported-media-type');
    await expectProblem(await post('/v1/things', '{"name":'), 400, 'malformed-json');
    await expectProblem(await post('/v1/things', '{"name":"a","name":"b"}'), 400, 'duplicate-key');
    const unknown = await expectProblem(
      await post('/v1/things', '{"name":"a","other":1}'),
      422,
      'unknown-field',
    );
    expect(unknown.errors).to.have.length(1);
    expect(unknown.errors?.[0]).to.include({ pointer: '/other' });
    const compressed = await call('POST', '/v1/things', {
      body: '{}',
      headers: { 'Content-Type': 'application/json', 'Content-Encoding': 'gzip' },
    });
    await expectProblem(compressed, 415, 'unsupported-media-type');
  });

  it('refuses a body that is too large, stated or not', async () => {
    expect((await call('PUT', '/v1/raw', { body: 'x'.repeat(10) })).status).to.equal(201);
    await expectProblem(
      await call('PUT', '/v1/raw', { body: 'x'.repeat(11) }),
      413,
      'body-too-large',
    );
    const unstated = await new Promise<number | undefined>((resolve, reject) => {
      const headers = { Authorization: 'Bearer alice', 'Transfer-Encoding': 'chunked' };
      const sent = httpRequest(`${server.url}/v1/raw`, { method: 'PUT', headers }, (res) => {
        res.resume();
        resolve(res.statusCode);
      });
      sent.on('error', reject);
      sent.write('x'.repeat(11));
    });
    expect(unstated).to.equal(413);
  });

  it('gives up on a body that does not come, and survives one that is cut', async () => {
    const head = 'PUT /v1/raw HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice\r\n';
    const socket = connect(server.port, '127.0.0.1');
    let answer = '';
    socket.on('data', (chunk: Buffer) => (answer += chunk.toString()));
    socket.write(`${head}Content-Length: 5\r\n\r\nab`);
    await eventually(() => answer.includes('body-too-slow'));
    expect(answer)
      .to.match(/^HTTP\/1\.1 408 /)
      .and.to.match(/connection: close/i);
    socket.destroy();
    const cut = connect(server.port, '127.0.0.1');
    cut.write(`${head}Content-Length: 5\r\n\r\nab`, () => cut.destroy());
    await eventually(() => accessLines().some((line) => line['status'] === 499));
    expect(lines.some((line) => line.level === 'error')).to.equal(false);
  });

  it('answers an expected failure with everything that it says', async () => {
    const errors = Array.from({ length: 25 }, (_, n) => ({
      pointer: `/${n}`,
      code: 'bad-field',
      detail: 'no',
    }));
    failure = new SallyportError('queue-full', 'Full.', {
      next: 'Wait.',
      retryAfterS: 7,
      errors,
      extra: { state: 'red' },
    });
    const answer = await call('POST', '/v1/failing');
    expect(answer.headers.get('retry-after')).to.equal('7');
    const problem = await expectProblem(answer, 503, 'queue-full');
    expect(problem).to.deep.include({
      detail: 'Full. Wait.',
      instance: '/v1/failing',
      retryable: true,
      retry_after_s: 7,
      state: 'red',
    });
    expect(problem.errors).to.have.length(20);
    expect(lines.some((line) => line.level === 'error')).to.equal(false);
  });

  it('answers a bug with 500, without details, and logs it once', async () => {
    for (const bug of [new Error('secret'), new SallyportError('usage', 'secret'), 'secret']) {
      lines = [];
      failure = bug;
      const problem = await expectProblem(await call('POST', '/v1/failing'), 500, 'internal');
      expect(JSON.stringify(problem)).not.to.contain('secret');
      const logged = lines.filter((line) => line.level === 'error');
      expect(logged).to.have.length(1);
      expect(logged[0]).to.include({ request_id: problem.request_id, route: '/v1/failing' });
    }
  });

  it('answers 503 when the database is out of reach', async () => {
    failure = Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' });
    const answer = await call('POST', '/v1/failing');
    expect(answer.headers.get('retry-after')).to.equal('5');
    await expectProblem(answer, 503, 'store-unavailable');
  });

  it('cuts an answer that breaks half-way instead of ending it', async () => {
    const outcome: unknown = await call('GET', '/v1/cut')
      .then((answer) => answer.text())
      .catch((err: unknown) => err);
    expect(outcome).to.be.instanceOf(Error);
  });

  it('keeps a sane request id and trace, and replaces others', async () => {
    const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`;
    const kept = await fetch(`${server.url}/livez`, {
      headers: { 'X-Request-Id': 'from-proxy.1', traceparent },
    });
    expect(kept.headers.get('x-request-id')).to.equal('from-proxy.1');
    expect(kept.headers.get('traceparent')).to.equal(traceparent);
    const replaced = await fetch(`${server.url}/livez`, {
      headers: { 'X-Request-Id': 'two words', traceparent: 'x' },
    });
    expect(replaced.headers.get('x-request-id')).to.match(/^[0-9a-f-]{36}$/);
    expect(replaced.headers.get('traceparent')).to.equal(null);
  });

  it('tells nothing about itself and lets nobody keep or sniff answers', async () => {
    const answer = await call('GET', `/v1/things/${ID}`);
    expect(answer.headers.get('x-powered-by')).to.equal(null);
    expect(answer.headers.get('etag')).to.equal(null);
    expect(answer.headers.get('cache-control')).to.equal('no-store');
    expect(answer.headers.get('x-content-type-options')).to.equal('nosniff');
    expect(answer.headers.get('content-security-policy')).to.contain("frame-ancestors 'none'");
    expect(answer.headers.get('referrer-policy')).to.equal('no-referrer');
  });

  it('logs one line per call: the route, never the path', async () => {
    await (await call('GET', `/v1/things/${ID}?wait=1`)).text();
    const [line] = await eventually(() => accessLines().length > 0 && accessLines());
    expect(line).to.include({
      level: 'info',
      method: 'GET',
      route: '/v1/things/{id}',
      status: 200,
      actor: 'alice',
    });
    expect(line?.['bytes']).to.be.greaterThan(10);
    expect(line).to.have.property('request_id');
    expect(JSON.stringify(line)).not.to.contain(ID);
    await (await fetch(`${server.url}/livez`)).text();
    await eventually(() => accessLines().some((each) => each.level === 'debug'));
    expect(accessLines()).to.have.length(2);
  });

  it('is ready, degraded or not ready by its checks', async () => {
    const ready = await fetch(`${server.url}/readyz`);
    expect(await ready.json()).to.deep.equal({
      status: 'ok',
      checks: { postgresql: 'ok', redis: 'ok' },
    });
    const fail = { name: '', required: true, check: () => Promise.reject(new Error('down')) };
    const pass = { ...fail, check: () => Promise.resolve() };
    checks = [pass, fail];
    const degraded = await fetch(`${server.url}/readyz`);
    expect(degraded.status).to.equal(200);
    expect(await degraded.json()).to.include({ status: 'degraded' });
    checks = [fail, pass];
    const problem = await expectProblem(
      await fetch(`${server.url}/readyz`),
      503,
      'store-unavailable',
    );
    expect(problem.checks).to.deep.equal({ postgresql: 'failed', redis: 'ok' });
    expect((await fetch(`${server.url}/livez`)).status).to.equal(200);
  });

  it('is not ready when a check hangs', async () => {
    const hang = { name: '', required: true, check: () => new Promise(() => undefined) };
    checks = [hang, hang];
    await expectProblem(await fetch(`${server.url}/readyz`), 503, 'store-unavailable');
  });

  it('explains its problems to programs and to people', async () => {
    const one = await fetch(`${server.url}/problems/rate-limited`);
    expect(await one.json()).to.include({ code: 'rate-limited', status: 429, retryable: true });
    const all = (await (await fetch(`${server.url}/problems`)).json()) as unknown[];
    expect(all).to.have.length.greaterThan(40);
    const page = await fetch(`${server.url}/problems/internal`, {
      headers: { accept: 'text/html' },
    });
    expect(page.headers.get('content-type')).to.contain('text/html');
    expect(await page.text()).to.contain('internal');
    await expectProblem(await fetch(`${server.url}/problems/nothing`), 404, 'not-found');
  });

  it('describes its routes from the schemas that check them', async () => {
    const document = (await (await fetch(`${server.url}/openapi.json`)).json()) as {
      openapi: string;
      paths: Record<string, Record<string, Record<string, unknown>>>;
    };
    expect(document.openapi).to.match(/^3\.1\./);
    const cancel = document.paths['/v1/things/{id}:cancel']?.['post'];
    expect(cancel?.['parameters']).to.deep.equal([
      { name: 'id', in: 'path', required: true, schema: { type: 'string', format: 'uuid' } },
    ]);
    expect(cancel?.['security']).to.deep.equal([
      { session: [] },
      { console: [] },
      { apiKey: ['read'] },
    ]);
    const create = document.paths['/v1/things']?.['post'];
    expect(create?.['requestBody']).to.deep.equal({
      required: true,
      content: { 'application/json': { schema: JSON.parse(JSON.stringify(Body)) as unknown } },
    });
    expect(create?.['responses']).to.include.keys('200', 'default');
    const operations = Object.values(document.paths).flatMap((each) => Object.values(each));
    const ids = operations.map((each) => each['operationId']);
    expect(new Set(ids).size).to.equal(ids.length);
    expect(document.paths['/v1/failing']?.['post']?.['security']).to.deep.equal([]);
  });

  it('answers what is no proper request with a problem document, and closes', async () => {
    const get = 'GET /livez HTTP/1.1\r\n';
    const cases: [string, number, string][] = [
      [`${get}Host: x\r\nX-Long: ${'a'.repeat(20_000)}\r\n\r\n`, 431, 'headers-too-large'],
      [`${get}Host: x\r\nbad header\r\n\r\n`, 400, 'bad-header'],
      ['hello\r\n\r\n', 400, 'bad-header'],
      [`${get}\r\n`, 400, 'bad-header'],
      [`${get}Host: x\r\nExpect: wonders\r\n\r\n`, 400, 'bad-header'],
    ];
    for (const [sent, status, code] of cases) {
      const socket = connect(server.port, '127.0.0.1');
      let answer = '';
      let closed = false;
      socket.on('data', (chunk: Buffer) => (answer += chunk.toString()));
      socket.on('error', () => undefined).on('close', () => (closed = true));
      socket.write(sent);
      await eventually(() => closed);
      const [head = '', body = ''] = answer.split('\r\n\r\n');
      expect(head).to.match(new RegExp(`^HTTP/1.1 ${status} [A-Z]`));
      expect(head).to.contain('application/problem+json').and.contain('Connection: close');
      expect(JSON.parse(body)).to.include({ status, code, type: `/problems/${code}` });
    }
  });

  it('answers what is in progress while it closes', async () => {
    const log = createLog('test', 'silent');
    const app = createApp({ title: 'Test', version: '1', log, routes: [routes] });
    const other = await startServer(app, { host: '127.0.0.1', port: 0 });
    waiting.length = 0;
    const answered = fetch(`${other.url}/v1/slow`);
    await eventually(() => waiting.length > 0);
    const closed = other.close(10_000);
    waiting[0]?.();
    expect((await answered).status).to.equal(204);
    await closed;
    const refused: unknown = await fetch(`${other.url}/livez`).catch((err: unknown) => err);
    expect(refused).to.be.instanceOf(Error);
  });

  it('cuts what is still in progress at the limit', async () => {
    const log = createLog('test', 'silent');
    const app = createApp({ title: 'Test', version: '1', log, routes: [routes] });
    const other = await startServer(app, { host: '127.0.0.1', port: 0 });
    waiting.length = 0;
    const answered = fetch(`${other.url}/v1/slow`).catch((err: unknown) => err);
    await eventually(() => waiting.length > 0);
    await other.close(10);
    expect(await answered).to.be.instanceOf(Error);
  });

  it('fails to start on a port that is taken', async () => {
    const log = createLog('test', 'silent');
    const app = createApp({ title: 'Test', version: '1', log, routes: [routes] });
    const error: unknown = await startServer(app, { host: '127.0.0.1', port: server.port }).catch(
      (err: unknown) => err,
    );
    expect(error).to.include({ code: 'EADDRINUSE' });
  });
});
