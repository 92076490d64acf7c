import { expect } from 'chai';
import { pino } from 'pino';
import { sharedMigrations } from './database.js';
import { settingRecordId } from './records.js';
import { checkSetting, defaultSettings, isSetting, SETTINGS } from './settings.js';
import {
  applySettings,
  changeLocalSetting,
  listStoredSettings,
  readSettings,
  readSettingState,
  storeSetting,
} from './stored-settings.js';
import { createTestDatabase, type TestDatabase } from './testing.js';

const NOW = new Date('2026-03-01T12:00:00.000Z');

let test: TestDatabase;
describe('settings', () => {
  before(async () => {
    test = await createTestDatabase([sharedMigrations]);
  });
  after(() => test.drop());
  beforeEach(() => test.db('settings').delete());

  describe('checkSetting', () => {
    it('takes every default', () => {
      for (const [key, value] of Object.entries(defaultSettings())) checkSetting(key, value);
      expect(Object.keys(SETTINGS).every(isSetting)).to.equal(true);
    });

    for (const [key, value, code] of [
      ['no.such.setting', 1, 'not-found'],
      ['toString', 1, 'not-found'],
      ['schedule.import-batches', 0, 'bad-field'],
      ['schedule.import-batches', 86_401, 'bad-field'],
      ['schedule.import-batches', '30', 'bad-field'],
      ['transfer.crypt.identity', 'none', 'bad-field'],
      ['transfer.crypt.accounts', 'none', 'bad-field'],
      ['argon2.range', { memory: { min: 1_024, max: 2_048 } }, 'bad-field'],
      [
        'argon2.range',
        {
          memory: { min: 4_096, max: 2_048 },
          time: { min: 1, max: 2 },
          parallelism: { min: 1, max: 1 },
        },
        'bad-field',
      ],
    ] as const) {
      it(`refuses ${key} = ${JSON.stringify(value)}`, () => {
        expect(() => checkSetting(key, value))
          .to.throw()
          .with.property('code', code);
      });
    }

    it('lets a stream leave readable where that is allowed', () => {
      checkSetting('transfer.crypt.results', 'none');
    });
  });

  describe('readSettings', () => {
    it('is the default, then what was set, then the local value of a local setting', async () => {
      const key = 'schedule.export-requests';
      const read = async () => (await readSettings(test.db, silent([])))[key];
      expect(await read()).to.equal(30);
      await set(key, 20);
      expect(await read()).to.equal(20);
      await test.db('settings').where({ key }).update({ local_value: '5' });
      expect(await read()).to.equal(5);
    });

    it('ignores a local value of a setting that is not local', async () => {
      await set('session.minutes', 20);
      await test.db('settings').update({ local_value: '999' });
      expect((await readSettings(test.db, silent([])))['session.minutes']).to.equal(20);
    });

    it('ignores unknown keys and values out of range, and warns', async () => {
      const row = { version: 1, updated_at: NOW };
      await test.db('settings').insert([
        { ...row, key: 'future.setting', value: '1' },
        { ...row, key: 'session.minutes', value: '0' },
      ]);
      const warnings: string[] = [];
      expect(await readSettings(test.db, silent(warnings))).to.deep.equal(defaultSettings());
      expect(warnings).to.have.length(2);
    });
  });

  describe('changeLocalSetting', () => {
    const by = { actor: 'user:root', now: NOW };
    const override = (change: { key: string; value: unknown; expected?: number }) =>
      test.db.transaction((tx) => changeLocalSetting(tx, { reason: 'tried out', ...change }, by));
    const codeOf = async (attempt: Promise<unknown>) =>
      ((await attempt.catch((e: unknown) => e)) as { code?: string }).code;

    it('wins here, is not synced, and ends', async () => {
      const key = 'banner.text';
      await override({ key, value: 'Drill today', expected: 0 });
      const state = await readSettingState(test.db, key);
      expect(state).to.include({ value: 'Drill today', source: 'local', syncedValue: null });
      expect(await listStoredSettings(test.db)).to.deep.equal([]);
      await set(key, 'Welcome');
      expect((await readSettings(test.db, silent([])))[key]).to.equal('Drill today');
      await override({ key, value: undefined });
      expect((await readSettings(test.db, silent([])))[key]).to.equal('Welcome');
    });

    it('refuses what is not local, out of range, unknown, or was changed meanwhile', async () => {
      expect(await codeOf(override({ key: 'session.minutes', value: 20 }))).to.equal('bad-field');
      expect(await codeOf(override({ key: 'banner.text', value: 7 }))).to.equal('bad-field');
      expect(await codeOf(override({ key: 'no.such', value: undefined }))).to.equal('not-found');
      const change = { key: 'banner.text', value: 'x', expected: 0 };
      await override(change);
      expect(await codeOf(override(change))).to.equal('version-conflict');
    });
  });

  describe('storeSetting', () => {
    it('raises the version with every change', async () => {
      await set('session.minutes', 20);
      await set('session.minutes', 30);
      expect(await listStoredSettings(test.db)).to.deep.equal([
        { key: 'session.minutes', version: 2, value: 30 },
      ]);
    });

    it('refuses a bad value and leaves the stored one', async () => {
      await set('session.minutes', 20);
      const error = await set('session.minutes', 0).catch((e: unknown) => e);
      expect(error).to.have.property('code', 'bad-field');
      expect(await listStoredSettings(test.db)).to.have.nested.property('[0].value', 20);
    });
  });

  describe('applySettings', () => {
    it('keeps the greatest version of each key', async () => {
      await apply([
        { key: 'session.minutes', version: 3, value: 33 },
        { key: 'session.minutes', version: 2, value: 22 },
      ]);
      await apply([{ key: 'session.minutes', version: 1, value: 11 }]);
      expect(await listStoredSettings(test.db)).to.deep.equal([
        { key: 'session.minutes', version: 3, value: 33 },
      ]);
    });

    it('keeps what it ignores out of force and says so in the audit log', async () => {
      await apply([{ key: 'session.minutes', version: 3, value: 33 }]);
      const audited = async () => {
        const found = await test.db<{ subject: string }>('audit_log').orderBy('position');
        return found.map(({ subject }) => subject);
      };
      const before = (await audited()).length;
      await apply([
        { key: 'session.minutes', version: 2, value: 22 },
        { key: 'password.min_length', version: 1, value: 1 },
        { key: 'future.setting', version: 1, value: 1 },
      ]);
      expect((await audited()).slice(before)).to.deep.equal([
        'session.minutes',
        'password.min_length',
        'future.setting',
      ]);
      const settings = await readSettings(test.db, silent([]));
      expect(settings).to.include({ 'session.minutes': 33, 'password.min_length': 12 });
    });

    it('takes from a snapshot what a restore made older', async () => {
      await apply([{ key: 'session.minutes', version: 3, value: 33 }]);
      await apply([{ key: 'session.minutes', version: 1, value: 11 }], 'snapshot');
      expect(await listStoredSettings(test.db)).to.deep.equal([
        { key: 'session.minutes', version: 1, value: 11 },
      ]);
    });

    it('forgets with a snapshot what the other side no longer sets, but nothing local', async () => {
      await apply([
        { key: 'session.minutes', version: 1, value: 10 },
        { key: 'schedule.housekeeping', version: 1, value: 10 },
        { key: 'password.min_length', version: 1, value: 14 },
      ]);
      await test
        .db('settings')
        .where({ key: 'schedule.housekeeping' })
        .update({ local_value: '9' });
      await apply([{ key: 'password.min_length', version: 2, value: 15 }], 'snapshot');
      expect((await listStoredSettings(test.db)).map(({ key }) => key)).to.deep.equal([
        'password.min_length',
      ]);
      expect(await readSettingState(test.db, 'schedule.housekeeping')).to.deep.include({
        source: 'local',
        value: 9,
        syncedValue: null,
      });
    });

    async function apply(
      records: { key: string; version: number; value: unknown }[],
      kind = 'delta',
    ): Promise<void> {
      await test.db.transaction(async (tx) => {
        await tx.raw(
          `create temporary table if not exists incoming (
           line integer, t text, id uuid, d jsonb) on commit delete rows`,
        );
        await tx('incoming').insert(
          records.map((d, n) => ({
            line: n + 1,
            t: 'setting',
            id: settingRecordId(d.key),
            d: JSON.stringify(d),
          })),
        );
        await applySettings(tx, { kind }, NOW);
      });
    }
  });

  const set = (key: string, value: unknown) =>
    test.db.transaction((tx) => storeSetting(tx, { key, value }, NOW));
});

function silent(warnings: string[]) {
  return pino({ level: 'warn' }, { write: (line: string) => warnings.push(line) });
}
