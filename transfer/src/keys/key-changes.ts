import {
  appendAudit,
  rows,
  SallyportError,
  type RecordData,
  type Transaction,
} from '@sallyport/shared';
import type { ImportedBatch } from '../receiving/apply.js';
import { parseCard, type Card } from './keys.js';
import { insertFarKey, readFarKeys, type FarKey } from './links.js';

type KeyChange = RecordData<'key.change'>;

/**
 * Does what the far side announces of its keys. A rotation must be signed by the very key that it
 * retires; the new key counts at once, the old one up to the numbers told. A new epoch is announced
 * by the first batch of it, signed by a key that is trusted here already.
 * @throws SallyportError SCHEMA for an announcement that its signer may not make.
 */
export async function applyKeyChange(
  tx: Transaction,
  batch: ImportedBatch,
  now: Date,
): Promise<void> {
  const found = await rows<{ d: KeyChange }>(
    tx,
    `select d from incoming where t = 'key.change' order by line`,
  );
  for (const { d: change } of found) {
    const opensEpoch = batch.epoch > 1 && batch.seq === 1;
    if (change.epoch !== batch.epoch || (change.change !== 'rotate') !== opensEpoch) {
      throw refuse(`a ${change.change} to epoch ${change.epoch} stands in number ${batch.seq}`);
    }
    // Locked, so that a revocation made here meanwhile is seen.
    await tx.raw('select 1 from far_keys where link = ? for update', [batch.link]);
    const keys = await readFarKeys(tx, batch.link);
    const signer = keys.get(batch.kid);
    if (!signer || signer.revokedAt) throw refuse(`its key ${batch.kid} is not trusted any more`);
    if (change.change === 'rotate') await rotate(tx, batch, { change, signer, keys, now });
    else await noteOldKey(tx, batch, { change, now });
    await appendAudit(tx, {
      at: now,
      actor: `node:${signer.card.node}`,
      action: `keys.${change.change}`,
      subject: signer.card.node,
      details: {
        kid: change.kid,
        signed_by: batch.kid,
        new_kid: cardIn(change)?.kid ?? null,
        epoch: change.epoch,
        retire: change.retire,
      },
    });
  }
}

async function rotate(
  tx: Transaction,
  batch: ImportedBatch,
  {
    change,
    signer,
    keys,
    now,
  }: { change: KeyChange; signer: FarKey; keys: Map<string, FarKey>; now: Date },
): Promise<void> {
  if (change.kid !== batch.kid) throw refuse(`it retires ${change.kid} and is signed by another`);
  if (signer.retire) throw refuse(`the key ${change.kid} was retired before`);
  const card = cardIn(change);
  if (!card || card.node !== signer.card.node || card.role !== signer.card.role) {
    throw refuse('its card is not one of the same node');
  }
  const known = keys.get(card.kid);
  if (known) throw refuse(`the key ${card.kid} was known before`);
  await tx.raw(
    `update far_keys set retire = :retire, retire_epoch = :epoch where link = :link and kid = :kid`,
    {
      retire: JSON.stringify(change.retire),
      epoch: change.epoch,
      link: batch.link,
      kid: change.kid,
    },
  );
  await insertFarKey(tx, batch.link, card, { by: `key:${batch.kid}`, now });
}

/** The far side says that a key of its own is no good: nothing signed with it counts here either. */
async function noteOldKey(
  tx: Transaction,
  batch: ImportedBatch,
  { change, now }: { change: KeyChange; now: Date },
): Promise<void> {
  if (change.kid === batch.kid) return;
  await revokeKeys(tx, { link: batch.link, kid: change.kid, signer: batch.kid, now });
}

/**
 * Revokes a key of the far side and all that it announced, and those that these announced: whoever
 * stole it may have made them. Never the signer of the announcement, which was trusted before.
 * @returns the keys that counted until now.
 */
export async function revokeKeys(
  tx: Transaction,
  {
    link,
    kid,
    signer = null,
    now,
  }: { link: string; kid: string; signer?: string | null; now: Date },
): Promise<string[]> {
  const revoked = await rows<{ kid: string }>(
    tx,
    `with recursive bad as (
       select kid from far_keys where link = :link and kid = :kid
       union
       select k.kid from bad join far_keys k
         on k.link = :link and k.trusted_by = 'key:' || bad.kid
         and k.kid is distinct from cast(:signer as text)
     )
     update far_keys k set revoked_at = :now from bad
     where k.link = :link and k.kid = bad.kid and k.revoked_at is null returning k.kid`,
    { link, kid, signer, now },
  );
  return revoked.map((row) => row.kid);
}

function cardIn({ card }: KeyChange): Card | undefined {
  if (card === null) return undefined;
  try {
    return parseCard(JSON.stringify(card));
  } catch (cause) {
    throw refuse('its card is not valid', cause);
  }
}

function refuse(found: string, cause?: unknown): SallyportError {
  return new SallyportError('SCHEMA', `The change of keys cannot be followed: ${found}.`, {
    cause,
    next: 'Tell the security officer of both sides: nobody but the key itself may announce this.',
  });
}
