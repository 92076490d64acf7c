import reference from 'canonicalize';
import { expect } from 'chai';
import fc from 'fast-check';
import { canonicalJson } from './canonical-json.js';

// Its types name a module where there is a function.
const canonicalize = reference as unknown as (value: unknown) => string;

function shuffled(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(shuffled);
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).reverse();
  return Object.fromEntries(entries.map(([key, item]) => [key, shuffled(item)]));
}

describe('canonicalJson', () => {
  it('writes the example of RFC 8785, section 3.2.2', () => {
    const value = {
      numbers: [Number('333333333.33333329'), 1e30, 4.5, 2e-3, 0.000000000000000000000000001],
      string: '\u20ac$\u000F\u000aA\'\u0042\u0022\u005c\\"/',
      literals: [null, true, false],
    };
    expect(canonicalJson(value)).to.equal(
      '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],' +
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
    );
  });

  it('sorts keys by UTF-16 code units, numbers among them too', () => {
    const value = {
      '\u20ac': 1,
      '\r': 2,
      '\ufb33': 3,
      '1': 4,
      '10': 5,
      '9': 6,
      '😀': 7,
      '\u0080': 8,
      ö: 9,
    };
    const text = canonicalJson(value);
    expect([...text.matchAll(/:(\d)/g)].map(([, digit]) => digit).join('')).to.equal('245689173');
  });

  it('writes minus zero as zero and long texts as short ones', () => {
    expect(canonicalJson([-0, 'x'.repeat(100), 'é'.repeat(100)])).to.equal(
      `[0,"${'x'.repeat(100)}","${'é'.repeat(100)}"]`,
    );
  });

  it('refuses what JSON cannot hold', () => {
    for (const bad of [
      undefined,
      NaN,
      Infinity,
      1n,
      Symbol('s'),
      () => 1,
      new Date(0),
      '\ud800',
      new Map(),
    ]) {
      expect(() => canonicalJson(bad)).to.throw(TypeError);
      expect(() => canonicalJson({ a: [bad] })).to.throw(TypeError);
    }
    expect(() => canonicalJson({ '\udc00': 1 })).to.throw(TypeError);
  });

  it('does not depend on the order of keys, keeps the value, and agrees with canonicalize', () => {
    fc.assert(
      fc.property(fc.jsonValue({ stringUnit: 'grapheme' }), (value) => {
        const plain = JSON.parse(JSON.stringify(value)) as unknown;
        const text = canonicalJson(plain);
        expect(JSON.parse(text)).to.deep.equal(plain);
        expect(canonicalJson(shuffled(plain))).to.equal(text);
        expect(canonicalize(plain)).to.equal(text);
      }),
      { numRuns: 1_000 },
    );
  });
});
