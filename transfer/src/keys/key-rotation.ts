import {
  appendAudit,
  rows,
  SallyportError,
  streamsSentBy,
  type Database,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import { forgetAcks } from '../receiving/acks.js';
import { announceKeyChange, raiseEpoch, type RaisedEpoch } from './epochs.js';
import { readyStream, sealUnfinished } from '../sending/export.js';
import { requireNotFrozen } from '../receiving/freezes.js';
import { whileHoldingAll } from '../sending/hold-streams.js';
import { revokeKeys } from './key-changes.js';
import { locked } from './key-files.js';
import { cardFingerprint, type Card } from './keys.js';
import { findLink, type Link } from './links.js';
import { makeNextKeys } from './next-keys.js';
import type { Node } from '../node.js';
import { insertCurrentKey, isAnnouncing, listOwnKeys, refreshKeys } from './own-keys.js';
import { tidyOutbox } from '../sending/store.js';

/** Per stream the last number that the old key signs. */
export type RetirePoints = Partial<Record<StreamName, number>>;

/**
 * Replaces the keys of this node and tells the far side by a batch of `control` that the old key
 * signs. Safe to kill at any moment: the next export or import goes on where it ended.
 * @throws SallyportError `not-trusted`, WAIT_LOCK, WAIT_APPROVAL while `control` is frozen, and what
 * refuses to seal.
 */
export async function rotateKeys(
  db: Database,
  node: Node,
  by: string,
): Promise<{ old: string; card: Card; retire: RetirePoints }> {
  return whileHoldingAll(db, node, async () => {
    const link = await requireLink(db);
    // It is announced there. A revocation may not wait: it begins a new epoch, which is not frozen.
    await requireNotFrozen(db, link.link, 'control');
    const streams = streamsSentBy(node.role);
    // What was begun is sealed by the key that began it: the retire points must be known.
    for (const stream of streams) {
      await readyStream(db, node, stream);
      await sealUnfinished(db, node, link, stream);
    }
    await refreshKeys(db, node);
    const old = node.keys.kid;
    const card = await makeNextKeys(node.folders.keys, node.keys, node.unlock ?? locked);
    const retire = await db.transaction((tx) => announceRotation(tx, node, link, { card, by }));
    await finishAnnouncement(db, node);
    return { old, card, retire };
  });
}

/**
 * Decides the rotation to a key whose set lies ready: the announcement is begun, as the last number
 * of `control` that the current key signs. Call it while holding all streams, nothing half built.
 */
export async function announceRotation(
  tx: Transaction,
  node: Node,
  link: Link,
  { card, by }: { card: Card; by: string },
): Promise<RetirePoints> {
  const now = node.clock.now();
  const retire = await lastNumbers(tx, node, link);
  retire.control = (retire.control ?? 0) + 1;
  const change = { change: 'rotate' as const, kid: node.keys.kid, card, retire, epoch: link.epoch };
  const { seq } = await announceKeyChange(tx, node, link, change);
  if (seq !== retire.control) throw new Error(`control went on to ${seq} while it was held`);
  await tx.raw('update own_keys set retire = ? where kid = ?', [
    JSON.stringify(retire),
    node.keys.kid,
  ]);
  await tx('own_keys').insert({
    kid: card.kid,
    card: JSON.stringify(card),
    state: 'next',
    made_at: now,
  });
  await appendAudit(tx, {
    at: now,
    actor: by,
    action: 'keys.rotate',
    subject: node.name,
    details: { old: node.keys.kid, kid: card.kid, fingerprint: cardFingerprint(card), retire },
  });
  return retire;
}

/**
 * Replaces keys that were stolen or lost: new ones count at once, the epoch rises, and everything not
 * acknowledged leaves again. The far side must revoke the old key and trust the new card by hand.
 * Safe to kill at any moment. `valid`: all keys that may still count there, the oldest first.
 * @throws SallyportError `not-trusted`, WAIT_LOCK, and what refuses to seal.
 */
export async function revokeOwnKeys(
  db: Database,
  node: Node,
  by: string,
): Promise<RaisedEpoch & { old: string; valid: string[]; card: Card }> {
  return whileHoldingAll(db, node, async () => {
    const link = await requireLink(db);
    const lost = await refreshKeys(db, node).then(
      () => false,
      (error: unknown) => {
        // Lost keys are what this is for: the folder may hold older ones, or none of these at all.
        if (error instanceof SallyportError && error.code === 'keys-missing') return true;
        throw error;
      },
    );
    // The keys that a pending announcement names must not be overwritten: it could still be sealed.
    if (!lost && (await isAnnouncing(db))) await finishAnnouncement(db, node);
    const current = (await listOwnKeys(db)).find(({ state }) => state === 'current');
    const old = current?.kid ?? node.keys.kid;
    const valid = [...(await listUnheardRetired(db)), old];
    const card = await makeNextKeys(node.folders.keys, node.keys, node.unlock ?? locked);
    const raised = await db.transaction((tx) =>
      decideRevocation(tx, node, link, { old, card, by }),
    );
    await finishAnnouncement(db, node);
    // What lies ready of the epochs before would only be refused.
    await tidyOutbox(db, node);
    return { ...raised, old, valid, card };
  });
}

/** Decides the revocation in favour of a key whose set lies ready. Call it while holding all streams. */
export async function decideRevocation(
  tx: Transaction,
  node: Node,
  link: Link,
  { old, card, by }: { old: string; card: Card; by: string },
): Promise<RaisedEpoch> {
  const now = node.clock.now();
  // A rotation that was decided and not announced ends with the epoch.
  await tx.raw(`delete from own_keys where state = 'next'`);
  await tx.raw(`update own_keys set state = 'revoked', ended_at = ? where state = 'current'`, [
    now,
  ]);
  await insertCurrentKey(tx, card, now);
  const raised = await raiseEpoch(tx, node, link, {
    reason: { change: 'revoke', kid: old, card },
  });
  await appendAudit(tx, {
    at: now,
    actor: by,
    action: 'keys.revoke',
    subject: node.name,
    details: { old, kid: card.kid, fingerprint: cardFingerprint(card), ...raised },
  });
  return raised;
}

/** Seals what was announced and puts the keys in place that it names. Call it holding all streams. */
export async function finishAnnouncement(db: Database, node: Node): Promise<void> {
  const link = await requireLink(db);
  await readyStream(db, node, 'control');
  await sealUnfinished(db, node, link, 'control');
  await refreshKeys(db, node);
}

/**
 * Stops trusting a key of the far side and every key that it announced: whatever they signed and is
 * not here yet is refused with an alarm, and `trustCard` may adopt another.
 * @returns the keys that counted until now.
 * @throws SallyportError `not-found`; `already-exists` when it was revoked before.
 */
export async function revokeFarKey(
  db: Database,
  node: Node,
  { kid, by }: { kid: string; by: string },
): Promise<string[]> {
  return db.transaction(async (tx) => {
    const link = await findLink(tx);
    // Who had the key may have told what is not true. First, as an import locks in this order.
    if (link) await forgetAcks(tx, link.link);
    const [found] = await rows<{ link: string; revokedAt: Date | null }>(
      tx,
      `select link, revoked_at as "revokedAt" from far_keys where kid = ? for update`,
      [kid],
    );
    if (!found) {
      throw new SallyportError('not-found', `No key ${kid} of the far side is known.`, {
        next: 'keys ls shows the keys of both sides.',
      });
    }
    if (found.revokedAt) {
      const since = found.revokedAt.toISOString();
      throw new SallyportError('already-exists', `The key ${kid} is revoked since ${since}.`);
    }
    const now = node.clock.now();
    const revoked = await revokeKeys(tx, { link: found.link, kid, now });
    await appendAudit(tx, {
      at: now,
      actor: by,
      action: 'keys.revoke-far',
      subject: kid,
      details: { revoked },
    });
    return revoked;
  });
}

/** Former keys of which the far side is not known to have read that they ended. */
async function listUnheardRetired(db: Database): Promise<string[]> {
  const found = await rows<{ kid: string }>(
    db,
    `select k.kid from own_keys k where k.state = 'retired' and exists (
       select 1 from outbox_records o join outbound_batches b on b.id = o.batch_id
       where o.stream = 'control' and o.type = 'key.change' and b.state <> 'acked'
         and o.line::jsonb->'d'->>'change' = 'rotate' and o.line::jsonb->'d'->>'kid' = k.kid)
     order by k.made_at, k.kid`,
  );
  return found.map(({ kid }) => kid);
}

async function lastNumbers(tx: Transaction, node: Node, link: Link): Promise<RetirePoints> {
  const sealed = await rows<{ stream: StreamName; seq: number }>(
    tx,
    `select stream, max(seq) as seq from outbound_batches
     where link = ? and epoch = ? group by stream`,
    [link.link, link.epoch],
  );
  const last = new Map(sealed.map(({ stream, seq }) => [stream, seq]));
  return Object.fromEntries(
    streamsSentBy(node.role).map((stream) => [stream, last.get(stream) ?? 0]),
  );
}

async function requireLink(db: Database): Promise<Link> {
  const link = await findLink(db);
  if (link) return link;
  throw new SallyportError('not-trusted', 'No far side is trusted yet: nobody knows these keys.', {
    next: 'To begin with others, empty the keys folder and run keys init.',
  });
}
