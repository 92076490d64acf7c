import { copyFile, mkdir, readFile, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import { rows, type CommandOutput } from '@sallyport/shared';
import { decideApproval, listApprovals } from '../custody/approvals.js';
import { decisionCommands } from '../commands/decision-commands.js';
import { exportStream } from '../sending/export.js';
import { importBatches, type ImportReport } from './import.js';
import { sendRecords } from '../sending/outbox.js';
import { listQuarantine, rejectQuarantined, type QuarantineDetails } from './quarantine.js';
import { codeOfAsync } from '../test-codes.js';
import {
  appliedIds,
  makeTestNode,
  makeTestPair,
  recordingApplies,
  requestRecord,
  type TestNode,
} from '../testing.js';

const outcomes = (report: ImportReport) => report.files.map(({ outcome }) => outcome);

describe('quarantine', () => {
  let red: TestNode;
  let blue: TestNode;
  let remove: () => Promise<void>;

  const importInto = (node: TestNode) => importBatches(node.test.db, node, recordingApplies);
  const run = async (
    command: string,
    positionals: string[] = [],
    values: Record<string, string> = {},
    switches: string[] = [],
  ): Promise<CommandOutput> => {
    const importAll = () => importInto(blue);
    const opened = { db: blue.test.db, node: blue, importAll, account: 'cli:tess' };
    const commands = decisionCommands((use) => use(opened));
    const args = { positionals, values, switches: new Set(switches) };
    const output = await commands[command]?.run(args);
    if (!output) throw new Error(`${command} said nothing`);
    return output;
  };
  const show = async (id: string) => (await run('quarantine show', [id])).data as QuarantineDetails;
  const seal = async () => {
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    const before = new Set(await readdir(red.folders.outbox));
    await exportStream(red.test.db, red, 'requests');
    return (await readdir(red.folders.outbox)).find((name) => !before.has(name)) ?? '';
  };
  const deliver = (name: string) =>
    copyFile(join(red.folders.outbox, name), join(blue.folders.inbox, name));
  const deliverDamaged = async (name: string) => {
    const bytes = await readFile(join(red.folders.outbox, name));
    bytes[bytes.length - 20] = (bytes[bytes.length - 20] ?? 0) ^ 1;
    await writeFile(join(blue.folders.inbox, name), bytes);
  };
  /** A batch that this network cannot open because its own age key is not the right one just now. */
  const refuseUnopened = async () => {
    const stranger = await makeTestNode('response');
    const keys = { ...blue.keys, ageIdentities: stranger.keys.ageIdentities };
    await stranger.remove();
    const name = await seal();
    await deliver(name);
    const report = await importBatches(blue.test.db, { ...blue, keys }, recordingApplies);
    expect(outcomes(report)).to.deep.equal(['DECRYPT_FAILED']);
    const [file] = await listQuarantine(blue.test.db);
    return file?.id ?? '';
  };
  const releaseBy = async (id: string, second = 'user:ben') => {
    await run('quarantine release', [id], { reason: 'the key is back' });
    const [asked] = await listApprovals(blue.test.db);
    const decided = { id: asked?.id ?? '', by: second, decision: 'approved' as const };
    await decideApproval(blue.test.db, blue, decided);
    return importInto(blue);
  };

  beforeEach(async () => {
    ({ red, blue, remove } = await makeTestPair());
  });
  afterEach(() => remove());

  it('applies a file that two people released, through the whole import', async () => {
    const id = await refuseUnopened();
    expect(outcomes(await releaseBy(id))).to.deep.equal(['APPLIED']);
    expect(await appliedIds(blue)).to.have.lengthOf(1);
    expect(await listQuarantine(blue.test.db)).to.deep.equal([]);
    const { file, bytes } = await show(id);
    expect(file.decision).to.equal('released');
    expect(file.decided_by).to.match(/^cli:.+, user:ben$/);
    expect(bytes).to.equal('gone');
    const done = await rows(
      blue.test.db,
      `select 1 from audit_log where action = 'quarantine.release'`,
    );
    expect(done).to.have.lengthOf(1);
  });

  it('imports what is released within the approving command', async () => {
    const id = await refuseUnopened();
    const asked = (await run('quarantine release', [id], { reason: 'x' })).data as { id: string };
    await blue.test.db.raw(`update approvals set asked_by = 'cli:somebody'`);
    await run('approvals approve', [asked.id]);
    expect(await appliedIds(blue)).to.have.lengthOf(1);
  });

  it('does not let one person release', async () => {
    const id = await refuseUnopened();
    const asked = (await run('quarantine release', [id], { reason: 'x' })).data as { id: string };
    const alone = run('approvals approve', [asked.id]);
    expect(await codeOfAsync(alone)).to.equal('approval-same-person');
    expect(outcomes(await importInto(blue))).to.deep.equal([]);
  });

  it('can be approved and rejected at once', async () => {
    const id = await refuseUnopened();
    await run('quarantine release', [id], { reason: 'x' });
    const [asked] = await listApprovals(blue.test.db);
    const waiters = async (count: number) => {
      for (let tries = 0; tries < 1_000; tries += 1) {
        const found = await rows(
          blue.test.db,
          `select 1 from pg_stat_activity
           where datname = current_database() and wait_event_type = 'Lock'`,
        );
        if (found.length >= count) return;
      }
      throw new Error(`${count} statements never waited`);
    };
    const decided = { id: asked?.id ?? '', by: 'user:ben', decision: 'approved' as const };
    const both: Promise<unknown>[] = [];
    // Held back until the one has the file and the other is next to have the request.
    await blue.test.db.transaction(async (tx) => {
      await tx.raw('select 1 from approvals for update');
      both.push(decideApproval(blue.test.db, blue, decided).catch((error: unknown) => error));
      await waiters(1);
      const rejected = rejectQuarantined(blue.test.db, blue, { id, reason: 'x', by: 'user:cem' });
      both.push(rejected.catch((error: unknown) => error));
      await waiters(2);
    });
    const codes = (await Promise.all(both)).map((each) => (each as { code?: string }).code);
    expect(codes).to.not.include('40P01');
    expect((await show(id)).file.decision).to.equal('rejected');
  });

  it('is left as it is when the second person declines', async () => {
    const id = await refuseUnopened();
    const asked = (await run('quarantine release', [id], { reason: 'x' })).data as { id: string };
    expect((await run('approvals ls')).text).to.contain(asked.id);
    await run('approvals decline', [asked.id], { reason: 'not now' });
    expect((await run('approvals ls')).data).to.deep.equal([]);
    const [kept] = (await run('approvals ls', [], {}, ['all'])).data as { answer: string }[];
    expect(kept?.answer).to.equal('not now');
    expect(outcomes(await importInto(blue))).to.deep.equal([]);
    expect((await show(id)).file.decision).to.equal(null);
  });

  it('keeps a released file that is refused again, with the new report', async () => {
    const { ageIdentities } = blue.keys;
    const id = await refuseUnopened();
    blue.time.now = new Date(blue.time.now.getTime() + 60_000);
    blue.keys = { ...blue.keys, ageIdentities: red.keys.ageIdentities };
    expect(outcomes(await releaseBy(id))).to.deep.equal(['DECRYPT_FAILED']);
    blue.keys = { ...blue.keys, ageIdentities };
    const again = await show(id);
    expect(again.file.decision).to.equal(null);
    expect(again.file.report.at).to.equal(blue.time.now.toISOString());
    expect(again.bytes).to.equal('whole');
    expect(await appliedIds(blue)).to.deep.equal([]);
    expect(outcomes(await importInto(blue))).to.deep.equal([]);
  });

  it('takes a release again that a wait held up', async () => {
    const id = await refuseUnopened();
    await blue.test.db.raw(
      `update inbound_streams set frozen_code = 'SEQ_FORK', frozen_at = now()`,
    );
    expect(outcomes(await releaseBy(id))).to.deep.equal(['WAIT_APPROVAL']);
    await run('link unfreeze', ['requests'], { reason: 'asked them' });
    expect(await appliedIds(blue)).to.have.lengthOf(1);
    expect((await show(id)).file.decision).to.equal('released');
  });

  it('does not apply what was closed without it', async () => {
    const name = await seal();
    blue.time.now = new Date(blue.time.now.getTime() + 31 * 86_400_000);
    await deliver(name);
    expect(outcomes(await importInto(blue))).to.deep.equal(['EXPIRED']);
    blue.time.now = new Date(blue.time.now.getTime() - 31 * 86_400_000);
    const [file] = await listQuarantine(blue.test.db);
    const id = file?.id ?? '';
    await releaseBy(id);
    expect(await appliedIds(blue)).to.deep.equal([]);
    const { file: kept, sequence, known } = await show(id);
    expect(kept.decision).to.equal(null);
    expect(kept.report.sentence).to.contain('closed without it');
    expect(sequence).to.contain('closed');
    expect(known).to.include({ state: 'rejected', code: 'EXPIRED' });
  });

  it('rejects a file: bytes deleted, report kept, the same file not kept again', async () => {
    const name = await seal();
    await deliverDamaged(name);
    await importInto(blue);
    const [file] = await listQuarantine(blue.test.db);
    const id = file?.id ?? '';
    await run('quarantine reject', [id], { reason: 'a bad stick' });
    await run('quarantine reject', [id], { reason: 'a bad stick' });
    const folder = join(blue.folders.quarantine, 'HASH_MISMATCH', file?.digest ?? '');
    expect(await readdir(folder)).to.deep.equal(['report.json']);
    expect(await listQuarantine(blue.test.db)).to.deep.equal([]);
    expect(await listApprovals(blue.test.db)).to.deep.equal([]);
    await deliverDamaged(name);
    expect(outcomes(await importInto(blue))).to.deep.equal(['HASH_MISMATCH']);
    expect(await readdir(folder)).to.deep.equal(['report.json']);
    const released = run('quarantine release', [id], { reason: 'after all' });
    expect(await codeOfAsync(released)).to.equal('already-final');
    await deliver(name);
    expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
  });

  it('says which release a rejection declines', async () => {
    const id = await refuseUnopened();
    const asked = (await run('quarantine release', [id], { reason: 'x' })).data as { id: string };
    const { text } = await run('quarantine reject', [id], { reason: 'not theirs' });
    expect(text).to.contain(`The release asked for as ${asked.id} is declined.`);
    expect(await listApprovals(blue.test.db)).to.deep.equal([]);
    const again = await run('quarantine reject', [id], { reason: 'not theirs' });
    expect(again.text).to.not.contain('declined');
  });

  it('does not ask anybody to release what can never pass', async () => {
    await deliverDamaged(await seal());
    await importInto(blue);
    const [file] = await listQuarantine(blue.test.db);
    const released = run('quarantine release', [file?.id ?? ''], { reason: 'x' });
    expect(await codeOfAsync(released)).to.equal('HASH_MISMATCH');
    expect(await listApprovals(blue.test.db)).to.deep.equal([]);
    expect((await show(file?.id ?? '')).sequence).to.contain('can never pass');
  });

  it('says after an approval only what became of its file', async () => {
    const id = await refuseUnopened();
    await writeFile(join(blue.folders.inbox, 'noise.batch'), 'no batch\n');
    const asked = (await run('quarantine release', [id], { reason: 'x' })).data as { id: string };
    await blue.test.db.raw(`update approvals set asked_by = 'cli:somebody'`);
    expect((await run('approvals ls')).text).to.contain(`release  file ${id}`);
    const { text, exitCode } = await run('approvals approve', [asked.id]);
    const [first, second, ...more] = text.split('\n');
    expect(first).to.equal(`Approved: release, file ${id}.`);
    expect(second).to.match(/^APPLIED /);
    expect(more).to.deep.equal([]);
    expect(exitCode ?? 0).to.equal(0);
  });

  it('works when quarantine/ was emptied by hand', async () => {
    const id = await refuseUnopened();
    await rm(blue.folders.quarantine, { recursive: true });
    await mkdir(blue.folders.quarantine);
    expect((await run('quarantine ls')).text).to.contain('DECRYPT_FAILED');
    expect((await run('quarantine show', [id])).text).to.contain('gone');
    const released = run('quarantine release', [id], { reason: 'x' });
    expect(await codeOfAsync(released)).to.equal('quarantine-bytes-missing');
    await run('quarantine reject', [id], { reason: 'x' });
    expect(await listQuarantine(blue.test.db)).to.deep.equal([]);
  });

  it('says so when the copy vanished between approval and import', async () => {
    const id = await refuseUnopened();
    await run('quarantine release', [id], { reason: 'x' });
    const [asked] = await listApprovals(blue.test.db);
    const decided = { id: asked?.id ?? '', by: 'user:ben', decision: 'approved' as const };
    await decideApproval(blue.test.db, blue, decided);
    await rm(blue.folders.quarantine, { recursive: true });
    await mkdir(blue.folders.quarantine);
    expect(outcomes(await importInto(blue))).to.deep.equal(['DECRYPT_FAILED']);
    expect((await show(id)).file.report.sentence).to.contain('gone');
    expect(outcomes(await importInto(blue))).to.deep.equal([]);
  });

  it('releases no other bytes than those that were refused', async () => {
    const id = await refuseUnopened();
    const { file } = await show(id);
    const kept = join(blue.folders.quarantine, file.code, file.digest ?? '', 'refused.batch');
    const right = await readFile(kept);
    // Another batch of the same sender, which the import alone would take.
    const other = await readFile(join(red.folders.outbox, await seal()));
    await writeFile(kept, other);
    const asking = run('quarantine release', [id], { reason: 'x' });
    expect(await codeOfAsync(asking)).to.equal('quarantine-bytes-missing');
    await writeFile(kept, right);
    const asked = (await run('quarantine release', [id], { reason: 'x' })).data as { id: string };
    const approved = { id: asked.id, by: 'user:ben', decision: 'approved' } as const;
    await writeFile(kept, other);
    const approving = decideApproval(blue.test.db, blue, approved);
    expect(await codeOfAsync(approving)).to.equal('quarantine-bytes-missing');
    await writeFile(kept, right);
    await decideApproval(blue.test.db, blue, approved);
    await writeFile(kept, other);
    expect(outcomes(await importInto(blue))).to.deep.equal(['DECRYPT_FAILED']);
    expect(await appliedIds(blue)).to.deep.equal([]);
    expect((await show(id)).file.report.sentence).to.contain('was changed');
    expect(await readdir(blue.folders.staging)).to.deep.equal([]);
  });

  it('does not release a file of which only the beginning was kept', async () => {
    const bytes = Buffer.alloc(3 * 1024 * 1024, 'x');
    bytes[100] = 10;
    await writeFile(join(blue.folders.inbox, 'strange.batch'), bytes);
    await importInto(blue);
    const [file] = await listQuarantine(blue.test.db);
    const released = run('quarantine release', [file?.id ?? ''], { reason: 'x' });
    expect(await codeOfAsync(released)).to.equal('quarantine-bytes-missing');
    expect((await run('quarantine show', [file?.id ?? ''])).text).to.contain('first 1048576 bytes');
  });

  it('lists what was never opened, once', async () => {
    await symlink('/etc/hostname', join(blue.folders.inbox, 'link.batch'));
    await importInto(blue);
    await importInto(blue);
    const [file, more] = await listQuarantine(blue.test.db);
    expect(more).to.equal(undefined);
    expect(file).to.deep.include({
      code: 'NOT_REGULAR_FILE',
      digest: null,
      file_name: 'link.batch',
    });
    expect((await show(file?.id ?? '')).bytes).to.equal('none');
    await run('quarantine reject', [file?.id ?? ''], { reason: 'x' });
    expect(await listQuarantine(blue.test.db)).to.deep.equal([]);
  });

  it('finds a file by the beginning of its id or digest, when only one has it', async () => {
    const [first, second] = [await seal(), await seal()];
    await deliverDamaged(first);
    await deliverDamaged(second);
    await importInto(blue);
    const [file, other] = await listQuarantine(blue.test.db);
    expect((await show((file?.digest ?? '').slice(0, 16))).file.id).to.equal(file?.id);
    expect((await show(other?.report.batch ?? '')).file.id).to.equal(other?.id);
    expect(await codeOfAsync(show('ffffffffffff'))).to.equal('not-found');
    expect(await codeOfAsync(show('%'))).to.equal('usage');
    const shared = (file?.id ?? '').slice(0, 4);
    expect(await codeOfAsync(show(shared))).to.equal('usage');
  });

  it('filters the list by code and stream, and shows decided files only when told to', async () => {
    await deliverDamaged(await seal());
    await writeFile(join(blue.folders.inbox, 'noise.batch'), 'no batch\n');
    await importInto(blue);
    const list = async (values: Record<string, string>, switches: string[] = []) => {
      const { data } = await run('quarantine ls', [], values, switches);
      return (data as { code: string }[]).map(({ code }) => code);
    };
    expect(await list({})).to.have.lengthOf(2);
    expect(await list({ code: 'HASH_MISMATCH' })).to.deep.equal(['HASH_MISMATCH']);
    expect(await list({ stream: 'requests' })).to.deep.equal(['HASH_MISMATCH']);
    const [file] = await listQuarantine(blue.test.db, { code: 'HASH_MISMATCH' });
    await run('quarantine reject', [file?.id ?? ''], { reason: 'x' });
    expect(await list({ stream: 'requests' })).to.deep.equal([]);
    expect(await list({ stream: 'requests' }, ['all'])).to.deep.equal(['HASH_MISMATCH']);
  });

  it('names the other quarantined files of one number', async () => {
    const name = await seal();
    await deliverDamaged(name);
    await importInto(blue);
    const bytes = await readFile(join(red.folders.outbox, name));
    await writeFile(join(blue.folders.inbox, name), Buffer.concat([bytes, Buffer.from('\n')]));
    await importInto(blue);
    const [file] = await listQuarantine(blue.test.db, { code: 'TRAILING_DATA' });
    const { siblings, sequence } = await show(file?.id ?? '');
    expect(siblings.map(({ code }) => code)).to.deep.equal(['HASH_MISMATCH']);
    expect(sequence).to.contain('can never pass');
  });
});
