import { expect } from 'chai';
import { shorten } from './text.js';

describe('shorten', () => {
  it('leaves no half of a character, at the cut or elsewhere', () => {
    expect(shorten('a😀b', 2)).to.equal('a\ufffd');
    expect(shorten('a\udc00😀b', 10)).to.equal('a\ufffd😀b');
  });
});
