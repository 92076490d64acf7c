import { randomInt } from 'node:crypto';
import {
  appendAudit,
  findProfileTypeByName,
  findUserByLogin,
  foldLogin,
  hashPassword,
  newId,
  readCredential,
  rows,
  SallyportError,
  storeCredential,
  storeUsers,
  type Credential,
  type RoleGrant,
  type Settings,
  type Transaction,
  type User,
} from '@sallyport/shared';
import { sendRecords, type OutgoingRecord } from '@sallyport/transfer';
import type { Change } from './change.js';

export type NewUser = {
  login: string;
  displayName?: string | undefined;
  email?: string | undefined;
  profileType: string;
  roles: RoleGrant[];
  /** Without one, a password is made that must be changed at the first login. */
  password?: string | undefined;
};

/** An account and, when one was made, the password to hand over; it is kept nowhere. */
export type Account = { user: User; oneTimePassword: string | null };

const LOGIN = /^[a-z0-9][a-z0-9._@-]{0,63}$/;
// No letters and digits that are mistaken for each other.
const PASSWORD_CHARACTERS = 'abcdefghijkmnpqrstuvwxyz23456789';
const PASSWORD_GROUPS = 4;
const PASSWORD_GROUP_LENGTH = 5;

/**
 * Makes an account and sends it, with its verifier, to the request network.
 * @throws SallyportError `already-exists`, `bad-field`, `not-found` for the profile type.
 */
export async function createUser(
  tx: Transaction,
  wanted: NewUser,
  { settings, ...change }: Change & { settings: Settings },
): Promise<Account> {
  const login = foldLogin(wanted.login);
  if (!LOGIN.test(login)) {
    throw new SallyportError('bad-field', `"${wanted.login}" is no login name.`, {
      next: 'Use 1 to 64 of a-z, 0-9, and . _ @ - after the first character.',
    });
  }
  if (await findUserByLogin(tx, login)) {
    throw new SallyportError('already-exists', `There is a user ${login} already.`);
  }
  const profileType = await findProfileTypeByName(tx, wanted.profileType);
  if (!profileType) {
    throw new SallyportError('not-found', `There is no profile type "${wanted.profileType}".`);
  }
  const user: User = {
    id: newId(),
    version: 1,
    login,
    profile_type_id: profileType.id,
    roles: wanted.roles,
    disabled: false,
    must_change_password: wanted.password === undefined,
    profile_version: 0,
    display_name: wanted.displayName ?? login,
    email: wanted.email ?? null,
    language: null,
    notices: {},
  };
  const { verifier, oneTimePassword } = await makePassword(wanted.password, settings);
  const credential = { user_id: user.id, generation: 1, counter: 0, verifier };
  await publish(tx, { user, credential, action: 'user.create' }, change);
  return { user, oneTimePassword };
}

/** Shuts a user out on both networks: the account, every session, and the password. */
export async function disableUser(tx: Transaction, login: string, change: Change): Promise<User> {
  const user = await requireUser(tx, login);
  if (user.disabled) return user;
  const disabled = { ...user, disabled: true, version: user.version + 1 };
  const credential = await nextGeneration(tx, user.id);
  await publish(tx, { user: disabled, credential, action: 'user.disable' }, change);
  return disabled;
}

/** Lets a user in again, with the password of before. */
export async function enableUser(tx: Transaction, login: string, change: Change): Promise<User> {
  const user = await requireUser(tx, login);
  if (!user.disabled) return user;
  const enabled = { ...user, disabled: false, version: user.version + 1 };
  await publish(tx, { user: enabled, action: 'user.enable' }, change);
  return enabled;
}

/** Gives a user a new password, made here unless given, and ends every session. */
export async function resetPassword(
  tx: Transaction,
  { login, password }: { login: string; password?: string | undefined },
  { settings, ...change }: Change & { settings: Settings },
): Promise<Account> {
  const user = await requireUser(tx, login);
  const { verifier, oneTimePassword } = await makePassword(password, settings);
  const credential = { ...(await nextGeneration(tx, user.id)), verifier };
  const next = {
    ...user,
    version: user.version + 1,
    must_change_password: password === undefined,
  };
  await publish(tx, { user: next, credential, action: 'user.reset-password' }, change);
  return { user: next, oneTimePassword };
}

/** Whether somebody can administer this network. */
export async function hasAdmin(tx: Transaction): Promise<boolean> {
  const found = await rows(
    tx,
    `select 1 from users where 'response:admin' = any(roles) and not disabled limit 1`,
  );
  return found.length > 0;
}

/** A user and the credential as they cross. */
export function userRecords(user: User, credential?: Credential): OutgoingRecord[] {
  const { id, ...data } = user;
  const records: OutgoingRecord[] = [{ type: 'user', id, data }];
  if (credential) records.push(credentialRecord(credential));
  return records;
}

/** A credential as it crosses. */
export function credentialRecord({ user_id: id, ...data }: Credential): OutgoingRecord {
  return { type: 'user.credential', id, data };
}

async function publish(
  tx: Transaction,
  { user, credential, action }: { user: User; credential?: Credential; action: string },
  { now, actor }: Change,
): Promise<void> {
  await storeUsers(tx, [user], now);
  if (credential) await storeCredential(tx, credential, now);
  await sendRecords(tx, 'identity', userRecords(user, credential), now);
  await appendAudit(tx, {
    at: now,
    actor,
    action,
    subject: user.id,
    details: { login: user.login, version: user.version },
  });
}

async function requireUser(tx: Transaction, login: string): Promise<User> {
  await tx('users')
    .where({ login: foldLogin(login) })
    .forUpdate()
    .first('id');
  const user = await findUserByLogin(tx, login);
  if (user) return user;
  throw new SallyportError('not-found', `There is no user "${login}".`);
}

async function nextGeneration(tx: Transaction, userId: string): Promise<Credential> {
  const credential = await readCredential(tx, userId);
  if (!credential) throw new SallyportError('not-found', 'The user has no password.');
  return { ...credential, generation: credential.generation + 1, counter: 0 };
}

async function makePassword(
  given: string | undefined,
  settings: Settings,
): Promise<{ verifier: string; oneTimePassword: string | null }> {
  const least = settings['password.min_length'];
  if (given !== undefined && [...given].length < least) {
    throw new SallyportError('bad-field', `The password has fewer than ${least} characters.`);
  }
  const password = given ?? oneTime();
  return {
    verifier: await hashPassword(password),
    oneTimePassword: given === undefined ? password : null,
  };
}

/** A hundred random bits in groups that can be read aloud. */
function oneTime(): string {
  const character = () => PASSWORD_CHARACTERS[randomInt(PASSWORD_CHARACTERS.length)];
  const group = () => Array.from({ length: PASSWORD_GROUP_LENGTH }, character).join('');
  return Array.from({ length: PASSWORD_GROUPS }, group).join('-');
}
