import { expect } from 'chai';
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
});
