import { hash as hashBcrypt } from '@node-rs/bcrypt';
import { argon2i, hash } from 'argon2';
import { expect } from 'chai';
import { SallyportError } from './errors.js';
import {
  burnPassword,
  hashPassword,
  isVerifierAllowed,
  isVerifierWeak,
  verifyPassword,
} from './passwords.js';

describe('hashPassword and verifyPassword', () => {
  it('accept the password and refuse another', async () => {
    const verifier = await hashPassword('correct horse');
    expect(verifier).to.match(/^\$argon2id\$v=19\$m=19456,t=2,p=1\$/);
    expect(await verifyPassword(verifier, 'correct horse')).to.equal(true);
    expect(await verifyPassword(verifier, 'correct horsf')).to.equal(false);
  });

  it('salt: the same password has another verifier each time', async () => {
    expect(await hashPassword('same')).not.to.equal(await hashPassword('same'));
  });

  it('refuse a password that is only there to cost work', async () => {
    const error: unknown = await hashPassword('x'.repeat(1_025)).catch((err: unknown) => err);
    expect(error).to.be.instanceOf(SallyportError).and.to.include({ code: 'bad-field' });
    expect(await verifyPassword(await hashPassword('x'), 'x'.repeat(1_025))).to.equal(false);
  });

  it('refuse every password for a verifier that cannot be read', async () => {
    for (const verifier of ['', 'x', '$2b$10$abc', '$argon2id$v=19$m=1,t=1,p=1$$']) {
      expect(await verifyPassword(verifier, 'x')).to.equal(false);
    }
  });

  it('know bcrypt, in each of its spellings and within bounds', async () => {
    const made = await hashBcrypt('secret', { cost: 8 });
    for (const version of ['2a', '2b', '2y']) {
      const verifier = made.replace('2b', version);
      expect(await verifyPassword(verifier, 'secret')).to.equal(true);
      expect(await verifyPassword(verifier, 'secreT')).to.equal(false);
      expect(isVerifierWeak(verifier)).to.equal(true);
    }
    expect(await verifyPassword(made.replace('$08$', '$31$'), 'secret')).to.equal(false);
    expect(isVerifierWeak(await hashPassword('secret'))).to.equal(false);
  });

  it('answer 503 to what is beyond the line, and serve the line', async () => {
    const calls = Array.from({ length: 80 }, () => burnPassword('x').catch((err: unknown) => err));
    const refused = (await Promise.all(calls)).filter((each) => each !== undefined);
    expect(refused).to.have.length(80 - 2 - 64);
    expect(refused[0]).to.be.instanceOf(SallyportError).and.to.include({ code: 'queue-full' });
    await burnPassword('free again');
  });
});

describe('isVerifierAllowed', () => {
  const range = { memoryKiB: [19_456, 65_536], passes: [2, 4], lanes: [1, 2] } as const;
  const verifier = (parameters: string, algorithm = 'argon2id', version = 'v=19') =>
    `$${algorithm}$${version}$${parameters}$OxHNmMA7bVsKZLhQRg8lOQ$4Ja2Tt3Zl7CHzGd0Gk4pVwLAqYk0CxzHf3VIsq0Q0Eo`;

  it('takes our own and what lies in the range, its ends included', async () => {
    expect(isVerifierAllowed(await hashPassword('x'), range)).to.equal(true);
    expect(isVerifierAllowed(verifier('m=19456,t=2,p=1'), range)).to.equal(true);
    expect(isVerifierAllowed(verifier('m=65536,t=4,p=2'), range)).to.equal(true);
    expect(isVerifierAllowed(verifier('m=65536,p=2,t=4'), range)).to.equal(true);
  });

  it('refuses parameters out of the range', () => {
    for (const parameters of ['m=19455,t=2,p=1', 'm=65537,t=2,p=1', 'm=19456,t=1,p=1']) {
      expect(isVerifierAllowed(verifier(parameters), range)).to.equal(false);
    }
    expect(isVerifierAllowed(verifier('m=19456,t=5,p=1'), range)).to.equal(false);
    expect(isVerifierAllowed(verifier('m=19456,t=2,p=3'), range)).to.equal(false);
  });

  it('refuses other algorithms, versions and damaged text', async () => {
    expect(isVerifierAllowed(await hash('x', { type: argon2i }), range)).to.equal(false);
    expect(isVerifierAllowed(verifier('m=19456,t=2,p=1', 'argon2d'), range)).to.equal(false);
    expect(isVerifierAllowed(verifier('m=19456,t=2,p=1', 'argon2id', 'v=16'), range)).to.equal(
      false,
    );
    expect(isVerifierAllowed(verifier('t=2,m=19456,p=1'), range)).to.equal(false);
    expect(isVerifierAllowed(verifier('m=19456,p=3,t=2'), range)).to.equal(false);
    expect(isVerifierAllowed(`${verifier('m=19456,t=2,p=1')}\n`, range)).to.equal(false);
    expect(isVerifierAllowed('', range)).to.equal(false);
  });
});
