import { expect } from 'chai';
import fc from 'fast-check';
import { STREAMS, STREAM_NAMES, type NetworkName } from '@sallyport/shared';
import { readGapCode, writeGapCode, type GapList } from './gap-code.js';
import type { Range } from './ranges.js';
import { codeOf } from '../test-codes.js';

const LINK = 'abcdefghijklmnop';
const CHARACTERS = '0123456789ABCDEFGHJKMNPQRSTVWXYZ*~$=U';

const gapLists: fc.Arbitrary<GapList> = fc
  .record({
    stream: fc.constantFrom(
      ...STREAM_NAMES.filter((name) => STREAMS[name].from.includes('request')),
    ),
    epoch: fc.integer({ min: 1, max: 9_999 }),
    steps: fc.array(fc.tuple(fc.nat({ max: 5_000_000 }), fc.nat({ max: 300 })), {
      minLength: 1,
      maxLength: 20,
    }),
  })
  .map(({ stream, epoch, steps }) => {
    let last = -1;
    const ranges = steps.map(([gap, length]): Range => {
      const from = last + 2 + gap;
      last = from + length;
      return [from, last];
    });
    return { stream, epoch, ranges };
  });

const read = (code: string, link = LINK, sender: NetworkName = 'request') =>
  readGapCode(link, sender, code);

describe('gap codes', () => {
  it('are short for an ordinary gap', () => {
    const gaps: GapList = { stream: 'requests', epoch: 1, ranges: [[7, 7]] };
    expect(writeGapCode(LINK, 'request', gaps).length).to.be.at.most(9);
  });

  it('say what was missing, however they are typed', () => {
    fc.assert(
      fc.property(gapLists, (gaps) => {
        const code = writeGapCode(LINK, 'request', gaps);
        expect(read(code)).to.deep.equal(gaps);
        const sloppy = code.toLowerCase().replaceAll('-', ' ').replaceAll('0', 'o');
        expect(read(sloppy.replaceAll('1', 'l'))).to.deep.equal(gaps);
      }),
    );
  });

  it('name the 20 lowest ranges only', () => {
    const ranges = Array.from({ length: 30 }, (_, n): Range => [2 * n + 1, 2 * n + 1]);
    const code = writeGapCode(LINK, 'request', { stream: 'requests', epoch: 1, ranges });
    expect(read(code).ranges).to.deep.equal(ranges.slice(0, 20));
  });

  it('are refused with any one wrong character', () => {
    fc.assert(
      fc.property(gapLists, fc.nat(), fc.constantFrom(...CHARACTERS), (gaps, at, character) => {
        const code = writeGapCode(LINK, 'request', gaps).replaceAll('-', '');
        const place = at % code.length;
        fc.pre(code[place] !== character);
        const typed = code.slice(0, place) + character + code.slice(place + 1);
        expect(codeOf(() => read(typed))).to.equal('gap-code-wrong');
      }),
      { numRuns: 2_000 },
    );
  });

  it('are refused with any two neighbours swapped', () => {
    fc.assert(
      fc.property(gapLists, fc.nat(), (gaps, at) => {
        const code = writeGapCode(LINK, 'request', gaps).replaceAll('-', '');
        const place = at % (code.length - 1);
        const [first = '', second = ''] = code.slice(place, place + 2);
        fc.pre(first !== second);
        const typed = code.slice(0, place) + second + first + code.slice(place + 2);
        expect(codeOf(() => read(typed))).to.equal('gap-code-wrong');
      }),
      { numRuns: 2_000 },
    );
  });

  it('are refused by another pair of networks, and in the other direction', () => {
    const code = writeGapCode(LINK, 'request', { stream: 'control', epoch: 1, ranges: [[3, 4]] });
    expect(codeOf(() => read(code, 'ponmlkjihgfedcba'))).to.equal('gap-code-wrong');
    expect(codeOf(() => read(code, LINK, 'response'))).to.equal('gap-code-wrong');
  });

  it('are refused when they are no code at all', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        expect(codeOf(() => read(text))).to.equal('gap-code-wrong');
      }),
    );
  });
});
