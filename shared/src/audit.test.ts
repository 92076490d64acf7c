import { expect } from 'chai';
import { appendAudit, readAuditHead, verifyAudit } from './audit.js';
import { sharedMigrations } from './database.js';
import { createTestDatabase, type TestDatabase } from './testing.js';

const AT = new Date('2026-03-01T12:00:00.123Z');
const ZEROS = '0'.repeat(64);

describe('appendAudit', () => {
  let test: TestDatabase;
  before(async () => {
    test = await createTestDatabase([sharedMigrations]);
  });
  after(() => test.drop());
  beforeEach(() => test.db('audit_log').delete());

  const append = (subject: string) =>
    test.db.transaction((tx) =>
      appendAudit(tx, {
        at: AT,
        actor: 'cli:ann',
        action: 'user.create',
        subject,
        details: { n: 1.5, text: 'Zoë 😀', missing: undefined, list: [null, true] },
      }),
    );

  it('makes a chain whose head changes with every entry', async () => {
    expect(await readAuditHead(test.db)).to.equal(ZEROS);
    await append('a');
    const first = await readAuditHead(test.db);
    await append('a');
    expect(first).to.match(/^[0-9a-f]{64}$/);
    expect(await readAuditHead(test.db)).to.not.equal(first);
  });

  it('keeps one chain when many write at once', async () => {
    await Promise.all(Array.from({ length: 20 }, (_, n) => append(`s${n}`)));
    expect(await verifyAudit(test.db)).to.deep.equal({
      ok: true,
      entries: 20,
      head: await readAuditHead(test.db),
      brokenAt: null,
    });
  });

  it('leaves nothing behind when its transaction is undone', async () => {
    const undone = test.db.transaction(async (tx) => {
      await appendAudit(tx, { at: AT, actor: 'a', action: 'b', subject: 'c', details: {} });
      throw new Error('undone');
    });
    await undone.catch(() => undefined);
    expect(await readAuditHead(test.db)).to.equal(ZEROS);
  });

  for (const [what, edit] of [
    ['an edited entry', `update audit_log set subject = 'x' where position = 2`],
    ['edited details', `update audit_log set details = '{}' where position = 2`],
    ['a removed entry', 'delete from audit_log where position = 2'],
  ] as const) {
    it(`is found broken at ${what}`, async () => {
      for (const subject of ['a', 'b', 'c']) await append(subject);
      await test.db.raw(edit);
      expect(await verifyAudit(test.db)).to.include({ ok: false, brokenAt: 2 });
    });
  }
});
