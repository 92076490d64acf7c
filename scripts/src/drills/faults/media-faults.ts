import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { newId } from '@sallyport/shared';
import {
  listBadMedia,
  readBack,
  readMedia,
  requestRecord,
  spaceOf,
  writeMedia,
} from '@sallyport/transfer/testing';
import type { Fault } from './fault.js';
import {
  expectAppliedOnce,
  expectFiles,
  expectImport,
  importInto,
  seal,
  type World,
} from './world.js';

/** Sticks: lost, in any order, lying, pulled. */
export const MEDIA_FAULTS: readonly Fault[] = [
  {
    number: 55,
    name: 'a stick pulled while it is read, mounted again elsewhere',
    expected: 'medium-gone; nothing half, resumed',
    run: pullStick,
  },
  {
    number: 62,
    name: 'one of three sticks of a set missing',
    expected: 'the missing files are named, the rest is applied',
    async run(world) {
      const { ids, sticks } = await writeSet(world, 3);
      const [first = '', second = '', third = ''] = sticks;
      const { sets } = await read(world, [first, third]);
      const [set] = sets;
      assert(set && set.missing.length > 0);
      const onSecond = await batchesOn(second);
      assert.deepEqual(set.missing.map(({ name }) => name).sort(), onSecond);
      const { applied } = await importInto(world.blue);
      assert.equal(applied, ids.length - onSecond.length);
      const later = await read(world, [second]);
      assert.deepEqual(
        later.sets.flatMap(({ missing }) => missing),
        [],
      );
      await importInto(world.blue);
      await expectAppliedOnce(world.blue, ids);
    },
  },
  {
    number: 63,
    name: 'two sticks in either order, the first one twice',
    expected: 'one complete set, applied once',
    async run(world) {
      for (const order of [
        [0, 1, 0],
        [1, 0, 0],
      ]) {
        await world.reset();
        const { ids, sticks, place } = await writeSet(world, 2);
        for (const at of order) await read(world, [sticks[at] ?? '']);
        const { sets } = await read(world, sticks);
        assert.deepEqual(
          sets.map(({ missing }) => missing),
          [[]],
        );
        await expectImport(world.blue, Array(ids.length).fill('APPLIED'));
        await read(world, sticks);
        await expectImport(world.blue, []);
        await expectAppliedOnce(world.blue, ids);
        await rm(place, { recursive: true });
      }
    },
  },
  {
    number: 65,
    name: 'a stick that lies about what it keeps',
    expected: 'NOT SAFE (read-back-differs); the files stay, the stick is refused from then on',
    run: distrustStick,
  },
];

const carrier = (place: string) => ({ name: 'walker', folder: join(place, 'carrier') });

/** Seals twelve batches and writes them onto new sticks that hold a share each. */
async function writeSet(
  world: World,
  count: number,
): Promise<{ ids: string[]; sticks: string[]; place: string; outbox: string[] }> {
  const { red } = world;
  const ids: string[] = [];
  for (let batch = 0; batch < 6; batch += 1) {
    const record = requestRecord(newId());
    ids.push(record.id);
    await seal(red, 'requests', [record]);
  }
  const outbox = await readdir(red.folders.outbox);
  const place = join(red.folders.root, 'media');
  await rm(place, { recursive: true, force: true });
  const sticks = Array.from({ length: count }, (_, at) => join(place, `stick-${at}`));
  for (const stick of sticks) await mkdir(stick, { recursive: true });
  // Each stick has room for its share only.
  const [sample = ''] = outbox;
  const { length: bytes } = await readFile(join(red.folders.outbox, sample));
  const share = Math.ceil(ids.length / count);
  for (let room = share * (bytes + 4_096) + 65_536; ; room += 65_536) {
    const access = {
      readBack,
      spaceOf: () => Promise.resolve({ freeBytes: room, blockBytes: 512 }),
    };
    const done = await writeMedia({
      from: red.folders.outbox,
      roots: sticks,
      carrier: carrier(place),
      access,
    }).catch((error: unknown) => {
      if ((error as { code?: string }).code !== 'medium-full') throw error;
      return undefined;
    });
    if (!done || done.left.length > 0) continue;
    assert(done.media.every(({ state }) => state !== 'not-safe'));
    break;
  }
  return { ids, sticks, place, outbox };
}

function read(world: World, roots: string[]) {
  const place = join(world.red.folders.root, 'media');
  const far = { name: 'reader', folder: join(place, 'far') };
  return readMedia({ roots, into: world.blue.folders.inbox, carrier: far });
}

async function batchesOn(stick: string): Promise<string[]> {
  const names = await readdir(join(stick, 'SALLYPORT', 'blue'));
  return names.filter((name) => name.endsWith('.batch')).sort();
}

async function pullStick(world: World): Promise<void> {
  const { ids, sticks, place } = await writeSet(world, 1);
  const [stick = ''] = sticks;
  const elsewhere = join(place, 'elsewhere');
  let passed = 0;
  let pulled: Promise<void> | undefined;
  const report = await readMedia({
    roots: [stick],
    into: world.blue.folders.inbox,
    carrier: { name: 'reader', folder: join(place, 'far') },
    startProgress: () => (bytes) => {
      passed += bytes;
      if (passed > 3_000) pulled ??= rename(stick, elsewhere);
    },
  });
  await pulled;
  const [medium] = report.media;
  assert(medium?.failure ?? medium?.faults[0], JSON.stringify(report));
  const half = await readdir(world.blue.folders.inbox);
  assert(half.length < ids.length, 'it was pulled too late');
  assert(!half.some((name) => name.endsWith('.part')), 'a half copy stayed');
  await importInto(world.blue);
  const resumed = await read(world, [elsewhere]);
  assert.deepEqual(
    resumed.media.map(({ failure }) => failure),
    [undefined],
  );
  await importInto(world.blue);
  await expectAppliedOnce(world.blue, ids);
}

async function distrustStick(world: World): Promise<void> {
  const { red } = world;
  const place = join(red.folders.root, 'media');
  await rm(place, { recursive: true, force: true });
  const [bad, good] = [join(place, 'bad'), join(place, 'good')];
  for (const stick of [bad, good]) await mkdir(stick, { recursive: true });
  const name = await seal(red, 'requests', [requestRecord(newId())]);
  const lying = {
    spaceOf,
    readBack: async (...args: Parameters<typeof readBack>) => {
      const [path] = args;
      // What a counterfeit stick does beyond its true size: it wraps, or returns nothing.
      if (path.endsWith('.batch') || path.includes('.part')) {
        const bytes = await readFile(path);
        await writeFile(path, Buffer.alloc(bytes.length));
      }
      return readBack(...args);
    },
  };
  const write = (root: string, access?: typeof lying) =>
    writeMedia({
      from: red.folders.outbox,
      roots: [root],
      carrier: carrier(place),
      ...(access && { access }),
    });
  const report = await write(bad, lying);
  assert.equal(report.media[0]?.state, 'not-safe');
  assert.equal(report.media[0]?.fault?.code, 'read-back-differs', JSON.stringify(report.media[0]));
  const batches = (await readdir(red.folders.outbox)).filter((one) => one.endsWith('.batch'));
  assert.deepEqual(batches, [name]);
  assert.equal((await listBadMedia(carrier(place))).length, 1);
  await assert.rejects(write(bad), (error) => (error as { code?: string }).code === 'medium-bad');
  const sound = await write(good);
  assert.notEqual(sound.media[0]?.state, 'not-safe');
  await expectFiles(red, 'store', [name]);
}
