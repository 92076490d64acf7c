import { readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import { appendAudit, rows, type CommandOutput } from '@sallyport/shared';
import { auditCommands } from '../commands/audit-commands.js';
import { verifyAuditLog, watchAuditLog } from './audit-heads.js';
import { exportStream } from '../sending/export.js';
import { importBatches } from '../receiving/import.js';
import { sendRecords } from '../sending/outbox.js';
import { codeOfAsync } from '../test-codes.js';
import {
  carryAll,
  makeTestPair,
  recordingApplies,
  requestRecord,
  type TestNode,
} from '../testing.js';

describe('the audit logs of two networks', () => {
  let red: TestNode;
  let blue: TestNode;
  let remove: () => Promise<void>;
  let written = 0;

  const run = async (node: TestNode, command: string, path?: string): Promise<CommandOutput> => {
    const importAll = () => Promise.reject(new Error('not asked for'));
    const commands = auditCommands((use) => use({ db: node.test.db, node, importAll }));
    const positionals = path === undefined ? [] : [path];
    const output = await commands[command]?.run({ positionals, values: {}, switches: new Set() });
    if (!output) throw new Error(`${command} said nothing`);
    return output;
  };
  const append = (node: TestNode, subject: string) =>
    node.test.db.transaction((tx) =>
      appendAudit(tx, {
        ...{ at: node.clock.now(), actor: 'cli:ann', action: 'user.create', subject },
        details: { after: { roles: ['request:user'], text: 'a\nb\u2028' } },
      }),
    );
  const exportOf = async (node: TestNode): Promise<string> => {
    const path = join(node.folders.root, `audit-${(written += 1)}.jsonl`);
    await run(node, 'audit export', path);
    return path;
  };
  const exchange = async () => {
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    await exportStream(red.test.db, red, 'requests');
    await carryAll(red, blue);
    await importBatches(blue.test.db, blue, recordingApplies);
  };
  /** As somebody does who owns the database and makes the chain anew, whole and sound. */
  const rewrite = async (node: TestNode, alsoForget: string[] = []) => {
    await node.test.db.transaction(async (tx) => {
      await rows(tx, 'set local session_replication_role = replica');
      for (const table of ['audit_log', 'audit_checks', ...alsoForget]) {
        await rows(tx, `delete from ${table}`);
      }
    });
    await append(node, 'nothing happened');
  };

  beforeEach(async () => {
    ({ red, blue, remove } = await makeTestPair());
    await append(red, 'before');
    await exchange();
    await append(red, 'after');
    await append(blue, 'there');
  });
  afterEach(() => remove());

  it('agree while nobody changed either', async () => {
    const fromBlue = await exportOf(blue);
    await append(red, 'later');
    await exchange();
    const own = await run(red, 'audit verify', fromBlue);
    expect(own.exitCode).to.equal(0);
    expect(own.text).to.contain('It has 1 heads of ours; not in our chain: 0');
    // Written before blue took the newest head: that one is not missed.
    const other = await run(blue, 'audit verify', await exportOf(red));
    expect(other.exitCode).to.equal(0);
    expect(other.text).to.contain('We have 2 heads of its; not in its chain: 0');
  });

  it('find a chain that was written anew, by the heads that were told', async () => {
    await rewrite(red);
    const report = await verifyAuditLog(red.test.db, red);
    expect(report).to.include({ ok: false, brokenAt: null, entries: 1 });
    expect(report.lost[0]).to.include({ position: 1 });
    expect((await run(red, 'audit verify')).exitCode).to.equal(7);
  });

  it('find it by the signed manifests of the store when these are forgotten too', async () => {
    await rewrite(red, ['sent_audit_heads']);
    const report = await verifyAuditLog(red.test.db, red);
    expect(report.lost.map(({ batch }) => batch)).to.deep.equal(await readdir(red.folders.store));
  });

  it('find it by the copies of the far side when the store is empty too', async () => {
    await rewrite(red, ['sent_audit_heads']);
    for (const name of await readdir(red.folders.store)) await rm(join(red.folders.store, name));
    expect((await run(red, 'audit verify')).exitCode).to.equal(0);
    expect((await run(red, 'audit verify', await exportOf(blue))).exitCode).to.equal(7);
    // And the far side finds it by our export.
    const found = await run(blue, 'audit verify', await exportOf(red));
    expect(found.exitCode).to.equal(7);
    expect(found.text).to.contain('We have 1 heads of its; not in its chain: 1');
  });

  it('tell the admins once when the daily check finds it', async () => {
    await rewrite(red);
    for (const hours of [0, 1, 25]) {
      red.time.now = new Date(Date.parse('2026-03-01T12:00:00Z') + hours * 3_600_000);
      await watchAuditLog(red.test.db, red);
    }
    const told = await rows(red.test.db, `select kind, severity, user_id from notices`);
    expect(told).to.deep.equal([
      { kind: 'audit.broken', severity: 'critical', user_id: null },
      { kind: 'audit.broken', severity: 'critical', user_id: null },
    ]);
  });

  for (const [what, damage] of [
    ['was edited', (text: string) => text.replace('there', 'where')],
    ['was cut', (text: string) => text.slice(0, -10)],
    ['lacks its end', (text: string) => text.slice(0, text.lastIndexOf('{"end"'))],
    ['lacks a head', (text: string) => text.replace(/\{"received".*\n/, '')],
    ['is none', () => 'hello\n'],
    ['is empty', () => ''],
  ] as const) {
    it(`take no export that ${what}`, async () => {
      const path = await exportOf(blue);
      await writeFile(path, damage(await readFile(path, 'utf8')));
      expect(await codeOfAsync(run(red, 'audit verify', path))).to.equal('export-invalid');
    });
  }

  it('take no export but one of the far side', async () => {
    const own = await exportOf(red);
    expect(await codeOfAsync(run(red, 'audit verify', own))).to.equal('export-invalid');
    expect(await codeOfAsync(run(red, 'audit export', own))).to.equal('usage');
  });
});
