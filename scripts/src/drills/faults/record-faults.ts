import assert from 'node:assert/strict';
import { newId, rows, settingRecordId, type BatchCode } from '@sallyport/shared';
import type { OutgoingRecord } from '@sallyport/transfer';
import { requestRecord, settingRecord } from '@sallyport/transfer/testing';
import type { Fault } from './fault.js';
import {
  appliedTimes,
  deliver,
  expectAppliedOnce,
  expectFiles,
  expectImport,
  expectNextApplied,
  expectRefused,
  forge,
  linesOf,
  readCursor,
  takeBack,
  type Forgery,
  type World,
} from './world.js';

/** The lines of a body: bytes, JSON, counts, and ids. */
export const RECORD_FAULTS: readonly Fault[] = [
  {
    number: 37,
    name: 'a last line without line feed, a blank line, a bare carriage return',
    expected: 'SCHEMA, COUNT_MISMATCH',
    run: (world) =>
      refuseLines(world, [
        ['no line feed at the end', (text) => text.slice(0, -1), 'SCHEMA'],
        ['a blank line after', (text) => `${text}\n`, 'COUNT_MISMATCH'],
        ['a blank line before', (text) => `\n${text}`, 'SCHEMA'],
        ['a carriage return before the line feed', (text) => text.replace('\n', '\r\n'), 'SCHEMA'],
        ['a carriage return inside', (text) => text.replace('"v":1', '"v":\r1'), 'SCHEMA'],
      ]),
  },
  {
    number: 38,
    name: 'bytes that are no text, and text that is not what it looks like',
    expected: 'BAD_UTF8, BAD_JSON, SCHEMA',
    run: refuseOddText,
  },
  {
    number: 39,
    name: 'keys that reach for prototypes, 10 000 keys, a depth of 5 000',
    expected: 'BAD_JSON, SCHEMA',
    async run(world) {
      const deep = `${'{"a":'.repeat(5_000)}1${'}'.repeat(5_000)}`;
      const many = Array.from({ length: 10_000 }, (_, n) => `"k${n}":1`).join();
      await refuseLines(world, [
        ['__proto__', inData('"__proto__":{"admin":true}'), 'BAD_JSON'],
        ['an escaped __proto__', inData('"__pr\\u006fto__":{"admin":true}'), 'BAD_JSON'],
        ['constructor', inData('"constructor":{"prototype":{"admin":true}}'), 'BAD_JSON'],
        ['__proto__ outside', (text) => text.replace('{', '{"__proto__":{"a":1},'), 'BAD_JSON'],
        ['10 000 keys', inData(`"x":{${many}}`), 'SCHEMA'],
        ['a depth of 5 000', inData(`"x":${deep}`), 'SCHEMA'],
      ]);
      assert.equal(({} as { admin?: unknown }).admin, undefined, 'the prototype was changed');
    },
  },
  {
    number: 40,
    name: 'integers over 2^53, minus zero, 1e400, huge exponents',
    expected: 'SCHEMA',
    run: (world) =>
      refuseLines(
        world,
        ['9007199254740993', '-9007199254740993', '-0', '1e400', '1e99999999', '-0.0'].map(
          (number) => [number, (text) => text.replace('"v":1', `"v":${number}`), 'SCHEMA'],
        ),
      ),
  },
  {
    number: 41,
    name: 'a count that is off by one either way, in all and by type',
    expected: 'COUNT_MISMATCH',
    async run(world) {
      const records = [requestRecord(newId()), requestRecord(newId())];
      const counts: [number, Record<string, number>][] = [
        [1, { request: 1 }],
        [3, { request: 3 }],
        [2, { request: 1, 'request.cancel': 1 }],
        [2, { request: 3 }],
      ];
      for (const [count, types] of counts) {
        const bad = await forge(world, { records, change: { records: count, types } });
        await expectRefused(world, bad, 'COUNT_MISMATCH');
        // Where the manifest contradicts itself, it is refused before the number is looked at.
        if (types['request'] === 3 && count === 2) takeBack(world, bad);
      }
      await expectNextApplied(world, { records });
      await expectAppliedOnce(
        world.blue,
        records.map(({ id }) => id),
      );
    },
  },
  {
    number: 42,
    name: 'one record twice in a batch, with the same content and with other content',
    expected: 'applied once, DUPLICATE_ID_CONFLICT',
    async run(world) {
      const [twice, other] = [requestRecord(newId()), requestRecord(newId())];
      await expectNextApplied(world, { records: [twice, other, twice] });
      await expectAppliedOnce(world.blue, [twice.id, other.id]);
      const id = newId();
      const records = [requestRecord(id, 'a'), other, requestRecord(id, 'b')];
      const bad = await forge(world, { records });
      await expectRefused(world, bad, 'DUPLICATE_ID_CONFLICT');
      await expectAppliedOnce(world.blue, [twice.id, other.id]);
      await expectNextApplied(world);
    },
  },
  {
    number: 45,
    name: 'an unknown record type, a newer shape, a newer format',
    expected: 'WAIT_UPGRADE',
    run: waitForUpgrade,
  },
];

type Trick = [what: string, change: (text: string) => string | Buffer, code: BatchCode];

/** Each changed body must be refused as a whole and close its number. */
async function refuseLines(world: World, tricks: readonly Trick[]): Promise<string> {
  for (const [what, change, code] of tricks) {
    const records = [requestRecord(newId())];
    const changed = change(linesOf(records, world.red.clock.now()).toString());
    const raw = Buffer.isBuffer(changed) ? changed : Buffer.from(changed);
    const bad = await forge(world, { records, raw });
    await expectRefused(world, { ...bad, name: fileName(what) }, code);
    const { contiguous } = await readCursor(world.blue, 'requests');
    assert.equal(contiguous, bad.manifest.seq, `${what}: its number is closed`);
  }
  assert.equal((await appliedTimes(world.blue)).size, 0);
  await expectNextApplied(world);
  return `${tricks.length} bodies`;
}

function fileName(what: string): string {
  return `${what.replaceAll(/[^a-z0-9]/gi, '-')}.batch`;
}

const inData = (member: string) => (text: string) => text.replace('"d":{', `"d":{${member},`);

async function refuseOddText(world: World): Promise<void> {
  const withBytes =
    (...bytes: number[]) =>
    (text: string) => {
      const at = text.indexOf('match_all');
      return Buffer.concat([
        Buffer.from(text.slice(0, at)),
        Buffer.from(bytes),
        Buffer.from(text.slice(at)),
      ]);
    };
  await refuseLines(world, [
    ['a bare continuation', withBytes(0x80), 'BAD_UTF8'],
    ['0xff', withBytes(0xff), 'BAD_UTF8'],
    ['an overlong slash', withBytes(0xc0, 0xaf), 'BAD_UTF8'],
    ['a surrogate as bytes', withBytes(0xed, 0xa0, 0x80), 'BAD_UTF8'],
    ['beyond Unicode', withBytes(0xf4, 0x90, 0x80, 0x80), 'BAD_UTF8'],
    ['a cut character', withBytes(0xe2, 0x82), 'BAD_UTF8'],
    ['a NUL', withBytes(0), 'BAD_JSON'],
    ['a lone surrogate', (text) => text.replace('match_all', '\\ud800'), 'BAD_JSON'],
    ['an escaped NUL', (text) => text.replace('match_all', '\\u0000'), 'BAD_JSON'],
  ]);
  const kept = requestRecord(newId(), 'a\u2028b\u2029c\u202ed');
  await expectNextApplied(world, { records: [kept] });
  const [stored] = await rows<{ query: string }>(
    world.blue.test.db,
    `select d->>'query' as query from applied where id = ?`,
    [kept.id],
  );
  assert.equal(stored?.query, (kept.data as { query: string }).query);
  const turned = 'gro\u202ephp.txt';
  const named = settingRecord(settingRecordId('plain'), 'plain', 1);
  const text = linesOf([named], world.blue.clock.now()).toString();
  const raw = Buffer.from(text.replace('"key":"plain"', `"key":"${turned}"`));
  const bad = await forge(world, { from: world.blue, stream: 'settings', records: [named], raw });
  await expectRefused(world, bad, 'SCHEMA', { node: world.red });
  assert.equal((await appliedTimes(world.red)).size, 0);
}

async function waitForUpgrade(world: World): Promise<void> {
  const { blue } = world;
  const record = requestRecord(newId());
  const text = linesOf([record], world.red.clock.now()).toString();
  const newer: [string, Forgery][] = [
    ['a format of version 2', { rewrite: (manifest) => manifest.replace('"v":1', '"v":2') }],
    ['an unknown type in line 1', { change: { types: { 'request.newer': 1 } } }],
    ['an unknown type', { raw: Buffer.from(text.replace('"t":"request"', '"t":"request.newer"')) }],
    ['a newer shape', { raw: Buffer.from(text.replace('"v":1', '"v":2')) }],
  ];
  for (const [what, forgery] of newer) {
    await world.reset();
    const later = await forge(world, { records: [record], ...forgery });
    await deliver(world, later);
    for (let count = 0; count < 2; count += 1) {
      const report = await expectImport(blue, ['WAIT_UPGRADE']);
      assert.match(String(report.files[0]?.next), /[Uu]pgrade/, what);
    }
    await expectFiles(blue, 'inbox', [later.name]);
    await expectFiles(blue, 'staging', []);
    await expectFiles(blue, 'quarantine', []);
    assert.equal((await appliedTimes(blue)).size, 0);
    world.chains.clear();
    const second: OutgoingRecord = requestRecord(newId());
    await deliver(world, await forge(world, { stream: 'requests.urgent', records: [second] }));
    await expectImport(blue, ['APPLIED', 'WAIT_UPGRADE']);
    await expectAppliedOnce(blue, [second.id]);
  }
}
