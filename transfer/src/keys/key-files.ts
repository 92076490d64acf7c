import { randomBytes } from 'node:crypto';
import { lstat, mkdir, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { armor, Decrypter, Encrypter } from 'age-encryption';
import { SallyportError } from '@sallyport/shared';
import { errorCode, syncDirectory, writeFileDurably } from '../format/durable-file.js';
import { passphraseIdentity, passphraseRecipient } from './passphrase.js';
import { askHidden, isPersonThere } from '../commands/terminal.js';

/** `sign.jwk` and `age.txt` are secret, `card.json` is public. */
export const KEY_FILES = ['sign.jwk', 'age.txt', 'card.json'] as const;
/** What lies in each of the files. */
export type KeyTexts = Record<(typeof KEY_FILES)[number], string>;

/** Gives the passphrase of protected keys. @throws SallyportError `keys-locked` where nobody can. */
export type Unlock = () => Promise<string>;

/** Holds files that replace their namesakes in the keys folder, whatever happens. */
const SWAP = '.swap';
/** Holds the next set of keys until the database says that it counts. */
export const NEXT = 'next';
/** Holds, in a folder for each former key, what still opens late batches. */
export const RETIRED = 'retired';
const MIN_PASSPHRASE = 12;
const MAX_PASSPHRASE_BYTES = 1_024;
const PROTECTED = '-----BEGIN AGE ENCRYPTED FILE-----';

/** Nobody is there to be asked. */
export const locked: Unlock = () =>
  Promise.reject(
    new SallyportError('keys-locked', 'The keys are protected by a passphrase.', {
      next: 'Set KEYS_PASSPHRASE_FILE to a file that holds it, or run the command on a terminal.',
    }),
  );

/**
 * The passphrase from a file, each time it is needed, or else from the terminal, asked for once.
 * @throws (later) SallyportError `keys-locked` when there is neither.
 */
export function unlockBy(file: string | undefined): Unlock {
  if (file !== undefined) return () => readPassphraseFile(file);
  let answer: Promise<string> | undefined;
  return () => {
    if (!isPersonThere()) return locked();
    return (answer ??= askHidden('Passphrase of the keys: '));
  };
}

/**
 * A new passphrase: from the file, or asked for twice on the terminal.
 * @throws SallyportError `keys-locked`, `usage` for one that is too short or typed differently.
 */
export async function choosePassphrase(file: string | undefined): Promise<string> {
  const chosen = file === undefined ? await askTwice() : await readPassphraseFile(file);
  if (chosen.length >= MIN_PASSPHRASE) return chosen;
  throw new SallyportError(
    'usage',
    `The passphrase has ${chosen.length} characters, at least ${MIN_PASSPHRASE} are needed.`,
    { next: 'Take six or more random words.' },
  );
}

/** Whether what a key file holds needs a passphrase. */
export function isProtected(text: string): boolean {
  return text.startsWith(PROTECTED);
}

/** A secret text as an armored age file that only the passphrase opens. */
export async function protect(text: string, passphrase: string): Promise<string> {
  const encrypter = new Encrypter();
  encrypter.addRecipient(passphraseRecipient(passphrase));
  return armor.encode(await encrypter.encrypt(text));
}

/**
 * The secret text of a key file, which may be protected.
 * @throws SallyportError `passphrase-wrong`; what `unlock` throws.
 */
export async function openText(text: string, unlock: Unlock): Promise<string> {
  if (!isProtected(text)) return text;
  const decrypter = new Decrypter();
  decrypter.addIdentity(passphraseIdentity(await unlock()));
  try {
    return await decrypter.decrypt(armor.decode(text.trim()), 'text');
  } catch (cause) {
    throw new SallyportError('passphrase-wrong', 'The passphrase does not open the keys.', {
      cause,
      next: 'Try again; without it the keys are lost, and the far side must trust new ones.',
    });
  }
}

/**
 * The texts of a set of keys in a folder.
 * @throws SallyportError `keys-missing`.
 */
export async function readKeyTexts(folder: string): Promise<KeyTexts> {
  const [sign, age, card] = await Promise.all(KEY_FILES.map((name) => readKeyFile(folder, name)));
  return { 'sign.jwk': sign ?? '', 'age.txt': age ?? '', 'card.json': card ?? '' };
}

/** Writes a folder of files that is there as a whole or not at all; one of that name goes first. */
export async function writeSet(
  folder: string,
  name: string,
  files: Readonly<Record<string, string>>,
): Promise<void> {
  const temporary = join(folder, `.${name.replace(/^\./, '')}-${randomBytes(8).toString('hex')}`);
  await mkdir(temporary, { recursive: true, mode: 0o700 });
  try {
    for (const [path, text] of Object.entries(files)) {
      const target = join(temporary, path);
      await mkdir(dirname(target), { recursive: true, mode: 0o700 });
      await writeFileDurably(target, Buffer.from(`${text.trimEnd()}\n`));
      await syncDirectory(dirname(dirname(target)));
    }
    await syncDirectory(temporary);
    await rm(join(folder, name), { recursive: true, force: true });
    await rename(temporary, join(folder, name));
    await syncDirectory(folder);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw error;
  }
}

/** Replaces files of the keys folder (names may have folders) all together, even over a crash. */
export async function replaceFiles(
  folder: string,
  files: Readonly<Record<string, string>>,
): Promise<void> {
  await finishSwap(folder);
  await writeSet(folder, SWAP, files);
  await finishSwap(folder);
}

/** Moves what {@link replaceFiles} had made ready to its place. */
export async function finishSwap(folder: string): Promise<void> {
  await moveInto(join(folder, SWAP), folder);
}

/** The names of the former keys that the folder remembers. */
export async function listRetired(folder: string): Promise<string[]> {
  return readdir(join(folder, RETIRED)).catch((): string[] => []);
}

/** Whether anything has the path. */
export async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

/** Another process may do the same at the same time: what is gone is done. */
async function moveInto(source: string, target: string): Promise<void> {
  const entries = await readdir(source, { withFileTypes: true }).catch(() => undefined);
  if (!entries) return;
  await mkdir(target, { recursive: true, mode: 0o700 });
  for (const entry of entries) {
    const from = join(source, entry.name);
    const to = join(target, entry.name);
    if (entry.isDirectory()) await moveInto(from, to);
    else await rename(from, to).catch(unlessGone);
  }
  await syncDirectory(target);
  await rm(source, { recursive: true, force: true });
  await syncDirectory(dirname(source)).catch(unlessGone);
}

function unlessGone(error: unknown): void {
  if (errorCode(error) !== 'ENOENT') throw error;
}

async function readKeyFile(folder: string, name: string): Promise<string> {
  try {
    return await readFile(join(folder, name), 'utf8');
  } catch (error) {
    if (errorCode(error) !== 'ENOENT') throw error;
    throw new SallyportError('keys-missing', `There is no ${name} in ${folder}.`, {
      cause: error,
      next: 'Make the keys with `keys init --node NAME`, or restore the folder from a backup.',
    });
  }
}

/** The first line of a file that nobody else may read. */
async function readPassphraseFile(path: string): Promise<string> {
  const refuse = (found: string, cause?: unknown) =>
    new SallyportError('keys-locked', `The passphrase file ${path} ${found}.`, {
      cause,
      next: 'KEYS_PASSPHRASE_FILE names a file of mode 0600 (or 0400) with one line in it.',
    });
  const found = await lstat(path).catch((cause: unknown) => {
    throw refuse('cannot be read', cause);
  });
  const facts = found.isSymbolicLink() ? await stat(path) : found;
  if (!facts.isFile() || facts.size > MAX_PASSPHRASE_BYTES) throw refuse('is no short text file');
  if ((facts.mode & 0o077) !== 0) throw refuse('may be read by others');
  const text = await readFile(path, 'utf8').catch((cause: unknown) => {
    throw refuse('cannot be read', cause);
  });
  const [line = ''] = text.split(/\r?\n/);
  if (line === '') throw refuse('is empty');
  return line;
}

async function askTwice(): Promise<string> {
  if (!isPersonThere()) {
    throw new SallyportError('usage', 'Nobody is there to choose a passphrase.', {
      next: 'Write it into a file of mode 0600 and name that file.',
    });
  }
  const first = await askHidden('New passphrase: ');
  const second = await askHidden('The same again: ');
  if (first === second) return first;
  throw new SallyportError('usage', 'The two passphrases differ; nothing changed.');
}
