import { rows, type Transaction } from './database.js';
import type { NetworkName } from './records.js';
import { findUser, storeUsers, type Credential, type User } from './users.js';

/** Sends what changed of an account to the other network, in the transaction that changes it. */
export type SendAccount = (
  tx: Transaction,
  changed: { user?: User; credential?: Credential },
  now: Date,
) => Promise<void>;

/** The account to change, and the credential that its new verifier was made for. */
export type VerifierChange = {
  userId: string;
  from: Credential;
  verifier: string;
  network: NetworkName;
  sendAccount: SendAccount;
  now: Date;
};

/**
 * Gives a user a verifier of their own password and sends it. The request network counts on within a
 * generation; the response network alone begins one. The sessions of this network stay; those of the
 * other one end when it hears of it.
 * @returns undefined, with nothing changed, when somebody else changed the password meanwhile.
 */
export async function replaceVerifier(
  tx: Transaction,
  { userId, from, verifier, network, sendAccount, now }: VerifierChange,
): Promise<Credential | undefined> {
  await rows(tx, 'select 1 from users where id = ? for update', [userId]);
  const to: Credential =
    network === 'request'
      ? { ...from, counter: from.counter + 1, verifier }
      : { ...from, generation: from.generation + 1, counter: 0, verifier };
  const written = await rows(
    tx,
    `update credentials set generation = ?, counter = ?, verifier = ?, updated_at = ?
     where user_id = ? and generation = ? and counter = ? and verifier = ? returning user_id`,
    [
      to.generation,
      to.counter,
      verifier,
      now,
      userId,
      from.generation,
      from.counter,
      from.verifier,
    ],
  );
  if (written.length === 0) return undefined;
  await rows(
    tx,
    `update sessions set generation = ?, counter = ?
     where user_id = ? and generation = ? and counter = ?`,
    [to.generation, to.counter, userId, from.generation, from.counter],
  );
  if (network === 'request') {
    await sendAccount(tx, { credential: to }, now);
    return to;
  }
  const user = await findUser(tx, userId);
  if (!user) throw new Error(`the user ${userId} is gone`);
  // With a counter of 0 the mark of a password that somebody else set would count again.
  const next = { ...user, version: user.version + 1, must_change_password: false };
  await storeUsers(tx, [next], now);
  await sendAccount(tx, { user: next, credential: to }, now);
  return to;
}
