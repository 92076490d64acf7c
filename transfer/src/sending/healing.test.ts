import { randomUUID } from 'node:crypto';
import { readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import { rows, settingRecordId, type StreamName } from '@sallyport/shared';
import { askApproval } from '../custody/approvals.js';
import { batchCommands } from '../commands/batch-commands.js';
import { decisionCommands } from '../commands/decision-commands.js';
import { exportControl, exportStream } from './export.js';
import { importBatches, type ImportReport } from '../receiving/import.js';
import { readGapCode } from '../format/gap-code.js';
import { rotateKeys } from '../keys/key-rotation.js';
import { readGapCodes, readLinkStatus } from '../custody/link-status.js';
import { sendRecords, type OutgoingRecord } from './outbox.js';
import { resendMissing, resendNumbers } from './resend.js';
import { pruneStore, tidyOutbox } from './store.js';
import { codeOfAsync } from '../test-codes.js';
import {
  appliedIds,
  carryAll,
  makeTestPair,
  recordingApplies,
  requestRecord,
  settingRecord,
  type TestNode,
} from '../testing.js';
import { withdrawBatch } from './withdrawals.js';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

const outcomes = (report: ImportReport) => report.files.map(({ outcome }) => outcome);
const importInto = (node: TestNode) => importBatches(node.test.db, node, recordingApplies);

describe('healing', () => {
  let red: TestNode;
  let blue: TestNode;
  let remove: () => Promise<void>;

  beforeEach(async () => {
    ({ red, blue, remove } = await makeTestPair());
  });
  afterEach(() => remove());

  const later = (ms: number) => {
    const now = new Date(red.time.now.getTime() + ms);
    red.time.now = now;
    blue.time.now = now;
  };
  const seal = async (node: TestNode, stream: StreamName, records: OutgoingRecord[]) => {
    await sendRecords(node.test.db, stream, records, node.clock.now());
    await exportStream(node.test.db, node, stream);
  };
  /** Seals one request per batch; the carrier has not been there yet. */
  const sealRequests = async (count: number) => {
    const ids = Array.from({ length: count }, () => randomUUID());
    for (const id of ids) await seal(red, 'requests', [requestRecord(id)]);
    return ids;
  };
  const sealSetting = (version: number) =>
    seal(blue, 'settings', [settingRecord(settingRecordId('late'), 'late', version)]);
  const nameOf = async (node: TestNode, stream: string, seq: number) => {
    const [batch] = await rows<{ name: string }>(
      node.test.db,
      'select file_name as name from outbound_batches where stream = ? and seq = ?',
      [stream, seq],
    );
    return batch?.name ?? '';
  };
  /** A carrier takes everything from the outbox; what the predicate refuses is lost on the way. */
  const carry = async (
    from: TestNode,
    to: TestNode,
    kept: (name: string) => boolean = () => true,
  ) => {
    await carryAll(from, to, kept);
    for (const name of await readdir(from.folders.outbox)) {
      await rm(join(from.folders.outbox, name));
    }
    return importInto(to);
  };
  /** Receipts travel from one side to the other. */
  const tell = async (from: TestNode, to: TestNode) => {
    later(11 * 60_000);
    await exportControl(from.test.db, from);
    return carry(from, to);
  };
  const statesOf = async (node: TestNode, stream: string) => {
    const found = await rows<{ state: string }>(
      node.test.db,
      'select state from outbound_batches where stream = ? order by epoch, seq',
      [stream],
    );
    return found.map(({ state }) => state);
  };
  const cursorOf = async (node: TestNode, stream: string) => {
    const [cursor] = await rows<{ contiguous: number }>(
      node.test.db,
      'select contiguous from inbound_streams where stream = ?',
      [stream],
    );
    return cursor?.contiguous;
  };
  const sendingOf = async (node: TestNode, stream: string) => {
    const { sending } = await readLinkStatus(node.test.db, node);
    return sending.find((one) => one.stream === stream);
  };
  const withdraw = (
    node: TestNode,
    stream: string,
    seq: number,
    by: [string, string] = ['cli:ann', 'cli:bob'],
  ) =>
    node.test.db.transaction(async (tx) => {
      const [found] = await rows<{ link: string }>(tx, 'select link from links');
      return withdrawBatch(tx, node, {
        link: found?.link ?? '',
        stream,
        epoch: 1,
        seq,
        reason: 'lost for good',
        by,
        at: node.clock.now(),
      });
    });

  describe('of a lost batch', () => {
    it('names it on the sender after one carry, publishes the same bytes, and closes the gap', async () => {
      const ids = await sealRequests(3);
      const lost = await nameOf(red, 'requests', 2);
      const bytes = await readFile(join(red.folders.outbox, lost));
      await carry(red, blue, (name) => name !== lost);
      await tell(blue, red);
      expect(await sendingOf(red, 'requests')).to.deep.include({ missing: [[2, 2]], gone: [] });
      expect(await readdir(red.folders.outbox)).to.include(lost);
      expect(await readFile(join(red.folders.outbox, lost))).to.deep.equal(bytes);
      await carry(red, blue);
      await tell(blue, red);
      expect(await appliedIds(blue)).to.deep.equal(ids.sort());
      expect(await statesOf(red, 'requests')).to.deep.equal(['acked', 'acked', 'acked']);
      expect((await sendingOf(red, 'requests'))?.missing).to.deep.equal([]);
    });

    it('publishes it again only after the gap time', async () => {
      await sealRequests(3);
      const lost = await nameOf(red, 'requests', 2);
      await carry(red, blue, (name) => name !== lost);
      await tell(blue, red);
      expect(await carryAll(red, blue, () => false)).to.deep.equal([]);
      await carry(red, blue, () => false);
      await tell(blue, red);
      expect(await readdir(red.folders.outbox)).to.not.include(lost);
      later(24 * HOUR_MS);
      const [again] = await resendMissing(red.test.db, red);
      expect(again).to.deep.equal({ stream: 'requests', published: [2], gone: [] });
    });

    it('publishes an announcement again each gap time, as nobody can name it as missing', async () => {
      await rotateKeys(red.test.db, red, 'test');
      await carry(red, blue, () => false);
      const resent = () => resendMissing(red.test.db, red);
      later(DAY_MS - 1);
      expect(await resent()).to.deep.equal([]);
      for (let day = 0; day < 2; day += 1) {
        later(DAY_MS);
        expect(await resent()).to.deep.equal([{ stream: 'control', published: [1], gone: [] }]);
      }
      await carry(red, blue);
      await importInto(blue);
      later(HOUR_MS);
      await exportControl(blue.test.db, blue);
      await carry(blue, red);
      await importInto(red);
      later(DAY_MS);
      expect(await resent()).to.deep.equal([]);
    });

    it('publishes at once what a person asks for, acknowledged or not', async () => {
      await sealRequests(2);
      await carry(red, blue);
      await tell(blue, red);
      later(1_000);
      const resent = await resendNumbers(red.test.db, red, {
        stream: 'requests',
        ranges: [[1, 9]],
      });
      expect(resent).to.deep.equal({ stream: 'requests', published: [1, 2], gone: [] });
      await tidyOutbox(red.test.db, red);
      const report = await carry(red, blue);
      expect(outcomes(report)).to.deep.equal(['DUPLICATE', 'DUPLICATE']);
      const never = resendNumbers(red.test.db, red, { stream: 'requests', ranges: [[3, 4]] });
      expect(await codeOfAsync(never)).to.equal('not-found');
      const foreign = resendNumbers(red.test.db, red, { stream: 'results', ranges: 'missing' });
      expect(await codeOfAsync(foreign)).to.equal('usage');
    });

    it('lets an ordered stream wait, and drain when it comes again', async () => {
      for (const version of [1, 2, 3]) await sealSetting(version);
      const lost = await nameOf(blue, 'settings', 1);
      const report = await carry(blue, red, (name) => name !== lost);
      expect(outcomes(report)).to.deep.equal(['WAIT_GAP', 'WAIT_GAP']);
      await tell(red, blue);
      expect(await sendingOf(blue, 'settings')).to.deep.include({ missing: [[1, 1]] });
      await carry(blue, red);
      expect(await cursorOf(red, 'settings')).to.equal(3);
    });

    it('owes a snapshot when an ordered stream cannot send it any more', async () => {
      for (const version of [1, 2]) await sealSetting(version);
      const lost = await nameOf(blue, 'settings', 1);
      await carry(blue, red, (name) => name !== lost);
      await rm(join(blue.folders.store, lost));
      await tell(red, blue);
      const status = await sendingOf(blue, 'settings');
      expect(status).to.deep.include({
        missing: [[1, 1]],
        gone: [[1, 1]],
        owes_snapshot: 'store-bytes-missing',
      });
    });
  });

  describe('of a batch that was written off', () => {
    /** Number 2 of three is lost, and its bytes are gone. */
    const loseSecond = async () => {
      const ids = await sealRequests(3);
      const lost = await nameOf(red, 'requests', 2);
      await carry(red, blue, (name) => name !== lost);
      return { ids: ids.sort(), lost };
    };

    it('closes its number there, and sends its records under another one', async () => {
      const { ids, lost } = await loseSecond();
      expect(await withdraw(red, 'requests', 2)).to.deep.equal({ queued: 1, records: 1 });
      await exportStream(red.test.db, red, 'requests');
      await exportControl(red.test.db, red);
      await carry(red, blue);
      expect(await appliedIds(blue)).to.deep.equal(ids);
      expect(await cursorOf(blue, 'requests')).to.equal(4);
      await tell(blue, red);
      expect(await statesOf(red, 'requests')).to.deep.equal([
        'acked',
        'withdrawn',
        'acked',
        'acked',
      ]);
      expect((await sendingOf(red, 'requests'))?.missing).to.deep.equal([]);
      expect(await readdir(red.folders.store)).to.include(lost);
    });

    it('applies exactly its bytes when they come after all', async () => {
      const { ids, lost } = await loseSecond();
      const copy = await readFile(join(red.folders.store, lost));
      await withdraw(red, 'requests', 2);
      await exportControl(red.test.db, red);
      await carry(red, blue);
      expect(await cursorOf(blue, 'requests')).to.equal(3);
      await writeFile(join(blue.folders.inbox, lost), copy);
      expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
      expect(await appliedIds(blue)).to.deep.equal(ids);
      await exportStream(red.test.db, red, 'requests');
      await carry(red, blue);
      const times = await rows<{ times: number }>(blue.test.db, 'select times from applied');
      expect(times).to.have.length(3);
      expect(await cursorOf(blue, 'requests')).to.equal(4);
    });

    it('changes nothing where it was applied before', async () => {
      await sealRequests(2);
      await carry(red, blue);
      await withdraw(red, 'requests', 1);
      await exportStream(red.test.db, red, 'requests');
      await exportControl(red.test.db, red);
      await carry(red, blue);
      const [first] = await rows(
        blue.test.db,
        `select state from inbound_batches where stream = 'requests' and seq = 1`,
      );
      expect(first).to.deep.equal({ state: 'applied' });
      expect(await cursorOf(blue, 'requests')).to.equal(3);
    });

    it('lets what waits in an ordered stream go on, and calls late bytes a duplicate', async () => {
      for (const version of [1, 2, 3]) await sealSetting(version);
      const lost = await nameOf(blue, 'settings', 1);
      const copy = await readFile(join(blue.folders.store, lost));
      await carry(blue, red, (name) => name !== lost);
      expect(await withdraw(blue, 'settings', 1)).to.deep.equal({ queued: 0, records: 1 });
      expect((await sendingOf(blue, 'settings'))?.owes_snapshot).to.equal('WITHDRAWN');
      await exportControl(blue.test.db, blue);
      await carry(blue, red);
      expect(await cursorOf(red, 'settings')).to.equal(3);
      await writeFile(join(red.folders.inbox, lost), copy);
      expect(outcomes(await importInto(red))).to.deep.equal(['DUPLICATE']);
    });

    it('frees a stream whose sealed bytes are gone', async () => {
      await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
      const broken = {
        ...red,
        folders: { ...red.folders, outbox: join(red.folders.root, 'gone') },
      };
      await codeOfAsync(exportStream(red.test.db, broken, 'requests'));
      await rm(join(red.folders.store, await nameOf(red, 'requests', 1)));
      const stopped = exportStream(red.test.db, red, 'requests');
      expect(await codeOfAsync(stopped)).to.equal('store-bytes-missing');
      expect((await sendingOf(red, 'requests'))?.gone).to.deep.equal([[1, 1]]);
      await withdraw(red, 'requests', 1);
      await exportStream(red.test.db, red, 'requests');
      await exportControl(red.test.db, red);
      await carry(red, blue);
      expect(await appliedIds(blue)).to.have.length(1);
      expect(await cursorOf(blue, 'requests')).to.equal(2);
    });

    it('refuses what is closed, or was never sealed', async () => {
      await sealRequests(1);
      await carry(red, blue);
      await tell(blue, red);
      expect(await codeOfAsync(withdraw(red, 'requests', 1))).to.equal('version-conflict');
      expect(await codeOfAsync(withdraw(red, 'requests', 2))).to.equal('not-found');
    });

    it('closes nothing in the names of one person', async () => {
      await sealRequests(2);
      const lost = await nameOf(red, 'requests', 1);
      await withdraw(red, 'requests', 1, ['cli:root', 'user:root']);
      await exportControl(red.test.db, red);
      await carry(red, blue, (name) => name !== lost);
      expect(await cursorOf(blue, 'requests')).to.equal(0);
      const alarms = await rows<{ code: string }>(
        blue.test.db,
        `select details->>'code' as code from audit_log where action = 'link.alarm'`,
      );
      expect(alarms).to.deep.equal([{ code: 'SCHEMA' }]);
    });

    it('freezes the stream when it contradicts what is there', async () => {
      await sealRequests(1);
      await carry(red, blue);
      await red.test.db.raw(
        `update outbound_batches set digest = repeat('f', 64) where stream = 'requests'`,
      );
      await withdraw(red, 'requests', 1);
      await exportControl(red.test.db, red);
      await carry(red, blue);
      const [frozen] = await rows(
        blue.test.db,
        `select frozen_code from inbound_streams where stream = 'requests'`,
      );
      expect(frozen).to.deep.equal({ frozen_code: 'SEQ_FORK' });
    });
  });

  describe('of refused batches', () => {
    it('sends the records of an expired one again', async () => {
      const ids = await sealRequests(1);
      later(31 * DAY_MS);
      expect(outcomes(await carry(red, blue))).to.deep.equal(['EXPIRED']);
      await tell(blue, red);
      expect(await statesOf(red, 'requests')).to.deep.equal(['rejected']);
      await exportStream(red.test.db, red, 'requests');
      expect(outcomes(await carry(red, blue))).to.deep.equal(['APPLIED']);
      expect(await appliedIds(blue)).to.deep.equal(ids);
    });

    it('leaves what was refused for its content to the rules of the network', async () => {
      await sealRequests(1);
      const [batch] = await rows<{ digest: string }>(
        red.test.db,
        `select digest from outbound_batches where stream = 'requests'`,
      );
      const lost: string[] = [];
      const ruled: TestNode = {
        ...red,
        network: {
          failRecords: (_tx, { stream, seq, code }) => {
            lost.push(`${stream} ${seq} ${code}`);
            return Promise.resolve();
          },
        },
      };
      await refuseThere(batch?.digest ?? '', 'requests', 1);
      later(11 * 60_000);
      await exportControl(blue.test.db, blue);
      await carryAll(blue, red);
      await importBatches(red.test.db, ruled, recordingApplies);
      expect(lost).to.deep.equal(['requests 1 SCHEMA']);
      const [waiting] = await rows(
        red.test.db,
        `select 1 from outbox_records where stream = 'requests' and batch_id is null`,
      );
      expect(waiting).to.equal(undefined);
    });

    it('owes a snapshot where an ordered one was refused', async () => {
      await sealSetting(1);
      const [batch] = await rows<{ digest: string }>(
        blue.test.db,
        `select digest from outbound_batches where stream = 'settings'`,
      );
      await refuseThere(batch?.digest ?? '', 'settings', 1, red);
      await tell(red, blue);
      expect((await sendingOf(blue, 'settings'))?.owes_snapshot).to.equal('SCHEMA');
    });

    it('tells more than 50 of them over several acknowledgements, each until it is known', async () => {
      const [link] = await rows<{ link: string }>(red.test.db, 'select link from links');
      await red.test.db.raw(
        `insert into outbound_batches (id, link, stream, epoch, seq, kind, state, build_token,
           version, digest, records, created_at, sealed_at, published_at, manifest_no)
         select gen_random_uuid(), ?, 'requests', 1, n, 'delta', 'ready', gen_random_uuid(), 1,
           lpad(to_hex(n), 64, 'a'), 1, t, t, t, 0
         from generate_series(1, 120) n, cast(? as timestamptz) t`,
        [link?.link ?? '', red.time.now],
      );
      await blue.test.db.raw(
        `insert into inbound_batches (id, link, stream, epoch, seq, digest, prev, kind, state, code,
           file_name, file_bytes, records, types, duplicates, created_at, seen_at)
         select gen_random_uuid(), link, stream, 1, n, lpad(to_hex(n), 64, 'a'), null, 'delta',
           'rejected', 'EXPIRED', 'x', 1, 1, '{}', 0, now(), now()
         from inbound_streams, generate_series(1, 120) n where stream = 'requests'`,
      );
      await blue.test.db.raw(
        `update inbound_streams set contiguous = 120, contiguous_digest = lpad(to_hex(120), 64, 'a')
         where stream = 'requests'`,
      );
      const refused = async () =>
        (await statesOf(red, 'requests')).filter((state) => state === 'rejected').length;
      const found: number[] = [];
      for (let round = 0; round < 4; round += 1) {
        await tell(blue, red);
        found.push(await refused());
        await tell(red, blue);
      }
      expect(found).to.deep.equal([50, 100, 120, 120]);
      expect(await statesOf(red, 'requests')).to.not.include('acked');
      const [pending] = await rows<{ rejected: unknown[] }>(
        red.test.db,
        `select rejected from far_acks where stream = 'requests'`,
      );
      expect(pending?.rejected).to.deep.equal([]);
    });

    const refuseThere = (digest: string, stream: string, seq: number, node = blue) =>
      node.test.db.raw(
        `insert into inbound_batches (id, link, stream, epoch, seq, digest, prev, kind, state, code,
           file_name, file_bytes, records, types, duplicates, created_at, seen_at)
         select gen_random_uuid(), link, :stream, 1, :seq, :digest, null, 'delta', 'rejected',
           'SCHEMA', 'x', 1, 1, '{}', 0, now(), now() from links`,
        { stream, seq, digest },
      );
  });

  describe('after the far side was restored', () => {
    it('publishes again what it lost, and counts no more what it told before', async () => {
      const ids = await sealRequests(4);
      const names = await Promise.all([1, 2, 3, 4].map((seq) => nameOf(red, 'requests', seq)));
      await carry(red, blue);
      later(11 * 60_000);
      await exportControl(blue.test.db, blue);
      const old = await readdir(blue.folders.outbox);
      const oldBytes = await readFile(join(blue.folders.outbox, old[0] ?? ''));
      await carry(blue, red);
      expect(await statesOf(red, 'requests')).to.deep.equal(Array(4).fill('acked'));
      // The backup knew numbers 1 and 2 only.
      await blue.test.db.raw(`delete from inbound_batches where stream = 'requests' and seq > 2`);
      await blue.test.db.raw(
        `update inbound_streams s set contiguous = 2, tail_seq = 2, contiguous_digest = b.digest
         from inbound_batches b where b.stream = s.stream and b.seq = 2 and s.stream = 'requests'`,
      );
      await blue.test.db.raw(`delete from applied where id = any(?)`, [ids.slice(2)]);
      await blue.test.db.raw(
        `insert into incarnations (made_at) values (now() + interval '1 hour')`,
      );
      await tell(blue, red);
      expect(await statesOf(red, 'requests')).to.deep.equal(['acked', 'acked', 'ready', 'ready']);
      expect(await readdir(red.folders.outbox)).to.include.members(names.slice(2));
      await red.test.db.raw('delete from inbound_batches');
      await red.test.db.raw(
        `update inbound_streams set contiguous = 0, contiguous_digest = repeat('0', 64)`,
      );
      await writeFile(join(red.folders.inbox, old[0] ?? ''), oldBytes);
      expect(outcomes(await importInto(red))).to.deep.equal(['APPLIED']);
      expect(await statesOf(red, 'requests')).to.deep.equal(['acked', 'acked', 'ready', 'ready']);
      await carry(red, blue);
      expect(await appliedIds(blue)).to.deep.equal([...ids].sort());
    });
  });

  describe('as people see it', () => {
    it('seals custody records that wait when control is asked for by name', async () => {
      await sealRequests(1);
      await carry(red, blue);
      await exportControl(blue.test.db, blue);
      await carry(blue, red);
      expect(await exportControl(red.test.db, red)).to.include({ sealed: 0 });
      const asked = await exportControl(red.test.db, red, { custody: true });
      expect(asked.sealed).to.equal(1);
      expect(asked.records).to.be.greaterThan(0);
      const again = await exportControl(red.test.db, red, { custody: true });
      expect(again.sealed).to.equal(0);
    });

    it('tells of a number that was written off and came after all', async () => {
      await sealRequests(1);
      const name = await nameOf(red, 'requests', 1);
      const bytes = await readFile(join(red.folders.outbox, name));
      await withdraw(red, 'requests', 1);
      await tidyOutbox(red.test.db, red);
      expect(await readdir(red.folders.outbox)).to.not.include(name);
      expect(await showBatch(red)).to.contain('It was written off.');
      await tell(red, blue);
      await writeFile(join(blue.folders.inbox, name), bytes);
      expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
      await tell(blue, red);
      expect(await showBatch(red))
        .to.contain('they were applied')
        .and.match(/APPLIED +2026/);
    });

    it('takes the file out of the outbox with the approval, and says that the bytes stay', async () => {
      await sealRequests(1);
      const name = await nameOf(red, 'requests', 1);
      const [link] = await rows<{ link: string }>(red.test.db, 'select link from links');
      const asked = await red.test.db.transaction((tx) =>
        askApproval(tx, {
          act: 'withdraw',
          subject: 'requests 1 1',
          details: { link: link?.link },
          reason: 'lost',
          by: 'cli:ann',
          at: red.clock.now(),
        }),
      );
      const opened = { db: red.test.db, node: red, importAll: () => importInto(red) };
      const commands = decisionCommands((use) => use({ ...opened, account: 'cli:tess' }));
      const args = { positionals: [asked.id], values: {}, switches: new Set<string>() };
      const said = await commands['approvals approve']?.run(args);
      expect(said?.text).to.contain('Approved: write-off, requests number 1 (epoch 1).');
      expect(said?.text).to.contain('its bytes stay in the store');
      expect(await readdir(red.folders.outbox)).to.not.include(name);
      expect(await readdir(red.folders.store)).to.include(name);
    });

    it('counts what waits in the inbox for a key, while it lies there', async () => {
      await sealRequests(2);
      const names = await carryAll(red, blue, (name) => name.includes('.requests.'));
      await blue.test.db.raw(`update far_keys set kid = repeat('a', 43)`);
      expect(outcomes(await importInto(blue))).to.deep.equal(['WAIT_KEY', 'WAIT_KEY']);
      const waiting = async () => (await readLinkStatus(blue.test.db, blue)).inbox;
      expect(await waiting()).to.deep.equal([{ code: 'WAIT_KEY', files: 2 }]);
      await rm(join(blue.folders.inbox, names[0] ?? ''));
      expect(await waiting()).to.deep.equal([{ code: 'WAIT_KEY', files: 1 }]);
    });

    it('says when no key of the far side counts, and cannot seal for it', async () => {
      expect(await readLinkStatus(red.test.db, red)).to.include({ far_key: true });
      await red.test.db.raw('update far_keys set revoked_at = now()');
      expect(await readLinkStatus(red.test.db, red)).to.include({ far_key: false });
      expect(await codeOfAsync(sealRequests(1))).to.equal('not-trusted');
    });

    const showBatch = async (node: TestNode) => {
      const importAll = () => importInto(node);
      const commands = batchCommands((use) => use({ db: node.test.db, node, importAll }));
      const args = { positionals: ['requests', '1'], values: {}, switches: new Set<string>() };
      return (await commands['batch show']?.run(args))?.text ?? '';
    };
  });

  describe('over a one-way link', () => {
    it('publishes each batch several times over the history, then lets it go', async () => {
      red.options.oneWay = true;
      await sealRequests(2);
      const name = await nameOf(red, 'requests', 1);
      const published = async () => {
        for (const file of await readdir(red.folders.outbox)) {
          await rm(join(red.folders.outbox, file));
        }
        await resendMissing(red.test.db, red);
        return (await readdir(red.folders.outbox)).includes(name);
      };
      expect(await published()).to.equal(false);
      later(2.5 * DAY_MS);
      expect(await published()).to.equal(true);
      later(HOUR_MS);
      expect(await published()).to.equal(false);
      later(2.5 * DAY_MS);
      expect(await published()).to.equal(true);
      later(1.5 * DAY_MS);
      expect(await published()).to.equal(false);
      expect(await pruneStore(red.test.db, red)).to.equal(0);
      later(30 * DAY_MS);
      // The newest of a stream stays.
      expect(await pruneStore(red.test.db, red)).to.equal(1);
      expect(await statesOf(red, 'requests')).to.deep.equal(['ready', 'ready']);
    });

    it('takes a code for the numbers that are missing', async () => {
      red.options.oneWay = true;
      const ids = await sealRequests(4);
      await carry(red, blue, (name) => !/s00000000000[23]\./.test(name));
      const [gap] = await readGapCodes(blue.test.db, blue);
      expect(gap).to.deep.include({ stream: 'requests', epoch: 1, ranges: [[2, 3]] });
      const [link] = await rows<{ link: string }>(red.test.db, 'select link from links');
      const asked = readGapCode(link?.link ?? '', 'request', gap?.code ?? '');
      const resent = await resendNumbers(red.test.db, red, asked);
      expect(resent.published).to.deep.equal([2, 3]);
      await carry(red, blue);
      expect(await appliedIds(blue)).to.deep.equal([...ids].sort());
      expect(await readGapCodes(blue.test.db, blue)).to.deep.equal([]);
    });
  });
});
