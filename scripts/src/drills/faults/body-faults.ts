import assert from 'node:assert/strict';
import { readFile, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { constants, deflateRawSync, gzipSync } from 'node:zlib';
import { SallyportError, batchCodeKind, newId, type BatchCode } from '@sallyport/shared';
import {
  findLink,
  generateKeys,
  readFarKeys,
  verifyHeader,
  type Manifest,
} from '@sallyport/transfer';
import {
  checkLength,
  claimBatch,
  readCandidate,
  requestRecord,
  writeBody,
} from '@sallyport/transfer/testing';
import { randomFrom } from '../random.js';
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
  expectRefused,
  forge,
  importInto,
  linesOf,
  put,
  readCursor,
  takeBack,
  wait,
  type Forged,
  type Forgery,
  type World,
} from './world.js';

const MINUTE_MS = 60_000;
const GROWTH_MS = 15 * MINUTE_MS;
const AGE_CHUNK = 64 * 1024 + 16;
const MIB = 1024 ** 2;
/** Damaged copies that go through the whole import; all others through its checks alone. */
const SAMPLES = 16;

/** The bytes after line 1: how many, which, and how they are packed. */
export const BODY_FAULTS: readonly Fault[] = [
  {
    number: 1,
    name: 'a file of no bytes',
    expected: 'INCOMPLETE, then TRUNCATED',
    async run(world) {
      const { blue } = world;
      const empty = await put(blue, 'empty.batch', Buffer.alloc(0));
      await expectImport(blue, ['INCOMPLETE']);
      wait(blue, GROWTH_MS - 1);
      await expectImport(blue, ['INCOMPLETE']);
      assert.deepEqual(await readFile(empty), Buffer.alloc(0));
      wait(blue, 1);
      await expectImport(blue, ['TRUNCATED']);
      await expectQuarantined(blue, 'TRUNCATED');
      await expectFiles(blue, 'inbox', []);
      await expectNothingApplied(blue);
      await expectNextApplied(world);
    },
  },
  {
    number: 2,
    name: 'a file cut at every byte',
    expected: 'INCOMPLETE, then TRUNCATED',
    run: cutEverywhere,
  },
  {
    number: 3,
    name: 'a file that grows slowly',
    expected: 'INCOMPLETE, applied once when whole',
    async run(world) {
      const { blue } = world;
      const record = requestRecord(newId());
      const { bytes, name } = await forge(world, { records: [record] });
      const path = join(blue.folders.inbox, name);
      const slow = Array.from({ length: 20 }, (_, n) => bytes.length - 20 + n);
      for (const length of [1, 500, 1_000, ...slow]) {
        await writeFile(path, bytes.subarray(0, length));
        await expectImport(blue, ['INCOMPLETE']);
        wait(blue, GROWTH_MS - 1);
      }
      await writeFile(path, bytes);
      await expectImport(blue, ['APPLIED']);
      await expectImport(blue, []);
      await expectAppliedOnce(blue, [record.id]);
    },
  },
  {
    number: 4,
    name: 'the right size, the body all zeros (exFAT after a pull)',
    expected: 'HASH_MISMATCH',
    async run(world) {
      const good = await forge(world);
      const bytes = Buffer.concat([good.line, Buffer.from('\n'), Buffer.alloc(good.body.length)]);
      const report = await expectRefused(world, { name: good.name, bytes }, 'HASH_MISMATCH');
      assert.equal(report['seq'], 1);
      assert.equal((await readCursor(world.blue, 'requests')).contiguous, 0, 'its number is open');
      await expectGoodCopy(world, good);
    },
  },
  {
    number: 5,
    name: 'one bit flipped, at every place of line 1 and of the body',
    expected: 'BAD_SIGNATURE, HASH_MISMATCH and other refusals, never applied',
    run: flipEverywhere,
  },
  {
    number: 6,
    name: 'a byte more at the end; a second batch glued on',
    expected: 'TRAILING_DATA',
    async run(world) {
      const good = await forge(world);
      const second = await forge(world);
      for (const tail of [Buffer.from('\n'), Buffer.alloc(1), second.bytes]) {
        const bytes = Buffer.concat([good.bytes, tail]);
        await expectRefused(world, { name: good.name, bytes }, 'TRAILING_DATA');
      }
      await expectGoodCopy(world, good);
      await expectGoodCopy(world, second);
    },
  },
  {
    number: 32,
    name: 'gzip bombs: stated, lied about, nested',
    expected: 'INFLATE_LIMIT',
    run: refuseBombs,
  },
  {
    number: 33,
    name: 'gzip with a cut trailer, a bad checksum, two members, or bytes behind it',
    expected: 'INFLATE_FAILED, TRAILING_DATA',
    async run(world) {
      const trailer = (gzip: Buffer, change: (bytes: Buffer) => void): Buffer => {
        const changed = Buffer.from(gzip);
        change(changed.subarray(-8));
        return changed;
      };
      const tricks: [string, (gzip: Buffer) => Buffer, ...BatchCode[]][] = [
        ['no trailer', (gzip) => gzip.subarray(0, -8), 'INFLATE_FAILED'],
        ['half a trailer', (gzip) => gzip.subarray(0, -4), 'INFLATE_FAILED'],
        [
          'a bad checksum',
          (gzip) => trailer(gzip, (end) => (end[0] = ~(end[0] ?? 0))),
          'INFLATE_FAILED',
        ],
        [
          'a bad length',
          (gzip) => trailer(gzip, (end) => (end[4] = ~(end[4] ?? 0))),
          'INFLATE_FAILED',
        ],
        ['two members', (gzip) => Buffer.concat([gzip, gzip]), 'TRAILING_DATA', 'INFLATE_LIMIT'],
        ['an empty member', (gzip) => Buffer.concat([gzip, gzipSync('')]), 'TRAILING_DATA'],
        ['zeros behind it', (gzip) => Buffer.concat([gzip, Buffer.alloc(512)]), 'TRAILING_DATA'],
        [
          'text behind it',
          (gzip) => Buffer.concat([gzip, Buffer.from('x')]),
          'TRAILING_DATA',
          'INFLATE_FAILED',
        ],
        ['no gzip', () => Buffer.from('{"t":"request"}\n'.repeat(4)), 'INFLATE_FAILED'],
      ];
      for (const [what, tamper, ...codes] of tricks) {
        await refuseAsDamage(world, { tamper }, codes, what);
      }
      await expectNextApplied(world);
    },
  },
  {
    number: 34,
    name: 'a stated length smaller or larger than what is unpacked',
    expected: 'INFLATE_LIMIT, COUNT_MISMATCH',
    async run(world) {
      const off = (by: number) => async () => {
        const good = await forge(world);
        takeBack(world, good);
        const { body } = good.manifest;
        const change = { body: { ...body, rawBytes: body.rawBytes + by } };
        const records = [requestRecord(newId())];
        return forge(world, { records, change, packed: good.body });
      };
      const smaller = await off(-1)();
      await expectRefused(world, smaller, 'INFLATE_LIMIT');
      takeBack(world, smaller);
      const larger = await off(1)();
      await expectRefused(world, larger, 'COUNT_MISMATCH');
      await expectNothingApplied(world.blue);
      await expectNextApplied(world);
    },
  },
  {
    number: 35,
    name: 'age for somebody else, without its last chunk, with two chunks swapped',
    expected: 'DECRYPT_FAILED',
    run: refuseBrokenAge,
  },
  {
    number: 36,
    name: 'a line of 32 MiB; a million empty lines',
    expected: 'LINE_TOO_LONG, SCHEMA',
    async run(world) {
      const before = process.memoryUsage().rss;
      const long = await forge(world, {
        records: [requestRecord(newId())],
        raw: Buffer.alloc(32 * MIB, 'a'),
        enc: 'none',
      });
      await expectRefused(world, long, 'LINE_TOO_LONG');
      const empty = await forge(world, {
        raw: Buffer.alloc(1_000_000, '\n'),
        enc: 'none',
        change: { records: 1_000_000, types: { request: 1_000_000 } },
      });
      await expectRefused(world, empty, 'SCHEMA');
      assert(process.memoryUsage().rss - before < 256 * MIB, 'its memory grew with the line');
      await expectNothingApplied(world.blue);
      await expectNextApplied(world);
    },
  },
];

/** Refuses a batch whose number stays open, and forgets that it was forged. */
async function refuseAsDamage(
  world: World,
  forgery: Forgery,
  codes: readonly BatchCode[],
  what: string,
): Promise<void> {
  const bad = await forge(world, forgery);
  takeBack(world, bad);
  await deliver(world, bad);
  const report = await importInto(world.blue);
  const [found] = report.files;
  assert(codes.includes(found?.outcome as BatchCode), `${what} gave ${JSON.stringify(found)}`);
  await expectFiles(world.blue, 'inbox', []);
  await expectFiles(world.blue, 'staging', []);
  await expectNothingApplied(world.blue);
}

/** What the checks before the sequence say of each copy; no database is asked. */
async function makeCheck(
  world: World,
  good: Forged,
): Promise<(bytes: Uint8Array) => Promise<string>> {
  const { blue } = world;
  const link = await findLink(blue.test.db);
  assert(link);
  const keys = await readFarKeys(blue.test.db, link.link);
  const path = join(blue.folders.root, good.name);
  const target = join(blue.folders.root, 'claimed.batch');
  return async (bytes) => {
    await writeFile(path, bytes);
    try {
      const candidate = await readCandidate(blue, link, keys, path);
      const { header, manifest } = candidate;
      if (checkLength(header.size, header.line, manifest) === 'short') return 'INCOMPLETE';
      if (header.size <= 64 * MIB) await claimBatch(path, target, { line: header.line, manifest });
      return 'ACCEPTED';
    } catch (error) {
      if (!(error instanceof SallyportError)) throw error;
      return error.code;
    }
  };
}

async function cutEverywhere(world: World): Promise<string> {
  const { blue } = world;
  const good = await forge(world);
  const check = await makeCheck(world, good);
  for (let length = 0; length < good.bytes.length; length += 1) {
    const code = await check(good.bytes.subarray(0, length));
    assert.equal(code, 'INCOMPLETE', `cut to ${length} of ${good.bytes.length} bytes`);
  }
  const step = Math.ceil(good.bytes.length / SAMPLES);
  const end = good.line.length;
  const cuts = new Set([0, 1, end - 1, end, end + 1, end + 2, good.bytes.length - 1]);
  for (let length = step; length < good.bytes.length; length += step) cuts.add(length);
  for (const length of cuts) await put(blue, `${length}.batch`, good.bytes.subarray(0, length));
  await expectImport(blue, Array(cuts.size).fill('INCOMPLETE'));
  await expectFiles(blue, 'quarantine', []);
  wait(blue, GROWTH_MS);
  await expectImport(blue, Array(cuts.size).fill('TRUNCATED'));
  await expectQuarantined(blue, 'TRUNCATED', cuts.size);
  await expectFiles(blue, 'inbox', []);
  await expectNothingApplied(blue);
  await expectGoodCopy(world, good);
  return `${good.bytes.length} cuts, ${cuts.size} of them imported`;
}

async function flipEverywhere(world: World): Promise<string> {
  const { blue } = world;
  const good = await forge(world);
  const check = await makeCheck(world, good);
  const flipped = (bit: number): Buffer => {
    const bytes = Buffer.from(good.bytes);
    const at = bit >> 3;
    bytes[at] = (bytes[at] ?? 0) ^ (1 << (bit & 7));
    return bytes;
  };
  const bits = good.bytes.length * 8;
  const { card } = world.red.keys;
  for (let bit = 0; bit < good.line.length * 8; bit += 1) {
    const bytes = flipped(bit);
    // A flip can make a line feed, which ends the line early.
    const line = bytes.subarray(0, bytes.indexOf('\n'));
    const cardOf = (kid: string) => (kid === card.kid ? card : undefined);
    await assert.rejects(verifyHeader(line, cardOf), SallyportError, `bit ${bit} of line 1`);
  }
  // Through the file as well: of each byte one bit, another one from byte to byte.
  const found = new Map<string, number>();
  for (let at = 0; at < good.bytes.length; at += 1) {
    const bit = at * 8 + ((at * 3) % 8);
    const code = await check(flipped(bit));
    assert.notEqual(code, 'ACCEPTED', `bit ${bit} was flipped and nobody saw it`);
    if (at > good.line.length) assert.equal(code, 'HASH_MISMATCH', `bit ${bit}`);
    found.set(code, (found.get(code) ?? 0) + 1);
  }
  assert(found.has('BAD_SIGNATURE') && found.has('HASH_MISMATCH'));
  const random = randomFrom(5);
  for (let count = 0; count < SAMPLES; count += 1) {
    await put(blue, `${count}.batch`, flipped(random.between(0, bits - 1)));
  }
  const report = await importInto(blue);
  for (const { outcome } of report.files) {
    const kind = outcome === 'APPLIED' || outcome === 'FAILED' ? outcome : batchCodeKind(outcome);
    assert(kind === 'reject' || kind === 'wait', `a flipped bit gave ${outcome}`);
  }
  await expectNothingApplied(blue);
  for (const name of await readdir(blue.folders.inbox)) {
    // What seems to be under copy, or signed by an unknown key, stays; the good copy replaces it.
    await put(blue, name, good.bytes);
  }
  await deliver(world, good);
  assert.equal((await importInto(blue)).applied, 1);
  return [...found].map(([code, count]) => `${code} ${count}`).join(', ');
}

async function refuseBombs(world: World): Promise<void> {
  const { blue } = world;
  const before = process.memoryUsage().rss;
  // Deflate of zeros repeats, so that 1 GiB of them is 64 times one piece.
  const piece = deflateRawSync(Buffer.alloc(16 * MIB), { finishFlush: constants.Z_FULL_FLUSH });
  const end = deflateRawSync(Buffer.alloc(0));
  const head = Buffer.from([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]);
  const bomb = Buffer.concat([head, ...Array<Buffer>(64).fill(piece), end, Buffer.alloc(8)]);
  const body = (rawBytes: number): Manifest['body'] => ({
    bytes: bomb.length,
    sha256: '',
    enc: 'gzip',
    rawBytes,
    crypt: 'none',
  });
  const make = async (rawBytes: number): Promise<Forged> => {
    const plain = await forge(world, { packed: bomb });
    takeBack(world, plain);
    const change = { body: { ...body(rawBytes), sha256: plain.manifest.body.sha256 } };
    const bad = await forge(world, { packed: bomb, change, raw: Buffer.alloc(1) });
    takeBack(world, bad);
    return bad;
  };
  assert(bomb.length * 900 < 1024 * MIB, 'the bomb is no bomb');
  for (const rawBytes of [1024 * MIB, 199 * bomb.length, 5_000]) {
    const bad = await make(rawBytes);
    await expectRefused(world, bad, 'INFLATE_LIMIT');
  }
  assert(process.memoryUsage().rss - before < 256 * MIB, 'its memory grew with the bomb');
  const nested = Buffer.concat([gzipSync('{}'), Buffer.from('\n')]);
  const twice = await forge(world, { raw: nested, records: [requestRecord(newId())] });
  await expectRefused(world, twice, 'BAD_UTF8');
  await expectNothingApplied(blue);
  await expectNextApplied(world);
}

async function refuseBrokenAge(world: World): Promise<void> {
  const { red } = world;
  // So much noise that three chunks are needed.
  const noise = randomFrom(35).bytes(150_000).toString('base64url');
  const records = [requestRecord(newId(), noise)];
  const whole: Forgery = { records, enc: 'none', crypt: 'age' };
  const chunksAt = (sealed: Buffer): number => {
    const mac = sealed.indexOf('\n--- ');
    return sealed.indexOf('\n', mac + 1) + 1 + 16;
  };
  const strangers = await generateKeys('green', 'response', undefined);
  const path = join(red.folders.root, 'stranger');
  await writeBody(() => pieces(linesOf(records, red.clock.now())), {
    path,
    enc: 'none',
    crypt: 'age',
    recipients: [strangers.card.age],
  });
  const foreign = await readFile(path);
  const tricks: [string, (sealed: Buffer) => Buffer][] = [
    ['another recipient', () => foreign],
    ['no last chunk', (sealed) => sealed.subarray(0, chunksAt(sealed) + 2 * AGE_CHUNK)],
    ['half a last chunk', (sealed) => sealed.subarray(0, -100)],
    [
      'two chunks swapped',
      (sealed) => {
        const at = chunksAt(sealed);
        const chunk = (n: number) => sealed.subarray(at + n * AGE_CHUNK, at + (n + 1) * AGE_CHUNK);
        return Buffer.concat([sealed.subarray(0, at), chunk(1), chunk(0), chunk(2), chunk(3)]);
      },
    ],
    ['a header without end', () => Buffer.alloc(200_000, 'a')],
    ['plain text', () => linesOf(records, red.clock.now())],
  ];
  for (const [what, tamper] of tricks) {
    await refuseAsDamage(world, { ...whole, tamper }, ['DECRYPT_FAILED'], what);
  }
  await expectNextApplied(world, whole);
}

async function* pieces(bytes: Buffer): AsyncGenerator<Buffer> {
  yield await Promise.resolve(bytes);
}
