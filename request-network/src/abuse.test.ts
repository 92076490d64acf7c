import { connect } from 'node:net';
import { expect } from 'chai';
import type { Role } from '@sallyport/shared';
import { openTestNetwork, type TestNetwork } from './testing.js';

type Operation = {
  description?: string;
  parameters?: { name: string; in: string }[];
  requestBody?: { content: Record<string, unknown> };
};

describe('abuse of the request network', () => {
  let network: TestNetwork;
  const tokens = new Map<Role, string>();
  const asRole = async (role: Role) => {
    const token = tokens.get(role) ?? (await network.tokenOf(role));
    tokens.set(role, token);
    return token;
  };
  /** Every operation, with somebody who may call it. */
  const operations = async () => {
    const { body } = await network.call('/openapi.json', { as: null });
    const paths = Object.entries(body['paths'] as Record<string, Record<string, Operation>>);
    return paths.flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => {
        const [, role] = /^For: (\w+)/.exec(operation.description ?? '') ?? [];
        return {
          route: `${method.toUpperCase()} ${path}`,
          path: path
            .replace('{key}', 'session.minutes')
            .replaceAll(/\{\w+\}/g, network.users.ada.id),
          method: method.toUpperCase(),
          role: role as Role | undefined,
          operation,
        };
      }),
    );
  };
  before(async () => {
    network = await openTestNetwork();
  });
  after(() => network.stop());

  it('by members that a body does not have is refused by every route', async () => {
    let asked = 0;
    for (const { route, path, method, role, operation } of await operations()) {
      if (!operation.requestBody?.content['application/json']) continue;
      asked += 1;
      const { status, text } = await network.call(path, {
        as: role ? await asRole(role) : null,
        method,
        body: { roles: ['request:admin'], user_id: network.users.bob.id },
        headers: { 'if-match': '"1"' },
      });
      expect(status, `${route} ${text}`).to.be.oneOf([404, 422]);
    }
    expect(asked).to.be.greaterThan(10);
  });

  it('by a key in the URL is refused by every route, and the key is nobody', async () => {
    const key = network.users.ada.key;
    for (const { route, path, method, role } of await operations()) {
      for (const name of ['token', 'access_token', 'api_key', 'key']) {
        const { status } = await network.call(`${path}?${name}=${key}`, { as: null, method });
        // Without a role anybody may call it, and the parameter itself is refused.
        expect(status, `${route}?${name}=`).to.equal(role === undefined ? 422 : 401);
      }
    }
    const { status, body } = await network.call(`/v1/requests?token=${key}`);
    expect([status, body['code']]).to.deep.equal([422, 'unknown-field']);
  });

  for (const [what, head, expected] of [
    ['a line break in a header', `X-Request-Id: a\rX-Injected: 1`, /^HTTP\/1\.1 400 /],
    ['a folded header', `X-Request-Id: a\r\n b`, /^HTTP\/1\.1 400 /],
    ['two lengths', 'Content-Length: 2\r\nContent-Length: 3', /^HTTP\/1\.1 400 /],
    ['a length and chunks', 'Content-Length: 2\r\nTransfer-Encoding: chunked', /^HTTP\/1\.1 400 /],
    ['headers of 20,000 bytes', `X-Long: ${'a'.repeat(20_000)}`, /^HTTP\/1\.1 431 /],
    ['a request id that breaks lines', 'X-Request-Id: a%0d%0aSet-Cookie: x=1', /^HTTP\/1\.1 401 /],
  ] as const) {
    it(`by ${what} gets one refusal and no header of its own`, async () => {
      const answer = await send(
        network,
        `GET /v1/me HTTP/1.1\r\nHost: a\r\nConnection: close\r\n${head}\r\n\r\n`,
      );
      expect(answer).to.match(expected);
      expect(answer.match(/HTTP\/1\.1 /g)).to.have.length(1);
      expect(answer).not.to.match(/^(X-Injected|Set-Cookie):/im);
    });
  }
});

/** What the server answers to these bytes until it closes. */
function send({ url }: TestNetwork, bytes: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let answer = '';
    const socket = connect(Number(new URL(url).port), '127.0.0.1', () => socket.write(bytes));
    socket.setTimeout(10_000, () => socket.destroy());
    socket.on('data', (piece) => (answer += piece.toString()));
    socket.on('close', () => resolve(answer));
    socket.on('error', reject);
  });
}
