import { expect } from 'chai';
import fc from 'fast-check';
import { sharedMigrations, type Transaction } from './database.js';
import {
  applyDatasets,
  findDataset,
  listDatasets,
  storeDatasets,
  type Dataset,
} from './datasets.js';
import { SallyportError } from './errors.js';
import { newId } from './ids.js';
import {
  applyProfileTypes,
  findProfileType,
  findProfileTypeByName,
  listProfileTypes,
  storeProfileTypes,
  type ProfileType,
} from './profile-types.js';
import { defaultSettings } from './settings.js';
import { createTestDatabase, type TestDatabase } from './testing.js';
import {
  applyCredentials,
  applyUsers,
  findUser,
  findUserByLogin,
  listCredentials,
  listUsers,
  readCredential,
  rolesOn,
  storeCredential,
  storeUsers,
  type User,
} from './users.js';

const NOW = new Date('2026-03-01T12:00:00.000Z');
const VERIFIER =
  '$argon2id$v=19$m=19456,t=2,p=1$OxHNmMA7bVsKZLhQRg8lOQ$4Ja2Tt3Zl7CHzGd0Gk4pVwLAqYk0CxzHf3VIsq0Q0Eo';
const SNAPSHOT = { kind: 'snapshot' };
const DELTA = { kind: 'delta' };

let test: TestDatabase;
describe('identity and datasets', () => {
  before(async () => {
    test = await createTestDatabase([sharedMigrations]);
  });
  after(() => test.drop());

  describe('applyUsers', () => {
    it('keeps the greatest version, in whatever order the records come', async () => {
      const user = userOf('ann');
      await apply([1, 3, 2].map((version) => ({ ...user, version, display_name: `v${version}` })));
      await apply([{ ...user, version: 2, display_name: 'late' }]);
      expect(await findUser(test.db, user.id)).to.include({ version: 3, display_name: 'v3' });
    });

    it('lets two users swap their names in one batch', async () => {
      const [one, two] = [userOf('castor'), userOf('pollux')];
      await apply([one, two]);
      await apply([
        { ...one, version: 2, login: 'pollux' },
        { ...two, version: 2, login: 'castor' },
      ]);
      expect((await findUserByLogin(test.db, 'Castor'))?.id).to.equal(two.id);
    });

    it('does not overwrite a profile that the user changed later', async () => {
      const user = userOf('lea');
      await apply([{ ...user, profile_version: 4, display_name: 'Léa' }]);
      await apply([
        { ...user, version: 2, profile_version: 3, display_name: 'old', disabled: true },
      ]);
      expect(await findUser(test.db, user.id)).to.include({ display_name: 'Léa', disabled: true });
    });

    it('takes the login from one that a snapshot does not name when it gives it to another', async () => {
      const [before, anew] = [userOf('renata'), userOf('renata')];
      await apply([{ ...before, disabled: true }]);
      await apply([anew], SNAPSHOT);
      expect((await findUserByLogin(test.db, 'renata'))?.id).to.equal(anew.id);
      const old = await findUser(test.db, before.id);
      expect(old).to.include({ login: `renata~${before.id}`, disabled: true });
    });

    it('disables those that a snapshot does not name', async () => {
      const [kept, gone] = [userOf('kept'), userOf('gone')];
      await apply([kept, gone]);
      await apply([kept], SNAPSHOT);
      const disabled = (await listUsers(test.db)).filter((user) => user.disabled);
      expect(disabled.map(({ id }) => id))
        .to.include(gone.id)
        .and.not.include(kept.id);
    });

    const apply = (users: User[], batch = DELTA) =>
      incoming('user', users, (tx) => applyUsers(tx, batch, NOW));
  });

  describe('findUserByLogin', () => {
    it('finds a user in whatever case the name is typed, with the roles of each network', async () => {
      const user = userOf('mixed');
      await test.db.transaction((tx) => storeUsers(tx, [user], NOW));
      const found = await findUserByLogin(test.db, 'MiXeD');
      expect(found).to.deep.equal(user);
      expect(rolesOn(user, 'request')).to.deep.equal(['user']);
      expect(await findUserByLogin(test.db, 'nobody')).to.equal(undefined);
    });
  });

  describe('applyCredentials', () => {
    const range = defaultSettings()['argon2.range'];
    const apply = (
      records: { id: string; generation: number; counter: number; verifier: string }[],
    ) =>
      incoming('user.credential', records, (tx) =>
        applyCredentials(tx, { type: 'user.credential', range }, NOW),
      );

    it('ends with the lexicographically greatest pair for every order of arrival', async () => {
      const pair = fc.record({
        generation: fc.integer({ min: 1, max: 4 }),
        counter: fc.integer({ min: 0, max: 4 }),
      });
      await fc.assert(
        fc.asyncProperty(
          fc.array(fc.array(pair, { minLength: 1 }), { minLength: 1, maxLength: 4 }),
          async (batches) => {
            const id = newId();
            for (const batch of batches) {
              await apply(batch.map((one) => ({ ...one, id, verifier: VERIFIER })));
            }
            const [best] = batches
              .flat()
              .sort((a, b) => b.generation - a.generation || b.counter - a.counter);
            expect(await readCredential(test.db, id)).to.include(best);
          },
        ),
        { numRuns: 30 },
      );
    });

    for (const verifier of [
      VERIFIER.replace('m=19456', 'm=1024'),
      VERIFIER.replace('t=2', 't=1'),
      VERIFIER.replace('p=1', 'p=64'),
      VERIFIER.replace('argon2id', 'argon2i'),
      `$2b$07$${'a'.repeat(53)}`,
      `$2b$16$${'a'.repeat(53)}`,
      `$2x$12$${'a'.repeat(53)}`,
    ]) {
      it(`refuses the batch for a verifier like ${verifier.slice(0, 30)}`, async () => {
        const good = { id: newId(), generation: 1, counter: 0, verifier: VERIFIER };
        const error = await apply([good, { ...good, id: newId(), verifier }]).catch(
          (e: unknown) => e,
        );
        expect(error).to.be.instanceOf(SallyportError).with.property('code', 'SCHEMA');
        expect(await readCredential(test.db, good.id)).to.equal(undefined);
      });
    }

    it('takes bcrypt, which was imported, from the response network alone', async () => {
      const record = {
        id: newId(),
        generation: 1,
        counter: 0,
        verifier: `$2b$12$${'a'.repeat(53)}`,
      };
      await apply([record]);
      expect(await readCredential(test.db, record.id)).to.include({ generation: 1 });
      const type = 'account.credential';
      const error = await incoming(type, [{ ...record, counter: 1 }], (tx) =>
        applyCredentials(tx, { type, range }, NOW),
      ).catch((e: unknown) => e);
      expect(error).to.be.instanceOf(SallyportError).with.property('code', 'SCHEMA');
    });

    it('tells whether a credential was newer than the stored one', async () => {
      const credential = { user_id: newId(), generation: 2, counter: 5, verifier: VERIFIER };
      const store = (change: object) =>
        test.db.transaction((tx) => storeCredential(tx, { ...credential, ...change }, NOW));
      expect(await store({})).to.equal(true);
      expect(await store({})).to.equal(false);
      expect(await store({ counter: 4 })).to.equal(false);
      expect(await store({ generation: 3, counter: 0 })).to.equal(true);
      expect(await listCredentials(test.db)).to.deep.include({
        ...credential,
        generation: 3,
        counter: 0,
      });
    });
  });

  describe('applyProfileTypes', () => {
    it('stores what came, keeps the greatest version and disables what a snapshot omits', async () => {
      const [one, two] = [profileTypeOf('one'), profileTypeOf('two')];
      const apply = (profileTypes: ProfileType[], batch = DELTA) =>
        incoming('profile_type', profileTypes, (tx) => applyProfileTypes(tx, batch, NOW));
      await apply([one, two, { ...one, version: 2, tier: 'C' }]);
      await apply([one]);
      expect(await findProfileType(test.db, one.id)).to.deep.equal({
        ...one,
        version: 2,
        tier: 'C',
      });
      await apply([{ ...one, version: 3 }], SNAPSHOT);
      expect(await findProfileTypeByName(test.db, 'two')).to.have.property('disabled', true);
      await test.db.transaction((tx) =>
        storeProfileTypes(tx, [{ ...two, version: 2, name: 'three' }], NOW),
      );
      const names = (await listProfileTypes(test.db)).map(({ name }) => name);
      expect(names).to.deep.equal(['one', 'three']);
      const anew = profileTypeOf('one');
      await apply([anew], SNAPSHOT);
      expect((await findProfileTypeByName(test.db, 'one'))?.id).to.equal(anew.id);
    });
  });

  describe('applyDatasets', () => {
    it('stores what came, never lowers the epoch, and disables what a snapshot omits', async () => {
      const [claims, visits] = [datasetOf('claims'), datasetOf('visits')];
      const apply = (datasets: Dataset[], batch = DELTA) =>
        incoming('dataset', datasets, (tx) => applyDatasets(tx, batch, NOW));
      await apply([claims, visits]);
      await apply([{ ...claims, version: 2, epoch: 1 }]);
      expect(await findDataset(test.db, 'claims')).to.deep.equal({
        ...claims,
        version: 2,
        epoch: 3,
      });
      await apply([{ ...claims, version: 3 }], SNAPSHOT);
      expect(await findDataset(test.db, 'visits')).to.have.property('disabled', true);
      await test.db.transaction((tx) => storeDatasets(tx, [{ ...visits, version: 2 }], NOW));
      expect((await listDatasets(test.db)).map(({ disabled }) => disabled)).to.deep.equal([
        false,
        false,
      ]);
      const anew = datasetOf('claims');
      await apply([anew], SNAPSHOT);
      expect((await findDataset(test.db, 'claims'))?.id).to.equal(anew.id);
    });
  });
});

function userOf(login: string): User {
  return {
    id: newId(),
    version: 1,
    login,
    profile_type_id: newId(),
    roles: [
      { network: 'request', role: 'user' },
      { network: 'response', role: 'admin' },
    ],
    disabled: false,
    must_change_password: false,
    profile_version: 0,
    display_name: login,
    email: null,
    language: 'de',
    notices: { result: ['app'] },
  };
}

function profileTypeOf(name: string): ProfileType {
  return {
    id: newId(),
    version: 1,
    name,
    description: '',
    datasets: ['claims'],
    tier: 'B',
    priorities: ['low', 'normal'],
    limits: {
      submit_per_minute: 1,
      submit_per_hour: 1,
      submit_per_day: 1,
      read_per_minute: 1,
      warn_percent: 80,
      ceiling_percent: 110,
      grace_s: 300,
      rearm_minute_s: 60,
      rearm_hour_s: 60,
      rearm_day_s: 60,
      open_requests: 1,
      stored_bytes: 1,
    },
    retention_days: 30,
    disabled: false,
  };
}

function datasetOf(name: string): Dataset {
  return {
    id: newId(),
    version: 1,
    epoch: 3,
    name,
    title: name,
    description: '',
    time_field: 'at',
    fields: [{ name: 'at', type: 'date' }],
    disabled: false,
  };
}

/** Runs an apply function on records as an import would stage them. */
async function incoming<T extends { id: string }>(
  type: string,
  records: T[],
  apply: (tx: Transaction) => Promise<void>,
): Promise<void> {
  await test.db.transaction(async (tx) => {
    await tx.raw(
      `create temporary table if not exists incoming (
         line integer, t text, id uuid, v integer, at timestamptz, d jsonb, text text, code text,
         detail text) on commit delete rows`,
    );
    await tx('incoming').insert(
      records.map(({ id, ...d }, n) => ({
        line: n + 1,
        t: type,
        id,
        v: 1,
        at: NOW,
        d: JSON.stringify(d),
      })),
    );
    await apply(tx);
  });
}
