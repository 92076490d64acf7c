import {
  createHash,
  createPrivateKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
} from 'node:crypto';
import { link, mkdir, readdir, readFile, rename, rm, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import {
  armor,
  Decrypter,
  Encrypter,
  generateX25519Identity,
  identityToRecipient,
} from 'age-encryption';
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
import { errorCode, syncDirectory, writeFileDurably } from '../format/durable-file.js';
import {
  exists,
  finishSwap,
  KEY_FILES,
  type KeyTexts,
  listRetired,
  locked,
  openText,
  protect,
  readKeyTexts,
  RETIRED,
  type Unlock,
} from './key-files.js';

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
  /** `AGE-SECRET-KEY-1…`: of the current key first, then of former ones, for late batches. */
  ageIdentities: readonly [string, ...string[]];
};

/** Holds a complete new set until its files have moved into the keys folder. */
const NEW_SET = '.new-keys';
/** What a former key keeps: its age identity, encrypted to the key that came after it. */
export const FORMER_IDENTITY = 'age.txt.age';
/** How often files are read again that another process is replacing. */
const READ_TRIES = 20;
const READ_AGAIN_MS = 50;

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
 * Makes a node's keys in `folder` (made with mode 0700 if absent; the files are 0600), the secret ones
 * protected when there is a passphrase. After a crash either none or all of the files are there.
 * @throws SallyportError keys-exist when the folder has any of them; usage for a bad node name.
 */
export async function makeKeys(
  folder: string,
  node: string,
  role: NetworkName,
  { passphrase }: { passphrase?: string | undefined } = {},
): Promise<NodeKeys> {
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
  const { kid, texts } = await generateKeys(node, role, passphrase);
  await writeNewSet(folder, texts);
  await finishNewSet(folder);
  const keys = await loadKeys(folder, () => Promise.resolve(passphrase ?? ''));
  // Somebody else was quicker; the keys in the folder are theirs.
  if (keys.kid !== kid) throw keysExist(folder, 'sign.jwk');
  return keys;
}

/**
 * Reads the keys that {@link makeKeys} made, and finishes what a crash left half replaced.
 * @throws SallyportError keys-missing when a file is absent; card-invalid when they do not belong
 * together; keys-locked and passphrase-wrong when they are protected.
 */
export async function loadKeys(folder: string, unlock: Unlock = locked): Promise<NodeKeys> {
  await finishNewSet(folder);
  for (let tries = 1; ; tries += 1) {
    await finishSwap(folder);
    try {
      return await readKeys(folder, unlock);
    } catch (error) {
      const mixed = error instanceof SallyportError && error.code === 'card-invalid';
      if (!mixed || tries === READ_TRIES) throw error;
      // Another process may be replacing them at this moment.
      await new Promise((resolve) => setTimeout(resolve, READ_AGAIN_MS));
    }
  }
}

/**
 * The card of the keys in a folder; the secret files must be there but are not opened.
 * @throws SallyportError keys-missing, card-invalid.
 */
export async function loadCard(folder: string): Promise<Card> {
  await finishNewSet(folder);
  await finishSwap(folder);
  return parseCard((await readKeyTexts(folder))['card.json']);
}

/** Makes a new set of keys, its secret texts protected when there is a passphrase. */
export async function generateKeys(
  node: string,
  role: NetworkName,
  passphrase: string | undefined,
): Promise<{ kid: string; card: Card; texts: KeyTexts }> {
  const jwk = generateKeyPairSync('ed25519').privateKey.export({ format: 'jwk' });
  const sign = jwk.x as string;
  const kid = thumbprint(sign);
  const identity = await generateX25519Identity();
  const age = await identityToRecipient(identity);
  const card: Card = { v: 1, node, role, kid, sign, age };
  const kept = async (text: string) =>
    passphrase === undefined ? text : protect(text, passphrase);
  return {
    kid,
    card,
    texts: {
      'sign.jwk': await kept(JSON.stringify({ ...jwk, kid })),
      'age.txt': await kept(`# public key: ${age}\n${identity}`),
      'card.json': cardText(card),
    },
  };
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

async function readKeys(folder: string, unlock: Unlock): Promise<NodeKeys> {
  const texts = await readKeyTexts(folder);
  const card = parseCard(texts['card.json']);
  const jwk = await openText(texts['sign.jwk'], unlock);
  const signKey = createPrivateKey({ key: JSON.parse(jwk), format: 'jwk' });
  const ageText = await openText(texts['age.txt'], unlock);
  const identity = /^AGE-SECRET-KEY-1\S+$/m.exec(ageText)?.[0] ?? '';
  const recipient = identity === '' ? '' : await identityToRecipient(identity);
  if (signKey.export({ format: 'jwk' }).x !== card.sign || recipient !== card.age) {
    throw new SallyportError('card-invalid', `The files in ${folder} do not belong together.`, {
      next: 'Restore the keys folder as a whole from a backup.',
    });
  }
  const former = await readFormerIdentities(folder, identity);
  return {
    node: card.node,
    role: card.role,
    kid: card.kid,
    card,
    signKey,
    ageIdentities: [identity, ...former],
  };
}

/** Each former identity opens with that of the key after it; one that is damaged ends its branch. */
async function readFormerIdentities(folder: string, current: string): Promise<string[]> {
  const found: string[] = [];
  const decrypter = new Decrypter();
  decrypter.addIdentity(current);
  let sealed = await Promise.all(
    (await listRetired(folder)).map((kid) =>
      readFile(join(folder, RETIRED, kid, FORMER_IDENTITY)).catch(() => undefined),
    ),
  );
  for (;;) {
    const opened = await Promise.all(
      sealed.map(async (file) => {
        if (!file) return undefined;
        const armored = file.toString('utf8').trim();
        return decrypter.decrypt(armor.decode(armored), 'text').catch(() => undefined);
      }),
    );
    const fresh = opened.filter((identity) => identity !== undefined);
    if (fresh.length === 0) return found;
    for (const identity of fresh) {
      decrypter.addIdentity(identity.trim());
      found.push(identity.trim());
    }
    sealed = sealed.filter((_, index) => opened[index] === undefined);
  }
}

/** Writes all files into a private folder whose last rename makes them count. */
async function writeNewSet(folder: string, texts: KeyTexts): Promise<void> {
  const temporary = join(folder, `${NEW_SET}-${randomBytes(8).toString('hex')}`);
  await mkdir(temporary, { mode: 0o700 });
  try {
    for (const name of KEY_FILES) {
      await writeFileDurably(join(temporary, name), Buffer.from(`${texts[name].trimEnd()}\n`));
    }
    await rename(temporary, join(folder, NEW_SET));
    await syncDirectory(folder);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw ['ENOTEMPTY', 'EEXIST'].includes(errorCode(error) ?? '')
      ? keysExist(folder, NEW_SET)
      : error;
  }
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
