import { randomBytes } from 'node:crypto';
import { expect } from 'chai';
import { appendAudit, verifyAudit } from './audit.js';
import {
  migrate,
  openDatabase,
  requireMigrated,
  rows,
  sharedMigrations,
  type Database,
} from './database.js';
import { grantService } from './service-role.js';
import { createTestDatabase, type TestDatabase } from './testing.js';

const ROLE = `sallyport_test_${randomBytes(6).toString('hex')}`;
const PASSWORD = randomBytes(12).toString('hex');

describe('grantService', () => {
  let test: TestDatabase;
  let service: Database;
  before(async () => {
    test = await createTestDatabase([sharedMigrations]);
    await rows(test.db, `create role ${ROLE} login password '${PASSWORD}'`);
    await test.db.transaction((tx) => grantService(tx, ROLE));
    await test.db.transaction((tx) => grantService(tx, ROLE));
    const url = new URL(test.url);
    url.username = ROLE;
    url.password = PASSWORD;
    service = openDatabase(url.href);
    await service.transaction((tx) =>
      appendAudit(tx, { at: new Date(), actor: 'a', action: 'b.c', subject: 'd', details: {} }),
    );
  });
  after(async () => {
    await service.destroy();
    await rows(test.db, `drop owned by ${ROLE}`);
    await rows(test.db, `drop role ${ROLE}`);
    await test.drop();
  });

  it('lets the role write rows and append to the audit log', async () => {
    await rows(
      service,
      `insert into settings (key, version, value, updated_at) values ('a', 1, '1', now())`,
    );
    await rows(service, `delete from settings where key = 'a'`);
    await rows(service, 'create temporary table t (n integer)');
    expect(await verifyAudit(service)).to.include({ ok: true, entries: 1 });
  });

  it('lets the role start on a database that is up to date', async () => {
    await requireMigrated(service, [sharedMigrations]);
    expect(await migrate(service, [sharedMigrations])).to.deep.equal([]);
  });

  for (const [what, statement] of [
    ['change an entry', `update audit_log set actor = 'x'`],
    ['remove an entry', 'delete from audit_log'],
    ['empty the log', 'truncate audit_log'],
    ['drop the trigger', 'drop trigger audit_log_append_only on audit_log'],
    ['switch triggers off', 'set session_replication_role = replica'],
    ['put another table in its place', 'alter table audit_log rename to old_log'],
    ['pretend a migration', `insert into migrations (name) values ('x')`],
  ] as const) {
    it(`does not let the role ${what}`, async () => {
      const refused = await rows(service, statement).catch((error: unknown) => error);
      expect(refused).to.have.property('code', '42501');
      expect(await verifyAudit(test.db)).to.include({ ok: true, entries: 1 });
    });
  }

  for (const [what, role, code] of [
    ['a role that does not exist', 'nobody_has_this_name', 'not-found'],
    ['the owner itself', undefined, 'usage'],
  ] as const) {
    it(`refuses ${what}`, async () => {
      const name = role ?? decodeURIComponent(new URL(test.url).username);
      const refused = await test.db
        .transaction((tx) => grantService(tx, name))
        .catch((error: unknown) => error);
      expect(refused).to.have.property('code', code);
    });
  }
});
