import { expect } from 'chai';
import {
  ADMINISTER,
  COMMON_ROUTES,
  RUNNING,
  findWrongAccess,
  listOperations,
  type AccessTable,
} from '@sallyport/shared/testing';
import { openTestApi, type TestApi } from './testing.js';

/** Every route of this network, and who may call it. */
const ROUTES: AccessTable = {
  ...COMMON_ROUTES,
  'GET /v1/admin/executions': RUNNING,
  'GET /v1/admin/executions/{id}': RUNNING,
  'POST /v1/admin/executions/{id}:kill': ADMINISTER,
  'POST /v1/admin/executions/{id}:retry': ADMINISTER,
  'POST /v1/admin/users': ADMINISTER,
  'POST /v1/admin/users:import': ADMINISTER,
  'PATCH /v1/admin/users/{id}': ADMINISTER,
  'POST /v1/admin/users/{id}:disable': ADMINISTER,
  'POST /v1/admin/users/{id}:enable': ADMINISTER,
  'POST /v1/admin/users/{id}:roll-back': ADMINISTER,
  'POST /v1/admin/profile-types': ADMINISTER,
  'PATCH /v1/admin/profile-types/{id}': ADMINISTER,
  'POST /v1/admin/profile-types/{id}:disable': ADMINISTER,
  'POST /v1/admin/profile-types/{id}:enable': ADMINISTER,
  'POST /v1/admin/profile-types/{id}:roll-back': ADMINISTER,
  'POST /v1/admin/datasets': ADMINISTER,
  'PATCH /v1/admin/datasets/{id}': ADMINISTER,
  'POST /v1/admin/datasets/{id}:disable': ADMINISTER,
  'POST /v1/admin/datasets/{id}:enable': ADMINISTER,
  'POST /v1/admin/datasets/{id}:roll-back': ADMINISTER,
  'POST /v1/admin/users/{id}:end-sessions': ADMINISTER,
  'POST /v1/admin/users/{id}:reset-password': ADMINISTER,
  'PUT /v1/admin/settings/{key}': ADMINISTER,
  'POST /v1/admin/settings/{key}:unset': ADMINISTER,
  'POST /v1/admin/settings/{key}:roll-back': ADMINISTER,
};

describe('who may call which route of the response network', () => {
  let api: TestApi;
  before(async () => {
    api = await openTestApi();
  });
  after(() => api.stop());

  it('is said for every route of the OpenAPI document', async () => {
    expect((await listOperations(api.call)).sort()).to.deep.equal(Object.keys(ROUTES).sort());
  });

  it('is what the table says, role by role', async () => {
    const { call, tokenOf } = api;
    expect(await findWrongAccess({ table: ROUTES, call, tokenOf })).to.deep.equal([]);
  });

  it('is nobody with an API key, which this network does not have', async () => {
    const { status } = await api.call('/v1/sessions', { as: 'sp_live_0000000000000000000000' });
    expect(status).to.equal(401);
  });
});
