import { expect } from 'chai';
import fc from 'fast-check';
import { equalSecrets, hashApiKey, newApiKey, parseApiKey } from './api-keys.js';

describe('newApiKey', () => {
  it('makes keys of the documented form, each different', () => {
    const { key, prefix, lastFour } = newApiKey('live');
    expect(key).to.match(/^sp_live_[0-9A-Za-z]{22}_[0-9A-Za-z]{6}$/);
    expect(key.startsWith(prefix) && key.endsWith(lastFour)).to.equal(true);
    expect(prefix).to.have.length(12);
    expect(newApiKey('live').key).not.to.equal(key);
  });

  it('refuses an environment that would break the form', () => {
    expect(() => newApiKey('a_b')).to.throw('environment');
  });
});

describe('parseApiKey', () => {
  it('tells the environment of a key', () => {
    expect(parseApiKey(newApiKey('test').key)).to.deep.equal({ environment: 'test' });
  });

  it('refuses a key with one character changed, whichever', () => {
    fc.assert(
      fc.property(fc.nat(100), fc.constantFrom('0', 'a', 'Z', '_', ' '), (at, other) => {
        const { key } = newApiKey('live');
        const index = at % key.length;
        fc.pre(key[index] !== other);
        const changed = key.slice(0, index) + other + key.slice(index + 1);
        expect(parseApiKey(changed)).to.equal(undefined);
      }),
    );
  });

  it('refuses any other text', () => {
    for (const text of ['', 'sp_', 'Bearer x', `${newApiKey('a').key}\n`, 'sp_a_b_c']) {
      expect(parseApiKey(text)).to.equal(undefined);
    }
  });
});

describe('hashApiKey', () => {
  it('depends on the key and on the server', () => {
    const { key } = newApiKey('live');
    const server = Buffer.alloc(32, 1);
    expect(hashApiKey(key, server)).to.match(/^[0-9a-f]{64}$/);
    expect(hashApiKey(key, server)).to.equal(hashApiKey(key, Buffer.alloc(32, 1)));
    expect(hashApiKey(key, server)).not.to.equal(hashApiKey(key, Buffer.alloc(32, 2)));
    expect(hashApiKey(key, server)).not.to.equal(hashApiKey(newApiKey('live').key, server));
  });
});

describe('equalSecrets', () => {
  it('is equality', () => {
    fc.assert(fc.property(fc.string(), fc.string(), (a, b) => equalSecrets(a, b) === (a === b)));
    expect(equalSecrets('ab', 'ab')).to.equal(true);
  });
});
