import { expect } from 'chai';
import { newId, rows, takeSamples } from '@sallyport/shared';
import { sampleBatches } from '@sallyport/transfer';
import { sampleExecutions } from './execution-samples.js';
import { PASSWORD, openTestApi, type TestApi } from './testing.js';

describe('createResponseApp', () => {
  let api: TestApi;
  before(async () => {
    api = await openTestApi();
  });
  after(() => api.stop());

  it('opens a session for somebody who knows the password', async () => {
    const { status, body } = await api.call('/v1/sessions', {
      as: null,
      body: { login: 'admin', password: PASSWORD },
    });
    expect(status).to.equal(201);
    expect(body).to.include({ token_type: 'Bearer', must_change_password: false });
  });

  it('refuses a wrong password and an unknown name alike', async () => {
    const answers = [];
    for (const login of ['admin', 'nobody']) {
      const body = { login, password: 'wrong horse battery staple' };
      const answer = await api.call('/v1/sessions', { as: null, body });
      const { request_id: _id, instance: _instance, ...rest } = answer.body;
      answers.push({ status: answer.status, ...rest });
    }
    expect(answers[0]).to.include({ status: 401, code: 'unauthenticated' });
    expect(answers[1]).to.deep.equal(answers[0]);
  });

  it('shows and clears its cache, and says what happened', async () => {
    const clear = { scope: 'all', reason: 'a test' };
    expect((await api.call('/v1/admin/cache')).body).to.include({ name: 'digests', entries: 0 });
    expect((await api.call('/v1/admin/cache:clear', { body: clear })).status).to.equal(200);
    const id = newId();
    await rows(
      api.db,
      `insert into results (request_id, status, parts, received_at, started_at, finished_at, took_ms)
       values (?, 'delivered', 0, ?, ?, ?, 7)`,
      [id, api.time.now, api.time.now, api.time.now],
    );
    const settings = api.settings();
    const now = new Date(api.time.now.getTime() + 120_000);
    await takeSamples(api.db, { samplers: [sampleExecutions, sampleBatches], now, settings });
    const { status, body } = await api.call('/v1/admin/stats?window=1h');
    expect(status).to.equal(200);
    expect(body).to.have.nested.property('totals.counts.requests\\.status.delivered', 1);
    expect(body).to.have.nested.property('totals.stages.search.count', 1);
  });
});
