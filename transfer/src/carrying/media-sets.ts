import { basename } from 'node:path';
import { SallyportError } from '@sallyport/shared';
import type { Card } from '../keys/keys.js';
import {
  type IndexFile,
  type MediaIndex,
  SET_LIMITS,
  signerOf,
  type VerifiedIndex,
  verifyIndex,
} from './media-index.js';
import { type MediumContent, readSmall } from './medium.js';
import type { FileFault } from './ready-batches.js';

/** The most INDEX files that are read from one medium. */
const INDEX_FILES = 100;

/** An INDEX of one medium: what it says of the whole set. */
export type KnownSet = VerifiedIndex & { path: string; signer: string };

/** A batch of a set that is in no place that was looked at. */
export type MissingFile = IndexFile & { medium: string; label?: string };

/** How much of a set is there. */
export type SetState = {
  set: string;
  from: string;
  to: string;
  madeAt: string;
  signer: string;
  /** SHA-256 of the INDEX file. */
  sha256: string;
  files: number;
  /** Of them, those that are in no place looked at, but were read not long ago. */
  remembered: number;
  missing: MissingFile[];
};

/**
 * Reads the INDEX files of a medium. With cards, one that claims to be signed by a node must be of
 * that node's own batches.
 */
export async function readIndexes(
  content: MediumContent,
  cards: ReadonlyMap<string, Card> | undefined,
): Promise<{ sets: KnownSet[]; faults: FileFault[] }> {
  const sets: KnownSet[] = [];
  const faults: FileFault[] = [];
  for (const path of content.indexes.slice(0, INDEX_FILES)) {
    try {
      const verified = await verifyIndex(await readSmall(path, SET_LIMITS.indexBytes));
      const { set, from } = verified.index;
      if (basename(path) !== `INDEX.${set}.jws`) throw mismatch(`it is the INDEX of set ${set}`);
      const { node, text } = signerOf(verified, cards);
      if (node !== undefined && node !== from) {
        throw mismatch(`it is signed by ${node}, but names batches from ${from}`);
      }
      sets.push({ ...verified, path, signer: text });
    } catch (error) {
      if (!(error instanceof SallyportError)) throw error;
      faults.push({ file: basename(path), code: error.code, message: error.message });
    }
  }
  return { sets, faults };
}

/**
 * Each set once, by its newest INDEX.
 * @throws nothing: an INDEX of the same set by another key is a fault.
 */
export function newestOf(found: readonly KnownSet[]): { sets: KnownSet[]; faults: FileFault[] } {
  const byId = new Map<string, KnownSet>();
  const faults: FileFault[] = [];
  for (const known of found) {
    const other = byId.get(known.index.set);
    if (other && other.kid !== known.kid) {
      const message = 'Two INDEX files of one set are signed by different keys.';
      faults.push({ file: basename(known.path), code: 'index-mismatch', message });
    } else if (!other || other.index.made_at < known.index.made_at) {
      byId.set(known.index.set, known);
    }
  }
  return { sets: [...byId.values()], faults };
}

/**
 * What of a set is missing, given the digests that are in hand, and those that are only remembered
 * with the SHA-256 of what was read.
 */
export function stateOf(
  { index, signer, sha256 }: KnownSet,
  inHand: { has(digest: string): boolean },
  read: ReadonlyMap<string, string> = new Map(),
): SetState {
  const away = index.media.flatMap(({ id, label, files }) =>
    files
      .filter(({ digest }) => !inHand.has(digest))
      .map((file) => ({ ...file, medium: id, ...(label === undefined ? {} : { label }) })),
  );
  const missing = away.filter((file) => read.get(file.digest) !== file.sha256);
  return {
    set: index.set,
    from: index.from,
    to: index.to,
    madeAt: index.made_at,
    signer,
    sha256,
    files: index.media.reduce((sum, { files }) => sum + files.length, 0),
    remembered: away.length - missing.length,
    missing,
  };
}

/** The entries of a medium in the sets that name it, by the name of the file. */
export function entriesFor(
  sets: readonly KnownSet[],
  id: string | undefined,
): Map<string, { file: IndexFile; index: MediaIndex }> {
  const entries = new Map<string, { file: IndexFile; index: MediaIndex }>();
  // The newest INDEX that names a file decides.
  const ordered = sets.toSorted((a, b) => a.index.made_at.localeCompare(b.index.made_at));
  for (const { index } of ordered) {
    const mine = index.media.find((medium) => medium.id === id)?.files ?? [];
    for (const file of mine) entries.set(file.name, { file, index });
  }
  return entries;
}

function mismatch(detail: string): SallyportError {
  return new SallyportError('index-mismatch', `The INDEX does not belong here: ${detail}.`, {
    next: 'Ask whoever wrote the medium; the batches on it are checked by themselves.',
  });
}
