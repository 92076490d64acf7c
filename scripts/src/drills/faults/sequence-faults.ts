import assert from 'node:assert/strict';
import { readFile, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { newId, rows, settingRecordId, type StreamName } from '@sallyport/shared';
import { exportControl, readHeader, sendSnapshot, type OutgoingRecord } from '@sallyport/transfer';
import {
  carryAll,
  readLinkStatus,
  requestRecord,
  settingRecord,
  unfreezeStream,
  type TestNode,
} from '@sallyport/transfer/testing';
import { importInParallel } from './importers.js';
import type { Fault } from './fault.js';
import {
  carry,
  deliver,
  expectAppliedOnce,
  expectFiles,
  expectGoodCopy,
  expectImport,
  expectNextApplied,
  expectNothingApplied,
  expectRefused,
  forge,
  importInto,
  put,
  readCursor,
  seal,
  takeBack,
  wait,
  type Forged,
  type World,
} from './world.js';

const MINUTE_MS = 60_000;
const DAY_MS = 86_400_000;
const NUMBERS = 50;

/** Numbers: twice, forked, in any order, lost, healed, and acknowledged as they never were. */
export const SEQUENCE_FAULTS: readonly Fault[] = [
  {
    number: 19,
    name: 'one file 100 times under different names, with two importer processes',
    expected: 'applied once, DUPLICATE 99 times',
    async run(world) {
      const { blue } = world;
      const record = requestRecord(newId());
      const good = await forge(world, { records: [record] });
      for (let copy = 0; copy < 100; copy += 1) await put(blue, `copy-${copy}.batch`, good.bytes);
      const outcomes = await importInParallel(blue, 2);
      const count = (wanted: string) => outcomes.filter((outcome) => outcome === wanted).length;
      assert.equal(count('APPLIED'), 1);
      assert.equal(count('DUPLICATE'), 99);
      await expectAppliedOnce(blue, [record.id]);
      await expectFiles(blue, 'inbox', []);
      await expectFiles(blue, 'archive', [good.name]);
      await expectNextApplied(world);
    },
  },
  {
    number: 20,
    name: 'the same bytes under another name, and again from a second stick',
    expected: 'DUPLICATE',
    async run(world) {
      const { blue } = world;
      const record = requestRecord(newId());
      const good = await forge(world, { records: [record] });
      await expectGoodCopy(world, good);
      await put(blue, 'renamed.batch', good.bytes);
      await deliver(world, good);
      await expectImport(blue, ['DUPLICATE', 'DUPLICATE']);
      await expectAppliedOnce(blue, [record.id]);
      await expectFiles(blue, 'inbox', []);
      await expectFiles(blue, 'archive', [good.name]);
      await expectNextApplied(world);
    },
  },
  {
    number: 21,
    name: 'a number again with other content and a valid signature',
    expected: 'SEQ_FORK',
    async run(world) {
      const { blue } = world;
      const first = await forge(world);
      await expectGoodCopy(world, first);
      takeBack(world, first);
      await expectRefused(world, await forge(world), 'SEQ_FORK');
      world.chains.set('requests', { seq: 1, digest: first.digest });
      await expectFrozen(world, blue, 'SEQ_FORK');
    },
  },
  {
    number: 22,
    name: `numbers 1 to ${NUMBERS} in any order`,
    expected: 'the same state whatever the order',
    run: arriveInAnyOrder,
  },
  {
    number: 23,
    name: 'number 7 of requests lost',
    expected: '8 and later applied, 7 told as missing',
    async run(world) {
      const { blue } = world;
      const batches = await forgeMany(world, 10);
      const lost = batches.splice(6, 1)[0] as Forged;
      await deliver(world, ...batches);
      await expectImport(blue, Array(9).fill('APPLIED'));
      assert.equal((await readCursor(blue, 'requests')).contiguous, 6);
      const told = await readAck(blue, 'requests');
      assert.deepEqual(told?.missing, [[7, 7]]);
      assert.deepEqual(told?.extra, [[8, 10]]);
      await expectGoodCopy(world, lost);
      assert.equal((await readCursor(blue, 'requests')).contiguous, 10);
    },
  },
  {
    number: 24,
    name: 'number 7 of identity lost, and found',
    expected: 'WAIT_GAP, then all drain in order',
    async run(world) {
      const { red } = world;
      const batches = await forgeMany(world, 10, 'identity');
      const lost = batches.splice(6, 1)[0] as Forged;
      await deliver(world, ...batches);
      await expectImport(red, [...Array(6).fill('APPLIED'), ...Array(3).fill('WAIT_GAP')]);
      const waiting = batches.slice(6).map(({ name }) => name);
      await expectFiles(red, 'waiting', waiting);
      await expectFiles(red, 'inbox', []);
      const shown = await showGaps(red, 'identity');
      assert.deepEqual(shown, { gaps: [[7, 7]], waiting: 3 });
      await deliver(world, lost);
      const drained = await expectImport(red, Array(4).fill('APPLIED'));
      assert.deepEqual(
        drained.files.map(({ seq }) => seq),
        [7, 8, 9, 10],
      );
      await expectFiles(red, 'waiting', []);
    },
  },
  {
    number: 25,
    name: 'number 7 of settings lost for ever, then a snapshot as number 10',
    expected: 'HEALED: 8 and 9 dropped, 11 applied',
    run: healBySnapshot,
  },
  {
    number: 26,
    name: 'the newest batch lost, then a control batch that tells the tail',
    expected: 'the gap is shown',
    async run(world) {
      const { red, blue } = world;
      await carry(world, red, await seal(red, 'requests', [requestRecord(newId())]));
      await expectImport(blue, ['APPLIED']);
      const lost = await seal(red, 'requests', [requestRecord(newId())]);
      await exportControl(red.test.db, red);
      wait(red, 11 * MINUTE_MS);
      await exportControl(red.test.db, red);
      await carryAll(red, blue, (name) => name.includes('.control.'));
      const { files } = await importInto(blue);
      assert(files.length > 0 && files.every(({ outcome }) => outcome === 'APPLIED'));
      const shown = await showGaps(blue, 'requests');
      assert.deepEqual(shown, { gaps: [[2, 2]], waiting: 0 });
      assert.deepEqual((await readAck(blue, 'requests'))?.missing, [[2, 2]]);
      await carry(world, red, lost);
      await expectImport(blue, ['APPLIED']);
      assert.deepEqual(await showGaps(blue, 'requests'), { gaps: [], waiting: 0 });
    },
  },
  {
    number: 27,
    name: 'a wrong link to the batch before',
    expected: 'CHAIN_BREAK',
    async run(world) {
      const first = await forge(world);
      await expectGoodCopy(world, first);
      const bad = await forge(world, { change: { prev: 'a'.repeat(64) } });
      await expectRefused(world, bad, 'CHAIN_BREAK');
      takeBack(world, bad);
      world.chains.set('requests', { seq: 1, digest: first.digest });
      await expectFrozen(world, world.blue, 'CHAIN_BREAK');
    },
  },
  {
    number: 64,
    name: 'receipts for numbers never sent, with a foreign digest, going backwards, of another link',
    expected: 'ACK_FORK, nothing deleted',
    run: distrustReceipts,
  },
  {
    number: 67,
    name: 'a folder sync that deletes what was applied, and brings it again for ever',
    expected: 'no effect, DUPLICATE each time',
    async run(world) {
      const { blue } = world;
      const record = requestRecord(newId());
      const good = await forge(world, { records: [record] });
      await expectGoodCopy(world, good);
      await rm(join(blue.folders.inbox, good.name), { force: true });
      await expectImport(blue, []);
      for (let day = 0; day < 5; day += 1) {
        wait(blue, DAY_MS);
        await deliver(world, good);
        await expectImport(blue, ['DUPLICATE']);
        await expectImport(blue, []);
      }
      await expectAppliedOnce(blue, [record.id]);
      await expectFiles(blue, 'archive', [good.name]);
      await expectFiles(blue, 'quarantine', []);
      wait(world.red, 5 * DAY_MS);
      await expectNextApplied(world);
    },
  },
];

async function forgeMany(
  world: World,
  count: number,
  stream: 'requests' | 'identity' | 'settings' = 'requests',
): Promise<Forged[]> {
  const batches: Forged[] = [];
  const from = stream === 'requests' ? world.red : world.blue;
  for (let seq = 1; seq <= count; seq += 1) {
    const records = stream === 'requests' ? [requestRecord(newId())] : [versionOf(stream, seq)];
    batches.push(await forge(world, { from, stream, records }));
  }
  return batches;
}

/** The same entity each time, in a newer version. */
function versionOf(stream: 'identity' | 'settings', version: number): OutgoingRecord {
  if (stream === 'settings') return settingRecord(settingRecordId('late'), 'late', version);
  return {
    type: 'user',
    id: '0197b2a0-0000-7000-8000-000000000002',
    data: {
      version,
      login: 'ada',
      profile_type_id: '0197b2a0-0000-7000-8000-000000000003',
      roles: [],
      disabled: false,
      must_change_password: false,
      profile_version: 0,
      display_name: `version ${version}`,
      email: null,
      language: null,
      notices: {},
    },
  };
}

/** Requires that the stream stands still, all others go on, and a person's word lets it go. */
async function expectFrozen(world: World, node: TestNode, code: string): Promise<void> {
  const { db } = node.test;
  assert.equal((await readCursor(node, 'requests')).frozen, code);
  const held = await forge(world);
  await deliver(world, held);
  await expectImport(node, ['WAIT_APPROVAL']);
  await expectFiles(node, 'inbox', [held.name]);
  const urgent = await forge(world, {
    stream: 'requests.urgent',
    records: [requestRecord(newId())],
  });
  await deliver(world, urgent);
  await expectImport(node, ['APPLIED', 'WAIT_APPROVAL']);
  const at = node.clock.now();
  await unfreezeStream(db, { stream: 'requests', reason: 'drill', by: 'test', at });
  await expectImport(node, ['APPLIED']);
  await expectFiles(node, 'inbox', []);
}

/** What the next control batch of a node says it has of a stream. */
async function readAck(node: TestNode, stream: StreamName) {
  const before = new Set(await readdir(node.folders.store));
  await exportControl(node.test.db, node);
  const [name] = (await readdir(node.folders.store)).filter(
    (one) => one.includes('.control.') && !before.has(one),
  );
  assert(name, 'no control batch left');
  const bytes = await readFile(join(node.folders.store, name));
  const { manifest } = readHeader(bytes.subarray(0, bytes.indexOf('\n')));
  return manifest.ack.streams[stream];
}

async function showGaps(
  node: TestNode,
  stream: StreamName,
): Promise<{ gaps: unknown; waiting: number }> {
  const { receiving } = await readLinkStatus(node.test.db, node);
  const shown = receiving.find((one) => one.stream === stream);
  assert(shown);
  return { gaps: shown.gaps, waiting: shown.waiting };
}

async function arriveInAnyOrder(world: World): Promise<string> {
  const tried = { requests: 2, settings: 1 };
  for (const stream of ['requests', 'settings'] as const) {
    await world.reset();
    const batches = await forgeMany(world, NUMBERS, stream);
    const node = stream === 'requests' ? world.blue : world.red;
    const states = new Set<string>();
    const order = fc.shuffledSubarray([...batches.keys()], { minLength: NUMBERS });
    const property = fc.asyncProperty(order, async (places) => {
      const { chains } = world;
      const kept = new Map(chains);
      await world.reset();
      for (const [key, value] of kept) chains.set(key, value);
      // The name is only a hint, after which an inbox is sorted: here it hints at the order wanted.
      for (const [at, place] of places.entries()) {
        const { name, bytes } = batches[place] as Forged;
        const hint = String(at + 1).padStart(12, '0');
        await put(node, name.replace(/s\d{12}/, `s${hint}`), bytes);
      }
      const { files } = await importInto(node);
      assert(files.every(({ outcome }) => outcome === 'APPLIED' || outcome === 'WAIT_GAP'));
      const { contiguous } = await readCursor(node, stream);
      assert.equal(contiguous, NUMBERS);
      await expectFiles(node, 'waiting', []);
      const applied = await rows(node.test.db, 'select t, id, d, times from applied order by id');
      states.add(JSON.stringify(applied));
    });
    await fc.assert(property, { numRuns: tried[stream], seed: 22, endOnFailure: true });
    assert.equal(states.size, 1, `${stream} came to different states`);
  }
  return `${tried.requests} orders of requests, ${tried.settings} of settings`;
}

async function healBySnapshot(world: World): Promise<void> {
  const { red, blue } = world;
  const names: string[] = [];
  for (let seq = 1; seq <= 9; seq += 1) {
    names.push(await seal(blue, 'settings', [versionOf('settings', seq)]));
  }
  await sendSnapshot(blue.test.db, blue, 'settings', () =>
    Promise.resolve([versionOf('settings', 9)]),
  );
  const [snapshot] = (await readdir(blue.folders.outbox)).filter((name) =>
    name.includes('s000000000010'),
  );
  const last = await seal(blue, 'settings', [versionOf('settings', 11)]);
  for (const name of names.filter((_, at) => at !== 6)) await carry(world, blue, name);
  await expectImport(red, [...Array(6).fill('APPLIED'), 'WAIT_GAP', 'WAIT_GAP']);
  await carry(world, blue, last);
  await expectImport(red, ['WAIT_GAP']);
  await carry(world, blue, snapshot ?? '');
  await expectImport(red, ['APPLIED', 'APPLIED']);
  assert.equal((await readCursor(red, 'settings')).contiguous, 11);
  await expectFiles(red, 'waiting', []);
  const healed = await rows<{ seq: number }>(
    red.test.db,
    `select seq from inbound_batches where code = 'HEALED' order by seq`,
  );
  assert.deepEqual(
    healed.map(({ seq }) => seq),
    [8, 9],
  );
  await carry(world, blue, names[6] ?? '');
  await expectImport(red, ['DUPLICATE']);
  const [kept] = await rows(red.test.db, `select (d->>'version')::int as version from applied`);
  assert.deepEqual(kept, { version: 11 });
}

async function distrustReceipts(world: World): Promise<void> {
  const { red, blue } = world;
  const names = [];
  for (let seq = 1; seq <= 3; seq += 1) {
    names.push(await seal(red, 'requests', [requestRecord(newId())]));
  }
  const digests = await rows<{ digest: string }>(
    red.test.db,
    `select digest from outbound_batches where stream = 'requests' order by seq`,
  );
  const incarnation = newId();
  const tell = async (no: number, contiguous: number, digest: string) => {
    const claim = {
      epoch: 1,
      contiguous,
      digest,
      extra: [],
      missing: [],
      rejected: [],
      more: false,
    };
    const ack = { no, incarnation, streams: { requests: claim } };
    await deliver(world, await forge(world, { from: blue, stream: 'control', change: { ack } }));
    await expectImport(red, ['APPLIED']);
  };
  const acked = async () =>
    (
      await rows<{ seq: number }>(
        red.test.db,
        `select seq from outbound_batches where stream = 'requests' and state = 'acked' order by seq`,
      )
    ).map(({ seq }) => seq);
  const alarms = async () =>
    (await rows(red.test.db, `select 1 from audit_log where action = 'link.alarm'`)).length;

  await tell(1, 9, 'a'.repeat(64));
  assert.deepEqual([await alarms(), await acked()], [1, []]);
  await tell(2, 2, 'a'.repeat(64));
  assert.deepEqual([await alarms(), await acked()], [2, []]);
  await tell(9, 2, digests[1]?.digest ?? '');
  assert.deepEqual(await acked(), [1, 2]);
  await tell(4, 1, digests[0]?.digest ?? '');
  assert.deepEqual(await acked(), [1, 2], 'an older receipt took nothing back');
  const other = await forge(world, {
    from: blue,
    stream: 'control',
    change: { link: 'b'.repeat(16) },
  });
  takeBack(world, other);
  await expectRefused(world, other, 'WRONG_LINK', { node: red });
  await expectFiles(red, 'store', names);
  await expectNothingApplied(blue);
  await expectNextApplied(world, { from: blue, stream: 'results', records: [] });
}
