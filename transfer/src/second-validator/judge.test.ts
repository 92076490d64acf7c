import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createHash } from 'node:crypto';
import { expect } from 'chai';
import { FlattenedSign } from 'jose';
import { gzipSync } from 'node:zlib';
import { newId, RECORD_TYPES, STREAM_NAMES, STREAMS } from '@sallyport/shared';
import { signManifest, type Manifest } from '../format/manifest.js';
import { judgeBatch, STREAMS as JUDGED_STREAMS, type Question, type Verdict } from './judge.js';
import {
  makeTestPair,
  requestLine,
  testManifest,
  writeTestBatch,
  type TestPair,
} from '../test-batch.js';

describe('the second validator', () => {
  it('knows every stream as it is, and no higher version than 1', () => {
    const ours = STREAM_NAMES.map((name) => {
      const { from, types, alwaysEncrypted } = STREAMS[name];
      const secret = alwaysEncrypted ? { secret: true } : {};
      return [name, { from: from.join(' '), types: types.join(' '), ...secret }];
    });
    expect(Object.fromEntries(JUDGED_STREAMS)).to.deep.equal(Object.fromEntries(ours));
    const versions = Object.values(RECORD_TYPES).map(({ v }) => v);
    expect(Math.max(...versions)).to.equal(1);
  });
});

describe('judgeBatch', () => {
  let pair: TestPair;

  before(async () => {
    pair = await makeTestPair();
  });
  after(() => pair.remove());

  const question = (path: string): Question => ({
    path,
    node: pair.response.node,
    link: pair.link,
    senders: [pair.request.card],
    identities: [...pair.response.ageIdentities],
  });
  const codeOf = (verdict: Verdict) => (verdict.ok ? 'accepted' : verdict.code);
  /** A signed batch with exactly this body. */
  const write = async (body: Buffer, change: Partial<Manifest>): Promise<string> => {
    const sha256 = createHash('sha256').update(body).digest('hex');
    const stated = {
      bytes: body.length,
      sha256,
      enc: 'none',
      rawBytes: body.length,
      crypt: 'none',
    };
    const full = { ...stated, ...change.body } as Manifest['body'];
    const manifest = testManifest(pair, { ...change, body: full });
    const { line } = await signManifest(manifest, pair.request);
    const path = join(pair.folder, `${newId()}.batch`);
    await writeFile(path, [line, '\n', body]);
    return path;
  };
  const judgeLines = async (text: string | Buffer, count = 1) => {
    const change = { records: count, types: { request: count } };
    return codeOf(await judgeBatch(question(await write(Buffer.from(text), change))));
  };

  for (const enc of ['none', 'gzip'] as const) {
    for (const crypt of ['none', 'age'] as const) {
      it(`accepts a batch with ${enc} and ${crypt}, of several pieces and chunks`, async () => {
        const lines = Array.from({ length: 1_500 }, (_, i) => requestLine({ query: `{"é":${i}}` }));
        const batch = await writeTestBatch(pair, lines, { enc, crypt });
        const verdict = await judgeBatch(question(batch.path));
        expect(verdict).to.deep.equal({ ok: true, digest: batch.digest, records: 1_500 });
      });
    }
  }

  it('refuses a changed byte anywhere in a file', async () => {
    const { path } = await writeTestBatch(pair, [requestLine()], { enc: 'gzip', crypt: 'age' });
    const bytes = await readFile(path);
    const changed = `${path}.changed`;
    const accepted: number[] = [];
    for (let at = 0; at < bytes.length; at += 7) {
      const copy = Buffer.from(bytes);
      copy[at] = (copy[at] ?? 0) ^ 1;
      await writeFile(changed, copy);
      if ((await judgeBatch(question(changed))).ok) accepted.push(at);
    }
    expect(accepted).to.deep.equal([]);
  });

  it('says TRUNCATED and TRAILING_DATA for a wrong length', async () => {
    const { path } = await writeTestBatch(pair, [requestLine()]);
    const bytes = await readFile(path);
    await writeFile(`${path}.short`, bytes.subarray(0, -1));
    await writeFile(`${path}.long`, Buffer.concat([bytes, Buffer.from('\n')]));
    expect(codeOf(await judgeBatch(question(`${path}.short`)))).to.equal('TRUNCATED');
    expect(codeOf(await judgeBatch(question(`${path}.long`)))).to.equal('TRAILING_DATA');
  });

  it('refuses a second gzip member, zeros after the end, and a wrong checksum', async () => {
    const plain = Buffer.from(`${requestLine()}\n`);
    const gzip = gzipSync(plain);
    const flipped = Buffer.from(gzip);
    flipped[gzip.length - 6] = (flipped[gzip.length - 6] ?? 0) ^ 1;
    const bodies = [
      Buffer.concat([gzip, gzipSync('')]),
      Buffer.concat([gzipSync(''), gzip]),
      Buffer.concat([gzip, Buffer.alloc(4)]),
      flipped,
    ];
    const codes: string[] = [];
    for (const body of bodies) {
      const stated = { enc: 'gzip', rawBytes: plain.length } as Manifest['body'];
      const path = await write(body, { records: 1, types: { request: 1 }, body: stated });
      codes.push(codeOf(await judgeBatch(question(path))));
    }
    expect(codes.slice(0, 3)).to.deep.equal(Array(3).fill('TRAILING_DATA'));
    expect(codes[3]).to.equal('INFLATE_FAILED');
  });

  const line = requestLine();
  const inData = (text: string) => line.replace('"d":{', `"d":{${text},`);
  const lines: [what: string, text: string | Buffer, code: string][] = [
    ['a key twice', inData('"a":1,"a":2'), 'BAD_JSON'],
    ['a key twice, once escaped', inData('"a":1,"\\u0061":2'), 'BAD_JSON'],
    ['a key twice among many', inData(`${keys(40)},"k3":0`), 'BAD_JSON'],
    ['__proto__', inData('"__proto__":1'), 'BAD_JSON'],
    ['an escaped constructor', inData('"c\\u006fnstructor":1'), 'BAD_JSON'],
    ['NUL', inData('"a":"\\u0000"'), 'BAD_JSON'],
    ['half a surrogate pair', inData('"a":"\\ud800x"'), 'BAD_JSON'],
    ['a large integer', inData('"a":9007199254740992'), 'SCHEMA'],
    ['minus zero', inData('"a":-0'), 'SCHEMA'],
    ['a number that becomes zero', inData('"a":1e-400'), 'SCHEMA'],
    ['32 levels', inData(`"a":${nested(30)}`), 'accepted'],
    ['33 levels', inData(`"a":${nested(31)}`), 'SCHEMA'],
    ['256 keys in an object', inData(`"a":{${keys(256)}}`), 'accepted'],
    ['257 keys in an object', inData(`"a":{${keys(257)}}`), 'SCHEMA'],
    ['a carriage return', `${line}\r`, 'SCHEMA'],
    ['bytes that are no UTF-8', Buffer.from(inData('"a":"\u00e9"'), 'latin1'), 'BAD_UTF8'],
    ['another member', line.replace('"v":1', '"v":1,"x":1'), 'SCHEMA'],
    [
      'a day that does not exist',
      line.replace(/"at":"[^"]*"/, '"at":"2025-02-30T00:00:00.000Z"'),
      'SCHEMA',
    ],
    ['a later version', line.replace('"v":1', '"v":2'), 'WAIT_UPGRADE'],
    ['the type of another stream', line.replace('"t":"request"', '"t":"user"'), 'SCHEMA'],
    ['an unknown type', line.replace('"t":"request"', '"t":"new"'), 'WAIT_UPGRADE'],
  ];
  for (const [what, text, code] of lines) {
    it(`answers ${code} for a line with ${what}`, async () => {
      const bytes = Buffer.concat([Buffer.from(text), Buffer.from('\n')]);
      expect(await judgeLines(bytes)).to.equal(code);
    });
  }

  it('answers LINE_TOO_LONG only beyond 1 MiB', async () => {
    const padded = (length: number) => {
      const start = inData('"a":""');
      return `${start.replace('"a":"', `"a":"${'x'.repeat(length - start.length)}`)}\n`;
    };
    expect(await judgeLines(padded(1024 * 1024))).to.equal('accepted');
    expect(await judgeLines(padded(1024 * 1024 + 1))).to.equal('LINE_TOO_LONG');
  });

  it('answers COUNT_MISMATCH for one record less or more than stated, SCHEMA without a last LF', async () => {
    expect(await judgeLines(`${line}\n`, 2)).to.equal('COUNT_MISMATCH');
    expect(await judgeLines(`${line}\n${line}\n`, 1)).to.equal('COUNT_MISMATCH');
    expect(await judgeLines(line)).to.equal('SCHEMA');
  });

  it('refuses ranges that run backwards, overlap or are not in order, and counters beyond use', async () => {
    const digest = '0'.repeat(64);
    const judge = async (change: Record<string, unknown>) => {
      const empty = createHash('sha256').digest('hex');
      const body = { bytes: 0, sha256: empty, enc: 'none', rawBytes: 0, crypt: 'none' };
      const payload = Buffer.from(JSON.stringify({ ...testManifest(pair), body, ...change }));
      const jws = await new FlattenedSign(payload)
        .setProtectedHeader({
          alg: 'Ed25519',
          kid: pair.request.kid,
          typ: 'sallyport-batch+jws',
        })
        .sign(pair.request.signKey);
      const members = { payload: jws.payload, protected: jws.protected, signature: jws.signature };
      const path = join(pair.folder, `${newId()}.batch`);
      await writeFile(path, `${JSON.stringify(members)}\n`);
      return codeOf(await judgeBatch(question(path)));
    };
    const { ack } = testManifest(pair);
    const tell = (extra: number[][], missing: number[][]) => {
      const told = { epoch: 1, contiguous: 0, digest, extra, missing, rejected: [], more: false };
      return judge({ ack: { ...ack, streams: { requests: told } } });
    };
    for (const ranges of [
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
    ]) {
      expect(await tell(ranges, []), JSON.stringify(ranges)).to.equal('SCHEMA');
      expect(await tell([], ranges), JSON.stringify(ranges)).to.equal('SCHEMA');
    }
    expect(await judge({ ack: { ...ack, no: 2 ** 53 - 1 } })).to.equal('SCHEMA');
    const requests = { epoch: 1, seq: 10 ** 12 + 1, digest };
    expect(await judge({ tail: { requests } })).to.equal('SCHEMA');
    expect(
      await tell(
        [[2, 3]],
        [
          [1, 1],
          [4, 9],
        ],
      ),
    ).to.equal('accepted');
  });

  it('refuses a batch for another node, of another link, or of a key it was not told', async () => {
    const { path } = await writeTestBatch(pair, [requestLine()]);
    const asked = question(path);
    const ask = async (change: Partial<Question>) =>
      codeOf(await judgeBatch({ ...asked, ...change }));
    expect(await ask({ node: 'other' })).to.equal('WRONG_DESTINATION');
    expect(await ask({ link: 'abcdefghijklmnop' })).to.equal('WRONG_LINK');
    expect(await ask({ senders: [pair.response.card] })).to.equal('UNKNOWN_KEY');
    expect(await ask({ identities: [...pair.request.ageIdentities] })).to.equal('DECRYPT_FAILED');
    expect(await ask({ now: Date.parse('2025-05-30T00:00:00.000Z') })).to.equal('FROM_FUTURE');
  });
});

function keys(count: number): string {
  return Array.from({ length: count }, (_, i) => `"k${i}":0`).join();
}

function nested(depth: number): string {
  return '['.repeat(depth) + ']'.repeat(depth);
}
