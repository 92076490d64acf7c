import { Decrypter, Encrypter } from 'age-encryption';
import { expect } from 'chai';
import { passphraseIdentity, passphraseRecipient } from './passphrase.js';

const PASSPHRASE = 'six words that nobody ever guesses';

describe('passphraseRecipient', () => {
  it('encrypts what age opens with the passphrase', async () => {
    const encrypter = new Encrypter();
    encrypter.addRecipient(passphraseRecipient(PASSPHRASE));
    const decrypter = new Decrypter();
    decrypter.addPassphrase(PASSPHRASE);
    expect(await decrypter.decrypt(await encrypter.encrypt('secret'), 'text')).to.equal('secret');
  });
});

describe('passphraseIdentity', () => {
  it('opens what age encrypted to the passphrase, and nothing else', async () => {
    const encrypter = new Encrypter();
    encrypter.setPassphrase(PASSPHRASE);
    encrypter.setScryptWorkFactor(10);
    const file = await encrypter.encrypt('secret');
    const open = (passphrase: string) => {
      const decrypter = new Decrypter();
      decrypter.addIdentity(passphraseIdentity(passphrase));
      return decrypter.decrypt(file, 'text');
    };
    expect(await open(PASSPHRASE)).to.equal('secret');
    const refused: unknown = await open(`${PASSPHRASE} `).catch((error: unknown) => error);
    expect(refused).to.be.instanceOf(Error);
  });
});
