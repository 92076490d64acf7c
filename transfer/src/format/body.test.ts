import { createHash, randomBytes } from 'node:crypto';
import { readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';
import { Decrypter, Encrypter } from 'age-encryption';
import { expect } from 'chai';
import * as fc from 'fast-check';
import { type Body, openBody, writeBody } from './body.js';
import { codeOfAsync } from '../test-codes.js';
import { makeTestPair, requestLine, type TestPair, writeTestBatch } from '../test-batch.js';

const KIB = 1024;

describe('bodies', () => {
  let pair: TestPair;
  let path: string;
  let target: string;
  before(async () => {
    pair = await makeTestPair();
    path = join(pair.folder, 'body');
    target = join(pair.folder, 'opened');
  });
  after(() => pair.remove());
  afterEach(async () => {
    await rm(path, { force: true });
    await rm(target, { force: true });
  });

  const recipients = () => [pair.response.card.age];
  const piecesOf = (...pieces: Buffer[]) =>
    async function* () {
      yield* pieces;
    };

  async function write(content: Buffer, enc: Body['enc'], crypt: Body['crypt']): Promise<Body> {
    await rm(path, { force: true });
    return writeBody(piecesOf(content), { path, enc, crypt, recipients: recipients() });
  }

  /** Opens `bytes` as a body described so; the code, or undefined when it opened. */
  async function openAs(bytes: Buffer, change: Partial<Body>): Promise<string | undefined> {
    const body: Body = {
      bytes: bytes.length,
      sha256: '',
      enc: 'gzip',
      rawBytes: 0,
      crypt: 'none',
      ...change,
    };
    await writeFile(path, bytes);
    const { ageIdentities } = pair.response;
    const code = await codeOfAsync(openBody(path, 0, body, { ageIdentities, target }));
    if (code !== undefined) expect(await readdir(pair.folder)).not.to.include('opened');
    else await rm(target);
    return code;
  }

  async function encryptTo(recipient: string, content: Buffer): Promise<Buffer> {
    const encrypter = new Encrypter();
    encrypter.addRecipient(recipient);
    return Buffer.from(await encrypter.encrypt(content));
  }

  describe('writeBody and openBody', () => {
    it('give back what was put in, in every packing (property)', async () => {
      const content = fc.array(fc.oneof(fc.uint8Array(), fc.uint8Array({ minLength: 65_536 })), {
        maxLength: 4,
      });
      const packing = fc.record({
        enc: fc.constantFrom('none' as const, 'gzip' as const),
        crypt: fc.constantFrom('none' as const, 'age' as const),
        offset: fc.nat(100),
      });
      await fc.assert(
        fc.asyncProperty(content, packing, async (pieces, { enc, crypt, offset }) => {
          await rm(path, { force: true });
          await rm(target, { force: true });
          const buffers = pieces.map((piece) => Buffer.from(piece));
          const written = { path, enc, crypt, recipients: recipients() };
          const body = await writeBody(piecesOf(...buffers), written);
          const stored = await readFile(path);
          expect(body.bytes).to.equal(stored.length);
          expect(body.sha256).to.equal(createHash('sha256').update(stored).digest('hex'));
          const raw = Buffer.concat(buffers);
          expect(body.rawBytes).to.equal(raw.length);
          await writeFile(path, Buffer.concat([Buffer.alloc(offset, 'x'), stored]));
          const { ageIdentities } = pair.response;
          await openBody(path, offset, body, { ageIdentities, target });
          expect(raw.equals(await readFile(target))).to.equal(true);
        }),
        { numRuns: 40 },
      );
    });

    it('write what age and gzip alone can read', async () => {
      const { path: file, line, text } = await writeTestBatch(pair, [requestLine(), requestLine()]);
      const body = (await readFile(file)).subarray(line.length + 1);
      const decrypter = new Decrypter();
      decrypter.addIdentity(pair.response.ageIdentities[0] ?? '');
      expect(gunzipSync(await decrypter.decrypt(body)).toString()).to.equal(text);
    });

    it('store plain what would inflate over 100 : 1', async () => {
      const zeros = Buffer.alloc(4 * KIB * KIB);
      expect((await write(zeros, 'gzip', 'none')).enc).to.equal('none');
      expect((await write(zeros, 'gzip', 'age')).enc).to.equal('none');
      expect((await write(randomBytes(100), 'gzip', 'age')).enc).to.equal('gzip');
    });

    it('leave nothing behind when the lines fail', async () => {
      const failing = async function* () {
        yield Buffer.alloc(300 * KIB);
        throw new Error('database gone');
      };
      for (const [enc, crypt] of [
        ['none', 'none'],
        ['gzip', 'none'],
        ['gzip', 'age'],
      ] as const) {
        let message = '';
        const options = { path, enc, crypt, recipients: recipients() };
        await writeBody(failing, options).catch((error: Error) => (message = error.message));
        expect(message).to.equal('database gone');
        expect(await readdir(pair.folder)).not.to.include('body');
      }
    });

    it('never write over a file', async () => {
      await writeFile(path, 'mine');
      await writeFile(target, 'mine');
      const writing = writeBody(piecesOf(), { path, enc: 'none', crypt: 'none', recipients: [] });
      const body: Body = { bytes: 4, sha256: '', enc: 'none', rawBytes: 4, crypt: 'none' };
      const opening = openBody(path, 0, body, {
        ageIdentities: pair.response.ageIdentities,
        target,
      });
      for (const refused of [writing, opening]) {
        let code = '';
        await refused.catch((error: NodeJS.ErrnoException) => (code = error.code ?? ''));
        expect(code).to.equal('EEXIST');
      }
      expect(await readFile(path, 'utf8')).to.equal('mine');
      expect(await readFile(target, 'utf8')).to.equal('mine');
    });
  });

  describe('openBody', () => {
    const raw = Buffer.from('{"a":1}\n'.repeat(5_000));
    const rawBytes = raw.length;

    it('stops at the stated size, however far the data inflates', async () => {
      const bomb = gzipSync(Buffer.alloc(256 * KIB * KIB), { level: 9 });
      const before = process.memoryUsage().rss;
      expect(await openAs(bomb, { rawBytes: bomb.length * 200 })).to.equal('INFLATE_LIMIT');
      expect(process.memoryUsage().rss - before).to.be.lessThan(150 * KIB * KIB);
      expect(await openAs(gzipSync(raw), { rawBytes: rawBytes - 1 })).to.equal('INFLATE_LIMIT');
      expect(await openAs(raw, { enc: 'none', rawBytes: rawBytes - 1 })).to.equal('INFLATE_LIMIT');
    });

    it('refuses fewer bytes than stated', async () => {
      expect(await openAs(gzipSync(raw), { rawBytes: rawBytes + 1 })).to.equal('COUNT_MISMATCH');
      expect(await openAs(raw, { enc: 'none', rawBytes: rawBytes + 1 })).to.equal('COUNT_MISMATCH');
      const short = { enc: 'none' as const, bytes: rawBytes + 1, rawBytes };
      expect(await openAs(raw, short)).to.equal('TRUNCATED');
    });

    it('refuses a second gzip member, empty members and junk', async () => {
      const member = gzipSync(raw);
      const nothing = gzipSync('');
      const cases: [string, Buffer][] = [
        ['second member', Buffer.concat([member, member])],
        ['empty member after', Buffer.concat([member, nothing])],
        ['empty member before', Buffer.concat([nothing, member])],
        ['one byte', Buffer.concat([member, Buffer.from([0])])],
        ['seven zeros', Buffer.concat([member, Buffer.alloc(7)])],
        ['eight zeros', Buffer.concat([member, Buffer.alloc(8)])],
        ['its trailer again', Buffer.concat([member, member.subarray(-8)])],
        ['a megabyte', Buffer.concat([member, Buffer.alloc(KIB * KIB, 1)])],
      ];
      for (const [name, bytes] of cases) {
        expect(await openAs(bytes, { rawBytes }), name).to.equal('TRAILING_DATA');
      }
      expect(await openAs(member, { rawBytes })).to.equal(undefined);
    });

    it('refuses gzip data cut at any place', async () => {
      const member = gzipSync(raw);
      for (let length = 0; length < member.length; length++) {
        const code = await openAs(member.subarray(0, length), { rawBytes });
        expect(code, `${length} bytes`).to.equal('INFLATE_FAILED');
      }
    });

    it('refuses a wrong checksum, size, header or bit', async () => {
      const member = gzipSync(raw);
      for (const at of [0, 1, 2, 3, member.length - 1, member.length - 5, member.length - 8]) {
        const broken = Buffer.from(member);
        broken[at] = (broken[at] as number) ^ 0x10;
        expect(await openAs(broken, { rawBytes }), `byte ${at}`).to.equal('INFLATE_FAILED');
      }
      // The last byte before the trailer ends in bits that mean nothing.
      for (let at = 10; at < member.length - 9; at++) {
        const broken = Buffer.from(member);
        broken[at] = (broken[at] as number) ^ 0x10;
        expect(await openAs(broken, { rawBytes }), `byte ${at}`).to.be.a('string');
      }
      expect(await openAs(gzipSync(gzipSync(raw)), { rawBytes })).to.equal('COUNT_MISMATCH');
    });

    it('refuses what is encrypted to somebody else, damaged, or not at all', async () => {
      const content = randomBytes(200 * KIB);
      const age = { crypt: 'age' as const, enc: 'none' as const, rawBytes: content.length };
      const good = await encryptTo(pair.response.card.age, content);
      expect(await openAs(good, age)).to.equal(undefined);
      const payload = good.length - content.length - 16 * 4;
      const chunk = 64 * KIB + 16;
      const swapped = Buffer.concat([
        good.subarray(0, payload),
        good.subarray(payload + chunk, payload + 2 * chunk),
        good.subarray(payload, payload + chunk),
        good.subarray(payload + 2 * chunk),
      ]);
      const cases: [string, Buffer][] = [
        ['other recipient', await encryptTo(pair.request.card.age, content)],
        ['last chunk cut', good.subarray(0, -1)],
        ['last chunk missing', good.subarray(0, payload + 3 * chunk)],
        ['only its header', good.subarray(0, payload)],
        ['cut in its header', good.subarray(0, 40)],
        ['chunks swapped', swapped],
        ['data after it', Buffer.concat([good, Buffer.from('x')])],
        ['plain text', content],
        ['endless header', Buffer.from(`age-encryption.org/v1\n${'x'.repeat(200_000)}`)],
        ['nothing', Buffer.alloc(0)],
      ];
      for (const [name, bytes] of cases) {
        expect(await openAs(bytes, age), name).to.equal('DECRYPT_FAILED');
      }
    });
  });
});
