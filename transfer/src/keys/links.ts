import { fileURLToPath } from 'node:url';
import {
  NETWORKS,
  SallyportError,
  rows,
  streamsSentBy,
  type Database,
  type Transaction,
} from '@sallyport/shared';
import { cardFingerprint, cardText, deriveLink, type Card } from './keys.js';
import { ZERO_DIGEST } from '../format/manifest.js';
import type { Node } from '../node.js';
import { insertCurrentKey } from './own-keys.js';

/** The migrations of this package. */
export const transferMigrations = fileURLToPath(new URL('../../migrations/', import.meta.url));

/** The pair of networks that a node belongs to. */
export type Link = { link: string; farNode: string; epoch: number; farEpoch: number };

/** A key of the far side and what is known of its end. */
export type FarKey = {
  card: Card;
  /** Per stream the last number it may sign, in the epoch in which it ended; null while current. */
  retire: Record<string, number> | null;
  retireEpoch: number | null;
  revokedAt: Date | null;
  trustedAt: Date;
};

/** The link of this node, or undefined before trust. */
export async function findLink(db: Database): Promise<Link | undefined> {
  const [row] = await rows<Link>(
    db,
    `select link, far_node as "farNode", epoch, far_epoch as "farEpoch"
     from links order by created_at limit 1`,
  );
  return row;
}

/** What became of a card: adopted first, adopted after the current one was revoked, or known. */
export type Trust = Link & { fresh: boolean; replaced: boolean };

/**
 * Adopts the far side's card: derives the link, binds what waited for trust to it, and opens a cursor
 * for every stream the far side sends. Repeating it changes nothing. A further card of the same node
 * is adopted only once its current key is revoked; the link stays.
 * @throws SallyportError `card-invalid` for a card of the same role, of another far side than the one
 * already trusted, or of a key that was revoked.
 */
export async function trustCard(db: Database, node: Node, card: Card, by: string): Promise<Trust> {
  if (card.role === node.role) {
    throw new SallyportError(
      'card-invalid',
      `The card is of a ${card.role} network, and so is this one; two different ones make a link.`,
      { next: 'Bring the card of the other network.' },
    );
  }
  return db.transaction(async (tx) => {
    await tx.raw('select pg_advisory_xact_lock(7215003)');
    const known = await findLink(tx);
    if (known) {
      const replaced = await replaceKey(tx, node, known, { card, by });
      return { ...known, fresh: false, replaced };
    }
    const link =
      node.role === 'request' ? deriveLink(node.keys.card, card) : deriveLink(card, node.keys.card);
    await insertLink(tx, node, card, link, by);
    return { link, farNode: card.node, epoch: 1, farEpoch: 1, fresh: true, replaced: false };
  });
}

/** Adds a key of the far side. */
export async function insertFarKey(
  tx: Transaction,
  link: string,
  card: Card,
  { by, now }: { by: string; now: Date },
): Promise<void> {
  await tx('far_keys').insert({
    link,
    kid: card.kid,
    card: JSON.stringify(card),
    fingerprint: cardFingerprint(card),
    trusted_at: now,
    trusted_by: by,
  });
}

async function replaceKey(
  tx: Transaction,
  node: Node,
  { link, farNode }: Link,
  { card, by }: { card: Card; by: string },
): Promise<boolean> {
  const keys = await readFarKeys(tx, link);
  const same = keys.get(card.kid);
  if (same?.revokedAt) {
    throw new SallyportError('card-invalid', `The key ${card.kid} was revoked here.`, {
      next: 'Bring the card that the far side made afterwards.',
    });
  }
  if (same && cardText(same.card) === cardText(card)) return false;
  // A retired key signs nothing new: it need not be revoked.
  const valid = [...keys].flatMap(([kid, key]) => (key.retire || key.revokedAt ? [] : [kid]));
  if (valid.length > 0 || card.node !== farNode) {
    const by = valid.length > 0 ? ` Valid there is ${valid.join(', ')}.` : '';
    throw new SallyportError(
      'card-invalid',
      `This node already trusts ${farNode} (link ${link}), and not by this card of ${card.node}.${by}`,
      {
        next: 'A changed far side announces its new key itself; only where its keys were stolen or lost, revoke them first with keys revoke KID.',
      },
    );
  }
  await insertFarKey(tx, link, card, { by, now: node.clock.now() });
  await tx.raw('update links set adopted_kid = ? where link = ?', [card.kid, link]);
  return true;
}

/** The far side's keys by kid. */
export async function readFarKeys(db: Database, link: string): Promise<Map<string, FarKey>> {
  const found = await rows<FarKey & { kid: string }>(
    db,
    `select kid, card, retire, retire_epoch as "retireEpoch", revoked_at as "revokedAt",
       trusted_at as "trustedAt"
     from far_keys where link = ? order by trusted_at`,
    [link],
  );
  return new Map(found.map(({ kid, ...key }) => [kid, key]));
}

/** Whether any key of the far side is neither retired nor revoked. */
export async function hasValidFarKey(db: Database): Promise<boolean> {
  const valid = await rows(
    db,
    'select 1 from far_keys where revoked_at is null and retire is null limit 1',
  );
  return valid.length > 0;
}

/** The age recipient of the far side's newest valid key. */
export async function findRecipient(db: Database, link: string): Promise<string> {
  const [row] = await rows<{ age: string }>(
    db,
    `select card->>'age' as age from far_keys
     where link = ? and revoked_at is null and retire is null order by trusted_at desc limit 1`,
    [link],
  );
  if (row) return row.age;
  throw new SallyportError('not-trusted', 'No valid key of the far side is known here.', {
    next: 'Run keys trust with its new card.',
  });
}

async function insertLink(
  tx: Transaction,
  node: Node,
  card: Card,
  link: string,
  by: string,
): Promise<void> {
  const now = node.clock.now();
  await tx('links').insert({
    link,
    far_node: card.node,
    epoch: 1,
    far_epoch: 1,
    manifest_no: 0,
    ack_version: 0,
    created_at: now,
  });
  await insertFarKey(tx, link, card, { by, now });
  await insertCurrentKey(tx, node.keys.card, now);
  const farRole = NETWORKS.find((role) => role !== node.role) ?? 'request';
  await tx('inbound_streams').insert(
    streamsSentBy(farRole).map((stream) => ({
      link,
      stream,
      epoch: 1,
      contiguous: 0,
      contiguous_digest: ZERO_DIGEST,
      tail_seq: 0,
    })),
  );
  await tx('outbox_records').whereNull('link').update({ link });
}
