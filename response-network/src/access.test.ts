import { expect } from 'chai';
import {
  COMMON_ROUTES,
  findWrongAccess,
  listOperations,
  type AccessTable,
} from '@sallyport/shared/testing';
import { openTestApi, type TestApi } from './testing.js';

/** Every route of this network, and who may call it. */
const ROUTES: AccessTable = {
  ...COMMON_ROUTES,
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
