import { rows, SallyportError, type Database, type Transaction } from '@sallyport/shared';
import { locked } from './key-files.js';
import type { Card } from './keys.js';
import { adoptNextKeys } from './next-keys.js';
import type { Node } from '../node.js';

const LOCK = 7_215_004;

/** A key that this node signs or has signed with. */
export type OwnKey = {
  kid: string;
  card: Card;
  state: 'next' | 'current' | 'retired' | 'revoked';
  /** Per stream the last number it signs; null until its end was announced. */
  retire: Record<string, number> | null;
  madeAt: Date;
  endedAt: Date | null;
};

/** All keys of this node that the database knows, oldest first. */
export async function listOwnKeys(db: Database): Promise<OwnKey[]> {
  return rows<OwnKey>(
    db,
    `select kid, card, state, retire, made_at as "madeAt", ended_at as "endedAt"
     from own_keys order by made_at, kid`,
  );
}

/**
 * Makes `node.keys` the keys that the database calls current, whoever changed them, and finishes a
 * change that a crash cut off: a next key counts once its announcement is sealed. Call it while holding
 * the stream to be sealed, or the import.
 * @throws SallyportError `store-ahead` when the keys are newer than the database, `keys-missing` when
 * they are older; `keys-locked`, `passphrase-wrong`.
 */
export async function refreshKeys(db: Database, node: Node): Promise<void> {
  const known = await listOwnKeys(db);
  const current = known.find(({ state }) => state === 'current');
  if (current?.kid === node.keys.kid && !known.some(({ state }) => state === 'next')) return;
  // One process after the other: they work on the same folder.
  await db.transaction(async (tx) => {
    await tx.raw('select pg_advisory_xact_lock(?)', [LOCK]);
    await followKeys(tx, node);
  });
}

/** Whether a change of keys or of the epoch is decided and its announcement not yet sealed. */
export async function isAnnouncing(db: Database): Promise<boolean> {
  const found = await rows(
    db,
    `select 1 from outbound_batches b
     join outbox_records o on o.batch_id = b.id and o.type = 'key.change'
     where b.stream = 'control' and b.state = 'building' limit 1`,
  );
  return found.length > 0;
}

/** Notes a key as the current one; there must be no other. */
export async function insertCurrentKey(tx: Transaction, card: Card, now: Date): Promise<void> {
  await tx.raw(
    `insert into own_keys (kid, card, state, made_at) values (:kid, :card, 'current', :now)
     on conflict (kid) do update set state = 'current', retire = null, ended_at = null`,
    { kid: card.kid, card: JSON.stringify(card), now },
  );
}

async function followKeys(tx: Transaction, node: Node): Promise<void> {
  const known = await listOwnKeys(tx);
  const next = known.find(({ state }) => state === 'next');
  const counts = next !== undefined && !(await isAnnouncing(tx));
  const current = counts ? next : known.find(({ state }) => state === 'current');
  if (!current) return insertCurrentKey(tx, node.keys.card, node.clock.now());
  if (counts) await promoteNextKey(tx, node.clock.now());
  if (current.kid === node.keys.kid) return;
  node.keys = await adoptNextKeys(node.folders.keys, current.kid, node.unlock ?? locked);
  if (node.keys.kid === current.kid) return;
  const former = known.find(({ kid }) => kid === node.keys.kid);
  throw former ? keysTooOld(former.kid, current.kid) : databaseTooOld(node.keys.kid);
}

async function promoteNextKey(tx: Transaction, now: Date): Promise<void> {
  await tx.raw(`update own_keys set state = 'retired', ended_at = ? where state = 'current'`, [
    now,
  ]);
  await tx.raw(`update own_keys set state = 'current' where state = 'next'`);
}

function databaseTooOld(kid: string): SallyportError {
  return new SallyportError(
    'store-ahead',
    `This database does not know the key ${kid} of the keys folder: it is older than its keys.`,
    { next: 'Restore a newer backup of the database, or run re-adopt.' },
  );
}

function keysTooOld(found: string, current: string): SallyportError {
  return new SallyportError(
    'keys-missing',
    `The keys folder holds the former key ${found}; the current one is ${current}.`,
    { next: 'Restore the newest backup of the keys folder; if there is none, run keys revoke.' },
  );
}
