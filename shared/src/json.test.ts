import { expect } from 'chai';
import fc from 'fast-check';
import { SallyportError } from './errors.js';
import {
  BATCH_JSON_CODES,
  HTTP_JSON_CODES,
  type JsonLimits,
  parseJson,
  pointerToken,
  scanJson,
} from './json.js';

const LIMITS: JsonLimits = {
  depth: 8,
  keys: 100,
  keysPerObject: 50,
  stringLength: 20,
  arrayLength: 10,
  safeNumbers: true,
  negativeZero: false,
  nul: false,
  codes: HTTP_JSON_CODES,
};
const WIDE: JsonLimits = {
  ...LIMITS,
  depth: 100,
  keys: 1e6,
  keysPerObject: 1e6,
  stringLength: 1e6,
  arrayLength: 1e6,
  safeNumbers: false,
  negativeZero: true,
  nul: true,
};

function refused(input: string | Uint8Array, limits = LIMITS): SallyportError {
  try {
    scanJson(typeof input === 'string' ? Buffer.from(input) : input, limits);
  } catch (error) {
    if (error instanceof SallyportError) return error;
    throw error;
  }
  throw new Error(`passed: ${String(input).slice(0, 100)}`);
}

function keysText(count: number): string {
  return `{${Array.from({ length: count }, (_, i) => `"k${i}":0`).join()}}`;
}

describe('scanJson', () => {
  const fine = [
    '{}',
    '[]',
    ' [ 1 , -2.5e-3,true,false , null, "a\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\uD83D\\uDE00" ]\r\n\t',
    '"x"',
    '0',
    '-1',
    '1E+2',
    '{"a":{"b":[{},[]]},"":1}',
    '9007199254740991',
    '123456789012345.5',
    '"12345678901234567890"',
    `"${'é'.repeat(20)}"`,
    `"${'😀'.repeat(10)}"`,
    `"${'\\u00e9'.repeat(20)}"`,
    keysText(50),
    `[${'1,'.repeat(9)}1]`,
    '[[[[[[[[]]]]]]]]',
    '{"prototypes":1,"constructed":1,"protocolx":1,"__profo__":1}',
  ];
  for (const text of fine) {
    it(`lets ${text.slice(0, 60)} pass`, () => scanJson(Buffer.from(text), LIMITS));
  }

  const broken = [
    '',
    ' ',
    '{',
    '[',
    '[1',
    '[1,',
    '[1,]',
    '{"a":1,}',
    '{"a"}',
    '{"a" 1}',
    '{a:1}',
    "{'a':1}",
    '{,}',
    '[,]',
    '1 2',
    '{}{}',
    ']',
    '}',
    '[}',
    '{]',
    'nul',
    'tru',
    'True',
    'NaN',
    'Infinity',
    '-',
    '-a',
    '+1',
    '.5',
    '1.',
    '1e',
    '1e+',
    '01',
    '0x1',
    '"a',
    '"\\x"',
    '"\\u12"',
    '"\\u12g4"',
    '"\\',
    '"a\nb"',
    '"\t"',
    '"\\ud800"',
    '"\\ud800\\u0041"',
    '"\\udc00"',
    '"\\udc00\\ud800"',
    '"\\u0000"',
    '\ufeff{}',
    '{}\ufeff',
    '[1] x',
    '// c\n1',
    '\u00a01',
  ];
  for (const text of broken) {
    it(`refuses ${JSON.stringify(text)} as malformed`, () => {
      expect(refused(text).code).to.equal('malformed-json');
    });
  }

  it('refuses bytes that are not UTF-8, and says where', () => {
    const bytes = Buffer.concat([
      Buffer.from('{"é":"'),
      Buffer.from([0xc3, 0x28]),
      Buffer.from('"}'),
    ]);
    expect(refused(bytes).errors[0]?.detail).to.match(/^At byte 8: it is not valid UTF-8\.$/);
    expect(refused(bytes, { ...LIMITS, codes: BATCH_JSON_CODES }).code).to.equal('BAD_UTF8');
    expect(refused(Buffer.from([0x22, 0xed, 0xa0, 0x80, 0x22])).code).to.equal('malformed-json');
  });

  const over: [string, string, string, number | string, number | string][] = [
    ['depth', '{"a":[[[[[[[[1]]]]]]]]}', 'too-deep', 8, 9],
    ['keys of one object', keysText(51), 'too-many-keys', 50, 51],
    ['keys', `[${keysText(50)},${keysText(50)},{"a":1}]`, 'too-many-keys', 100, 101],
    ['values', `[${'1,'.repeat(10)}1]`, 'too-many-values', 10, 11],
    ['the length of a string', `"${'é'.repeat(21)}"`, 'value-too-long', 20, 21],
    ['the length of a string of pairs', `"${'😀'.repeat(11)}"`, 'value-too-long', 20, 22],
    ['the length of an escaped string', `"${'\\u00e9'.repeat(21)}"`, 'value-too-long', 20, 21],
    ['the length of a short-escaped one', `"${'\\n'.repeat(21)}"`, 'value-too-long', 20, 21],
    ['the length of a key', `{"${'x'.repeat(21)}":1}`, 'value-too-long', 20, 21],
    ['2^53 - 1', '[9007199254740992]', 'bad-number', 2 ** 53 - 1, '9007199254740992'],
    ['2^53 - 1 by exponent', '-1e16', 'bad-number', 2 ** 53 - 1, '-1e16'],
  ];
  for (const [what, text, code, limit, actual] of over) {
    it(`refuses one more than the limit of ${what}`, () => {
      const error = refused(text);
      expect(error.code).to.equal(code);
      expect(error.errors[0]).to.include({ code, limit, actual });
      expect(error.message).to.match(/at byte \d+/);
    });
  }

  it('refuses numbers that no double holds', () => {
    for (const text of ['1e400', '-1e400', '1e-400', `1${'0'.repeat(400)}`]) {
      expect(refused(text, WIDE).code).to.equal('bad-number');
    }
  });

  it('takes unsafe numbers, minus zero and NUL only where the limits let it', () => {
    for (const text of ['[9007199254740993]', '[-0]', '[-0.0]', '["\\u0000"]']) {
      scanJson(Buffer.from(text), WIDE);
      refused(text);
    }
    expect(refused('-0e3').code).to.equal('bad-number');
  });

  it('refuses forbidden keys, however they are written', () => {
    for (const key of [
      '__proto__',
      'constructor',
      'prototype',
      '\\u005f_proto__',
      'c\\u006fnstructor',
    ]) {
      const error = refused(`{"a":[0,{"${key}":1}]}`);
      expect(error.code).to.equal('unknown-field');
      expect(error.errors[0]?.pointer).to.match(/^\/a\/1\/(__proto__|constructor|prototype)$/);
    }
  });

  it('names the place by byte and JSON Pointer', () => {
    const error = refused('{"a~/b":[1,{"c":tru}]}', { ...LIMITS, at: '/query' });
    expect(error.errors[0]?.pointer).to.equal('/query/a~0~1b/1/c');
    expect(error.message).to.contain('at byte 16');
  });

  it('refuses 100,000 levels without recursion', () => {
    expect(refused('['.repeat(100_000)).code).to.equal('too-deep');
    expect(refused('{"a":'.repeat(100_000)).code).to.equal('too-deep');
  });

  it('forgets the keys of the objects before', () => {
    const many = keysText(40);
    scanJson(Buffer.from(`[${many},${many}]`), LIMITS);
    refused('{"a":1,"a":2}');
    scanJson(Buffer.from('{"a":1}'), LIMITS);
  });

  it('finds a repeated key among any number of others, escaped or not', () => {
    const key = fc.string({ unit: 'grapheme', maxLength: 6 }).filter((k) => !k.startsWith('__'));
    fc.assert(
      fc.property(
        fc.uniqueArray(key, { minLength: 1, maxLength: 60 }),
        fc.nat(),
        fc.boolean(),
        (keys, pick, escape) => {
          const again = keys[pick % keys.length] as string;
          const units = Array.from({ length: again.length }, (_, i) => again.charCodeAt(i));
          const written = escape
            ? `"${units.map((u) => `\\u${u.toString(16).padStart(4, '0')}`).join('')}"`
            : JSON.stringify(again);
          const members = keys.map((k) => `${JSON.stringify(k)}:1`);
          scanJson(Buffer.from(`{${members.join()}}`), WIDE);
          expect(refused(`{${[...members, `${written}:1`].join()}}`, WIDE).code).to.equal(
            'duplicate-key',
          );
        },
      ),
    );
  });

  it('takes whatever JSON.stringify writes, and nothing that JSON.parse refuses', () => {
    const text = fc.json({ stringUnit: 'grapheme', maxDepth: 4 });
    fc.assert(
      fc.property(text, fc.nat(), fc.integer({ min: 0, max: 127 }), (json, place, byte) => {
        const bytes = Buffer.from(json);
        const judge = () => {
          try {
            scanJson(bytes, WIDE);
            return true;
          } catch (error) {
            if (error instanceof SallyportError) return error.code;
            throw error;
          }
        };
        const first = judge();
        if (!/__proto__|prototype|constructor/.test(json)) expect(first).to.equal(true);
        bytes[place % bytes.length] = byte;
        const verdict = judge();
        if (verdict === true) JSON.parse(bytes.toString());
        if (verdict === 'malformed-json') {
          const lone = /\\ud[89a-f]/i.test(bytes.toString());
          if (!lone && Buffer.from(bytes.toString()).equals(bytes)) {
            expect(() => JSON.parse(bytes.toString()) as unknown).to.throw();
          }
        }
      }),
      { numRuns: 2_000 },
    );
  });
});

describe('parseJson', () => {
  it('returns the value', () => {
    expect(parseJson(Buffer.from('{"a":[1,"é"]}'), LIMITS)).to.deep.equal({ a: [1, 'é'] });
    expect(parseJson(new Uint8Array([0x5b, 0x5d]).subarray(0), LIMITS)).to.deep.equal([]);
  });

  it('refuses what the scan refuses', () => {
    expect(() => parseJson(Buffer.from('{"a":1,"a":1}'), LIMITS)).to.throw(SallyportError, '"a"');
  });
});

describe('pointerToken', () => {
  it('escapes as RFC 6901 says', () => {
    expect(pointerToken('a/b~c')).to.equal('a~1b~0c');
  });
});
