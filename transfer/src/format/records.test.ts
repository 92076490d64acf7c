import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { newId } from '@sallyport/shared';
import { expect } from 'chai';
import * as fc from 'fast-check';
import { type IncomingRecord, readRecords, type StatedRecords } from './records.js';
import { codeOfAsync } from '../test-codes.js';
import { makeTestPair, recordText, requestLine, type TestPair } from '../test-batch.js';

describe('readRecords', () => {
  let pair: TestPair;
  let path: string;
  before(async () => {
    pair = await makeTestPair();
    path = join(pair.folder, 'opened');
  });
  after(() => pair.remove());

  async function read(
    content: string | Buffer,
    stated: Partial<StatedRecords> = {},
  ): Promise<IncomingRecord[]> {
    await writeFile(path, content);
    const all: IncomingRecord[] = [];
    const known = { stream: 'requests', records: 1, types: { request: 1 }, ...stated } as const;
    for await (const group of readRecords(path, known)) all.push(...group);
    return all;
  }
  const codeFor = (content: string | Buffer, stated: Partial<StatedRecords> = {}) =>
    codeOfAsync(read(content, stated));
  const fileOf = (...lines: string[]) => lines.map((line) => `${line}\n`).join('');
  const withD = (d: string) => requestLine().replace(/"d":.*$/, `"d":${d}}`);

  const result = (text: string | null) => ({
    status: 'delivered',
    failure: null,
    media_type: 'application/json',
    bytes: text === null ? null : Buffer.byteLength(text),
    sha256: null,
    parts: 0,
    text,
    disclosure: null,
    dataset_version: 1,
    policy_version: 1,
    times: {
      received_at: '2025-06-01T10:00:00.000Z',
      started_at: null,
      finished_at: '2025-06-01T10:00:00.000Z',
      took_ms: 1,
    },
  });

  it('reads every record once, in order, over the borders of pieces (property)', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.record({ query: fc.string({ minLength: 2, unit: 'grapheme' }), n: fc.nat(40) }),
          {
            maxLength: 60,
          },
        ),
        async (parts) => {
          // Enough text that lines lie across the 1 MiB pieces in which the file is read.
          const queries = parts.map(({ query, n }) =>
            query.replaceAll('\0', '').padEnd(n * 1_000, 'ä'),
          );
          const lines = queries.map((query) => requestLine({ query: query.padEnd(2) }));
          const records = lines.length;
          const stated = { records, types: { request: records } };
          const found = await read(fileOf(...lines), stated);
          expect(found.map(({ line }) => line)).to.deep.equal(lines.map((_, i) => i + 1));
          expect(
            found.map(({ t, id, v, at, d }) => JSON.stringify({ t, id, v, at, d })),
          ).to.deep.equal(lines);
          expect(found.every(({ bad, text }) => bad === null && text === null)).to.equal(true);
        },
      ),
      { numRuns: 30 },
    );
  });

  it('reads more records than one group holds', async () => {
    const lines = Array.from({ length: 2_500 }, () => requestLine());
    const found = await read(fileOf(...lines), { records: 2_500, types: { request: 2_500 } });
    expect(found).to.have.length(2_500);
  });

  it('moves the text of results out of the data, exactly', async () => {
    const text = '{"n":9007199254740993,"u":"\u2028\u202e😀","e":1e400}';
    const lines = [
      recordText('result', result(text)),
      recordText('result', result(null)),
      recordText('result.part', { index: 0, text: 'ab' }),
    ];
    const types = { result: 2, 'result.part': 1 };
    const found = await read(fileOf(...lines), { stream: 'results', records: 3, types });
    expect(found.map((record) => record.text)).to.deep.equal([text, null, 'ab']);
    expect(found.map(({ d }) => d['text'])).to.deep.equal([null, null, null]);
    expect(found[2]?.d['index']).to.equal(0);
  });

  it('refuses only the record where a stream says so', async () => {
    const lines = [requestLine(), requestLine({ tier: 'Z' }), withD('{}')];
    const found = await read(fileOf(...lines), { records: 3, types: { request: 3 } });
    expect(found.map(({ bad }) => bad?.code ?? null)).to.deep.equal([null, 'SCHEMA', 'SCHEMA']);
    expect(found[1]?.bad?.detail).to.contain('/tier');
    const settings = { stream: 'settings', records: 1, types: { setting: 1 } } as const;
    const bad = recordText('setting', { key: 'a', version: 0, value: 1 });
    expect(await codeFor(fileOf(bad), settings)).to.equal('SCHEMA');
  });

  it('says in which line the fault is', async () => {
    await writeFile(path, fileOf(requestLine(), '{"t":7}'));
    const reading = read(fileOf(requestLine(), '{"t":7}'), { records: 2, types: { request: 2 } });
    const failed = await reading.then(
      () => undefined,
      (error: { message: string; extra: object }) => error,
    );
    expect(failed?.extra).to.deep.equal({ line: 2 });
    expect(failed?.message).to.match(/^Line 2 of the body: /);
  });

  const envelope = (change: Record<string, unknown>) =>
    JSON.stringify({ ...(JSON.parse(requestLine()) as object), ...change });

  for (const [name, make, codes] of [
    ['an empty line', () => `${requestLine()}\n\n`, ['COUNT_MISMATCH', 'SCHEMA']],
    ['an empty first line', () => `\n${requestLine()}\n`, ['SCHEMA']],
    ['ten thousand empty lines', () => '\n'.repeat(10_000), ['SCHEMA']],
    ['no final newline', () => requestLine(), ['SCHEMA']],
    ['CR LF', () => `${requestLine()}\r\n`, ['SCHEMA']],
    ['a bare CR between tokens', () => fileOf(requestLine().replace(',', ',\r')), ['SCHEMA']],
    ['a byte order mark', () => fileOf(`\ufeff${requestLine()}`), ['BAD_JSON']],
    ['no JSON', () => fileOf('hello'), ['BAD_JSON']],
    ['two values', () => fileOf(`${requestLine()} {}`), ['BAD_JSON']],
    ['an array', () => fileOf('[]'), ['SCHEMA']],
    ['a duplicate key', () => fileOf(withD('{"a":1,"a":2}')), ['BAD_JSON']],
    ['a duplicate key by escape', () => fileOf(withD('{"a":1,"\\u0061":2}')), ['BAD_JSON']],
    ['__proto__', () => fileOf(withD('{"__proto__":{"x":1}}')), ['BAD_JSON']],
    ['constructor', () => fileOf(withD('{"constructor":{"x":1}}')), ['BAD_JSON']],
    ['a lone surrogate', () => fileOf(withD('{"a":"\\ud800"}')), ['BAD_JSON']],
    ['an escaped NUL', () => fileOf(withD('{"a":"\\u0000"}')), ['BAD_JSON']],
    ['a bare NUL', () => fileOf(withD('{"a":"\0"}')), ['BAD_JSON']],
    ['minus zero', () => fileOf(withD('{"a":-0}')), ['SCHEMA']],
    ['an unsafe integer', () => fileOf(withD('{"a":9007199254740993}')), ['SCHEMA']],
    ['an infinite number', () => fileOf(withD('{"a":1e400}')), ['SCHEMA']],
    ['NaN', () => fileOf(withD('{"a":NaN}')), ['BAD_JSON']],
    ['depth 5000', () => fileOf(withD(`${'['.repeat(5_000)}${']'.repeat(5_000)}`)), ['SCHEMA']],
    [
      '257 keys in one object',
      () =>
        fileOf(
          withD(JSON.stringify(Object.fromEntries(Array.from({ length: 257 }, (_, i) => [i, 1])))),
        ),
      ['SCHEMA'],
    ],
    ['no object in d', () => fileOf(withD('[]')), ['SCHEMA']],
    ['no d', () => fileOf(envelope({ d: undefined })), ['SCHEMA']],
    ['an extra member', () => fileOf(envelope({ x: 1 })), ['SCHEMA']],
    ['an id in upper case', () => fileOf(envelope({ id: newId().toUpperCase() })), ['SCHEMA']],
    ['version 0', () => fileOf(envelope({ v: 0 })), ['SCHEMA']],
    [
      'a time that never was',
      () => fileOf(envelope({ at: '2025-02-29T10:00:00.000Z' })),
      ['SCHEMA'],
    ],
    ['a higher version', () => fileOf(envelope({ v: 2 })), ['WAIT_UPGRADE']],
    ['an unknown type', () => fileOf(envelope({ t: 'riddle' })), ['WAIT_UPGRADE']],
    ['a type of the prototype', () => fileOf(envelope({ t: 'constructor' })), ['WAIT_UPGRADE']],
    ['a type of another stream', () => fileOf(envelope({ t: 'user' })), ['SCHEMA']],
  ] as [string, () => string, string[]][]) {
    it(`refuses ${name}`, async () => {
      expect(await codeFor(make())).to.be.oneOf(codes);
      expect(({} as Record<string, unknown>)['x']).to.equal(undefined);
    });
  }

  it('refuses bytes that are no UTF-8', async () => {
    for (const bad of [[0xff], [0xc0, 0xaf], [0xed, 0xa0, 0x80], [0xe2, 0x82]]) {
      const [head, tail] = withD('{"a":"@"}').split('@') as [string, string];
      const bytes = [Buffer.from(head), Buffer.from(bad), Buffer.from(`${tail}\n`)];
      expect(await codeFor(Buffer.concat(bytes)), bad.join()).to.equal('BAD_UTF8');
    }
  });

  it('refuses a line over 1 MiB and takes one of exactly 1 MiB', async () => {
    const part = (bytes: number) => {
      const empty = recordText('setting', { key: 'a', version: 1, value: '' });
      return recordText('setting', {
        key: 'a',
        version: 1,
        value: 'x'.repeat(bytes - empty.length),
      });
    };
    const stated = { stream: 'settings', records: 1, types: { setting: 1 } } as const;
    expect(await codeFor(fileOf(part(1024 ** 2)), stated)).to.equal(undefined);
    expect(await codeFor(fileOf(part(1024 ** 2 + 1)), stated)).to.equal('LINE_TOO_LONG');
    expect(await codeFor('x'.repeat(5 * 1024 ** 2), stated)).to.equal('LINE_TOO_LONG');
  });

  it('compares the counts with those stated', async () => {
    const two = fileOf(requestLine(), requestLine());
    expect(await codeFor(two, { records: 1, types: { request: 1 } })).to.equal('COUNT_MISMATCH');
    expect(await codeFor(two, { records: 3, types: { request: 3 } })).to.equal('COUNT_MISMATCH');
    const wrong = { request: 1, 'request.cancel': 1 };
    expect(await codeFor(two, { records: 2, types: wrong })).to.equal('COUNT_MISMATCH');
    expect(await codeFor('', { records: 0, types: {} })).to.equal(undefined);
    expect(await codeFor(two, { records: 2_000_000, types: {} })).to.equal('COUNT_MISMATCH');
  });
});
