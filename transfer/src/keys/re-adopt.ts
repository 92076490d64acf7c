import { mkdir, readdir, rename } from 'node:fs/promises';
import { join } from 'node:path';
import {
  appendAudit,
  rows,
  SallyportError,
  type Database,
  type Transaction,
} from '@sallyport/shared';
import { parseBatchName } from '../format/batch-file.js';
import { removeIfThere, syncDirectory } from '../format/durable-file.js';
import { raiseEpoch, type RaisedEpoch } from './epochs.js';
import { whileHoldingAll } from '../sending/hold-streams.js';
import { finishAnnouncement } from './key-rotation.js';
import { cardFingerprint, type Card } from './keys.js';
import { findLink, type Link } from './links.js';
import { dropNextKeys } from './next-keys.js';
import type { Node } from '../node.js';
import { insertCurrentKey, listOwnKeys, refreshKeys } from './own-keys.js';

const ASIDE = 'before-re-adopt-';
const MISFITS: readonly string[] = ['store-ahead', 'keys-missing'];

/** Stored batches that the database does not know, and where they are to be kept. */
type Aside = { names: string[]; folder: string | null; epoch: number };

export type ReAdopted = RaisedEpoch & {
  link: string;
  incarnation: string;
  /** Batches in the store that the database does not know: sealed after the backup was made. */
  kept_aside: string[];
  /** Where they lie now, in the store. */
  folder: string | null;
  /** The node's card where the database knew another key as the current one. */
  new_card: Card | null;
};

/**
 * Goes on after the database was restored from a backup. What it does not know any more cannot be
 * continued: acknowledgements start again under a new incarnation, all our streams start again in an
 * epoch above everything known here (`above`: known elsewhere), and what is not acknowledged as applied
 * leaves again with the same ids. Repeating it does no harm.
 * @throws SallyportError `not-trusted`, WAIT_LOCK, and what refuses to seal.
 */
export async function reAdopt(
  db: Database,
  node: Node,
  { by, above = 0 }: { by: string; above?: number },
): Promise<ReAdopted> {
  return whileHoldingAll(db, node, async () => {
    const link = await findLink(db);
    if (!link) {
      throw new SallyportError('not-trusted', 'This database knows no far side at all.', {
        next: 'Restore a newer backup, or begin anew with keys trust.',
      });
    }
    // A rotation that was announced is finished: the far side takes the new key for the only one.
    await refreshKeys(db, node).catch((error: unknown) => {
      // That the keys do not fit the database is what this is for.
      if (!(error instanceof SallyportError && MISFITS.includes(error.code))) throw error;
    });
    const aside = await findUnknown(db, node, link);
    const decided = await db.transaction((tx) =>
      decide(tx, node, link, { by, above: Math.max(above, aside.epoch), kept: aside.names }),
    );
    // Only now: until the epoch is raised, these files keep the exporter from their numbers.
    await keepAside(node, aside);
    await dropNextKeys(node.folders.keys);
    await clearOutbox(node, link, decided.epoch);
    await finishAnnouncement(db, node);
    return { ...decided, link: link.link, kept_aside: aside.names, folder: aside.folder };
  });
}

async function decide(
  tx: Transaction,
  node: Node,
  link: Link,
  { by, above, kept }: { by: string; above: number; kept: string[] },
): Promise<Omit<ReAdopted, 'link' | 'kept_aside' | 'folder'>> {
  const now = node.clock.now();
  const [incarnation] = await rows<{ id: string }>(
    tx,
    `insert into incarnations (made_at)
     select greatest(now(), max(made_at) + interval '1 millisecond') from incarnations
     returning id`,
  );
  const newCard = await adoptFolder(tx, node, now);
  const raised = await raiseEpoch(tx, node, link, {
    reason: { change: 'restore', kid: node.keys.kid, card: null },
    above,
  });
  await node.network?.afterRestore?.(tx, { epoch: raised.epoch, now });
  // All that we would acknowledge is told anew.
  await tx.raw('update links set ack_version = ack_version + 1 where link = ?', [link.link]);
  await appendAudit(tx, {
    at: now,
    actor: by,
    action: 'link.re-adopt',
    subject: link.link,
    details: {
      ...raised,
      incarnation: incarnation?.id ?? null,
      kept_aside: kept.length,
      kid: node.keys.kid,
      fingerprint: cardFingerprint(node.keys.card),
    },
  });
  return { ...raised, incarnation: incarnation?.id ?? '', new_card: newCard };
}

/** The keys in the folder are the truth; a rotation that was under way is forgotten. */
async function adoptFolder(tx: Transaction, node: Node, now: Date): Promise<Card | null> {
  const current = (await listOwnKeys(tx)).find(({ state }) => state === 'current');
  await tx.raw(`delete from own_keys where state = 'next'`);
  if (current?.kid === node.keys.kid) return null;
  await tx.raw(`update own_keys set state = 'retired', ended_at = ? where state = 'current'`, [
    now,
  ]);
  await insertCurrentKey(tx, node.keys.card, now);
  return current ? node.keys.card : null;
}

/** The stored batches that the database does not know, and the highest epoch of all there are. */
async function findUnknown(db: Database, node: Node, link: Link): Promise<Aside> {
  const { store } = node.folders;
  const all = await readdir(store);
  const ours = all.filter((name) => isOurs(node, link, name));
  const known = await rows<{ fileName: string }>(
    db,
    'select file_name as "fileName" from outbound_batches where file_name = any(?)',
    [ours],
  );
  const knownNames = new Set(known.map(({ fileName }) => fileName));
  const names = ours.filter((name) => !knownNames.has(name));
  const before = await Promise.all(
    all.filter((name) => name.startsWith(ASIDE)).map((name) => readdir(join(store, name))),
  );
  const epochs = [...ours, ...before.flat()].map((name) => parseBatchName(name)?.epoch ?? 0);
  const epoch = epochs.reduce((top, one) => Math.max(top, one), 0);
  if (names.length === 0) return { names, folder: null, epoch };
  const folder = `${ASIDE}${node.clock
    .now()
    .toISOString()
    .replace(/[-:]|\.\d+/g, '')}`;
  return { names, folder, epoch };
}

/** Moves what was found out of the way, and keeps it. */
async function keepAside(node: Node, { names, folder }: Aside): Promise<void> {
  if (folder === null) return;
  const { store } = node.folders;
  await mkdir(join(store, folder), { recursive: true, mode: 0o700 });
  for (const name of names) await rename(join(store, name), join(store, folder, name));
  await syncDirectory(join(store, folder));
  await syncDirectory(store);
}

/** What lies ready of earlier epochs would only be refused. */
async function clearOutbox(node: Node, link: Link, epoch: number): Promise<void> {
  const { outbox } = node.folders;
  for (const name of await readdir(outbox)) {
    const old = isOurs(node, link, name) && (parseBatchName(name)?.epoch ?? epoch) < epoch;
    if (old) await removeIfThere(join(outbox, name));
  }
}

function isOurs(node: Node, link: Link, name: string): boolean {
  const parts = parseBatchName(name);
  return parts?.from === node.name && parts.to === link.farNode;
}
