import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { open, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { rows } from '@sallyport/shared';
import { readFarKeys } from '@sallyport/transfer';

import type { Fault } from './fault.js';
import {
  base64Url,
  deliver,
  expectFiles,
  expectGoodCopy,
  expectImport,
  expectNextApplied,
  expectNothingApplied,
  expectQuarantined,
  expectRefused,
  forge,
  importInto,
  put,
  readCursor,
  signLine,
  takeBack,
  wait,
  type Forged,
  type World,
} from './world.js';

const MINUTE_MS = 60_000;
const DAY_MS = 86_400_000;
const GIB = 1024 ** 3;

/** Line 1: its form, its signature, whom it is for, and when. */
export const HEADER_FAULTS: readonly Fault[] = [
  {
    number: 7,
    name: 'a copy converted to CRLF (mail or FTP in text mode)',
    expected: 'BAD_HEADER',
    async run(world) {
      const good = await forge(world);
      const text = good.bytes.toString('latin1').replaceAll('\n', '\r\n');
      const bytes = Buffer.from(text, 'latin1');
      const report = await expectRefused(world, { name: good.name, bytes }, 'BAD_HEADER');
      assert.match(String(report['sentence']), /text mode/);
      await expectGoodCopy(world, good);
    },
  },
  {
    number: 8,
    name: 'a UTF-8 byte order mark before line 1',
    expected: 'BAD_HEADER',
    async run(world) {
      const good = await forge(world);
      const bytes = Buffer.concat([Buffer.from([0xef, 0xbb, 0xbf]), good.bytes]);
      await expectRefused(world, { name: good.name, bytes }, 'BAD_HEADER');
      await expectGoodCopy(world, good);
    },
  },
  {
    number: 9,
    name: 'a first line of 1 GiB without a line feed',
    expected: 'HEADER_TOO_BIG',
    async run(world) {
      const { blue } = world;
      const file = await open(join(blue.folders.inbox, 'vast.batch'), 'wx');
      await file.write('{"payload":"');
      await file.truncate(GIB);
      await file.close();
      const before = process.memoryUsage();
      await expectImport(blue, ['HEADER_TOO_BIG']);
      const { rss } = process.memoryUsage();
      assert(rss - before.rss < 256 * 1024 * 1024, 'its memory grew with the file');
      const [report] = await expectQuarantined(blue, 'HEADER_TOO_BIG');
      const folder = join(blue.folders.quarantine, 'HEADER_TOO_BIG', String(report?.['digest']));
      assert((await stat(join(folder, 'refused.batch'))).size <= 1024 * 1024, 'it was kept whole');
      await expectFiles(blue, 'inbox', []);
      await expectNextApplied(world);
    },
  },
  {
    number: 10,
    name: 'JSON tricks in line 1 and in what it signs',
    expected: 'BAD_JSON, SCHEMA, HEADER_TOO_BIG',
    async run(world) {
      const good = await forge(world);
      takeBack(world, good);
      const nested = (depth: number) => `${'['.repeat(depth)}${']'.repeat(depth)}`;
      const inside: [string, (text: string) => string, ('BAD_JSON' | 'SCHEMA')?][] = [
        ['a key twice', (text) => text.replace('"v":1', '"v":1,"v":1')],
        ['an escaped key twice', (text) => text.replace('"v":1', '"v":1,"\\u0076":1')],
        ['a trailing comma', (text) => text.replace(/\}$/, ',}')],
        ['NaN', (text) => text.replace('"epoch":1', '"epoch":NaN')],
        ['1e999', (text) => text.replace('"epoch":1', '"epoch":1e999'), 'SCHEMA'],
        [
          'a depth of 15 000',
          (text) => text.replace('"tail":{}', `"tail":${nested(15_000)}`),
          'SCHEMA',
        ],
        ['text after its end', (text) => `${text} {}`],
      ];
      for (const [what, rewrite, code = 'BAD_JSON'] of inside) {
        const bad = await forge(world, { rewrite });
        takeBack(world, bad);
        await expectRefused(world, { ...bad, name: `${what}.batch` }, code);
      }
      const line = good.line.toString();
      const outside: [string, string, 'BAD_JSON' | 'SCHEMA' | 'HEADER_TOO_BIG'][] = [
        ['a member twice', line.replace('{', '{"payload":"",'), 'BAD_JSON'],
        ['a comma at the end', line.replace(/\}$/, ',}'), 'BAD_JSON'],
        ['a bare NaN', line.replace(/"signature":"[^"]*"/, '"signature":NaN'), 'BAD_JSON'],
        ['a depth of 30 000', `{"payload":${nested(30_000)}}`, 'SCHEMA'],
        ['a depth of 100 000', `{"payload":${nested(100_000)}}`, 'HEADER_TOO_BIG'],
      ];
      for (const [what, text, code] of outside) {
        const bytes = Buffer.concat([Buffer.from(`${text}\n`), good.body]);
        await expectRefused(world, { name: `${what}.batch`, bytes }, code);
      }
      await expectGoodCopy(world, good);
    },
  },
  {
    number: 11,
    name: 'no algorithm, another one, and headers that bring their own key',
    expected: 'BAD_SIGNATURE',
    run: refuseForeignHeaders,
  },
  {
    number: 12,
    name: 'a valid signature of the wrong role',
    expected: 'KEY_WRONG_ROLE',
    async run(world) {
      const wrong = await forge(world, { stream: 'identity' });
      await expectRefused(world, wrong, 'KEY_WRONG_ROLE');
      const named = await forge(world, { change: { from: 'green' } });
      takeBack(world, named);
      await expectRefused(world, named, 'KEY_WRONG_ROLE');
      await expectNothingApplied(world.blue);
      await expectNextApplied(world);
    },
  },
  {
    number: 13,
    name: 'our own batch fed back to us',
    expected: 'WRONG_DIRECTION',
    async run(world) {
      const own = await forge(world);
      const report = await expectRefused(world, own, 'WRONG_DIRECTION', { node: world.red });
      assert.match(String(report['next']), /other network/);
      await expectGoodCopy(world, own);
    },
  },
  {
    number: 14,
    name: 'a batch for another node, and one of another pair of networks',
    expected: 'WRONG_DESTINATION, WRONG_LINK',
    async run(world) {
      const elsewhere = await forge(world, { change: { to: 'green' } });
      takeBack(world, elsewhere);
      await expectRefused(world, elsewhere, 'WRONG_DESTINATION');
      const test = await forge(world, { change: { link: 'a'.repeat(16) } });
      takeBack(world, test);
      await expectRefused(world, test, 'WRONG_LINK');
      await expectNothingApplied(world.blue);
      await expectNextApplied(world);
    },
  },
  {
    number: 28,
    name: 'numbers that are none, and one far ahead (FAST_FORWARD)',
    expected: 'SCHEMA, WAIT_APPROVAL',
    async run(world) {
      const values = ['9007199254740993', '-1', '0', '1.5', '"7"', 'null'];
      for (const value of values) {
        const rewrite = (text: string) => text.replace('"seq":1,', `"seq":${value},`);
        const bad = await forge(world, { rewrite });
        takeBack(world, bad);
        await expectRefused(world, bad, 'SCHEMA');
      }
      const far = await forge(world, { change: { seq: 1e15 } });
      world.chains.clear();
      await deliver(world, far);
      const waiting = await expectImport(world.blue, ['WAIT_APPROVAL']);
      assert.match(String(waiting.files[0]?.sentence), /FAST_FORWARD/);
      await expectNothingApplied(world.blue);
      const good = await forge(world);
      await deliver(world, good);
      await expectImport(world.blue, ['APPLIED', 'WAIT_APPROVAL']);
      await expectFiles(world.blue, 'inbox', [far.name]);
    },
  },
  {
    number: 30,
    name: 'a deadline passed by a second, a batch from the future, a clock that was reset',
    expected: 'EXPIRED, WAIT_CLOCK',
    run: judgeClocks,
  },
  {
    number: 51,
    name: 'a name that says number 5 where the manifest says 6',
    expected: 'applied as 6',
    async run(world) {
      for (let count = 0; count < 5; count += 1) await expectNextApplied(world);
      const sixth = await forge(world);
      const misnamed = sixth.name.replace('s000000000006', 's000000000005');
      assert.notEqual(misnamed, sixth.name);
      await put(world.blue, misnamed, sixth.bytes);
      const report = await expectImport(world.blue, ['APPLIED']);
      assert.equal(report.files[0]?.seq, 6);
      assert.equal((await readCursor(world.blue, 'requests')).contiguous, 6);
      // The archive is named by the manifest, whatever the carrier called the file.
      const [kept] = await rows<{ digest: string }>(
        world.blue.test.db,
        `select digest from inbound_batches where stream = 'requests' and seq = 6`,
      );
      assert.equal(kept?.digest, sixth.digest);
      assert.deepEqual(await readFile(join(world.blue.folders.archive, sixth.name)), sixth.bytes);
    },
  },
];

async function refuseForeignHeaders(world: World): Promise<string> {
  const { red, blue } = world;
  let asked = 0;
  const server = createServer((_request, response) => {
    asked += 1;
    response.end('{}');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/keys`;
  const good = await forge(world);
  const payload = Buffer.from(JSON.stringify(good.manifest));
  const jwk = { kty: 'OKP', crv: 'Ed25519', x: red.keys.card.sign };
  const card = { kid: red.keys.kid, typ: 'sallyport-batch+jws' };
  const write = (head: string, signature: string) =>
    Buffer.from(
      JSON.stringify({ payload: payload.toString('base64url'), protected: head, signature }),
    );
  const keyed = base64Url({ alg: 'HS256', ...card });
  const mac = (key: Buffer) =>
    createHmac('sha256', key).update(`${keyed}.${payload.toString('base64url')}`);
  const lines: [string, Buffer][] = [
    ['none', write(base64Url({ alg: 'none', ...card }), '')],
    ['none with a signature', signLine(payload, red.keys, { alg: 'none' })],
    ['HS256', write(keyed, mac(Buffer.from(jwk.x, 'base64url')).digest('base64url'))],
    ['HS256 of text', write(keyed, mac(Buffer.from(jwk.x)).digest('base64url'))],
    ['EdDSA', signLine(payload, red.keys, { alg: 'EdDSA' })],
    ['crit', signLine(payload, red.keys, { crit: ['exp'], exp: 1 })],
    ['jwk', signLine(payload, red.keys, { jwk })],
    ['jku', signLine(payload, red.keys, { jku: url })],
    ['x5u', signLine(payload, red.keys, { x5u: url })],
    ['x5c', signLine(payload, red.keys, { x5c: ['MAo='] })],
    ['b64', signLine(payload, red.keys, { b64: false, crit: ['b64'] })],
    ['another typ', signLine(payload, red.keys, { typ: 'JWT' })],
    ['our name, a stranger’s key', signLine(payload, { ...blue.keys, kid: red.keys.kid })],
  ];
  for (const [name, line] of lines) {
    const bytes = Buffer.concat([line, Buffer.from('\n'), good.body]);
    await expectRefused(world, { name: `${name}.batch`, bytes }, 'BAD_SIGNATURE');
  }
  await new Promise<unknown>((resolve) => server.close(resolve));
  assert.equal(asked, 0, 'a key was fetched from where the batch said');
  const { link } = good.manifest;
  assert.deepEqual([...(await readFarKeys(blue.test.db, link)).keys()], [red.keys.kid]);
  await expectNothingApplied(blue);
  await expectGoodCopy(world, good);
  return `${lines.length} headers`;
}

async function judgeClocks(world: World): Promise<void> {
  const { red, blue } = world;
  const now = blue.time.now.getTime();
  const iso = (ms: number) => new Date(ms).toISOString();
  await expectNextApplied(world);
  const [exact, late] = [
    await forge(world, { change: { notAfter: iso(now) } }),
    await forge(world, { change: { notAfter: iso(now - 1_000) } }),
  ];
  await expectGoodCopy(world, exact);
  await expectRefused(world, late, 'EXPIRED');
  const cursor = await readCursor(blue, 'requests');
  assert.equal(cursor.contiguous, 3, 'the number of what expired is closed');

  red.time.now = new Date(now + 2 * DAY_MS);
  const early = await forge(world);
  await expectWaits(world, early, 'WAIT_CLOCK');
  wait(blue, DAY_MS + MINUTE_MS);
  await expectImport(blue, ['APPLIED']);

  const pending = [await forge(world), await forge(world), await forge(world)];
  for (const year of ['1970', '2100']) {
    const right = blue.time.now;
    blue.time.now = new Date(`${year}-01-02T00:00:00.000Z`);
    await deliver(world, ...pending);
    const report = await importInto(blue);
    const found = new Set(report.files.map(({ outcome }) => outcome));
    assert.deepEqual([...found], ['WAIT_CLOCK'], `with the clock at ${year}`);
    await expectFiles(
      blue,
      'inbox',
      pending.map(({ name }) => name),
    );
    blue.time.now = right;
  }
  await expectImport(blue, ['APPLIED', 'APPLIED', 'APPLIED']);
}

/** Lays the batch into the inbox and requires that it stays there with this code. */
async function expectWaits(world: World, batch: Forged, code: 'WAIT_CLOCK'): Promise<void> {
  const node = batch.manifest.to === world.blue.name ? world.blue : world.red;
  await deliver(world, batch);
  await expectImport(node, [code]);
  await expectFiles(node, 'inbox', [batch.name]);
}
