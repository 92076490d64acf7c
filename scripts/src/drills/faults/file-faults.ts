import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  link,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { SallyportError, newId } from '@sallyport/shared';
import { findLink, readFarKeys, readQuarantined, type ApplyTable } from '@sallyport/transfer';
import { claimBatch, readCandidate, requestRecord } from '@sallyport/transfer/testing';
import type { Fault } from './fault.js';
import {
  deliver,
  expectAppliedOnce,
  expectFiles,
  expectGoodCopy,
  expectImport,
  expectNextApplied,
  expectNothingApplied,
  expectQuarantined,
  forge,
  importInto,
  keepAll,
  put,
  type World,
} from './world.js';

const SMALL_FILES = 10_000;
const BATCHES = 30;
/** One of these lies on another file system than the node's folders. */
const OTHER_DEVICES = ['/dev/shm', '/var/tmp', process.cwd()];

/** What lies in a folder that anybody may write to. */
export const FILE_FAULTS: readonly Fault[] = [
  {
    number: 49,
    name: 'links, a FIFO, a device, a folder; a file swapped between peek and copy',
    expected: 'NOT_REGULAR_FILE; our copy decides',
    run: refuseOddFiles,
  },
  {
    number: 50,
    name: 'odd file names: very long, look-alike, reserved, in upper case',
    expected: 'hint ignored, never used as a path',
    run: ignoreNames,
  },
  {
    number: 52,
    name: 'what systems leave on media: .DS_Store, Thumbs.db, autorun.inf, .Trash, sync conflicts',
    expected: 'FOREIGN_FILE: listed, untouched',
    async run(world) {
      const { blue } = world;
      const good = await forge(world);
      const conflict = good.name.replace('.batch', '.sync-conflict-20260301-120000-ABCDEFG.batch');
      const names = ['.DS_Store', 'Thumbs.db', 'autorun.inf', '~lock.batch', conflict];
      for (const name of names) await put(blue, name, good.bytes);
      await mkdir(join(blue.folders.inbox, '.Trash'));
      await put(blue, join('.Trash', good.name), good.bytes);
      const report = await expectImport(blue, []);
      assert.deepEqual(report.foreign.sort(), [...names, '.Trash'].sort());
      await expectFiles(blue, 'inbox', [...names, '.Trash']);
      for (const name of names) {
        assert.deepEqual(await readFile(join(blue.folders.inbox, name)), good.bytes);
      }
      await expectNothingApplied(blue);
      await deliver(world, good);
      await expectImport(blue, ['APPLIED']);
    },
  },
  {
    number: 53,
    name: `${SMALL_FILES} foreign files and many batches, the urgent one last`,
    expected: 'control first, all applied, the foreign ones listed',
    async run(world) {
      const { blue } = world;
      for (let at = 0; at < SMALL_FILES; at += 500) {
        const some = Array.from({ length: 500 }, (_, n) => put(blue, `${at + n}.txt`, EMPTY));
        await Promise.all(some);
      }
      for (let count = 0; count < BATCHES; count += 1) await deliver(world, await forge(world));
      const urgent = await forge(world, {
        stream: 'requests.urgent',
        records: [requestRecord(newId())],
      });
      const control = await forge(world, { stream: 'control' });
      await deliver(world, urgent, control);
      const report = await importInto(blue);
      assert.deepEqual(
        report.files.slice(0, 3).map(({ stream }) => stream),
        ['control', 'requests.urgent', 'requests'],
      );
      assert.equal(report.applied, BATCHES + 2);
      assert.equal(report.foreign.length, SMALL_FILES);
      assert.equal((await readdir(blue.folders.inbox)).length, SMALL_FILES);
    },
  },
  {
    number: 58,
    name: 'folders on different file systems (EXDEV)',
    expected: 'copied instead of renamed',
    run: crossDevices,
  },
  {
    number: 61,
    name: 'archive/ and quarantine/ emptied by hand',
    expected: 'the database still knows, the file is called gone',
    async run(world) {
      const { blue } = world;
      const record = requestRecord(newId());
      const good = await forge(world, { records: [record] });
      await expectGoodCopy(world, good);
      await put(blue, 'noise.batch', Buffer.from('noise'));
      await expectImport(blue, ['NOT_A_BATCH']);
      const [report] = await expectQuarantined(blue, 'NOT_A_BATCH');
      for (const folder of ['archive', 'quarantine'] as const) {
        await rm(blue.folders[folder], { recursive: true });
        await mkdir(blue.folders[folder], { mode: 0o700 });
      }
      await deliver(world, good);
      await expectImport(blue, ['DUPLICATE']);
      await expectAppliedOnce(blue, [record.id]);
      const shown = await readQuarantined(blue.test.db, blue, String(report?.['digest']));
      assert.equal(shown.bytes, 'gone');
      await put(blue, 'noise.batch', Buffer.from('noise'));
      await expectImport(blue, ['NOT_A_BATCH']);
      await expectQuarantined(blue, 'NOT_A_BATCH');
      await expectNextApplied(world);
    },
  },
];

const EMPTY = Buffer.alloc(0);

async function refuseOddFiles(world: World): Promise<void> {
  const { blue } = world;
  const { inbox, root } = blue.folders;
  const record = requestRecord(newId());
  const good = await forge(world, { records: [record] });
  const outside = join(root, 'outside.batch');
  await writeFile(outside, good.bytes);
  await symlink(outside, join(inbox, 'link.batch'));
  await symlink(join(root, 'nowhere'), join(inbox, 'dangling.batch'));
  execFileSync('mkfifo', [join(inbox, 'pipe.batch')]);
  await symlink('/dev/zero', join(inbox, 'device.batch'));
  await mkdir(join(inbox, 'folder.batch'));
  const odd = ['dangling.batch', 'device.batch', 'folder.batch', 'link.batch', 'pipe.batch'];
  await expectImport(blue, Array(odd.length).fill('NOT_REGULAR_FILE'));
  await expectFiles(blue, 'inbox', odd);
  await expectNothingApplied(blue);
  await expectImport(blue, []);
  for (const name of odd) await rm(join(inbox, name), { recursive: true });

  // A hard link is a regular file: it is read as what it is, and only its name goes.
  await link(outside, join(inbox, 'hard.batch'));
  await expectImport(blue, ['APPLIED']);
  assert.deepEqual(await readFile(outside), good.bytes);
  await expectFiles(blue, 'inbox', []);

  const next = await forge(world, { records: [requestRecord(newId())] });
  const path = await put(blue, next.name, next.bytes);
  const found = await findLink(blue.test.db);
  assert(found);
  const keys = await readFarKeys(blue.test.db, found.link);
  const { header, manifest } = await readCandidate(blue, found, keys, path);
  const target = join(root, 'claimed.batch');
  const claim = () => claimBatch(path, target, { line: header.line, manifest });
  await rename(path, join(root, 'moved.batch'));
  await symlink(join(root, 'moved.batch'), path);
  await assert.rejects(claim(), isCode('NOT_REGULAR_FILE'));
  await rm(path);
  await writeFile(path, Buffer.alloc(next.bytes.length, 'x'));
  await assert.rejects(claim(), isCode('HASH_MISMATCH'));
  const after = await readdir(root);
  assert(!after.some((name) => name.startsWith('claimed')), 'a wrong copy stayed');

  // Swapped once it was claimed: the claimed copy counts, and what lies there now is looked at anew.
  await writeFile(path, next.bytes);
  const swapping: ApplyTable = {
    ...keepAll,
    request: async (...args) => {
      await keepAll.request?.(...args);
      await rm(path);
      await writeFile(path, 'something else');
    },
  };
  const report = await importInto(blue, swapping);
  assert.deepEqual(
    report.files.map(({ outcome }) => outcome),
    ['APPLIED'],
  );
  assert.equal(await readFile(path, 'utf8'), 'something else');
  await expectImport(blue, ['NOT_A_BATCH']);
  await expectFiles(blue, 'inbox', []);
}

function isCode(code: string) {
  return (error: unknown) => error instanceof SallyportError && error.code === code;
}

async function ignoreNames(world: World): Promise<string> {
  const { blue } = world;
  const before = await readdir(blue.folders.root);
  const taken = [
    `${'n'.repeat(249)}.batch`,
    'caf\u00e9.batch',
    'cafe\u0301.batch',
    'CON.batch',
    'aux.nul.batch',
    'UPPER.BATCH',
    'upper.batch',
    'with space and \u202e gnp.batch',
    "'; drop table links; --.batch",
    '-rf.batch',
    '$(touch x).batch',
    'red.blue.identity.e0001.s000000000001.0123456789ab.batch',
  ];
  const left = [
    'trailing.batch.',
    'trailing.batch ',
    '...batch',
    '.hidden.batch',
    '..%2f..%2fetc%2fpasswd.batch',
    '..\\..\\x.batch',
    'line\nfeed.batch',
  ];
  const names = [];
  for (const name of taken) {
    const good = await forge(world);
    names.push(good.name);
    await put(blue, name, good.bytes);
  }
  const spare = await forge(world);
  for (const name of left) await put(blue, name, spare.bytes);
  const report = await importInto(blue);
  assert.equal(report.applied, taken.length, JSON.stringify(report.files));
  await expectFiles(blue, 'inbox', left);
  await expectFiles(blue, 'archive', names);
  assert.deepEqual(report.foreign.sort(), [...left].sort());
  assert.deepEqual((await readdir(blue.folders.root)).sort(), before.sort());
  await deliver(world, spare);
  await expectImport(blue, ['APPLIED']);
  return `${taken.length} names taken, ${left.length} left alone`;
}

async function crossDevices(world: World): Promise<string> {
  const { blue } = world;
  const { folders } = blue;
  const own = { ...folders };
  const here = await stat(folders.root);
  const away: string[] = [];
  for (const path of OTHER_DEVICES) {
    const there = await stat(path).catch(() => here);
    if (there.dev !== here.dev) away.push(path);
  }
  const [device] = away;
  assert(device, `none of ${OTHER_DEVICES.join(', ')} is another file system than ${folders.root}`);
  const other = await mkdtemp(join(device, 'sallyport-'));
  try {
    for (const name of ['inbox', 'archive', 'waiting'] as const) {
      folders[name] = join(other, name);
      await mkdir(folders[name]);
    }
    const record = requestRecord(newId());
    const good = await forge(world, { records: [record] });
    await expectGoodCopy(world, good);
    assert.deepEqual(await readFile(join(folders.archive, good.name)), good.bytes);
    await expectFiles(blue, 'archive', [good.name]);
    await expectFiles(blue, 'staging', []);
    await expectAppliedOnce(blue, [record.id]);
    await deliver(world, good);
    await expectImport(blue, ['DUPLICATE']);
  } finally {
    Object.assign(folders, own);
    await rm(other, { recursive: true });
  }
  return `to ${device}`;
}
