import { createHash, createHmac, randomInt, timingSafeEqual } from 'node:crypto';
import { crc32 } from 'node:zlib';

/** What a new key is: the key itself is shown once and never stored. */
export type NewApiKey = {
  key: string;
  /** Up to the fourth character of the secret, for lists. */
  prefix: string;
  lastFour: string;
};

const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const SECRET_LENGTH = 22;
const CHECKSUM_LENGTH = 6;
const KEY = /^sp_([a-z0-9]{1,16})_([0-9A-Za-z]{22})_([0-9A-Za-z]{6})$/;
const ENVIRONMENT = /^[a-z0-9]{1,16}$/;

/** Makes a key `sp_<env>_<22 base62>_<6 checksum>` with 131 random bits. */
export function newApiKey(environment: string): NewApiKey {
  if (!ENVIRONMENT.test(environment)) {
    throw new Error(`the environment of a key must match ${ENVIRONMENT.source}`);
  }
  const secret = Array.from({ length: SECRET_LENGTH }, () => ALPHABET[randomInt(62)]).join('');
  const body = `sp_${environment}_${secret}`;
  const key = `${body}_${checksum(body)}`;
  return { key, prefix: `sp_${environment}_${secret.slice(0, 4)}`, lastFour: key.slice(-4) };
}

/** The environment of a well-formed key, or undefined: a mistyped key costs no look-up. */
export function parseApiKey(text: string): { environment: string } | undefined {
  const match = KEY.exec(text);
  if (!match) return undefined;
  const body = text.slice(0, -CHECKSUM_LENGTH - 1);
  return checksum(body) === match[3] ? { environment: match[1] as string } : undefined;
}

/** What is stored of a key: HMAC-SHA-256 with the server's key, lower-case hexadecimal. */
export function hashApiKey(key: string, serverKey: Uint8Array): string {
  return createHmac('sha256', serverKey).update(key).digest('hex');
}

/** Compares two secrets in a time that does not tell where they differ. */
export function equalSecrets(a: string, b: string): boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(a), digest(b));
}

/** CRC-32 in base62: finds typing mistakes, proves nothing. */
function checksum(body: string): string {
  let rest = crc32(body);
  let text = '';
  for (let index = 0; index < CHECKSUM_LENGTH; index++) {
    text = `${ALPHABET[rest % 62]}${text}`;
    rest = Math.floor(rest / 62);
  }
  return text;
}
