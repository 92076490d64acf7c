import { expect } from 'chai';
import { findUserByLogin, newId, type Role } from '@sallyport/shared';
import {
  ADMINISTER,
  ANY_ROLE,
  COMMON_ROUTES,
  OVERSEE,
  RUNNING,
  USER,
  callRoute,
  describeAccess,
  findWrongAccess,
  listOperations,
  type Access,
  type AccessTable,
} from '@sallyport/shared/testing';
import { SCOPES, type Scope } from './api-keys.js';
import { QUERY, makeKey, openTestNetwork, type TestNetwork } from './testing.js';

const READ: Access = { ...USER, scope: 'requests:read' };
const WRITE: Access = { ...USER, scope: 'requests:write' };
const RESULT: Access = { ...USER, scope: 'results:read' };
const OWN_REQUEST = { own: 'request' } as const;
const OWN_KEY: Access = { ...USER, own: 'key' };

/** Every route of this network, and who may call it. */
const ROUTES: AccessTable = {
  ...COMMON_ROUTES,
  'GET /v1/datasets': READ,
  'GET /v1/requests': READ,
  'POST /v1/requests': WRITE,
  'POST /v1/requests:bulk': WRITE,
  'GET /v1/requests/{id}': { ...READ, ...OWN_REQUEST },
  'GET /v1/requests/{id}/timeline': { ...READ, ...OWN_REQUEST },
  'GET /v1/requests/{id}/result': { ...RESULT, ...OWN_REQUEST },
  'GET /v1/requests/{id}/response': { ...RESULT, ...OWN_REQUEST },
  'DELETE /v1/requests/{id}/result': { ...WRITE, ...OWN_REQUEST },
  'POST /v1/requests/{id}:cancel': { ...WRITE, ...OWN_REQUEST },
  'POST /v1/requests/{id}:resubmit': { ...WRITE, ...OWN_REQUEST },
  'GET /v1/me/keys': USER,
  'POST /v1/me/keys': USER,
  'GET /v1/me/keys/{id}': OWN_KEY,
  'PATCH /v1/me/keys/{id}': OWN_KEY,
  'DELETE /v1/me/keys/{id}': OWN_KEY,
  'POST /v1/me/keys/{id}:rotate': OWN_KEY,
  'GET /v1/me/limits': { ...ANY_ROLE, scope: 'requests:read' },
  'GET /v1/me/usage': { ...ANY_ROLE, scope: 'requests:read' },
  'GET /v1/status': { ...ANY_ROLE, scope: 'requests:read' },
  'GET /v1/admin/requests': RUNNING,
  'GET /v1/admin/requests/{id}': RUNNING,
  'GET /v1/admin/limits': RUNNING,
  'GET /v1/admin/limits/{subject}': RUNNING,
  'POST /v1/admin/limits/{subject}:reset': ADMINISTER,
  'POST /v1/admin/limits/{subject}:grant-grace': ADMINISTER,
  'POST /v1/admin/limits/{subject}:end-grace': ADMINISTER,
  'POST /v1/admin/limits/{subject}:override': ADMINISTER,
  'POST /v1/admin/limits/{subject}:block': ADMINISTER,
  'POST /v1/admin/limits/{subject}:unblock': ADMINISTER,
  'GET /v1/admin/keys': OVERSEE,
  'GET /v1/admin/keys/{id}': OVERSEE,
  'POST /v1/admin/keys/{id}:disable': ADMINISTER,
  'POST /v1/admin/keys/{id}:enable': ADMINISTER,
  'POST /v1/admin/keys/{id}:revoke': ADMINISTER,
  'PUT /v1/admin/settings/{key}/local': ADMINISTER,
  'DELETE /v1/admin/settings/{key}/local': ADMINISTER,
};

describe('who may call which route of the request network', () => {
  let network: TestNetwork;
  const test = () => ({
    table: ROUTES,
    call: network.call,
    tokenOf: network.tokenOf,
  });
  before(async () => {
    network = await openTestNetwork();
  });
  after(() => network.stop());

  it('is said for every route of the OpenAPI document', async () => {
    expect((await listOperations(network.call)).sort()).to.deep.equal(Object.keys(ROUTES).sort());
  });

  it('is what the table says, role by role', async () => {
    expect(await findWrongAccess(test())).to.deep.equal([]);
  });

  it('is what the table says for keys of each scope', async () => {
    const wrong: string[] = [];
    const keys = new Map<string, string>();
    const keyOf = async (role: Role, scopes: readonly Scope[]) => {
      const name = `${role} ${scopes.join()}`;
      const user = await findUserByLogin(network.db, role);
      const known = keys.get(name) ?? (await makeKey(network, user?.id ?? '', scopes));
      keys.set(name, known);
      return known;
    };
    for (const [route, { roles, scope }] of Object.entries(ROUTES)) {
      if (roles === 'everybody') continue;
      const role = roles[0] ?? 'user';
      const expectOf = async (scopes: readonly Scope[], expected: string) => {
        const as = await keyOf(role, scopes);
        const outcome = describeAccess(await callRoute(test(), route, { as }));
        if (outcome !== expected) wrong.push(`${route} ${scopes.join()}: ${outcome}`);
      };
      const others = SCOPES.filter((one) => one !== scope);
      if (scope !== undefined) await expectOf([scope as Scope], 'let in');
      await expectOf(others, 'scope-missing');
    }
    expect(wrong).to.deep.equal([]);
  });

  it('is nobody but the owner for what belongs to somebody', async () => {
    const { body } = await network.call('/v1/requests', {
      body: { dataset: 'claims', query: QUERY },
    });
    const [key] = await network
      .db('api_keys')
      .where({ user_id: network.users.ada.id })
      .select('id');
    const ids = { request: String(body['id']), key: (key as { id: string }).id };
    const bob = await network.tokenOf('bob');
    for (const [route, { own }] of Object.entries(ROUTES)) {
      if (own === undefined) continue;
      const answers = [
        await callRoute(test(), route, { as: bob, id: ids[own] }),
        await callRoute(test(), route, { as: bob, id: newId() }),
      ];
      // Empty bodies are refused before anybody looks for the thing, whosever it is.
      expect(answers.map(({ status }) => status)).to.satisfy(
        ([other, none]: number[]) => other === none && (other === 404 || other === 422),
        route,
      );
    }
    const kept = await network.call(`/v1/requests/${ids.request}`);
    expect([kept.status, kept.body['status']]).to.deep.equal([200, 'submitted']);
  });

  it('is nobody whose account is disabled', async () => {
    for (const [route, { roles }] of Object.entries(ROUTES)) {
      if (roles === 'everybody') continue;
      const { status } = await callRoute(test(), route, { as: network.users.eve.key });
      expect(status, route).to.equal(401);
    }
  });
});
