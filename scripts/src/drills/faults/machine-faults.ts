import assert from 'node:assert/strict';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { newId, openDatabase } from '@sallyport/shared';
import { importBatches, makeKeys, type ApplyTable } from '@sallyport/transfer';
import { requestRecord } from '@sallyport/transfer/testing';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { runCrashLoop, type CrashReport } from '../crash.js';
import { runDiskFaults } from '../disk.js';
import { runFuzz } from '../fuzz.js';
import { runModel } from '../model.js';
import type { Fault } from './fault.js';
import {
  deliver,
  expectAppliedOnce,
  expectFiles,
  expectImport,
  expectNextApplied,
  expectNothingApplied,
  expectQuarantined,
  forge,
  importInto,
  keepAll,
  readCursor,
  type World,
} from './world.js';

const silent = () => undefined;
const CYCLES = 12;
const ROUNDS = 10;
const CASES = 500;
/** Every operation has its turn in the disk drill itself. */
const EVERY = 40;

/** One crash loop serves the three faults that it is about, and lasts until it had each of them. */
let crashed: Promise<CrashReport> | undefined;
const crash = () => (crashed ??= crashUntilAll());
const isExport = (point: string) => /outbound_batches|store|outbox/.test(point);

async function crashUntilAll(): Promise<CrashReport> {
  for (let seed = 56; ; seed += 1) {
    const deaths = ['process', 'inside'] as const;
    const report = await runCrashLoop({ seed, cycles: CYCLES, say: silent, deaths });
    const { kills, powerCuts, points, wrong } = report;
    const hadAll = kills > 0 && powerCuts > 0 && Object.keys(points).some(isExport);
    if (hadAll || wrong.length > 0 || seed === 56 + ROUNDS) return report;
  }
}

/** Disks, processes, databases, and the two validators. */
export const MACHINE_FAULTS: readonly Fault[] = [
  {
    number: 54,
    name: 'a full disk (ENOSPC), a failing one (EIO) and a torn write, at sampled operations',
    expected: 'WAIT_DISK or a sentence, nothing half applied, the next run succeeds',
    async run() {
      const report = await runDiskFaults({
        seed: 54,
        say: silent,
        every: EVERY,
        scenarios: ['export of requests', 'import of requests'],
      });
      assert.deepEqual(report.failed, []);
      assert(report.tried > 0);
      return `${report.tried} failures of ${report.points.length} operations`;
    },
  },
  {
    number: 56,
    name: 'kill -9 at points of export and import',
    expected: 'never or once',
    async run() {
      const { cycles, kills, lost, doubled } = await crash();
      assert.deepEqual([lost, doubled], [0, 0]);
      assert(kills > 0, 'no process was killed');
      return `${cycles} cycles, ${kills} kills`;
    },
  },
  {
    number: 57,
    name: 'a power cut that drops unsynced writes and names',
    expected: 'never or once, no file under a final name with wrong bytes',
    async run() {
      const { powerCuts, lost, doubled, wrong } = await crash();
      assert.deepEqual([lost, doubled, wrong], [0, 0, []]);
      assert(powerCuts > 0, 'the power was never cut');
      return `${powerCuts} power cuts`;
    },
  },
  {
    number: 66,
    name: 'an exporter killed between taking a number and publishing it',
    expected: 'the same bytes or none: no number with two contents, no silent hole',
    async run() {
      const { points, wrong, lost } = await crash();
      assert.deepEqual([wrong, lost], [[], 0]);
      const exporting = Object.keys(points).filter(isExport);
      assert(exporting.length > 0, 'no exporter was killed');
      return `at ${exporting.length} points`;
    },
  },
  {
    number: 59,
    name: 'the database gone, a deadlock, a serialization failure, a commit whose answer is lost',
    expected: 'tried again, applied once',
    run: loseDatabase,
  },
  {
    number: 60,
    name: 'two importers on one folder',
    expected: 'WAIT_LOCK for the second',
    async run(world) {
      const { blue } = world;
      const record = requestRecord(newId());
      await deliver(world, await forge(world, { records: [record] }));
      const second: string[] = [];
      const applies: ApplyTable = {
        ...keepAll,
        request: async (...args) => {
          const { files } = await importInto(blue);
          second.push(...files.map(({ outcome }) => outcome));
          await keepAll.request?.(...args);
        },
      };
      await expectImport(blue, ['APPLIED'], applies);
      assert.deepEqual(second, ['WAIT_LOCK']);
      await expectAppliedOnce(blue, [record.id]);
      await expectNextApplied(world);
    },
  },
  {
    number: 68,
    name: 'a batch that the importer takes and the second validator refuses',
    expected: 'VALIDATOR_DISAGREE',
    run: disagree,
  },
  {
    number: 69,
    name: 'random changes of valid batches, judged by both validators',
    expected: 'no crash, none applied, no disagreement',
    async run() {
      const { cases, ...found } = await runFuzz({ seed: 69, cases: CASES, say: silent });
      assert.equal(cases, CASES);
      assert.deepEqual(found, { crashes: 0, applied: 0, disagreements: 0 });
      return `${cases} cases`;
    },
  },
  {
    number: 70,
    name: 'both networks through a simulated day of loss, repetition, damage, restarts and restores',
    expected: 'every request answered exactly once, no unexplained gap',
    async run() {
      const { requests, ...found } = await runModel({ seed: 70, days: 1, say: silent });
      assert.deepEqual(found, { days: 1, unanswered: 0, doubled: 0, gaps: 0, wrong: [] });
      assert(requests > 0);
      return `${requests} requests`;
    },
  },
];

async function loseDatabase(world: World): Promise<void> {
  const { blue } = world;
  const ids: string[] = [];
  const next = async () => {
    const record = requestRecord(newId());
    ids.push(record.id);
    const batch = await forge(world, { records: [record] });
    await deliver(world, batch);
    return batch.name;
  };
  // Raised inside the transaction, after everything was written.
  const failing = (sql: string): ApplyTable => ({
    ...keepAll,
    request: async (tx, batch, now) => {
      await keepAll.request?.(tx, batch, now);
      await tx.raw(sql);
    },
  });
  const raise = (state: string) => `do $$ begin raise exception using errcode = '${state}'; end $$`;
  const kinds = [
    raise('40P01'),
    raise('40001'),
    raise('53300'),
    'select pg_terminate_backend(pg_backend_pid())',
  ];
  for (const sql of kinds) {
    const name = await next();
    const done = await importInto(blue, failing(sql)).catch(() => undefined);
    if (done) assert(done.files.every(({ outcome }) => outcome === 'FAILED'));
    await expectFiles(blue, 'inbox', [name]);
    await expectFiles(blue, 'quarantine', []);
    await expectAppliedOnce(blue, ids.slice(0, -1));
    await expectImport(blue, ['APPLIED']);
    await expectAppliedOnce(blue, ids);
  }
  const name = await next();
  const lost = openDatabase(blue.test.url.replace(/@[^/]+\//, '@127.0.0.1:1/'));
  await assert.rejects(importBatches(lost, blue, keepAll));
  await lost.destroy();
  await expectFiles(blue, 'inbox', [name]);

  const proxy = await openProxy(blue.test.url);
  const db = openDatabase(proxy.url);
  await importBatches(db, blue, keepAll).catch(silent);
  await db.destroy();
  await proxy.close();
  assert.equal(proxy.cut(), true, 'no commit passed');
  await expectAppliedOnce(blue, ids);
  const again = await importInto(blue);
  for (const { outcome } of again.files) assert(['DUPLICATE', 'APPLIED'].includes(outcome));
  await expectAppliedOnce(blue, ids);
  await expectFiles(blue, 'inbox', []);
  await expectFiles(blue, 'staging', []);
  await expectNextApplied(world);
}

/** A way to the database that is cut as soon as the commit of an import has been answered. */
async function openProxy(
  target: string,
): Promise<{ url: string; cut(): boolean; close(): Promise<void> }> {
  const to = new URL(target);
  const sockets = new Set<Socket>();
  let cut = false;
  const server: Server = createServer((client) => {
    const upstream = connect(Number(to.port), to.hostname);
    let wrote = false;
    let committing = false;
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', () => undefined).on('close', () => sockets.delete(socket));
    }
    client.on('data', (bytes) => {
      wrote ||= bytes.includes('insert into applied');
      committing ||= wrote && /commit/i.test(bytes.toString('latin1'));
      upstream.write(bytes);
    });
    upstream.on('data', (bytes) => {
      if (!committing) return client.write(bytes);
      cut = true;
      for (const socket of sockets) socket.destroy();
      return undefined;
    });
    client.on('close', () => upstream.destroy());
    upstream.on('close', () => client.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = new URL(target);
  url.port = String((server.address() as AddressInfo).port);
  return {
    url: url.href,
    cut: () => cut,
    close: () => new Promise((resolve) => server.close(() => resolve())),
  };
}

/** The second validator is handed another key than the importer, so that it cannot agree. */
async function disagree(world: World): Promise<void> {
  const { blue } = world;
  const record = requestRecord(newId());
  const good = await forge(world, { records: [record], crypt: 'age' });
  const folder = join(blue.folders.root, 'stranger');
  const stranger = await makeKeys(folder, 'green', 'response');
  let asked = 0;
  const keys = {
    ...blue.keys,
    get ageIdentities() {
      asked += 1;
      return asked === 1 ? stranger.ageIdentities : blue.keys.ageIdentities;
    },
  };
  await deliver(world, good);
  const report = await importBatches(blue.test.db, { ...blue, keys }, keepAll);
  assert.deepEqual(
    report.files.map(({ outcome }) => outcome),
    ['VALIDATOR_DISAGREE'],
  );
  await expectQuarantined(blue, 'VALIDATOR_DISAGREE');
  await expectNothingApplied(blue);
  await expectFiles(blue, 'inbox', []);
  assert.equal((await readCursor(blue, 'requests')).frozen, 'VALIDATOR_DISAGREE');
  await expectNextApplied(world, { stream: 'requests.urgent', records: [requestRecord(newId())] });
  await rm(folder, { recursive: true });
}
