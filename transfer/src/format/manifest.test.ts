import { createHash, createHmac, createPublicKey, verify } from 'node:crypto';
import { FlattenedSign } from 'jose';
import { expect } from 'chai';
import type { Manifest } from './manifest.js';
import { readHeader, signManifest, verifyHeader, ZERO_DIGEST } from './manifest.js';
import { codeOf, codeOfAsync } from '../test-codes.js';
import { makeTestPair, testManifest, type TestPair } from '../test-batch.js';

const TYP = 'sallyport-batch+jws';

describe('manifest', () => {
  let pair: TestPair;
  before(async () => {
    pair = await makeTestPair();
  });
  after(() => pair.remove());

  /** Line 1 with any payload, protected header and extra members, truly signed by the request side. */
  async function signAny(
    payload: string | Buffer,
    head: Record<string, unknown> = {},
    extra: Record<string, unknown> = {},
  ): Promise<Buffer> {
    const jws = await new FlattenedSign(Buffer.from(payload))
      .setProtectedHeader({ alg: 'Ed25519', kid: pair.request.kid, typ: TYP, ...head })
      .sign(pair.request.signKey);
    return lineOf({
      payload: jws.payload,
      protected: jws.protected,
      signature: jws.signature,
      ...extra,
    });
  }

  const lineOf = (members: Record<string, unknown>) => Buffer.from(JSON.stringify(members));
  const signChanged = (change: Record<string, unknown>) =>
    signAny(JSON.stringify({ ...testManifest(pair), ...change }));
  const verifyCode = (line: Buffer) => codeOfAsync(verifyHeader(line, pair.cardOf));

  describe('signManifest and verifyHeader', () => {
    it('carry the manifest across unchanged', async () => {
      const manifest = testManifest(pair, {
        notAfter: '2025-07-01T10:00:00.000Z',
        tail: { requests: { epoch: 1, seq: 7, digest: ZERO_DIGEST } },
        ack: {
          no: 3,
          incarnation: '0190b5b0-0000-7000-8000-000000000000',
          streams: {
            results: {
              epoch: 1,
              contiguous: 4,
              digest: ZERO_DIGEST,
              extra: [[6, 9]],
              missing: [[5, 5]],
              rejected: [{ seq: 3, digest: ZERO_DIGEST, code: 'SCHEMA' }],
              more: false,
            },
          },
        },
      });
      const { line, digest } = await signManifest(manifest, pair.request);
      const header = await verifyHeader(line, pair.cardOf);
      expect(header).to.deep.equal({ manifest, digest, kid: pair.request.kid });
      expect(readHeader(line).manifest).to.deep.equal(manifest);
      expect(line.length).to.be.lessThan(2_048);
    });

    it('make a line that node:crypto alone verifies', async () => {
      const { line, digest } = await signManifest(testManifest(pair), pair.request);
      const jws = JSON.parse(line.toString()) as Record<string, string>;
      const key = createPublicKey({
        key: { kty: 'OKP', crv: 'Ed25519', x: pair.request.card.sign },
        format: 'jwk',
      });
      const signed = Buffer.from(`${jws['protected']}.${jws['payload']}`);
      const signature = Buffer.from(jws['signature'] as string, 'base64url');
      expect(verify(null, signed, key, signature)).to.equal(true);
      const payload = Buffer.from(jws['payload'] as string, 'base64url');
      expect(createHash('sha256').update(payload).digest('hex')).to.equal(digest);
    });

    it('refuse to sign what the far side would refuse', async () => {
      const bad: [Partial<Manifest>, string][] = [
        [{ seq: 0 }, 'SCHEMA'],
        [{ records: 1 }, 'COUNT_MISMATCH'],
        [{ from: 'somebody' }, 'KEY_WRONG_ROLE'],
        [{ stream: 'identity' }, 'SCHEMA'],
      ];
      for (const [change, code] of bad) {
        const signing = signManifest(testManifest(pair, change), pair.request);
        expect(await codeOfAsync(signing), JSON.stringify(change)).to.equal(code);
      }
    });

    it('refuse a line over 64 KiB', async () => {
      const seqs = Array.from({ length: 200 }, (_, i): [number, number] => {
        const seq = Number.MAX_SAFE_INTEGER - 400 + 2 * i;
        return [seq, seq];
      });
      const stream = {
        epoch: 1,
        contiguous: 0,
        digest: ZERO_DIGEST,
        extra: seqs,
        missing: seqs,
        rejected: Array.from({ length: 50 }, () => ({
          seq: 1,
          digest: ZERO_DIGEST,
          code: 'SCHEMA',
        })),
        more: true,
      };
      const streams = {
        results: stream,
        'results.bulk': stream,
        identity: stream,
        control: stream,
      };
      const manifest = testManifest(pair);
      const large = { ...manifest, ack: { ...manifest.ack, streams } };
      expect(await codeOfAsync(signManifest(large, pair.request))).to.equal('HEADER_TOO_BIG');
    });
  });

  describe('verifyHeader', () => {
    it('refuses every single flipped bit of line 1', async () => {
      const { line } = await signManifest(testManifest(pair), pair.request);
      for (let bit = 0; bit < line.length * 8; bit++) {
        const flipped = Buffer.from(line);
        flipped[bit >> 3] = (flipped[bit >> 3] as number) ^ (1 << (bit & 7));
        expect(await verifyCode(flipped), `bit ${bit}`).to.be.a('string');
      }
    });

    it('refuses other algorithms and keys in the header', async () => {
      const payload = JSON.stringify(testManifest(pair));
      const { protected: head, ...rest } = JSON.parse(
        (await signAny(payload)).toString(),
      ) as Record<string, string>;
      const own = JSON.parse(Buffer.from(head as string, 'base64url').toString()) as object;
      const jwk = { kty: 'OKP', crv: 'Ed25519', x: pair.request.card.sign };
      const heads: Record<string, unknown>[] = [
        { ...own, alg: 'none' },
        { ...own, alg: 'EdDSA' },
        { ...own, alg: 'HS256' },
        { ...own, alg: ['Ed25519'] },
        { ...own, typ: 'JWT' },
        { ...own, jwk },
        { ...own, jku: 'https://example.org/keys' },
        { ...own, x5c: ['AAAA'] },
        { ...own, crit: ['b64'], b64: false },
        { ...own, kid: 7 },
        { alg: 'Ed25519', typ: TYP },
        {},
      ];
      for (const changed of heads) {
        const protectedText = Buffer.from(JSON.stringify(changed)).toString('base64url');
        const line = lineOf({
          payload: rest['payload'],
          protected: protectedText,
          signature: rest['signature'],
        });
        expect(await verifyCode(line), JSON.stringify(changed)).to.equal('BAD_SIGNATURE');
      }
    });

    it('refuses a truly signed header of another form', async () => {
      const payload = JSON.stringify(testManifest(pair));
      expect(await verifyCode(await signAny(payload))).to.equal(undefined);
      const jwk = { kty: 'OKP', crv: 'Ed25519', x: pair.request.card.sign };
      for (const head of [{ jwk }, { typ: 'other' }, { alg: 'EdDSA' }, { cty: 'json' }]) {
        const line = await signAny(payload, head);
        expect(await verifyCode(line), JSON.stringify(head)).to.equal('BAD_SIGNATURE');
      }
    });

    it('refuses an HMAC by the public key, and an empty signature', async () => {
      const payload = Buffer.from(JSON.stringify(testManifest(pair))).toString('base64url');
      for (const alg of ['HS256', 'Ed25519']) {
        const head = Buffer.from(JSON.stringify({ alg, kid: pair.request.kid, typ: TYP })).toString(
          'base64url',
        );
        const mac = createHmac('sha256', Buffer.from(pair.request.card.sign, 'base64url'));
        const signature = mac.update(`${head}.${payload}`).digest('base64url');
        for (const text of [signature, '', Buffer.alloc(64).toString('base64url')]) {
          const line = lineOf({ payload, protected: head, signature: text });
          expect(await verifyCode(line), `${alg} ${text}`).to.equal('BAD_SIGNATURE');
        }
      }
    });

    it('refuses extra members, other orders and loose base64url', async () => {
      const payload = JSON.stringify(testManifest(pair));
      const line = await signAny(payload);
      const {
        payload: p,
        protected: h,
        signature: s,
      } = JSON.parse(line.toString()) as Record<string, string>;
      const lines = [
        lineOf({ payload: p, protected: h, signature: s, header: { jku: 'x' } }),
        lineOf({ payload: p, protected: h, signature: s, release: [] }),
        lineOf({ protected: h, payload: p, signature: s }),
        lineOf({ payload: p, protected: h }),
        lineOf({ payload: p, protected: h, signature: 7 }),
        lineOf({ payload: `${p}=`, protected: h, signature: s }),
        lineOf({ payload: `${p} `, protected: h, signature: s }),
        Buffer.from(` ${line.toString()}`),
        Buffer.from(`${line.toString()} `),
        Buffer.concat([Buffer.from([0xef, 0xbb, 0xbf]), line]),
        Buffer.from(`${line.toString()}\r`),
      ];
      for (const bad of lines) {
        expect(await verifyCode(bad), bad.toString()).to.be.oneOf(['BAD_HEADER', 'NOT_A_BATCH']);
      }
    });

    it('refuses JSON that parsers read in different ways', async () => {
      const line = (await signAny(JSON.stringify(testManifest(pair)))).toString();
      const deep = '['.repeat(20_000);
      const lines: [string, string[]][] = [
        [line.replace('{', '{"payload":"e30",'), ['BAD_JSON']],
        [line.replace('}', ',}'), ['BAD_JSON']],
        ['{"payload":NaN}', ['BAD_JSON']],
        ['{"payload":1e999}', ['SCHEMA', 'BAD_JSON']],
        [`{"payload":${deep}`, ['SCHEMA', 'BAD_JSON']],
        ['{"__proto__":{}}', ['BAD_JSON']],
      ];
      for (const [text, codes] of lines) {
        expect(await verifyCode(Buffer.from(text)), text.slice(0, 80)).to.be.oneOf(codes);
      }
      const notUtf8 = Buffer.from(line);
      notUtf8[20] = 0xff;
      expect(await verifyCode(notUtf8)).to.equal('BAD_UTF8');
      const twice = JSON.stringify(testManifest(pair)).replace('{', '{"seq":9,');
      expect(await verifyCode(await signAny(twice))).to.equal('BAD_JSON');
    });

    for (const [text, code] of [
      ['9007199254740993', 'SCHEMA'],
      ['-1', 'SCHEMA'],
      ['0', 'SCHEMA'],
      ['1.5', 'SCHEMA'],
      ['"7"', 'SCHEMA'],
      ['-0', 'SCHEMA'],
      ['1e400', 'SCHEMA'],
      ['01', 'BAD_JSON'],
    ] as const) {
      it(`refuses the number ${text} with ${code}`, async () => {
        const payload = JSON.stringify(testManifest(pair)).replace('"seq":1,', `"seq":${text},`);
        expect(await verifyCode(await signAny(payload))).to.equal(code);
      });
    }

    it('names what is wrong with a signed manifest', async () => {
      const { body } = testManifest(pair);
      const cases: [Record<string, unknown>, string][] = [
        [{ fmt: 'other' }, 'NOT_A_BATCH'],
        [{ v: 2 }, 'UNSUPPORTED_VERSION'],
        [{ v: 0 }, 'SCHEMA'],
        [{ extra: 1 }, 'SCHEMA'],
        [{ prev: 'x' }, 'SCHEMA'],
        [{ createdAt: '2025-02-30T10:00:00.000Z' }, 'SCHEMA'],
        [{ createdAt: '2025-06-01T25:00:00.000Z' }, 'SCHEMA'],
        [{ notAfter: '2025-13-01T10:00:00.000Z' }, 'SCHEMA'],
        [{ records: 1, types: { riddle: 1 } }, 'WAIT_UPGRADE'],
        [{ records: 1, types: { user: 1 } }, 'SCHEMA'],
        [{ records: 2, types: { request: 1 } }, 'COUNT_MISMATCH'],
        [{ records: 1, types: { request: 1 }, kind: 'heartbeat' }, 'COUNT_MISMATCH'],
        [{ records: 1_000_001, types: { request: 1_000_001 } }, 'TOO_MANY_RECORDS'],
        [{ body: { ...body, bytes: 5e9 } }, 'TOO_BIG'],
        [{ body: { ...body, rawBytes: 2 ** 31 + 1 } }, 'INFLATE_LIMIT'],
        [{ body: { ...body, enc: 'gzip', bytes: 10, rawBytes: 2_001 } }, 'INFLATE_LIMIT'],
        [{ body: { ...body, enc: 'zstd' } }, 'SCHEMA'],
        [{ stream: 'accounts' }, 'SCHEMA'],
        [{ stream: 'accounts', body: { ...body, crypt: 'age' } }, 'none'],
        [{ stream: 'identity', body: { ...body, crypt: 'age' } }, 'KEY_WRONG_ROLE'],
        [{ stream: 'settings' }, 'KEY_WRONG_ROLE'],
        [{ from: 'answerer' }, 'KEY_WRONG_ROLE'],
      ];
      for (const [change, code] of cases) {
        const found = (await verifyCode(await signChanged(change))) ?? 'none';
        expect(found, JSON.stringify(change)).to.equal(code);
      }
    });

    it('refuses ranges that run backwards, overlap or are not in order, and counters beyond use', async () => {
      const { ack } = testManifest(pair);
      const told = { epoch: 1, contiguous: 0, digest: ZERO_DIGEST, extra: [], missing: [] };
      const rest = { rejected: [], more: false };
      const ranges: number[][][] = [
        [[9, 2]],
        [
          [1, 4],
          [4, 5],
        ],
        [
          [5, 6],
          [1, 2],
        ],
        [
          [3, 3],
          [3, 3],
        ],
      ];
      const bad: Record<string, unknown>[] = [
        ...ranges.flatMap((value) =>
          ['extra', 'missing'].map((name) => {
            const requests = { ...told, ...rest, [name]: value };
            return { ack: { ...ack, streams: { requests } } };
          }),
        ),
        { ack: { ...ack, no: 2 ** 53 - 1 } },
        { tail: { requests: { epoch: 1, seq: 10 ** 12 + 1, digest: ZERO_DIGEST } } },
      ];
      for (const change of bad) {
        expect(await verifyCode(await signChanged(change)), JSON.stringify(change)).to.equal(
          'SCHEMA',
        );
      }
      const missing = [
        [1, 1],
        [2, 2],
        [4, 9],
      ];
      const good = { ...ack, streams: { requests: { ...told, ...rest, missing } } };
      expect(await verifyCode(await signChanged({ ack: good }))).to.equal(undefined);
    });

    it('does not look into what an unknown key has signed', async () => {
      const line = await signChanged({ v: 2 });
      expect(await codeOfAsync(verifyHeader(line, () => undefined))).to.equal('UNKNOWN_KEY');
      const card = { ...pair.response.card, kid: pair.request.kid };
      expect(await codeOfAsync(verifyHeader(line, () => card))).to.equal('BAD_SIGNATURE');
    });
  });

  describe('readHeader', () => {
    it('reads without any key, and is as strict', async () => {
      const line = await signChanged({ from: 'stranger' });
      expect(readHeader(line).manifest.from).to.equal('stranger');
      expect(readHeader(line).protectedHeader['alg']).to.equal('Ed25519');
      const future = await signChanged({ v: 3 });
      expect(codeOf(() => readHeader(future))).to.equal('UNSUPPORTED_VERSION');
      expect(codeOf(() => readHeader(Buffer.from('hello')))).to.equal('NOT_A_BATCH');
    });
  });
});
