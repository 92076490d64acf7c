import { createHash } from 'node:crypto';
import { open, type FileHandle } from 'node:fs/promises';
import { SallyportError } from './errors.js';
import { MAX_PASSWORD_BYTES } from './passwords.js';
import type { Settings } from './settings.js';
import { foldLogin } from './users.js';

/** What a password of a network must keep to. */
export type PasswordRules = {
  settings: Pick<Settings, 'password.min_length'>;
  /** A sorted list of passwords that are known to others: {@link isBreached}. */
  breachedFile?: string | undefined;
};

const SHA1_LINE = /^[0-9A-Fa-f]{40}(?::\d+)?$/;
const MAX_LINE_BYTES = 1_100;
const SAMPLES = 500;

/**
 * That a new password keeps the rules.
 * @throws SallyportError `bad-field` at the pointer, `config-invalid` when the list cannot be read.
 */
export async function checkNewPassword(
  password: string,
  { login, pointer = '' }: { login: string; pointer?: string },
  { settings, breachedFile }: PasswordRules,
): Promise<void> {
  const least = settings['password.min_length'];
  const length = [...password].length;
  const refuse = (detail: string, sizes: { limit?: number; actual?: number } = {}) =>
    new SallyportError('bad-field', `The password ${detail}.`, {
      errors: [{ pointer, code: 'bad-field', detail, ...sizes }],
    });
  if (length < least) {
    throw refuse(`has fewer than ${least} characters`, { limit: least, actual: length });
  }
  const bytes = Buffer.byteLength(password);
  if (bytes > MAX_PASSWORD_BYTES) {
    throw refuse(`is over ${MAX_PASSWORD_BYTES} bytes long`, {
      limit: MAX_PASSWORD_BYTES,
      actual: bytes,
    });
  }
  if (foldLogin(password) === foldLogin(login)) throw refuse('is the login name');
  if (breachedFile !== undefined && (await isBreached(breachedFile, password))) {
    throw refuse('is on a list of passwords that others know');
  }
}

/**
 * Whether a list names the password. The list has one entry a line, sorted by bytes: SHA-1 in
 * hexadecimal (with `:count` behind it, as Have I Been Pwned writes it) or the passwords themselves.
 * It is searched by halves in the file, whatever its size.
 */
export async function isBreached(file: string, password: string): Promise<boolean> {
  return withList(file, async (list) => {
    const wanted = entryFor(list, password);
    let [low, high] = [0, list.size];
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      const line = await lineFrom(list, middle);
      if (line === undefined || line.entry >= wanted) high = middle;
      else low = middle + 1;
    }
    return (await lineFrom(list, low))?.entry === wanted;
  });
}

/**
 * That the list, if there is to be one, can be used: it is there and, as far as some hundred samples
 * show, sorted.
 * @throws SallyportError `config-invalid`.
 */
export async function requireBreachedList(file: string | undefined): Promise<void> {
  if (file === undefined) return;
  await withList(file, async (list) => {
    let previous = '';
    for (let sample = 0; sample < SAMPLES; sample += 1) {
      const line = await lineFrom(list, Math.floor((list.size / SAMPLES) * sample));
      if (line === undefined) return;
      if (line.entry < previous) throw unusable(file, 'it is not sorted by bytes (LC_ALL=C sort)');
      previous = line.entry;
    }
  });
}

type List = { handle: FileHandle; size: number; hashed: boolean };

async function withList<T>(file: string, use: (list: List) => Promise<T>): Promise<T> {
  let handle: FileHandle;
  try {
    handle = await open(file, 'r');
  } catch (cause) {
    throw unusable(file, (cause as Error).message, cause);
  }
  try {
    const list = { handle, size: (await handle.stat()).size, hashed: false };
    const first = await lineFrom(list, 0);
    return await use({ ...list, hashed: first !== undefined && SHA1_LINE.test(first.text) });
  } finally {
    await handle.close();
  }
}

function unusable(file: string, why: string, cause?: unknown): SallyportError {
  return new SallyportError('config-invalid', `${file} is no list of passwords: ${why}.`, {
    cause,
    next: 'Correct BREACHED_PASSWORDS_FILE, or unset it.',
  });
}

/** What the list would hold; latin1, so that texts compare as their bytes do. */
function entryFor({ hashed }: List, password: string): string {
  if (!hashed) return Buffer.from(password).toString('latin1');
  return createHash('sha1').update(password).digest('hex').toUpperCase();
}

/** The first whole line that starts at the offset or later. */
async function lineFrom(
  { handle, size, hashed }: List,
  offset: number,
): Promise<{ text: string; entry: string } | undefined> {
  // The byte before tells whether a line starts right here.
  const start = Math.max(offset - 1, 0);
  const buffer = Buffer.alloc(2 * MAX_LINE_BYTES);
  const { bytesRead } = await handle.read(buffer, 0, buffer.length, start);
  const bytes = buffer.subarray(0, bytesRead);
  const begin = offset === 0 ? 0 : bytes.indexOf(0x0a) + 1;
  if (offset > 0 && begin === 0) return undefined;
  if (start + begin >= size) return undefined;
  const end = bytes.indexOf(0x0a, begin);
  const text = bytes
    .subarray(begin, end === -1 ? undefined : end)
    .toString('latin1')
    .replace(/\r$/, '');
  return { text, entry: hashed ? text.slice(0, 40).toUpperCase() : text };
}
