import { createPrivateKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { SallyportError } from '@sallyport/shared';
import { diskError, errorCode, writeFileDurably } from '../format/durable-file.js';
import { thumbprint } from '../keys/keys.js';

/** Who carries, and the folder in which that is remembered. */
export type Carrier = { name: string; folder: string };

/** What signs an INDEX. */
export type IndexSigner = { kid: string; sign: string; signKey: KeyObject };

/** A medium that gave back other bytes than were written. */
export type BadMedium = { medium: string; at: string; file: string };

/** What was copied from any medium before, by the digest of the batch; `sha256` is of every byte. */
export type ReadMemory = Record<string, { medium: string; at: string; sha256: string }>;

const KEY_FILE = 'carrier.jwk';
const BAD_FILE = 'bad-media.json';
const READ_FILE = 'read.json';
const OUTBOXES_FILE = 'outboxes.json';
const OUTBOXES = 100;
/** The oldest are forgotten first; what is forgotten is copied once more and dropped by the node. */
const REMEMBERED = 50_000;

/** The carrier's own signing key, made at its first use. */
export async function loadCarrierKey({ folder }: Carrier): Promise<IndexSigner> {
  const path = join(folder, KEY_FILE);
  let text = await readFile(path, 'utf8').catch(ignoreMissing);
  if (text === undefined) {
    const jwk = generateKeyPairSync('ed25519').privateKey.export({ format: 'jwk' });
    await makeFolder(folder);
    // Another process may be quicker; then its key is taken.
    await writeFileDurably(path, Buffer.from(`${JSON.stringify(jwk)}\n`), { replace: false }).catch(
      (error: unknown) => {
        if (errorCode(error) !== 'EEXIST') throw error;
      },
    );
    text = await readFile(path, 'utf8');
  }
  try {
    const signKey = createPrivateKey({ key: JSON.parse(text), format: 'jwk' });
    const { x: sign = '' } = signKey.export({ format: 'jwk' });
    return { kid: thumbprint(sign), sign, signKey };
  } catch (cause) {
    throw new SallyportError('keys-missing', `${path} is not a key.`, {
      cause,
      next: 'Move the file away: a new key is made. Nobody has to trust a carrier by its key.',
    });
  }
}

/** The media that are never used again. */
export async function listBadMedia(carrier: Carrier): Promise<BadMedium[]> {
  return readState<BadMedium[]>(carrier, BAD_FILE, []);
}

/** Remembers a medium as bad. */
export async function rememberBad(carrier: Carrier, bad: BadMedium): Promise<void> {
  const known = await listBadMedia(carrier);
  if (known.some(({ medium }) => medium === bad.medium)) return;
  await writeState(carrier, BAD_FILE, [...known, bad]);
}

/** @throws SallyportError medium-bad when the medium failed before. */
export async function requireNotBad(carrier: Carrier, id: string, root: string): Promise<void> {
  const bad = (await listBadMedia(carrier)).find(({ medium }) => medium === id);
  if (!bad) return;
  throw new SallyportError(
    'medium-bad',
    `The medium at ${root} (${id}) gave back other bytes than were written to it on ${bad.at}.`,
    { next: 'Use another medium and destroy this one.' },
  );
}

/** What was read before. */
export async function loadReadMemory(carrier: Carrier): Promise<ReadMemory> {
  return readState<ReadMemory>(carrier, READ_FILE, {});
}

/** Remembers what was read; the newest 50,000. */
export async function saveReadMemory(carrier: Carrier, memory: ReadMemory): Promise<void> {
  const entries = Object.entries(memory);
  await writeState(carrier, READ_FILE, Object.fromEntries(entries.slice(-REMEMBERED)));
}

/** The folders that this carrier wrote from: nothing is ever read into them. */
export async function listOutboxes(carrier: Carrier): Promise<string[]> {
  return readState<string[]>(carrier, OUTBOXES_FILE, []);
}

/** Remembers a folder as an outbox; the newest 100. */
export async function rememberOutbox(carrier: Carrier, outbox: string): Promise<void> {
  const known = await listOutboxes(carrier);
  if (known.includes(outbox)) return;
  await writeState(carrier, OUTBOXES_FILE, [...known, outbox].slice(-OUTBOXES));
}

/** A file of the carrier's folder, or `none` where there is none or it is broken. */
export async function readState<T>({ folder }: Carrier, name: string, none: T): Promise<T> {
  const text = await readFile(join(folder, name), 'utf8').catch(ignoreMissing);
  if (text === undefined) return none;
  try {
    return JSON.parse(text) as T;
  } catch (cause) {
    throw new SallyportError('config-invalid', `${join(folder, name)} is not JSON.`, {
      cause,
      next: 'Move the file away; what it remembered is lost, nothing else.',
    });
  }
}

/** Writes a file of the carrier's folder. */
export async function writeState({ folder }: Carrier, name: string, value: unknown): Promise<void> {
  await makeFolder(folder);
  await writeFileDurably(join(folder, name), Buffer.from(`${JSON.stringify(value)}\n`));
}

async function makeFolder(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o700 }).catch((error: unknown) => {
    throw diskError(error, folder);
  });
}

function ignoreMissing(error: unknown): undefined {
  if (errorCode(error) !== 'ENOENT') throw error;
}
