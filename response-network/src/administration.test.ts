import { expect } from 'chai';
import {
  defaultSettings,
  readCredential,
  rows,
  type RoleGrant,
  type SallyportError,
  verifyAudit,
  verifyPassword,
  type Transaction,
} from '@sallyport/shared';
import { createTestDatabase, type TestDatabase } from '@sallyport/shared/testing';
import type { Change } from './change.js';
import { changeDataset, createDataset } from './dataset-rules.js';
import { readSearchableDatasets } from './dataset-sources.js';
import { migrations } from './network.js';
import { changeProfileType, createProfileType } from './profile-type-rules.js';
import { outrankForgotten } from './restored-state.js';
import { changeSetting } from './setting-rules.js';
import { hasAdmin } from './administrators.js';
import {
  createUser,
  disableUser,
  enableUser,
  resetPassword,
  rollBackUser,
  updateUser,
  type UserChange,
} from './user-accounts.js';

const BY: Change = { actor: 'cli:test', now: new Date('2026-03-01T12:00:00.000Z') };
const WITH = { ...BY, settings: defaultSettings() };
const PASSWORD = 'correct horse battery';

describe('what this network owns', () => {
  let test: TestDatabase;
  before(async () => {
    test = await createTestDatabase(migrations);
    await change((tx) => createProfileType(tx, 'default', {}, WITH));
  });
  after(() => test.drop());
  beforeEach(() => test.db('outbox_records').delete());
  afterEach(async () => expect(await verifyAudit(test.db)).to.include({ ok: true }));

  const change = <T>(make: (tx: Transaction) => Promise<T>) => test.db.transaction(make);
  const create = (login: string, roles: RoleGrant[] = [{ network: 'request', role: 'user' }]) =>
    change((tx) =>
      createUser(tx, { login, profileType: 'default', roles, password: PASSWORD }, WITH),
    );
  const sent = async () => {
    const found = await test
      .db<{ stream: string; line: string }>('outbox_records')
      .orderBy('position');
    return found.map(({ stream, line }) => {
      const { t, d } = JSON.parse(line) as { t: string; d: Record<string, unknown> };
      return { stream, t, d };
    });
  };
  const codeOf = async (attempt: Promise<unknown>) =>
    ((await attempt.catch((e: unknown) => e)) as SallyportError).code;

  describe('createUser', () => {
    it('sends the user and the verifier in the transaction that makes them', async () => {
      const { user, oneTimePassword } = await create('Grace');
      expect(oneTimePassword).to.equal(null);
      const [first, second] = await sent();
      expect(first).to.deep.include({ stream: 'identity', t: 'user' });
      expect(first?.d).to.include({ version: 1, login: 'grace', must_change_password: false });
      expect(second).to.deep.include({ stream: 'identity', t: 'user.credential' });
      expect(second?.d).to.include({ generation: 1, counter: 0 });
      const credential = await readCredential(test.db, user.id);
      expect(await verifyPassword(credential?.verifier ?? '', PASSWORD)).to.equal(true);
    });

    it('makes a password that must be changed when none is given', async () => {
      const wanted = { login: 'hopper', profileType: 'default', roles: [] };
      const { user, oneTimePassword } = await change((tx) => createUser(tx, wanted, WITH));
      expect(oneTimePassword).to.match(/^([a-z2-9]{5}-){3}[a-z2-9]{5}$/);
      expect(user.must_change_password).to.equal(true);
    });

    it('refuses a name that is taken, in whatever case, and sends nothing', async () => {
      await create('taken');
      await test.db('outbox_records').delete();
      expect(await codeOf(create('TAKEN'))).to.equal('already-exists');
      expect(await sent()).to.deep.equal([]);
    });

    it('refuses a bad name, a short password, an unknown profile type', async () => {
      const wanted = { login: 'x', profileType: 'default', roles: [], password: PASSWORD };
      const attempt = (other: object) =>
        codeOf(change((tx) => createUser(tx, { ...wanted, ...other }, WITH)));
      expect(await attempt({ login: 'has space' })).to.equal('bad-field');
      expect(await attempt({ password: 'short' })).to.equal('bad-field');
      expect(await attempt({ profileType: 'none' })).to.equal('not-found');
    });
  });

  describe('disableUser', () => {
    it('raises the version and the generation, once', async () => {
      const { user } = await create('mallory');
      await test.db('outbox_records').delete();
      await change((tx) => disableUser(tx, 'Mallory', BY));
      await change((tx) => disableUser(tx, 'mallory', BY));
      const records = await sent();
      expect(records.map(({ t }) => t)).to.deep.equal(['user', 'user.credential']);
      expect(records[0]?.d).to.include({ disabled: true, version: 2 });
      expect(records[1]?.d).to.include({ generation: 2, counter: 0 });
      await change((tx) => enableUser(tx, 'mallory', BY));
      expect((await sent()).at(-1)?.d).to.include({ disabled: false, version: 3 });
      expect(await readCredential(test.db, user.id)).to.include({ generation: 2 });
    });

    it('says when there is no such user', async () => {
      expect(await codeOf(change((tx) => disableUser(tx, 'nobody', BY)))).to.equal('not-found');
    });
  });

  describe('resetPassword', () => {
    it('makes a new verifier of the next generation', async () => {
      const { user } = await create('forgetful');
      const { oneTimePassword } = await change((tx) =>
        resetPassword(tx, { login: 'forgetful' }, WITH),
      );
      const credential = await readCredential(test.db, user.id);
      expect(credential).to.include({ generation: 2, counter: 0 });
      const verifier = credential?.verifier ?? '';
      expect(await verifyPassword(verifier, PASSWORD)).to.equal(false);
      expect(await verifyPassword(verifier, oneTimePassword ?? '')).to.equal(true);
    });
  });

  it('hasAdmin knows enabled administrators of this network only', async () => {
    await create('elsewhere', [{ network: 'request', role: 'user' }]);
    expect(await change(hasAdmin)).to.equal(false);
    const roles = [{ network: 'response' as const, role: 'admin' as const }];
    await change((tx) => createUser(tx, { login: 'root', profileType: 'default', roles }, WITH));
    expect(await change(hasAdmin)).to.equal(true);
    await test.db('users').where({ login: 'root' }).update({ disabled: true });
    expect(await change(hasAdmin)).to.equal(false);
  });

  describe('updateUser', () => {
    const auditor: RoleGrant[] = [{ network: 'response', role: 'auditor' }];
    const because = { ...BY, reason: 'asked for by the owner' };
    const update = (id: string, wanted: UserChange, by: Change = because) =>
      change((tx) => updateUser(tx, { id }, wanted, by));

    it('raises the version, keeps the old one, and sends the whole', async () => {
      const { user } = await create('curie');
      await test.db('outbox_records').delete();
      const next = await update(user.id, { displayName: 'Marie', roles: auditor });
      expect(next).to.include({ version: 2, profile_version: 1, display_name: 'Marie' });
      expect((await sent())[0]?.d).to.deep.include({ version: 2, roles: auditor });
      await update(user.id, { displayName: 'Marie' });
      expect(await sent()).to.have.lengthOf(1);
      const back = await change((tx) => rollBackUser(tx, { id: user.id }, 1, because));
      expect(back).to.deep.include({ version: 3, display_name: 'curie', roles: user.roles });
      const kept = await test
        .db<{ id: string; version: number }>('revisions')
        .where({ id: user.id });
      expect(kept.map(({ version }) => version)).to.have.members([1, 2, 3]);
      expect(JSON.stringify(kept)).not.to.include('argon2');
    });

    it('takes one of two changes that were made from the same version', async () => {
      const { user } = await create('noether');
      const both = await Promise.all(
        ['Emmy', 'Amalie'].map((displayName) =>
          codeOf(update(user.id, { displayName }, { ...BY, expected: 1 })),
        ),
      );
      expect(both.sort()).to.deep.equal(['version-conflict', undefined]);
    });

    it('wants a reason for a change of roles', async () => {
      const { user } = await create('hilbert');
      expect(await codeOf(update(user.id, { roles: [] }, BY))).to.equal('bad-field');
    });

    it('leaves each network somebody who can administer it', async () => {
      const on = (network: 'request' | 'response') => [{ network, role: 'admin' as const }];
      const { user: one } = await create('first', [...on('request'), ...on('response')]);
      const { user: two } = await create('second', on('response'));
      const disable = (id: string, actorId: string) =>
        codeOf(change((tx) => disableUser(tx, { id }, { ...because, actorId })));
      expect(await disable(one.id, two.id)).to.equal('last-admin');
      expect(await codeOf(update(one.id, { roles: on('response') }))).to.equal('last-admin');
      expect(await disable(two.id, two.id)).to.equal('own-account');
      const { user: three } = await create('third', [...on('request'), ...on('response')]);
      const both = await Promise.all([disable(one.id, three.id), disable(three.id, one.id)]);
      expect(both).to.include(undefined);
      expect(both.filter((code) => code !== undefined)).to.have.lengthOf(1);
      await test.db('users').whereIn('id', [one.id, two.id, three.id]).update({ disabled: true });
    });
  });

  describe('changeProfileType', () => {
    it('raises the version, keeps what is not named, and sends the whole', async () => {
      await change((tx) => changeProfileType(tx, 'default', { datasets: ['claims'] }, BY));
      const limits = { submit_per_minute: 7 };
      await change((tx) => changeProfileType(tx, 'default', { tier: 'C', limits }, BY));
      const last = (await sent()).at(-1);
      expect(last).to.deep.include({ stream: 'identity', t: 'profile_type' });
      expect(last?.d).to.deep.include({ version: 3, datasets: ['claims'], tier: 'C' });
      expect(last?.d['limits']).to.include({ submit_per_minute: 7, warn_percent: 80 });
    });

    it('refuses what could not cross, and changes nothing', async () => {
      const datasets = ['No Such Name!'];
      const attempt = change((tx) => changeProfileType(tx, 'default', { datasets }, BY));
      expect(await codeOf(attempt)).to.equal('record-invalid');
      expect(await sent()).to.deep.equal([]);
    });

    it('refuses unknown and repeated names', async () => {
      const unknown = change((tx) => changeProfileType(tx, 'nope', {}, BY));
      expect(await codeOf(unknown)).to.equal('not-found');
      const repeated = change((tx) => createProfileType(tx, 'default', {}, WITH));
      expect(await codeOf(repeated)).to.equal('already-exists');
    });
  });

  describe('createDataset', () => {
    const fields = [{ name: 'at', type: 'date' as const }];
    const source = { indexName: 'secret-index-7' };

    it('publishes the rules and keeps the place to itself', async () => {
      await change((tx) => createDataset(tx, 'claims', { fields, time_field: 'at', source }, BY));
      const text = JSON.stringify(await sent());
      expect(text).to.include('"stream":"settings","t":"dataset"').and.not.include('secret-index');
      const found = (await readSearchableDatasets(test.db, ['claims'])).get('claims');
      expect(found).to.deep.include({ indexName: 'secret-index-7', rowFilter: null });
    });

    it('raises the version with rules, the epoch with data, and may move', async () => {
      const moved = { indexName: 'other', rowFilter: { term: { at: 1 } } };
      const wanted = { title: 'Claims', reloaded: true, source: moved };
      await change((tx) => changeDataset(tx, 'claims', wanted, BY));
      expect((await sent())[0]?.d).to.include({ version: 2, epoch: 2, title: 'Claims' });
      expect((await readSearchableDatasets(test.db, ['claims'])).get('claims')).to.deep.include(
        moved,
      );
      await change((tx) => changeDataset(tx, 'claims', { disabled: true }, BY));
      expect(await readSearchableDatasets(test.db, ['claims'])).to.have.property('size', 0);
    });

    it('refuses a used name, no index, and a time field that is no date', async () => {
      const attempt = (name: string, wanted: object) =>
        codeOf(change((tx) => createDataset(tx, name, wanted, BY)));
      expect(await attempt('claims', { source })).to.equal('already-exists');
      expect(await attempt('visits', {})).to.equal('bad-field');
      expect(await attempt('visits', { source, time_field: 'at' })).to.equal('bad-field');
      const unknown = change((tx) => changeDataset(tx, 'nope', {}, BY));
      expect(await codeOf(unknown)).to.equal('not-found');
    });
  });

  describe('changeSetting', () => {
    it('sends the setting with its next version', async () => {
      const wanted = { key: 'session.minutes', value: 20 };
      await change((tx) => changeSetting(tx, wanted, BY));
      await change((tx) => changeSetting(tx, { ...wanted, value: 25 }, BY));
      expect((await sent()).map(({ d }) => d)).to.deep.equal([
        { ...wanted, version: 1 },
        { key: 'session.minutes', value: 25, version: 2 },
      ]);
    });
  });

  describe('outrankForgotten', () => {
    it('makes what a backup holds newer than all that was changed after any other', async () => {
      const { user } = await create('liskov');
      const versions = async () => {
        const [row] = await rows<{ version: number; generation: number }>(
          test.db,
          `select u.version, c.generation from users u join credentials c on c.user_id = u.id
           where u.id = ?`,
          [user.id],
        );
        return row ?? { version: 0, generation: 0 };
      };
      await change((tx) => outrankForgotten(tx, { epoch: 2, now: BY.now }));
      await change((tx) => disableUser(tx, 'liskov', BY));
      const forgotten = await versions();
      await test.db('users').update({ version: 1 });
      await test.db('credentials').update({ generation: 1 });
      await change((tx) => outrankForgotten(tx, { epoch: 3, now: BY.now }));
      const restored = await versions();
      expect(restored.version).to.be.above(forgotten.version);
      expect(restored.generation).to.be.above(forgotten.generation);
    });
  });
});
