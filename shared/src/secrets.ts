import { createHmac, randomBytes } from 'node:crypto';
import { chmod, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { SallyportError } from './errors.js';
import { generateSessionKey } from './session-tokens.js';

/** The private JWK that signs the access tokens of a network, in its folder of keys. */
export const SESSION_KEY_FILE = 'session.jwk';
/** Where the key of API keys (HMAC) is. */
export const API_KEYS_FILE = 'api-keys.key';

const KEY_BYTES = 32;

/** Makes the secrets of the HTTP side that are missing: the session key and the key of API keys. */
export async function makeSecrets(keysFolder: string): Promise<void> {
  await writeOnce(join(keysFolder, SESSION_KEY_FILE), generateSessionKey);
  await writeOnce(join(keysFolder, API_KEYS_FILE), () =>
    Promise.resolve(randomBytes(KEY_BYTES).toString('base64url')),
  );
}

/**
 * The text of a secret.
 * @throws SallyportError `keys-missing`.
 */
export async function readSecret(folder: string, name: string): Promise<string> {
  try {
    return (await readFile(join(folder, name), 'utf8')).trim();
  } catch (cause) {
    throw new SallyportError('keys-missing', `The secret ${name} cannot be read.`, {
      cause,
      next: 'Run init once; it makes what is missing.',
    });
  }
}

/** The key that page tokens are sealed with, made from another secret of the network. */
export function pageSecretOf(secret: Buffer): Buffer {
  return createHmac('sha256', secret).update('page-token').digest();
}

async function writeOnce(path: string, make: () => Promise<string>): Promise<void> {
  try {
    await writeFile(path, `${await make()}\n`, { flag: 'wx', mode: 0o600 });
    await chmod(path, 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
}
