import { expect } from 'chai';
import { checkAudit, readAuditCheck } from './audit-checks.js';
import { appendAudit, listAudit, readAuditHead, verifyAudit } from './audit.js';
import { openDatabase, rows, sharedMigrations } from './database.js';
import { createTestDatabase, type TestDatabase } from './testing.js';

const AT = new Date('2026-03-01T12:00:00.123Z');
const ZEROS = '0'.repeat(64);

let test: TestDatabase;
before(async () => {
  test = await createTestDatabase([sharedMigrations]);
});
after(() => test.drop());
beforeEach(() => asForger('delete from audit_log', 'delete from audit_checks'));

const append = (subject: string, change: { at?: Date; actor?: string; action?: string } = {}) =>
  test.db.transaction((tx) =>
    appendAudit(tx, {
      at: AT,
      actor: 'cli:ann',
      action: 'user.create',
      subject,
      details: { n: 1.5, text: 'Zoë 😀', missing: undefined, list: [null, true] },
      ...change,
    }),
  );

/** Somebody who owns the database and switches its triggers off. */
const asForger = (...statements: string[]) =>
  test.db.transaction(async (tx) => {
    await rows(tx, 'set local session_replication_role = replica');
    for (const statement of statements) await rows(tx, statement);
  });

describe('appendAudit', () => {
  it('makes a chain whose head changes with every entry', async () => {
    expect(await readAuditHead(test.db)).to.equal(ZEROS);
    await append('a');
    const first = await readAuditHead(test.db);
    await append('a');
    expect(first).to.match(/^[0-9a-f]{64}$/);
    expect(await readAuditHead(test.db)).to.not.equal(first);
  });

  it('keeps one chain when several processes write at once', async () => {
    const others = Array.from({ length: 3 }, () => openDatabase(test.url));
    try {
      const writers = [test.db, ...others].flatMap((db) => Array.from({ length: 10 }, () => db));
      await Promise.all(
        writers.map((db, n) =>
          db.transaction((tx) =>
            appendAudit(tx, { at: AT, actor: 'a', action: 'b.c', subject: `s${n}`, details: {} }),
          ),
        ),
      );
    } finally {
      for (const db of others) await db.destroy();
    }
    expect(await verifyAudit(test.db)).to.deep.equal({
      ok: true,
      entries: 40,
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
});

describe('the audit log', () => {
  for (const [what, statement] of [
    ['a change', `update audit_log set subject = 'x'`],
    ['a removal', 'delete from audit_log'],
    ['being emptied', 'truncate audit_log'],
  ] as const) {
    it(`refuses ${what}, from its owner too`, async () => {
      await append('a');
      const refused = await rows(test.db, statement).catch((error: unknown) => error);
      expect(refused).to.have.property('code', '42501');
      expect(await verifyAudit(test.db)).to.include({ ok: true, entries: 1 });
    });
  }

  it('takes no second successor of an entry', async () => {
    await append('a');
    const fork = await rows(
      test.db,
      `insert into audit_log select 2, at, actor, action, 'b', details, prev, 'f' from audit_log`,
    ).catch((error: unknown) => error);
    expect(fork).to.include({ code: '23505', constraint: 'audit_log_prev' });
  });
});

describe('verifyAudit', () => {
  for (const [what, edit] of [
    ['an edited entry', `update audit_log set subject = 'x' where position = 2`],
    ['edited details', `update audit_log set details = '{}' where position = 2`],
    ['a removed entry', 'delete from audit_log where position = 2'],
  ] as const) {
    it(`finds the chain broken at ${what}`, async () => {
      for (const subject of ['a', 'b', 'c']) await append(subject);
      await asForger(edit);
      expect(await verifyAudit(test.db)).to.include({ ok: false, brokenAt: 2 });
    });
  }
});

describe('checkAudit', () => {
  it('goes on where it ended, and from the first entry once a week', async () => {
    await append('a');
    const day = (n: number) => new Date(AT.getTime() + n * 86_400_000);
    await checkAudit(test.db, { now: day(0) });
    await append('b');
    await asForger(`update audit_log set subject = 'x' where position = 1`);
    expect(await checkAudit(test.db, { now: day(1) })).to.include({ ok: true, entries: 2 });
    expect(await checkAudit(test.db, { now: day(7) })).to.include({ ok: false, brokenAt: 1 });
    expect(await readAuditCheck(test.db)).to.deep.include({ brokenAt: 1, checkedAt: day(7) });
  });

  it('misses the newest entries when they are gone', async () => {
    for (const subject of ['a', 'b']) await append(subject);
    await checkAudit(test.db, { now: AT });
    await asForger('delete from audit_log where position = 2');
    for (const full of [false, true]) {
      expect(await checkAudit(test.db, { now: AT, full })).to.include({ ok: false, brokenAt: 2 });
    }
  });
});

describe('listAudit', () => {
  it('gives what passes the filter, newest first', async () => {
    const later = new Date(AT.getTime() + 1_000);
    await append('a');
    await append('b', { actor: 'user:100%', action: 'user.disable' });
    await append('a', { action: 'key.revoke', at: later });
    const found = async (filter: object, before?: number) =>
      (await listAudit(test.db, { filter, before, limit: 2 })).map(({ position }) => position);
    expect(await found({})).to.deep.equal([3, 2]);
    expect(await found({}, 2)).to.deep.equal([1]);
    expect(await found({ action: 'user.' })).to.deep.equal([2, 1]);
    expect(await found({ subject: 'a', since: AT, until: later })).to.deep.equal([1]);
    expect(await found({ actor: 'user:100%' })).to.deep.equal([2]);
    expect(await found({ text: 'R:100%' })).to.deep.equal([2]);
    expect(await found({ text: 'zoË' })).to.deep.equal([3, 2]);
    expect(await found({ text: '_' })).to.deep.equal([]);
  });
});
