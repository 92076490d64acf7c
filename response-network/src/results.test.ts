import { expect } from 'chai';
import fc from 'fast-check';
import { RESULT_TEXT_BYTES } from '@sallyport/shared';
import { cutText } from './results.js';

const MIB = 1024 * 1024;

describe('cutText', () => {
  it('loses nothing and keeps every piece within a record and a line', () => {
    const unit = fc.constantFrom('a', '"', '\\', 'é', '…', '😀', '\u0007');
    fc.assert(
      fc.property(
        fc.array(unit, { minLength: 1, maxLength: 6 }),
        fc.integer({ min: 1, max: 2_000_000 }),
        (units, length) => {
          const seed = units.join('');
          const text = seed.repeat(Math.ceil(length / seed.length));
          const pieces = cutText(text);
          expect(pieces.join('') === text).to.equal(true);
          for (const piece of pieces) {
            expect(Buffer.byteLength(piece)).to.be.at.most(RESULT_TEXT_BYTES);
            expect(Buffer.byteLength(JSON.stringify(piece))).to.be.below(MIB);
          }
        },
      ),
      { numRuns: 25 },
    );
  });

  it('keeps what fits in one piece', () => {
    expect(cutText('{}')).to.deep.equal(['{}']);
  });
});
