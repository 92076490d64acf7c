import {
  actorOf,
  appendAudit,
  applyCredentials,
  applyProfiles,
  keepRevision,
  readSettingState,
  rows,
  type Argon2Range,
  type SendAccount,
  type Transaction,
} from '@sallyport/shared';
import { sendRecords, type ImportedBatch } from '@sallyport/transfer';
import { credentialRecord, userRecords } from './user-accounts.js';

const NAMED_USERS = 20;

/** Sends what users change of their own accounts on this network, and keeps the version. */
export const sendAccount: SendAccount = async (tx, { user, credential }, now) => {
  const records = user ? userRecords(user, credential) : [];
  if (!user && credential) records.push(credentialRecord(credential));
  await sendRecords(tx, 'identity', records, now);
  if (!user) return;
  const { id, ...data } = user;
  const revision = { version: user.version, at: now, actor: actorOf(user), reason: null, data };
  await keepRevision(tx, { kind: 'user', id }, revision);
};

/** Applies the passwords that users changed on the request network; nothing is sent back. */
export async function applyOwnCredentials(
  tx: Transaction,
  batch: ImportedBatch,
  now: Date,
): Promise<void> {
  const range = (await readSettingState(tx, 'argon2.range')).value as Argon2Range;
  await applyCredentials(tx, { type: 'account.credential', range }, now);
  await auditArrived(tx, { batch, type: 'account.credential', action: 'password.arrive' }, now);
}

/** Applies the profiles that users changed on the request network; nothing is sent back. */
export async function applyOwnProfiles(
  tx: Transaction,
  batch: ImportedBatch,
  now: Date,
): Promise<void> {
  await applyProfiles(tx, now);
  await auditArrived(tx, { batch, type: 'account.profile', action: 'profile.arrive' }, now);
}

async function auditArrived(
  tx: Transaction,
  { batch, type, action }: { batch: ImportedBatch; type: string; action: string },
  at: Date,
): Promise<void> {
  const found = await rows<{ id: string; total: number }>(
    tx,
    `select id, count(*) over () as total from incoming where t = ?
     group by id order by id limit ${NAMED_USERS}`,
    [type],
  );
  const [first] = found;
  if (!first) return;
  const details = { users: first.total, ids: found.map(({ id }) => id) };
  await appendAudit(tx, { at, actor: 'worker:import-batches', action, subject: batch.id, details });
}
