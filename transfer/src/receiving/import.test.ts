import { randomUUID } from 'node:crypto';
import {
  copyFile,
  mkdir,
  readFile,
  readdir,
  rename,
  stat,
  symlink,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { expect } from 'chai';
import fc from 'fast-check';
import { newId, rows, settingRecordId, type Transaction } from '@sallyport/shared';
import { exportControl, exportStream, sendSnapshot } from '../sending/export.js';
import { importBatches, type ImportReport } from './import.js';
import { rememberFile } from './inbox.js';
import { trustCard } from '../keys/links.js';
import { sendRecords, type OutgoingRecord } from '../sending/outbox.js';
import { pruneOutbox, pruneStore } from '../sending/store.js';
import {
  appliedIds,
  carryAll,
  makeTestNode,
  makeTestPair,
  recordingApplies,
  requestRecord,
  settingRecord,
  type TestNode,
} from '../testing.js';

const outcomes = (report: ImportReport) => report.files.map(({ outcome }) => outcome);
const importInto = (node: TestNode) => importBatches(node.test.db, node, recordingApplies);

async function sealRequests(node: TestNode, records: OutgoingRecord[]): Promise<string> {
  await sendRecords(node.test.db, 'requests', records, node.clock.now());
  await exportStream(node.test.db, node, 'requests');
  const names = (await readdir(node.folders.outbox)).filter((name) => /\.requests\./.test(name));
  return names.sort().at(-1) ?? '';
}

async function sealSetting(node: TestNode, version: number): Promise<string> {
  const record = settingRecord(settingRecordId('late'), 'late', version);
  await sendRecords(node.test.db, 'settings', [record], node.clock.now());
  await exportStream(node.test.db, node, 'settings');
  const names = (await readdir(node.folders.outbox)).filter((name) => /\.settings\./.test(name));
  return names.sort().at(-1) ?? '';
}

const deliver = (from: TestNode, to: TestNode, name: string, as = name) =>
  copyFile(join(from.folders.outbox, name), join(to.folders.inbox, as));

async function readCursor(node: TestNode, stream: string): Promise<number> {
  const [row] = await rows<{ contiguous: number }>(
    node.test.db,
    'select contiguous from inbound_streams where stream = ?',
    [stream],
  );
  return row?.contiguous ?? -1;
}

describe('importBatches', () => {
  let red: TestNode;
  let blue: TestNode;
  let remove: () => Promise<void>;

  beforeEach(async () => {
    ({ red, blue, remove } = await makeTestPair());
  });
  afterEach(() => remove());

  it('applies a batch once, archives it, and empties the inbox', async () => {
    const id = newId();
    const name = await sealRequests(red, [requestRecord(id, 'quotes " and \\ and \u2028')]);
    await deliver(red, blue, name);
    const report = await importInto(blue);
    expect(outcomes(report)).to.deep.equal(['APPLIED']);
    expect(await appliedIds(blue)).to.deep.equal([id]);
    expect(await readdir(blue.folders.inbox)).to.deep.equal([]);
    expect(await readdir(blue.folders.staging)).to.deep.equal([]);
    expect(await readdir(blue.folders.archive)).to.deep.equal([name]);
    const [kept] = await rows<{ query: string }>(
      blue.test.db,
      `select d->>'query' as query from applied`,
    );
    expect(JSON.parse(kept?.query ?? '')).to.have.property('marker', 'quotes " and \\ and \u2028');
  });

  it('calls the same bytes again a duplicate, under any name', async () => {
    const name = await sealRequests(red, [requestRecord()]);
    await deliver(red, blue, name);
    await importInto(blue);
    await deliver(red, blue, name, 'renamed.batch');
    await deliver(red, blue, name);
    const report = await importInto(blue);
    expect(outcomes(report)).to.deep.equal(['DUPLICATE', 'DUPLICATE']);
    expect(await readdir(blue.folders.inbox)).to.deep.equal([]);
    const [kept] = await rows<{ times: number }>(blue.test.db, 'select times from applied');
    expect(kept?.times).to.equal(1);
  });

  it('looks at a good file in the place of a damaged one that it could not remove', async () => {
    const damaged = { code: 'HASH_MISMATCH', detail: 'damaged' } as const;
    const put = async (seal: string) => {
      const path = join(blue.folders.inbox, seal);
      const good = await readFile(join(red.folders.outbox, seal));
      const time = new Date('2026-03-01T11:00:00.000Z');
      await writeFile(path, Buffer.alloc(good.length, 'x'));
      await utimes(path, time, time);
      await rememberFile(blue.test.db, blue.clock, path, damaged);
      await writeFile(path, good);
      await utimes(path, time, time);
      return path;
    };
    await put(await sealRequests(red, [requestRecord()]));
    expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
    const path = await put(await sealRequests(red, [requestRecord()]));
    // As where the file system shows neither inodes nor changes.
    await rememberFile(blue.test.db, blue.clock, path, damaged);
    expect(outcomes(await importInto(blue))).to.deep.equal([]);
    blue.time.now = new Date(blue.time.now.getTime() + 15 * 60_000);
    expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
  });

  it('lets one of two importers work', async () => {
    const name = await sealRequests(red, [requestRecord()]);
    await deliver(red, blue, name);
    const reports = await Promise.all([importInto(blue), importInto(blue)]);
    expect(reports.reduce((sum, report) => sum + report.applied, 0)).to.equal(1);
  });

  it('acknowledges what it applied, and the sender closes the batch and empties its outbox', async () => {
    const name = await sealRequests(red, [requestRecord()]);
    await deliver(red, blue, name);
    await importInto(blue);
    await exportControl(blue.test.db, blue);
    await carryAll(blue, red);
    const report = await importInto(red);
    expect(outcomes(report)).to.deep.equal(['APPLIED']);
    const [batch] = await rows(red.test.db, 'select state, version from outbound_batches');
    expect(batch).to.deep.include({ state: 'acked' });
    expect(await readdir(red.folders.outbox)).to.deep.equal([]);
    expect(await readdir(red.folders.store)).to.deep.equal([name]);
  });

  it('lets old bytes and result rows go some days after their receipt', async () => {
    const data = {
      status: 'cancelled' as const,
      failure: null,
      media_type: null,
      bytes: null,
      sha256: null,
      parts: 0,
      text: null,
      disclosure: null,
      dataset_version: null,
      policy_version: null,
      times: {
        received_at: '2026-03-01T12:00:00.000Z',
        started_at: null,
        finished_at: '2026-03-01T12:00:00.000Z',
        took_ms: null,
      },
    };
    for (const id of [randomUUID(), randomUUID()]) {
      await sendRecords(blue.test.db, 'results', [{ type: 'result', id, data }], blue.clock.now());
      await exportStream(blue.test.db, blue, 'results');
    }
    await carryAll(blue, red);
    await importInto(red);
    await exportControl(red.test.db, red);
    await carryAll(red, blue);
    await importInto(blue);
    expect(await pruneOutbox(blue.test.db, blue)).to.equal(0);
    blue.time.now = new Date(blue.time.now.getTime() + 31 * 86_400_000);
    expect(await pruneOutbox(blue.test.db, blue)).to.equal(2);
    // The newest of a stream stays.
    expect(await pruneStore(blue.test.db, blue)).to.equal(1);
  });

  it('sends no receipt for a receipt', async () => {
    await exportControl(blue.test.db, blue);
    await carryAll(blue, red);
    await importInto(red);
    await exportControl(red.test.db, red);
    await carryAll(red, blue);
    await importInto(blue);
    expect(await exportControl(blue.test.db, blue)).to.deep.equal({ sealed: 0, records: 0 });
    blue.time.now = new Date(blue.time.now.getTime() + 10 * 60_000);
    expect(await exportControl(blue.test.db, blue)).to.deep.equal({ sealed: 1, records: 0 });
  });

  it('applies an independent stream around a hole, names it, and closes it', async () => {
    const first = await sealRequests(red, [requestRecord()]);
    const second = await sealRequests(red, [requestRecord()]);
    const third = await sealRequests(red, [requestRecord()]);
    await deliver(red, blue, first);
    await deliver(red, blue, third);
    await importInto(blue);
    expect(await readCursor(blue, 'requests')).to.equal(1);
    await exportControl(blue.test.db, blue);
    await carryAll(blue, red);
    await importInto(red);
    const [told] = await rows(
      red.test.db,
      'select contiguous, missing from far_acks where stream = ?',
      ['requests'],
    );
    expect(told).to.deep.equal({ contiguous: 1, missing: [[2, 2]] });
    await deliver(red, blue, second);
    await importInto(blue);
    expect(await readCursor(blue, 'requests')).to.equal(3);
  });

  it('sees from the tail of a control batch that the newest one is missing', async () => {
    await sealRequests(red, [requestRecord()]);
    await exportControl(red.test.db, red);
    red.time.now = new Date(red.time.now.getTime() + 11 * 60_000);
    await exportControl(red.test.db, red);
    await carryAll(red, blue, (name) => name.includes('.control.'));
    await importInto(blue);
    const [stream] = await rows(
      blue.test.db,
      `select contiguous, tail_seq from inbound_streams where stream = 'requests'`,
    );
    expect(stream).to.deep.equal({ contiguous: 0, tail_seq: 1 });
  });

  it('lets an ordered stream wait for the missing number and then drains it', async () => {
    const names = [
      await sealSetting(blue, 1),
      await sealSetting(blue, 2),
      await sealSetting(blue, 3),
    ];
    await deliver(blue, red, names[0] ?? '');
    await deliver(blue, red, names[2] ?? '');
    const waited = await importInto(red);
    expect(outcomes(waited)).to.deep.equal(['APPLIED', 'WAIT_GAP']);
    expect(await readdir(red.folders.waiting)).to.deep.equal([names[2]]);
    await deliver(blue, red, names[1] ?? '');
    const drained = await importInto(red);
    expect(outcomes(drained)).to.deep.equal(['APPLIED', 'APPLIED']);
    expect(await readdir(red.folders.waiting)).to.deep.equal([]);
    const [kept] = await rows<{ version: number }>(
      red.test.db,
      `select (d->>'version')::int as version from applied`,
    );
    expect(kept?.version).to.equal(3);
  });

  it('heals an ordered stream by a snapshot, and calls what it covers duplicates', async () => {
    const lost = await sealSetting(blue, 1);
    const held = await sealSetting(blue, 2);
    await deliver(blue, red, held);
    await importInto(red);
    await sendSnapshot(blue.test.db, blue, 'settings', () =>
      Promise.resolve([settingRecord(settingRecordId('late'), 'late', 2)]),
    );
    const snapshot = (await readdir(blue.folders.outbox)).sort().at(-1) ?? '';
    await deliver(blue, red, snapshot);
    expect(outcomes(await importInto(red))).to.deep.equal(['APPLIED']);
    expect(await readCursor(red, 'settings')).to.equal(3);
    expect(await readdir(red.folders.waiting)).to.deep.equal([]);
    await deliver(blue, red, lost);
    expect(outcomes(await importInto(red))).to.deep.equal(['DUPLICATE']);
    await deliver(blue, red, await sealSetting(blue, 4));
    expect(outcomes(await importInto(red))).to.deep.equal(['APPLIED']);
  });

  it('binds waiting records as superseded when a snapshot is sent', async () => {
    const record = settingRecord(settingRecordId('late'), 'late', 1);
    await sendRecords(blue.test.db, 'settings', [record], blue.clock.now());
    const sent = await sendSnapshot(blue.test.db, blue, 'settings', () =>
      Promise.resolve([record]),
    );
    expect(sent).to.deep.equal({ sealed: 1, records: 1 });
    const again = await exportStream(blue.test.db, blue, 'settings');
    expect(again).to.deep.equal({ sealed: 0, records: 0 });
  });

  it('quarantines a damaged file, keeps its number open, and takes the good copy later', async () => {
    const name = await sealRequests(red, [requestRecord()]);
    const path = join(blue.folders.inbox, name);
    const bytes = await readFile(join(red.folders.outbox, name));
    bytes[bytes.length - 20] = (bytes[bytes.length - 20] ?? 0) ^ 1;
    await writeFile(path, bytes);
    const report = await importInto(blue);
    expect(outcomes(report)).to.deep.equal(['HASH_MISMATCH']);
    expect(await readdir(blue.folders.inbox)).to.deep.equal([]);
    const [digest] = await readdir(join(blue.folders.quarantine, 'HASH_MISMATCH'));
    const kept = join(blue.folders.quarantine, 'HASH_MISMATCH', digest ?? '');
    expect((await readdir(kept)).sort()).to.deep.equal(['refused.batch', 'report.json']);
    const written = JSON.parse(await readFile(join(kept, 'report.json'), 'utf8')) as object;
    expect(written).to.include({ code: 'HASH_MISMATCH', stream: 'requests', seq: 1, file: name });
    expect(await readCursor(blue, 'requests')).to.equal(0);
    await deliver(red, blue, name);
    expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
  });

  describe('small batches of one stream', () => {
    const COUNT = 5;
    let names: string[];
    let ids: string[];
    beforeEach(async () => {
      [names, ids] = [[], []];
      for (let n = 0; n < COUNT; n += 1) {
        ids.push(newId());
        names.push(await sealRequests(red, [requestRecord(ids[n])]));
      }
      for (const name of names) await deliver(red, blue, name);
    });
    const damage = async (at: number) => {
      const path = join(blue.folders.inbox, names[at] ?? '');
      const bytes = await readFile(path);
      bytes[bytes.length - 20] = (bytes[bytes.length - 20] ?? 0) ^ 1;
      await writeFile(path, bytes);
    };

    it('are applied together, each with its own row and file', async () => {
      const report = await importInto(blue);
      expect(report).to.include({ applied: COUNT, records: COUNT });
      expect(await appliedIds(blue)).to.deep.equal(ids);
      expect(await readCursor(blue, 'requests')).to.equal(COUNT);
      expect((await readdir(blue.folders.archive)).sort()).to.deep.equal(names);
      expect(await readdir(blue.folders.inbox)).to.deep.equal([]);
      expect(await readdir(blue.folders.staging)).to.deep.equal([]);
      const { rows: noted } = await blue.test.db.raw<{ rows: { seq: number; step: string }[] }>(
        `select seq, step from custody_events where step = 'applied' order by seq`,
      );
      expect(noted.map(({ seq }) => seq)).to.deep.equal([1, 2, 3, 4, 5]);
    });

    it('are duplicates when they come again', async () => {
      await importInto(blue);
      for (const name of names) await deliver(red, blue, name);
      expect(await importInto(blue)).to.include({ applied: 0, duplicates: COUNT, records: 0 });
      expect(await readdir(blue.folders.inbox)).to.deep.equal([]);
    });

    it('are applied but for the damaged one among them', async () => {
      await damage(2);
      const report = await importInto(blue);
      expect(outcomes(report).sort()).to.deep.equal([
        ...Array<string>(COUNT - 1).fill('APPLIED'),
        'HASH_MISMATCH',
      ]);
      expect(await readCursor(blue, 'requests')).to.equal(2);
      expect(await readdir(blue.folders.staging)).to.deep.equal([]);
      await deliver(red, blue, names[2] ?? '');
      expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
      expect(await readCursor(blue, 'requests')).to.equal(COUNT);
      expect(await appliedIds(blue)).to.deep.equal(ids);
    });

    it('are applied but for those that were applied before', async () => {
      const path = join(blue.folders.inbox, names[1] ?? '');
      await importBatches(blue.test.db, blue, recordingApplies, { path });
      await deliver(red, blue, names[1] ?? '');
      expect(await importInto(blue)).to.include({ applied: COUNT - 1, duplicates: 1 });
      expect(await appliedIds(blue)).to.deep.equal(ids);
    });

    it('are all there or none when the transaction fails, and come with the next import', async () => {
      const failing: typeof recordingApplies = {
        ...recordingApplies,
        async request(tx, ...more) {
          await recordingApplies.request?.(tx, ...more);
          throw new Error('the disk of the database is full');
        },
      };
      const report = await importBatches(blue.test.db, blue, failing);
      expect(report).to.include({ applied: 0, failed: COUNT });
      expect(await appliedIds(blue)).to.deep.equal([]);
      expect((await readdir(blue.folders.inbox)).sort()).to.deep.equal(names);
      expect(await importInto(blue)).to.include({ applied: COUNT });
    });

    it('are archived by the next import when the answer to the commit was lost', async () => {
      let begun = false;
      const noting: typeof recordingApplies = {
        ...recordingApplies,
        async request(...args) {
          begun = true;
          await recordingApplies.request?.(...args);
        },
      };
      const lossy = new Proxy(blue.test.db, {
        get(db, key) {
          if (key !== 'transaction') return Reflect.get(db, key) as unknown;
          return async (work: (tx: Transaction) => Promise<unknown>) => {
            const done = await db.transaction(work);
            if (begun) throw new Error('Connection terminated unexpectedly');
            return done;
          };
        },
      });
      const failed = importBatches(lossy, blue, noting).catch((error: Error) => error.message);
      expect(await failed).to.equal('Connection terminated unexpectedly');
      expect(await importInto(blue)).to.include({ applied: 0, duplicates: COUNT });
      expect(await appliedIds(blue)).to.deep.equal(ids);
      expect((await readdir(blue.folders.archive)).sort()).to.deep.equal(names);
    });

    it('stop at a number with two contents, which freezes the stream', async () => {
      const path = join(blue.folders.inbox, names[4] ?? '');
      await importBatches(blue.test.db, blue, recordingApplies, { path });
      await blue.test.db.raw(`update inbound_batches set prev = repeat('0', 64) where seq = 5`);
      const report = await importInto(blue);
      expect(outcomes(report)).to.include('CHAIN_BREAK');
      expect(await readCursor(blue, 'requests')).to.equal(3);
    });
  });

  it('waits for a file under copy and refuses it as truncated after 15 minutes', async () => {
    const name = await sealRequests(red, [requestRecord()]);
    await deliver(red, blue, name);
    const path = join(blue.folders.inbox, name);
    await truncate(path, (await readFile(path)).length - 1);
    expect(outcomes(await importInto(blue))).to.deep.equal(['INCOMPLETE']);
    blue.time.now = new Date(blue.time.now.getTime() + 15 * 60_000);
    expect(outcomes(await importInto(blue))).to.deep.equal(['TRUNCATED']);
    expect(await appliedIds(blue)).to.deep.equal([]);
    await deliver(red, blue, name);
    expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
  });

  it('refuses its own batch, another link, and trailing bytes', async () => {
    const name = await sealRequests(red, [requestRecord()]);
    await deliver(red, red, name);
    expect(outcomes(await importInto(red))).to.deep.equal(['WRONG_DIRECTION']);
    const bytes = await readFile(join(red.folders.outbox, name));
    await writeFile(join(blue.folders.inbox, name), Buffer.concat([bytes, Buffer.from('\n')]));
    expect(outcomes(await importInto(blue))).to.deep.equal(['TRAILING_DATA']);
    const stranger = await makeTestPair();
    try {
      const foreign = await sealRequests(stranger.red, [requestRecord()]);
      await deliver(stranger.red, blue, foreign);
      expect(outcomes(await importInto(blue))).to.deep.equal(['WAIT_KEY']);
    } finally {
      await stranger.remove();
    }
  });

  it('never opens links, FIFOs and folders, and lists foreign files', async () => {
    const name = await sealRequests(red, [requestRecord()]);
    await symlink(join(red.folders.outbox, name), join(blue.folders.inbox, 'link.batch'));
    execFileSync('mkfifo', [join(blue.folders.inbox, 'pipe.batch')]);
    await mkdir(join(blue.folders.inbox, 'folder.batch'));
    await writeFile(join(blue.folders.inbox, 'autorun.inf'), 'x');
    const report = await importInto(blue);
    expect(outcomes(report)).to.deep.equal(Array(3).fill('NOT_REGULAR_FILE'));
    expect(report.foreign).to.deep.equal(['autorun.inf']);
    expect(await appliedIds(blue)).to.deep.equal([]);
  });

  it('keeps only the beginning of a large file that nobody has signed', async () => {
    const path = join(blue.folders.inbox, 'large.batch');
    await writeFile(path, 'x');
    await truncate(path, 64 * 1024 * 1024);
    expect(outcomes(await importInto(blue))).to.deep.equal(['NOT_A_BATCH']);
    const [digest = ''] = await readdir(join(blue.folders.quarantine, 'NOT_A_BATCH'));
    const kept = join(blue.folders.quarantine, 'NOT_A_BATCH', digest, 'refused.batch');
    expect((await stat(kept)).size).to.equal(1024 * 1024);
    expect(await readdir(blue.folders.inbox)).to.deep.equal([]);
  });

  it('leaves a file of more than 3.9 GiB where it is, and looks at it once', async () => {
    const path = join(blue.folders.inbox, 'vast.batch');
    await writeFile(path, 'x');
    await truncate(path, 8 * 1024 ** 4);
    expect(outcomes(await importInto(blue))).to.deep.equal(['NOT_A_BATCH']);
    expect(outcomes(await importInto(blue))).to.deep.equal([]);
    expect(await readdir(blue.folders.quarantine)).to.deep.equal([]);
  });

  it('takes a name that is no UTF-8 for foreign', async () => {
    const raw = Buffer.concat([Buffer.from(`${blue.folders.inbox}/`), Buffer.from([0xff, 0xfe])]);
    await writeFile(Buffer.concat([raw, Buffer.from('.batch')]), 'x');
    const report = await importInto(blue);
    expect(report.foreign).to.have.length(1);
    expect(report.files).to.deep.equal([]);
  });

  it('does not let one stuck stream keep the batches of another waiting', async () => {
    // Nobody here applies credentials, so the identity batch stays stuck once its turn has come.
    for (const counter of [1, 2]) {
      const data = { generation: 1, counter, verifier: 'x'.repeat(20) };
      const record = { type: 'user.credential' as const, id: randomUUID(), data };
      await sendRecords(blue.test.db, 'identity', [record], blue.clock.now());
      await exportStream(blue.test.db, blue, 'identity');
    }
    const [first, second] = [await sealSetting(blue, 1), await sealSetting(blue, 2)];
    await deliver(blue, red, second);
    await carryAll(blue, red, (name) => name.includes('.identity.') && name.includes('02.'));
    expect(outcomes(await importInto(red))).to.deep.equal(['WAIT_GAP', 'WAIT_GAP']);
    await red.test.db.raw(
      `update inbound_streams s set contiguous = 1, contiguous_digest = b.prev
       from inbound_batches b where b.stream = 'identity' and s.stream = 'identity'`,
    );
    await deliver(blue, red, first);
    await importInto(red);
    expect(await readCursor(red, 'settings')).to.equal(2);
    expect(await readCursor(red, 'identity')).to.equal(1);
  });

  it('lets a batch of an ordered stream stay where it is while 10 GiB wait', async () => {
    const names = [
      await sealSetting(blue, 1),
      await sealSetting(blue, 2),
      await sealSetting(blue, 3),
    ];
    await deliver(blue, red, names[1] ?? '');
    await importInto(red);
    await red.test.db.raw(
      `update inbound_batches set file_bytes = 10 * 1024::bigint ^ 3 where state = 'waiting'`,
    );
    await deliver(blue, red, names[2] ?? '');
    expect(outcomes(await importInto(red))).to.deep.equal(['WAIT_GAP']);
    expect(await readdir(red.folders.inbox)).to.deep.equal([names[2]]);
    expect(await readdir(red.folders.waiting)).to.deep.equal([names[1]]);
    await deliver(blue, red, names[0] ?? '');
    await importInto(red);
    await importInto(red);
    expect(await readCursor(red, 'settings')).to.equal(3);
  });

  it('waits without an alarm while the second check gives no answer', async () => {
    const name = await sealRequests(red, [requestRecord()]);
    await deliver(red, blue, name);
    let asked = 0;
    const keys = {
      ...blue.keys,
      get ageIdentities() {
        asked += 1;
        // Only the second validator asks first; this kills its thread.
        return asked === 1 ? ([null as unknown as string] as const) : blue.keys.ageIdentities;
      },
    };
    const report = await importBatches(blue.test.db, { ...blue, keys }, recordingApplies);
    expect(outcomes(report)).to.deep.equal(['WAIT_LOCK']);
    const frozen = await rows(
      blue.test.db,
      'select 1 from inbound_streams where frozen_code is not null',
    );
    expect(frozen).to.deep.equal([]);
    expect(await readdir(blue.folders.inbox)).to.deep.equal([name]);
    expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
  });

  it('refuses what the database cannot take as a fault of the content, and closes its number', async () => {
    const name = await sealRequests(red, [requestRecord()]);
    await deliver(red, blue, name);
    const applies = {
      ...recordingApplies,
      request: async (tx: Transaction) => {
        await tx.raw(`select cast('0000-01-01T00:00:00.000Z' as timestamptz)`);
      },
    };
    const report = await importBatches(blue.test.db, blue, applies);
    expect(outcomes(report)).to.deep.equal(['SCHEMA']);
    expect(await readCursor(blue, 'requests')).to.equal(1);
    expect(await readdir(blue.folders.inbox)).to.deep.equal([]);
  });

  it('freezes the stream when one number comes with two contents', async () => {
    const name = await sealRequests(red, [requestRecord()]);
    await deliver(red, blue, name);
    await importInto(blue);
    await red.test.db.raw(`delete from outbox_records`);
    await red.test.db.raw(`delete from outbound_batches`);
    await rename(join(red.folders.store, name), join(red.folders.root, name));
    const forged = await sealRequests(red, [requestRecord()]);
    const other = (await readdir(red.folders.outbox)).find((found) => found !== name) ?? forged;
    await deliver(red, blue, other);
    expect(outcomes(await importInto(blue))).to.deep.equal(['SEQ_FORK']);
    await deliver(red, blue, await sealRequests(red, [requestRecord()]));
    expect(outcomes(await importInto(blue))).to.deep.equal(['WAIT_APPROVAL']);
  });

  it('keeps everything waiting before trust', async () => {
    const lonely = await makeTestNode('response');
    try {
      const name = await sealRequests(red, [requestRecord()]);
      await deliver(red, lonely, name);
      expect(outcomes(await importInto(lonely))).to.deep.equal(['WAIT_KEY']);
      expect(await readdir(lonely.folders.inbox)).to.deep.equal([name]);
    } finally {
      await lonely.remove();
    }
  });

  it('closes the number of a batch that expired and tells the sender', async () => {
    const name = await sealRequests(red, [requestRecord()]);
    blue.time.now = new Date(blue.time.now.getTime() + 31 * 86_400_000);
    await deliver(red, blue, name);
    expect(outcomes(await importInto(blue))).to.deep.equal(['EXPIRED']);
    expect(await readCursor(blue, 'requests')).to.equal(1);
    red.time.now = blue.time.now;
    await exportControl(blue.test.db, blue);
    await carryAll(blue, red);
    await importInto(red);
    const [batch] = await rows(red.test.db, 'select state, far_code from outbound_batches');
    expect(batch).to.deep.equal({ state: 'rejected', far_code: 'EXPIRED' });
  });

  it('reaches one state whatever the order of arrival', async () => {
    const names: string[] = [];
    const ids: string[] = [];
    for (let count = 0; count < 6; count += 1) {
      const id = randomUUID();
      ids.push(id);
      names.push(await sealRequests(red, [requestRecord(id)]));
    }
    await fc.assert(
      fc.asyncProperty(fc.shuffledSubarray(names, { minLength: 6 }), async (order) => {
        const fresh = await makeTestNode('response');
        try {
          const copy = { ...fresh, name: blue.name, keys: blue.keys, role: blue.role };
          await trustCard(fresh.test.db, copy, red.keys.card, 'test');
          for (const name of order) {
            await deliver(red, copy, name);
            await importBatches(copy.test.db, copy, recordingApplies);
          }
          expect(await appliedIds(copy)).to.deep.equal([...ids].sort());
          expect(await readCursor(copy, 'requests')).to.equal(6);
        } finally {
          await fresh.remove();
        }
      }),
      { numRuns: 8 },
    );
  });
});

describe('exportStream', () => {
  let red: TestNode;
  let blue: TestNode;
  let remove: () => Promise<void>;

  beforeEach(async () => {
    ({ red, blue, remove } = await makeTestPair());
  });
  afterEach(() => remove());

  it('builds the same number again after a crash before the seal', async () => {
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    const broken = { ...red, folders: { ...red.folders, staging: join(red.folders.root, 'gone') } };
    const failure = await exportStream(red.test.db, broken, 'requests').catch(
      (error: unknown) => error,
    );
    expect(failure).to.be.instanceOf(Error);
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    expect(await exportStream(red.test.db, red, 'requests')).to.deep.equal({
      sealed: 2,
      records: 2,
    });
    await carryAll(red, blue);
    expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED', 'APPLIED']);
  });

  it('keeps a sealed batch for the next run when the outbox cannot be written', async () => {
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    const broken = { ...red, folders: { ...red.folders, outbox: join(red.folders.root, 'gone') } };
    const failure: unknown = await exportStream(red.test.db, broken, 'requests').catch(
      (error: unknown) => error,
    );
    expect(failure).to.have.property('code', 'outbox-unwritable');
    await exportStream(red.test.db, red, 'requests');
    expect(await carryAll(red, blue)).to.have.length(1);
    expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
  });

  it('leaves to the next run what arrives while it works', async () => {
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    const busy: TestNode = {
      ...red,
      clock: {
        now: () => {
          void sendRecords(red.test.db, 'requests', [requestRecord()], red.time.now);
          return red.time.now;
        },
      },
    };
    expect(await exportStream(red.test.db, busy, 'requests')).to.deep.equal({
      sealed: 1,
      records: 1,
    });
  });

  it('refuses to export from a database that is older than its store', async () => {
    await sealRequests(red, [requestRecord()]);
    await red.test.db.raw('delete from outbox_records');
    await red.test.db.raw('delete from outbound_batches');
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    const failure: unknown = await exportStream(red.test.db, red, 'requests').catch(
      (error: unknown) => error,
    );
    expect(failure).to.have.property('code', 'store-ahead');
  });

  it('lets one of two exporters seal a number', async () => {
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    const both = await Promise.all([
      exportStream(red.test.db, red, 'requests'),
      exportStream(red.test.db, red, 'requests'),
    ]);
    expect(both.reduce((sum, { sealed }) => sum + sealed, 0)).to.equal(1);
    expect(await readdir(red.folders.store)).to.have.length(1);
  });

  it('writes plain bodies when the setting says so, never for identity', async () => {
    const plain = await makeTestPair({ crypt: () => 'none' });
    try {
      const name = await sealRequests(plain.red, [requestRecord()]);
      const text = await readFile(join(plain.red.folders.outbox, name));
      expect(text.subarray(text.indexOf(10) + 1).toString('latin1')).to.not.include(
        'age-encryption',
      );
      await deliver(plain.red, plain.blue, name);
      expect(outcomes(await importInto(plain.blue))).to.deep.equal(['APPLIED']);
    } finally {
      await plain.remove();
    }
  });

  it('leaves the store private and the outbox readable', async () => {
    const name = await sealRequests(red, [requestRecord()]);
    const { mode } = await stat(join(red.folders.outbox, name));
    expect(mode & 0o044).to.equal(0o044);
  });
});
