import { copyFile, readdir, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import { newId, rows, type CommandOutput } from '@sallyport/shared';
import { decisionCommands } from '../commands/decision-commands.js';
import { exportControl, exportStream } from '../sending/export.js';
import { listFrozen } from './freezes.js';
import { importBatches, type ImportReport } from './import.js';
import { sendRecords } from '../sending/outbox.js';
import { codeOfAsync } from '../test-codes.js';
import {
  appliedIds,
  carryAll,
  makeTestPair,
  recordingApplies,
  requestRecord,
  type TestNode,
} from '../testing.js';

const outcomes = (report: ImportReport) => report.files.map(({ outcome }) => outcome);

describe('frozen streams', () => {
  let red: TestNode;
  let blue: TestNode;
  let remove: () => Promise<void>;

  const importInto = (node: TestNode) => importBatches(node.test.db, node, recordingApplies);
  const run = async (
    node: TestNode,
    command: string,
    positionals: string[] = [],
    values: Record<string, string> = {},
  ): Promise<CommandOutput> => {
    const importAll = () => importInto(node);
    const opened = { db: node.test.db, node, importAll, account: 'cli:tess' };
    const commands = decisionCommands((use) => use(opened));
    const output = await commands[command]?.run({ positionals, values, switches: new Set() });
    if (!output) throw new Error(`${command} said nothing`);
    return output;
  };
  const seal = async () => {
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    const before = new Set(await readdir(red.folders.outbox));
    await exportStream(red.test.db, red, 'requests');
    return (await readdir(red.folders.outbox)).find((name) => !before.has(name)) ?? '';
  };
  const deliver = (name: string) =>
    copyFile(join(red.folders.outbox, name), join(blue.folders.inbox, name));
  const fork = async () => {
    const first = await seal();
    await deliver(first);
    await importInto(blue);
    await red.test.db.raw('delete from outbox_records');
    await red.test.db.raw('delete from outbound_batches');
    await rename(join(red.folders.store, first), join(red.folders.root, first));
    const second = await seal();
    await deliver(second);
    expect(outcomes(await importInto(blue))).to.deep.equal(['SEQ_FORK']);
    return second;
  };
  const frozen = async (node: TestNode) =>
    (await listFrozen(node.test.db)).streams.map(({ stream, code, direction }) => {
      return `${stream} ${direction} ${code}`;
    });

  beforeEach(async () => {
    ({ red, blue, remove } = await makeTestPair());
  });
  afterEach(() => remove());

  it('show both digests of a fork and what to ask', async () => {
    await fork();
    const { streams } = await listFrozen(blue.test.db);
    const [evidence] = streams[0]?.evidence ?? [];
    const [known] = await rows<{ digest: string }>(
      blue.test.db,
      'select digest from inbound_batches',
    );
    expect(evidence?.known).to.equal(known?.digest);
    expect(evidence?.found)
      .to.match(/^[0-9a-f]{64}$/)
      .and.not.equal(evidence?.known);
    const { text } = await run(blue, 'link frozen');
    for (const part of ['SEQ_FORK', evidence?.known, evidence?.found, 'Which of the two digests']) {
      expect(text).to.contain(part);
    }
  });

  it('go on once a person says so, with what waited', async () => {
    await fork();
    await deliver(await seal());
    expect(outcomes(await importInto(blue))).to.deep.equal(['WAIT_APPROVAL']);
    expect((await run(blue, 'link frozen')).text).to.contain('waits for a person');
    await blue.test.db.raw(`update quarantine set decided_at = now(), decision = 'rejected'`);
    const { data } = await run(blue, 'link unfreeze', ['requests'], { reason: 'they told us' });
    // The forked chain still does not fit; what matters is that it was looked at again.
    expect(outcomes(data as ImportReport)).to.deep.equal(['CHAIN_BREAK']);
    const kept = await rows(blue.test.db, `select 1 from audit_log where action = 'link.unfreeze'`);
    expect(kept).to.have.lengthOf(1);
  });

  it('are not frozen again by a file that a person rejected', async () => {
    const name = await fork();
    const [file] = await rows<{ id: string }>(blue.test.db, 'select id from quarantine');
    await run(blue, 'quarantine reject', [file?.id ?? ''], { reason: 'not theirs' });
    await run(blue, 'link unfreeze', ['requests'], { reason: 'not theirs' });
    await deliver(name);
    expect(outcomes(await importInto(blue))).to.deep.equal(['SEQ_FORK']);
    expect(await frozen(blue)).to.deep.equal([]);
  });

  it('do not come of a revoked key, whose batches are refused anyway', async () => {
    const name = await seal();
    await blue.test.db.raw('update far_keys set revoked_at = now()');
    await deliver(name);
    expect(outcomes(await importInto(blue))).to.deep.equal(['KEY_REVOKED']);
    expect(await frozen(blue)).to.deep.equal([]);
    expect(await appliedIds(blue)).to.deep.equal([]);
  });

  it('come of an acknowledgement of what was never sealed: nothing more is sealed', async () => {
    await deliver(await seal());
    await importInto(blue);
    await exportControl(blue.test.db, blue);
    await red.test.db.raw(`update outbound_batches set digest = repeat('f', 64)`);
    await carryAll(blue, red);
    expect(outcomes(await importInto(red))).to.deep.equal(['APPLIED']);
    expect(await frozen(red)).to.deep.equal(['requests out ACK_FORK']);
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    expect(await exportStream(red.test.db, red, 'requests')).to.include({ sealed: 0 });
    await run(red, 'link unfreeze', ['requests'], { reason: 'a test' });
    expect(await exportStream(red.test.db, red, 'requests')).to.include({ sealed: 1 });
  });

  it('come of a withdrawal that contradicts what is here, with its words as evidence', async () => {
    await deliver(await seal());
    await importInto(blue);
    const by: [string, string] = ['cli:ann', 'cli:ben'];
    const data = { stream: 'requests' as const, epoch: 1, seq: 1, digest: 'f'.repeat(64) };
    const record = {
      type: 'batch.withdrawn' as const,
      id: newId(),
      data: { ...data, reason: 'x', by },
    };
    await sendRecords(red.test.db, 'control', [record], red.clock.now());
    await exportControl(red.test.db, red);
    await carryAll(red, blue, (name) => name.includes('.control.'));
    await importInto(blue);
    expect(await frozen(blue)).to.deep.equal(['requests in SEQ_FORK']);
    const { streams } = await listFrozen(blue.test.db);
    expect(streams[0]?.evidence[0]).to.include({ found: 'f'.repeat(64), seq: 1, quarantine: null });
    expect(streams[0]?.evidence[0]?.known).to.match(/^[0-9a-f]{64}$/);
  });

  it('are not there to be unfrozen by a wrong name', async () => {
    const wrong = run(blue, 'link unfreeze', ['requests'], { reason: 'x' });
    expect(await codeOfAsync(wrong)).to.equal('not-found');
    const nonsense = run(blue, 'link unfreeze', ['nope'], { reason: 'x' });
    expect(await codeOfAsync(nonsense)).to.equal('usage');
    const silent = run(blue, 'link unfreeze', ['requests'], { reason: ' ' });
    expect(await codeOfAsync(silent)).to.equal('usage');
  });

  it('let numbers jump only once two people allowed it', async () => {
    await deliver(await seal());
    await importInto(blue);
    await red.test.db.raw('update outbound_batches set seq = 20001');
    for (const name of await readdir(red.folders.store)) {
      await rename(join(red.folders.store, name), join(red.folders.root, name));
    }
    await deliver(await seal());
    expect(outcomes(await importInto(blue))).to.deep.equal(['WAIT_APPROVAL']);
    expect((await run(blue, 'link frozen')).text).to.contain('FAST_FORWARD');
    const asked = await run(blue, 'link allow', ['requests', '20002'], { reason: 'restored' });
    const { id } = asked.data as { id: string };
    expect(outcomes(await importInto(blue))).to.deep.equal(['WAIT_APPROVAL']);
    await blue.test.db.raw(`update approvals set asked_by = 'cli:somebody'`);
    await run(blue, 'approvals approve', [id]);
    expect(await appliedIds(blue)).to.have.lengthOf(2);
    expect((await run(blue, 'link frozen')).text).to.contain('No stream is frozen');
    const closed = run(blue, 'link allow', ['requests', '1'], { reason: 'x' });
    expect(await codeOfAsync(closed)).to.equal('version-conflict');
    const unknown = run(blue, 'link allow', ['results', '7'], { reason: 'x' });
    expect(await codeOfAsync(unknown)).to.equal('usage');
  });
});
