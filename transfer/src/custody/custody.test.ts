import { copyFile, mkdir, readdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import { newId, rows, type CommandOutput } from '@sallyport/shared';
import { batchCommands } from '../commands/batch-commands.js';
import type { BatchDetails } from './batches.js';
import { noteCustody, pruneCustody, readCustody } from './custody.js';
import { writeCustodySlips } from './custody-slip.js';
import { exportControl, exportStream } from '../sending/export.js';
import { importBatches } from '../receiving/import.js';
import { sendRecords } from '../sending/outbox.js';
import { takeSlips } from './slips.js';
import { codeOfAsync } from '../test-codes.js';
import {
  carryAll,
  makeTestPair,
  recordingApplies,
  requestRecord,
  type TestNode,
} from '../testing.js';

const MINUTE_MS = 60_000;

describe('custody', () => {
  let red: TestNode;
  let blue: TestNode;
  let remove: () => Promise<void>;

  const importInto = (node: TestNode) => importBatches(node.test.db, node, recordingApplies);
  const later = (node: TestNode) => {
    node.time.now = new Date(node.time.now.getTime() + 11 * MINUTE_MS);
  };
  const run = async (
    node: TestNode,
    command: string,
    positionals: string[],
    switches: string[] = [],
    values: Record<string, string> = {},
  ): Promise<CommandOutput> => {
    const importAll = () => Promise.reject(new Error('not asked for'));
    const commands = batchCommands((use) => use({ db: node.test.db, node, importAll }));
    const args = { positionals, values, switches: new Set(switches) };
    const output = await commands[command]?.run(args);
    if (!output) throw new Error(`${command} said nothing`);
    return output;
  };
  const seal = async () => {
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    await exportStream(red.test.db, red, 'requests');
    const [batch] = await rows<{ digest: string; name: string; seq: number }>(
      red.test.db,
      `select digest, file_name as name, seq from outbound_batches
       where stream = 'requests' order by seq desc limit 1`,
    );
    if (!batch) throw new Error('nothing was sealed');
    return batch;
  };
  const stepsAt = async (node: TestNode, digest: string) =>
    (await readCustody(node.test.db, digest)).map(({ step, source }) => `${step} ${source}`);
  const slipOf = (digest: string, seq: number, steps: ('written' | 'read_back' | 'received')[]) =>
    steps.map((step) => ({
      ...{ digest, stream: 'requests' as const, epoch: 1, seq, step },
      at: '2026-03-01T11:00:00.000Z',
    }));
  const medium = newId();

  beforeEach(async () => {
    ({ red, blue, remove } = await makeTestPair());
  });
  afterEach(() => remove());

  it('is one story on both networks', async () => {
    const { digest, seq } = await seal();
    const events = slipOf(digest, seq, ['written', 'read_back']);
    await writeCustodySlips(
      red.folders.outbox,
      { medium, carrier: 'Kim', step: 'written' },
      events,
    );
    await carryAll(red, blue, (name) => name.endsWith('.batch'));
    await importInto(blue);
    await exportControl(blue.test.db, blue);
    await carryAll(blue, red);
    await importInto(red);
    later(red);
    await exportControl(red.test.db, red);
    await carryAll(red, blue, (name) => name.endsWith('.batch'));
    await importInto(blue);
    const red1 = await stepsAt(red, digest);
    expect(red1).to.deep.equal([
      'sealed own',
      'written carrier',
      'read_back carrier',
      'received far',
      'verified far',
      'applied far',
      'receipt own',
    ]);
    expect(await stepsAt(blue, digest)).to.deep.equal([
      'sealed far',
      'written far',
      'read_back far',
      'received own',
      'verified own',
      'applied own',
      'receipt far',
    ]);
  });

  it('does not make receipts answer receipts', async () => {
    const batches: number[] = [];
    await seal();
    for (let round = 0; round < 4; round += 1) {
      await carryAll(red, blue, (name) => name.endsWith('.batch'));
      await importInto(blue);
      const { sealed } = await exportControl(blue.test.db, blue);
      await carryAll(blue, red);
      await importInto(red);
      batches.push(sealed + (await exportControl(red.test.db, red)).sealed);
    }
    expect(batches.slice(1)).to.deep.equal([0, 0, 0]);
  });

  it('takes a slip for the hand-over and deletes it', async () => {
    const { digest, seq } = await seal();
    const events = slipOf(digest, seq, ['written', 'read_back']);
    await writeCustodySlips(
      red.folders.outbox,
      { medium, carrier: 'Kim', step: 'written' },
      events,
    );
    await exportControl(red.test.db, red);
    const {
      state,
      levels,
      medium: on,
    } = (await run(red, 'batch show', ['requests', '1'])).data as BatchDetails;
    expect({ state, on }).to.deep.equal({ state: 'handed_over', on: medium });
    expect(levels[1]).to.deep.include({ level: 'HANDED_OVER', at: red.clock.now() });
    expect(await readdir(red.folders.outbox)).to.satisfy((names: string[]) =>
      names.every((name) => name.endsWith('.batch')),
    );
  });

  it('does not take a write that was not read back for a hand-over', async () => {
    const { digest, seq } = await seal();
    const events = slipOf(digest, seq, ['written']);
    await writeCustodySlips(
      red.folders.outbox,
      { medium, carrier: 'Kim', step: 'written' },
      events,
    );
    await exportControl(red.test.db, red);
    const { data } = await run(red, 'batch show', ['requests', '1']);
    expect((data as BatchDetails).state).to.equal('ready');
  });

  it('keeps a slip of the inbox until its batches have come, at most a week', async () => {
    const { digest, seq, name } = await seal();
    const events = slipOf(digest, seq, ['received']);
    await writeCustodySlips(
      blue.folders.inbox,
      { medium, carrier: 'Lee', step: 'received' },
      events,
    );
    expect((await importInto(blue)).foreign).to.deep.equal([]);
    expect(await readdir(blue.folders.inbox)).to.have.lengthOf(1);
    await copyFile(join(red.folders.outbox, name), join(blue.folders.inbox, name));
    await importInto(blue);
    expect(await readdir(blue.folders.inbox)).to.deep.equal([]);
    expect(await stepsAt(blue, digest)).to.include('received carrier');
    const unknown = slipOf('a'.repeat(64), 9, ['received']);
    await writeCustodySlips(
      blue.folders.inbox,
      { medium, carrier: 'Lee', step: 'received' },
      unknown,
    );
    await importInto(blue);
    blue.time.now = new Date(blue.time.now.getTime() + 8 * 1_440 * MINUTE_MS);
    await importInto(blue);
    expect(await readdir(blue.folders.inbox)).to.deep.equal([]);
    expect(await stepsAt(blue, 'a'.repeat(64))).to.deep.equal([]);
  });

  it('lists what is only called a slip as foreign and leaves it', async () => {
    await writeFile(join(blue.folders.inbox, 'a.slip.json'), '{"v":1}');
    await writeFile(join(blue.folders.inbox, 'b.slip.json'), Buffer.alloc(2 * 1024 * 1024, ' '));
    await symlink('/etc/hostname', join(blue.folders.inbox, 'c.slip.json'));
    await mkdir(join(blue.folders.inbox, 'd.slip.json'));
    const { foreign } = await importInto(blue);
    const names = ['a.slip.json', 'b.slip.json', 'c.slip.json', 'd.slip.json'];
    expect(foreign.sort()).to.deep.equal(names);
    expect((await readdir(blue.folders.inbox)).sort()).to.deep.equal(names);
  });

  it('lists a slip of a year that no database knows as foreign', async () => {
    const { digest, seq } = await seal();
    const [event] = slipOf(digest, seq, ['written']);
    const events = [{ ...event!, at: '0000-01-01T00:00:00.000Z' }];
    const slip = { medium, carrier: 'Kim', step: 'written' as const };
    const names = await writeCustodySlips(red.folders.outbox, slip, events);
    expect(await takeSlips(red.test.db, red)).to.deep.equal({ taken: 0, strange: names });
  });

  it('takes in every slip, however many strange ones lie beside it', async () => {
    const { digest, seq } = await seal();
    await carryAll(red, blue);
    await importInto(blue);
    const names = Array.from({ length: 1_100 }, (_, n) => `00-${n}.slip.json`);
    for (const name of names) await writeFile(join(blue.folders.inbox, name), '{}');
    const events = slipOf(digest, seq, ['received']);
    for (let n = 0; n < 20; n += 1) {
      const slip = { medium: newId(), carrier: 'Kim', step: 'received' as const };
      await writeCustodySlips(blue.folders.inbox, slip, events);
    }
    for (let round = 0; round < 3; round += 1) await takeSlips(blue.test.db, blue);
    expect((await readdir(blue.folders.inbox)).sort()).to.deep.equal(names.sort());
  });

  it('cleans what carriers write, and never believes a time to come', async () => {
    const { digest, seq } = await seal();
    const [event] = slipOf(digest, seq, ['written']);
    const events = [{ ...event!, at: '2099-01-01T00:00:00.000Z' }];
    const slip = { medium, carrier: 'K\u001b[2Ji\u202em', step: 'written' as const };
    await writeCustodySlips(red.folders.outbox, slip, events);
    await exportControl(red.test.db, red);
    const written = (await readCustody(red.test.db, digest)).find(({ step }) => step === 'written');
    expect(written?.who).to.equal('K [2Ji m');
    expect(written?.at).to.deep.equal(red.clock.now());
  });

  it('keeps at most 64 words of one carrier or far side on one batch, and the first of each', async () => {
    const { digest, seq } = await seal();
    const batch = { stream: 'requests' as const, epoch: 1, seq, digest };
    const now = red.clock.now();
    const told = Array.from({ length: 100 }, (_, n) => ({
      ...batch,
      ...{ step: 'written' as const, who: 'Kim', at: now, medium: `stick ${n}`, tell: true },
    }));
    await noteCustody(red.test.db, [...told, ...told], now);
    later(red);
    await exportControl(red.test.db, red);
    await carryAll(red, blue, (name) => name.endsWith('.batch'));
    await importInto(blue);
    expect((await stepsAt(blue, digest)).filter((each) => each === 'written far')).to.have.lengthOf(
      64,
    );
  });

  it('tells where a batch is that never came', async () => {
    const { digest } = await seal();
    await run(red, 'hand-over', ['requests/1'], [], { medium: 'stick 7' });
    later(red);
    await exportControl(red.test.db, red);
    await carryAll(red, blue, (name) => name.includes('.control.'));
    await importInto(blue);
    const [event] = await readCustody(blue.test.db, digest);
    expect(event).to.include({ step: 'handed_over', medium: 'stick 7', source: 'far' });
  });

  it('notes a hand-over by file or number once, or not at all', async () => {
    const first = await seal();
    await seal();
    const { text } = await run(red, 'hand-over', [first.name, 'requests/2', 'requests/1']);
    expect(text).to.equal('2 handed over.');
    expect((await run(red, 'hand-over', ['requests/2'])).text).to.contain('1 had left before');
    await seal();
    const half = run(red, 'hand-over', ['requests/3', 'requests/99']);
    expect(await codeOfAsync(half)).to.equal('not-found');
    expect(await codeOfAsync(run(red, 'hand-over', ['what.txt']))).to.equal('usage');
    const { data } = await run(red, 'batch show', ['requests', '3']);
    expect((data as BatchDetails).state).to.equal('ready');
  });

  it('is shown with the state of a batch, on either side', async () => {
    await seal();
    await carryAll(red, blue);
    await importInto(blue);
    const sent = await run(red, 'batch ls', [], ['open']);
    expect(sent.data).to.have.lengthOf(1);
    const received = await run(blue, 'batch show', ['requests', '1'], ['received']);
    expect(received.data).to.include({ state: 'applied', duplicates: 0 });
    for (const word of ['APPLIED', 'verified', 'this network', 'the far network']) {
      expect(received.text).to.contain(word);
    }
    const unknown = run(blue, 'batch show', ['requests', '7'], ['received']);
    expect(await codeOfAsync(unknown)).to.equal('not-found');
    expect(await codeOfAsync(run(blue, 'batch show', ['requests', '-1']))).to.equal('usage');
  });

  it('is forgotten after a year', async () => {
    const { digest } = await seal();
    expect(await pruneCustody(red.test.db, red)).to.equal(0);
    red.time.now = new Date(red.time.now.getTime() + 366 * 1_440 * MINUTE_MS);
    expect(await pruneCustody(red.test.db, red)).to.equal(1);
    expect(await readCustody(red.test.db, digest)).to.deep.equal([]);
  });
});
