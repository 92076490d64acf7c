import {
  createHash,
  createPrivateKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
} from 'node:crypto';
import { link, mkdir, readdir, readFile, rename, rm, stat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { Encrypter, generateX25519Identity, identityToRecipient } from 'age-encryption';
import { Type, type Static } from 'typebox';
import {
  compileSchema,
  HTTP_JSON_CODES,
  type JsonLimits,
  NETWORKS,
  type NetworkName,
  parseJson,
  SallyportError,
} from '@sallyport/shared';
import { errorCode, syncDirectory, writeFileDurably } from './durable-file.js';

/** A node's name as it stands in cards, manifests and file names. */
export const NodeName = Type.String({ pattern: '^[a-z0-9-]{1,16}$' });
const Role = Type.Unsafe<NetworkName>({ type: 'string', enum: [...NETWORKS] });
/** Base64url of 32 bytes, no padding. */
const Base64Url32 = Type.String({ pattern: '^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$' });

/** The public half of a node's keys, to be carried to the far side and trusted there. */
export const CardSchema = Type.Object(
  {
    v: Type.Literal(1),
    node: NodeName,
    role: Role,
    /** RFC 7638 thumbprint of the signing key. */
    kid: Base64Url32,
    /** The Ed25519 public key. */
    sign: Base64Url32,
    /** The age X25519 recipient. */
    age: Type.String({ pattern: '^age1[02-9ac-hj-np-z]{58}$' }),
  },
  { additionalProperties: false },
);
export type Card = Static<typeof CardSchema>;

export type NodeKeys = {
  node: string;
  role: NetworkName;
  kid: string;
  card: Card;
  /** Ed25519 private key. */
  signKey: KeyObject;
  /** `AGE-SECRET-KEY-1…` */
  ageIdentity: string;
};

/** `sign.jwk` and `age.txt` are secret, `card.json` is public. */
const KEY_FILES = ['sign.jwk', 'age.txt', 'card.json'] as const;
/** Holds a complete new set until its files have moved into the keys folder. */
const NEW_SET = '.new-keys';

const checkCard = compileSchema(CardSchema);
const CARD_LIMITS: JsonLimits = {
  depth: 2,
  keys: 16,
  keysPerObject: 16,
  stringLength: 256,
  arrayLength: 0,
  safeNumbers: true,
  negativeZero: false,
  nul: false,
  codes: HTTP_JSON_CODES,
};

/**
 * Makes a node's keys in `folder` (made with mode 0700 if absent; the files are 0600). After a crash
 * either none or all of the files are there.
 * @throws SallyportError keys-exist when the folder has any of them; usage for a bad node name.
 */
export async function makeKeys(folder: string, node: string, role: NetworkName): Promise<NodeKeys> {
  if (!/^[a-z0-9-]{1,16}$/.test(node)) {
    throw new SallyportError(
      'usage',
      `The node name ${JSON.stringify(node)} is not 1 to 16 of a-z, 0-9 and hyphen.`,
    );
  }
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await finishNewSet(folder);
  for (const name of KEY_FILES) {
    if (await exists(join(folder, name))) throw keysExist(folder, name);
  }
  const kid = await writeNewSet(folder, node, role);
  await finishNewSet(folder);
  const keys = await loadKeys(folder);
  // Somebody else was quicker; the keys in the folder are theirs.
  if (keys.kid !== kid) throw keysExist(folder, 'sign.jwk');
  return keys;
}

/**
 * Reads the keys that {@link makeKeys} made.
 * @throws SallyportError keys-missing when a file is absent; card-invalid when they do not belong
 * together.
 */
export async function loadKeys(folder: string): Promise<NodeKeys> {
  await finishNewSet(folder);
  const [jwk, ageText, cardText] = await Promise.all(
    KEY_FILES.map((name) => readKeyFile(folder, name)),
  );
  const card = parseCard(cardText as string);
  const signKey = createPrivateKey({ key: JSON.parse(jwk as string), format: 'jwk' });
  const ageIdentity = /^AGE-SECRET-KEY-1\S+$/m.exec(ageText as string)?.[0] ?? '';
  const recipient = ageIdentity === '' ? '' : await identityToRecipient(ageIdentity);
  if (signKey.export({ format: 'jwk' }).x !== card.sign || recipient !== card.age) {
    throw new SallyportError('card-invalid', `The files in ${folder} do not belong together.`, {
      next: 'Restore the keys folder as a whole from a backup.',
    });
  }
  return { node: card.node, role: card.role, kid: card.kid, card, signKey, ageIdentity };
}

/**
 * The card in a text, its members and its `kid` checked: the card alone, or what `keys card` printed
 * with or without `--json`.
 * @throws SallyportError card-invalid
 */
export function parseCard(text: string): Card {
  let card: Card;
  try {
    const [first = ''] = text.trim().split('\nfingerprint ');
    const value = parseJson(Buffer.from(first), CARD_LIMITS);
    const shown = (value as { card?: unknown } | null)?.card;
    card = checkCard(shown === undefined ? value : shown);
  } catch (error) {
    if (!(error instanceof SallyportError)) throw error;
    throw invalidCard(error.message, error);
  }
  const kid = thumbprint(card.sign);
  if (card.kid !== kid) throw invalidCard(`Its kid is ${card.kid}, its key's is ${kid}.`);
  try {
    new Encrypter().addRecipient(card.age);
  } catch (error) {
    throw invalidCard('Its age recipient is mistyped.', error);
  }
  return card;
}

/** The card as it is written and shown: one line of JSON, members in alphabetical order. */
export function cardText(card: Card): string {
  const { age, kid, node, role, sign, v } = card;
  return JSON.stringify({ age, kid, node, role, sign, v });
}

/** SHA-256 of the canonical card, as 16 groups of 4 hexadecimal digits to read aloud. */
export function cardFingerprint(card: Card): string {
  return (cardDigest(card).toString('hex').match(/.{4}/g) as string[]).join(' ');
}

/**
 * The id of the pair of networks: 16 lower-case base32 characters of the SHA-256 over both cards'
 * digests, the request side's first.
 */
export function deriveLink(request: Card, response: Card): string {
  const digest = createHash('sha256')
    .update(cardDigest(request))
    .update(cardDigest(response))
    .digest();
  return base32(digest.subarray(0, 10));
}

/** RFC 7638 thumbprint of an Ed25519 public key given as base64url. */
export function thumbprint(sign: string): string {
  return createHash('sha256')
    .update(JSON.stringify({ crv: 'Ed25519', kty: 'OKP', x: sign }))
    .digest('base64url');
}

function cardDigest(card: Card): Buffer {
  return createHash('sha256').update(cardText(card)).digest();
}

function base32(bytes: Uint8Array): string {
  const bits = Array.from(bytes, (byte) => byte.toString(2).padStart(8, '0')).join('');
  const digits = bits.match(/.{5}/g) as string[];
  return digits.map((digit) => 'abcdefghijklmnopqrstuvwxyz234567'[parseInt(digit, 2)]).join('');
}

/** Writes all files into a private folder whose last rename makes them count; returns the kid. */
async function writeNewSet(folder: string, node: string, role: NetworkName): Promise<string> {
  const jwk = generateKeyPairSync('ed25519').privateKey.export({ format: 'jwk' });
  const sign = jwk.x as string;
  const kid = thumbprint(sign);
  const identity = await generateX25519Identity();
  const age = await identityToRecipient(identity);
  const card: Card = { v: 1, node, role, kid, sign, age };
  const files: Record<(typeof KEY_FILES)[number], string> = {
    'sign.jwk': JSON.stringify({ ...jwk, kid }),
    'age.txt': `# public key: ${age}\n${identity}`,
    'card.json': cardText(card),
  };
  const temporary = join(folder, `${NEW_SET}-${randomBytes(8).toString('hex')}`);
  await mkdir(temporary, { mode: 0o700 });
  try {
    for (const name of KEY_FILES) {
      await writeFileDurably(join(temporary, name), Buffer.from(`${files[name]}\n`));
    }
    await rename(temporary, join(folder, NEW_SET));
    await syncDirectory(folder);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw ['ENOTEMPTY', 'EEXIST'].includes(errorCode(error) ?? '')
      ? keysExist(folder, NEW_SET)
      : error;
  }
  return kid;
}

/** Moves a complete new set to its place; a set that is there already is never overwritten. */
async function finishNewSet(folder: string): Promise<void> {
  const set = join(folder, NEW_SET);
  const names = await readdir(set).catch(() => []);
  if (names.length === 0) return;
  for (const name of KEY_FILES) {
    try {
      await link(join(set, name), join(folder, name));
    } catch (error) {
      if (!['EEXIST', 'ENOENT'].includes(errorCode(error) ?? '')) throw error;
    }
  }
  await syncDirectory(folder);
  for (const name of names) await unlink(join(set, name)).catch(() => undefined);
  await rm(set, { recursive: true, force: true });
  await syncDirectory(folder);
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

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

function keysExist(folder: string, name: string): SallyportError {
  return new SallyportError('keys-exist', `There is already a ${name} in ${folder}.`, {
    next: 'Keep these keys: the far side trusts them.',
  });
}

function invalidCard(detail: string, cause?: unknown): SallyportError {
  return new SallyportError('card-invalid', `This is not a valid key card. ${detail}`, {
    cause,
    next: 'Fetch the card again: `keys card` on the far network prints it.',
  });
}
