import { expect } from 'chai';
import { hashPassword, readCredential } from '@sallyport/shared';
import { PASSWORD, openTestApi, type TestApi } from './testing.js';

/** Of {@link PASSWORD}. */
const BCRYPT = '$2y$08$2j4uOAjORmZSum8BykxUiOCrmZiTSnJZ7i2mJpCBOqYIOmfVktywq';

describe('importUsers', () => {
  let api: TestApi;
  let argon2: string;
  before(async () => {
    api = await openTestApi();
    argon2 = (await hashPassword(PASSWORD)).replace('t=2,p=1', 'p=1,t=2');
  });
  after(() => api.stop());

  const post = (lines: (object | string)[], query = '') =>
    api.call(`/v1/admin/users:import${query}`, {
      text: lines
        .map((line) => (typeof line === 'string' ? line : JSON.stringify(line)))
        .join('\n'),
      headers: { 'content-type': 'application/x-ndjson' },
    });
  const base = { profile_type: 'analysts' };
  const count = async () => (await api.db('users')).length;

  it('makes accounts whose owners log in with the password they have, and replaces the verifier', async () => {
    const roles = [{ network: 'response', role: 'reviewer' }];
    const lines = [
      { ...base, login: 'Erika', verifier: BCRYPT, roles },
      { ...base, login: 'max', verifier: argon2, email: 'max@example.org' },
    ];
    const dry = await post(lines, '?dry_run=true');
    expect(dry.body).to.deep.equal({ lines: 2, logins: ['erika', 'max'] });
    const before = await count();
    expect((await post(lines)).status).to.equal(200);
    expect(await count()).to.equal(before + 2);
    const sent = await api.db<{ type: string; line: string }>('outbox_records').orderBy('position');
    expect(sent.map(({ type }) => type)).to.deep.equal([
      'user',
      'user.credential',
      'user',
      'user.credential',
    ]);
    const body = { login: 'erika', password: PASSWORD };
    expect((await api.call('/v1/sessions', { as: null, body })).status).to.equal(201);
    const user = await api
      .db<{ id: string; login: string }>('users')
      .where({ login: 'erika' })
      .first();
    const stored = await readCredential(api.db, user?.id ?? '');
    expect(stored).to.include({ generation: 2, counter: 0 });
    expect(stored?.verifier).to.match(/^\$argon2id\$/);
  });

  it('imports nothing when one line is not valid, and says what is wrong with each', async () => {
    const before = await count();
    const answer = await post([
      { ...base, login: 'good', verifier: BCRYPT },
      { ...base, login: 'good', verifier: BCRYPT },
      { ...base, login: 'admin', verifier: BCRYPT },
      { ...base, login: 'bad name', verifier: BCRYPT },
      { ...base, login: 'weak', verifier: BCRYPT.replace('$08$', '$04$') },
      { ...base, login: 'md5', verifier: '5f4dcc3b5aa765d61d8327deb882cf99' },
      { login: 'typed', verifier: BCRYPT, profile_type: 'nothing' },
      { ...base, login: 'more', verifier: BCRYPT, disabled: true },
      '{"login":',
    ]);
    expect(answer.body).to.include({
      status: 422,
      code: 'bulk-line-invalid',
      invalid: 8,
      lines: 9,
    });
    const errors = answer.body['errors'] as { pointer: string }[];
    expect(errors.map(({ pointer }) => pointer)).to.deep.equal([
      '/2/login',
      '/3/login',
      '/4/login',
      '/5/verifier',
      '/6/verifier',
      '/7/profile_type',
      '/8/disabled',
      '/9/login',
    ]);
    expect(await count()).to.equal(before);
    expect(JSON.stringify(answer.body)).to.not.contain(BCRYPT.slice(10));
  });

  it('refuses another media type, and too many lines', async () => {
    const typed = await api.call('/v1/admin/users:import', { body: {} });
    expect(typed.body).to.include({ code: 'unsupported-media-type' });
    const many = await post(Array.from({ length: 5_001 }, () => '{}'));
    expect(many.body).to.include({ code: 'too-many-lines' });
  });
});
