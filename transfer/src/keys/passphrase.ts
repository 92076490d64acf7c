import { createCipheriv, createDecipheriv, randomBytes, scrypt } from 'node:crypto';
import { type Identity, type Recipient, Stanza } from 'age-encryption';

/** Of scrypt, as a power of 2 (OWASP: at least 17): 128 MiB and about half a second. */
const WORK_FACTOR = 17;
/** Above it a file would only cost time: we never write it, and `age` refuses it, too. */
const MAX_WORK_FACTOR = 20;
const LABEL = Buffer.from('age-encryption.org/v1/scrypt');
const SALT_BYTES = 16;
const TAG_BYTES = 16;
const FILE_KEY_BYTES = 16;
const CIPHER = 'chacha20-poly1305';
const NONCE = Buffer.alloc(12);

/**
 * Encrypts to a passphrase exactly as `age -p` does (age-encryption.org/v1, "The scrypt recipient
 * type"), by the scrypt of OpenSSL: that of age-encryption takes several times as long.
 */
export function passphraseRecipient(passphrase: string): Recipient {
  return {
    async wrapFileKey(fileKey) {
      const salt = randomBytes(SALT_BYTES);
      const key = await deriveKey(passphrase, salt, WORK_FACTOR);
      const cipher = createCipheriv(CIPHER, key, NONCE, { authTagLength: TAG_BYTES });
      const body = Buffer.concat([cipher.update(fileKey), cipher.final(), cipher.getAuthTag()]);
      const text = salt.toString('base64').replace(/=+$/, '');
      return [new Stanza(['scrypt', text, String(WORK_FACTOR)], new Uint8Array(body))];
    },
  };
}

/** Opens what {@link passphraseRecipient}, or `age -p`, encrypted to the passphrase. */
export function passphraseIdentity(passphrase: string): Identity {
  return {
    async unwrapFileKey(stanzas) {
      const [only] = stanzas;
      const [type, text = '', factor = ''] = only?.args ?? [];
      const salt = Buffer.from(text, 'base64');
      if (!only || stanzas.length !== 1 || type !== 'scrypt' || salt.length !== SALT_BYTES)
        return null;
      if (!/^[1-9][0-9]?$/.test(factor) || Number(factor) > MAX_WORK_FACTOR) return null;
      if (only.body.length !== FILE_KEY_BYTES + TAG_BYTES) return null;
      const key = await deriveKey(passphrase, salt, Number(factor));
      const decipher = createDecipheriv(CIPHER, key, NONCE, { authTagLength: TAG_BYTES });
      decipher.setAuthTag(only.body.subarray(FILE_KEY_BYTES));
      try {
        const opened = [decipher.update(only.body.subarray(0, FILE_KEY_BYTES)), decipher.final()];
        return new Uint8Array(Buffer.concat(opened));
      } catch {
        return null;
      }
    },
  };
}

function deriveKey(passphrase: string, salt: Buffer, factor: number): Promise<Buffer> {
  const cost = { N: 2 ** factor, r: 8, p: 1, maxmem: 2 ** factor * 1024 + 2 ** 20 };
  return new Promise((resolve, reject) => {
    scrypt(passphrase, Buffer.concat([LABEL, salt]), 32, cost, (error, key) =>
      error ? reject(error) : resolve(key),
    );
  });
}
