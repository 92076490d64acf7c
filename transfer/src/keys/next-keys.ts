import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { armor, Encrypter } from 'age-encryption';
import {
  exists,
  isProtected,
  KEY_FILES,
  NEXT,
  openText,
  protect,
  readKeyTexts,
  replaceFiles,
  RETIRED,
  type Unlock,
  writeSet,
} from './key-files.js';
import {
  type Card,
  cardText,
  FORMER_IDENTITY,
  generateKeys,
  loadCard,
  loadKeys,
  type NodeKeys,
  parseCard,
} from './keys.js';

/**
 * Makes the set of keys that comes after the current one and lays it beside it, protected alike. It
 * counts for nothing until {@link adoptNextKeys}; one that was made before is thrown away.
 */
export async function makeNextKeys(
  folder: string,
  current: Pick<NodeKeys, 'node' | 'role'>,
  unlock: Unlock,
): Promise<Card> {
  const { 'sign.jwk': secret } = await readKeyTexts(folder);
  const passphrase = isProtected(secret) ? await unlock() : undefined;
  // The next keys must open with what opens the current ones.
  if (passphrase !== undefined) await openText(secret, unlock);
  const { card, texts } = await generateKeys(current.node, current.role, passphrase);
  await writeSet(folder, NEXT, texts);
  return card;
}

/**
 * Puts the set of keys that {@link makeNextKeys} made in the place of the current one, all or none.
 * Of the former key its age identity stays, for batches that are on their way; what it signed with is
 * gone.
 * @returns the keys now in the folder, which are others when no next set has this kid.
 */
export async function adoptNextKeys(
  folder: string,
  kid: string,
  unlock: Unlock,
): Promise<NodeKeys> {
  const keys = await loadKeys(folder, unlock);
  const next = await readNextCard(folder);
  if (next?.kid !== kid || keys.kid === kid) {
    if (next && keys.kid === kid) await dropNextKeys(folder);
    return keys;
  }
  const texts = await readKeyTexts(join(folder, NEXT));
  const former = new Encrypter();
  former.addRecipient(next.age);
  await replaceFiles(folder, {
    ...texts,
    [join(RETIRED, keys.kid, FORMER_IDENTITY)]: armor.encode(
      await former.encrypt(keys.ageIdentities[0]),
    ),
    [join(RETIRED, keys.kid, 'card.json')]: cardText(keys.card),
  });
  await dropNextKeys(folder);
  return loadKeys(folder, unlock);
}

/** Forgets a set of keys that was never announced. */
export async function dropNextKeys(folder: string): Promise<void> {
  await rm(join(folder, NEXT), { recursive: true, force: true });
}

/**
 * Protects the keys by another passphrase, or by none.
 * @throws SallyportError `keys-missing`, `keys-locked`, `passphrase-wrong`.
 */
export async function changePassphrase(
  folder: string,
  unlock: Unlock,
  passphrase: string | undefined,
): Promise<void> {
  await loadCard(folder);
  const files: Record<string, string> = {};
  for (const place of ['.', NEXT]) {
    if (place === NEXT && !(await exists(join(folder, NEXT)))) continue;
    for (const name of KEY_FILES.filter((file) => file !== 'card.json')) {
      const path = join(place, name);
      const text = await openText(await readFile(join(folder, path), 'utf8'), unlock);
      files[path] = passphrase === undefined ? text : await protect(text, passphrase);
    }
  }
  await replaceFiles(folder, files);
}

async function readNextCard(folder: string): Promise<Card | undefined> {
  const text = await readFile(join(folder, NEXT, 'card.json'), 'utf8').catch(() => undefined);
  return text === undefined ? undefined : parseCard(text);
}
