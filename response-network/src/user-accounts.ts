import { randomInt } from 'node:crypto';
import {
  appendAudit,
  auditChanges,
  checkNewPassword,
  findProfileTypeByName,
  findUser,
  findUserByLogin,
  foldLogin,
  hashPassword,
  IDENTITY_CHANGED,
  keepRevision,
  listChanges,
  newId,
  notifyChanged,
  readCredential,
  readRevision,
  SallyportError,
  storeCredential,
  storeUsers,
  type Credential,
  type PasswordRules,
  type ProfileType,
  type RoleGrant,
  type Settings,
  type Transaction,
  type User,
  type UserRecord,
} from '@sallyport/shared';
import { sendRecords, type OutgoingRecord } from '@sallyport/transfer';
import { requireAdminsKept } from './administrators.js';
import { requireExpected, requireReason, type Change } from './change.js';
import { lockNames } from './names.js';

/** What passwords that are given must keep to. */
export type AccountRules = { settings: Settings; breachedFile?: string | undefined };

/** The rules of a network. */
export function accountRulesOf({ settings, config }: AccountRulesSource): AccountRules {
  return { settings: settings(), breachedFile: config.BREACHED_PASSWORDS_FILE };
}

type AccountRulesSource = {
  settings(): Settings;
  config: { BREACHED_PASSWORDS_FILE?: string };
};

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

/** The form of login names, once folded. */
export const LOGIN = /^[a-z0-9][a-z0-9._@-]{0,63}$/;
// No letters and digits that are mistaken for each other.
const PASSWORD_CHARACTERS = 'abcdefghijkmnpqrstuvwxyz23456789';
const PASSWORD_GROUPS = 4;
const PASSWORD_GROUP_LENGTH = 5;
/** What users may change by themselves too. */
const OWN_MEMBERS: readonly string[] = ['display_name', 'email', 'language', 'notices'];

/**
 * Makes an account and sends it, with its verifier, to the request network.
 * @throws SallyportError `already-exists`, `bad-field`, `not-found` for the profile type.
 */
export async function createUser(
  tx: Transaction,
  wanted: NewUser,
  { settings, breachedFile, ...change }: Change & AccountRules,
): Promise<Account> {
  const login = foldLogin(wanted.login);
  if (!LOGIN.test(login)) {
    throw new SallyportError('bad-field', `"${wanted.login}" is no login name.`, {
      next: 'Use 1 to 64 of a-z, 0-9, and . _ @ - after the first character.',
    });
  }
  await lockNames(tx);
  if (await findUserByLogin(tx, login)) {
    throw new SallyportError('already-exists', `There is a user ${login} already.`);
  }
  const profileType = await requireProfileType(tx, wanted.profileType);
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
  const { verifier, oneTimePassword } = await makePassword(wanted.password, login, {
    settings,
    breachedFile,
  });
  const credential = { user_id: user.id, generation: 1, counter: 0, verifier };
  await publish(tx, { user, credential, action: 'user.create' }, change);
  return { user, oneTimePassword };
}

/** Which user: by login name, or by id. */
export type WhichUser = string | { id: string };

/** What of a user an admin may change; what is not named stays. */
export type UserChange = {
  displayName?: string | undefined;
  email?: string | null | undefined;
  language?: string | null | undefined;
  notices?: User['notices'] | undefined;
  /** By name. */
  profileType?: string | undefined;
  roles?: RoleGrant[] | undefined;
};

/**
 * Changes what is named; a change that changes nothing makes no version.
 * @throws SallyportError `not-found`, `version-conflict`, `bad-field` for a change of roles without a
 * reason, `last-admin`.
 */
export async function updateUser(
  tx: Transaction,
  which: WhichUser,
  wanted: UserChange,
  change: Change,
): Promise<User> {
  const user = await requireUser(tx, which, change);
  const { displayName, email, language, notices, profileType, roles } = wanted;
  const members = {
    display_name: displayName ?? user.display_name,
    email: email === undefined ? user.email : email,
    language: language === undefined ? user.language : language,
    notices: notices ?? user.notices,
    profile_type_id:
      profileType === undefined
        ? user.profile_type_id
        : (await requireProfileType(tx, profileType)).id,
    roles: roles ?? user.roles,
  };
  return changeUser(tx, { user, members, action: 'user.set' }, change);
}

/**
 * Gives a user the rights and the profile of an older version, as a new one. Whether they are shut
 * out, and their password, stay as they are.
 * @throws SallyportError as {@link updateUser}; `not-found` for a version that was not kept.
 */
export async function rollBackUser(
  tx: Transaction,
  which: WhichUser,
  version: number,
  change: Change,
): Promise<User> {
  const user = await requireUser(tx, which, change);
  const old = (await readRevision(tx, { kind: 'user', id: user.id }, version)) as UserRecord;
  const { display_name, email, language, notices, profile_type_id, roles } = old;
  const members = { display_name, email, language, notices, profile_type_id, roles };
  return changeUser(tx, { user, members, action: 'user.roll-back' }, change);
}

/**
 * Shuts a user out on both networks: the account, every session, and the password.
 * @throws SallyportError `not-found`, `own-account`, `last-admin`.
 */
export async function disableUser(
  tx: Transaction,
  which: WhichUser,
  change: Change,
): Promise<User> {
  const user = await requireUser(tx, which, change);
  if (user.id === change.actorId) {
    throw new SallyportError('own-account', 'You cannot shut yourself out.', {
      next: 'Have another administrator do it.',
    });
  }
  if (user.disabled) return user;
  const disabled = { ...user, disabled: true, version: user.version + 1 };
  await requireAdminsKept(tx, user, disabled, change);
  const credential = await nextGeneration(tx, user.id);
  await publish(tx, { before: user, user: disabled, credential, action: 'user.disable' }, change);
  return disabled;
}

/** Lets a user in again, with the password of before. */
export async function enableUser(tx: Transaction, which: WhichUser, change: Change): Promise<User> {
  const user = await requireUser(tx, which, change);
  if (!user.disabled) return user;
  const enabled = { ...user, disabled: false, version: user.version + 1 };
  await publish(tx, { before: user, user: enabled, action: 'user.enable' }, change);
  return enabled;
}

/** Gives a user a new password, made here unless given, and ends every session. */
export async function resetPassword(
  tx: Transaction,
  { password, ...which }: ({ login: string } | { id: string }) & { password?: string | undefined },
  { settings, breachedFile, ...change }: Change & AccountRules,
): Promise<Account> {
  const user = await requireUser(tx, 'id' in which ? which : which.login, change);
  const { verifier, oneTimePassword } = await makePassword(password, user.login, {
    settings,
    breachedFile,
  });
  const credential = { ...(await nextGeneration(tx, user.id)), verifier };
  const next = {
    ...user,
    version: user.version + 1,
    must_change_password: password === undefined,
  };
  await publish(
    tx,
    { before: user, user: next, credential, action: 'user.reset-password' },
    change,
  );
  return { user: next, oneTimePassword };
}

/** Ends every session of a user on both networks; the password stays. */
export async function endSessions(
  tx: Transaction,
  which: WhichUser,
  change: Change,
): Promise<User> {
  const user = await requireUser(tx, which, change);
  const credential = await nextGeneration(tx, user.id);
  const next = { ...user, version: user.version + 1 };
  await publish(tx, { before: user, user: next, credential, action: 'user.end-sessions' }, change);
  return next;
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

async function changeUser(
  tx: Transaction,
  { user, members, action }: { user: User; members: Partial<User>; action: string },
  change: Change,
): Promise<User> {
  const next = { ...user, ...members };
  const changed = listChanges(user, next).map(({ path }) => path.split('/')[1] ?? '');
  if (changed.length === 0) return user;
  if (changed.includes('roles')) requireReason(change, 'a change of roles');
  await requireAdminsKept(tx, user, next, change);
  // So that it also wins over what the user changed before, wherever that is on its way.
  if (changed.some((name) => OWN_MEMBERS.includes(name))) next.profile_version += 1;
  next.version += 1;
  await publish(tx, { before: user, user: next, action }, change);
  return next;
}

async function publish(
  tx: Transaction,
  {
    before = {},
    user,
    credential,
    action,
  }: { before?: object; user: User; credential?: Credential; action: string },
  { now, actor, reason }: Change,
): Promise<void> {
  const { id, ...data } = user;
  await storeUsers(tx, [user], now);
  if (credential) await storeCredential(tx, credential, now);
  await sendRecords(tx, 'identity', userRecords(user, credential), now);
  const why = reason ?? null;
  const revision = { version: user.version, at: now, actor, reason: why, data };
  await keepRevision(tx, { kind: 'user', id }, revision);
  await appendAudit(tx, {
    at: now,
    actor,
    action,
    subject: id,
    details: {
      login: user.login,
      version: user.version,
      reason: why,
      ...auditChanges(before, user),
    },
  });
  await notifyChanged(tx, IDENTITY_CHANGED);
}

async function requireUser(tx: Transaction, which: WhichUser, change: Change): Promise<User> {
  const by = typeof which === 'string' ? { login: foldLogin(which) } : { id: which.id };
  const row = await tx('users').where(by).forUpdate().first<{ id: string } | undefined>('id');
  const user = row && (await findUser(tx, row.id));
  if (!user) {
    const name = typeof which === 'string' ? which : which.id;
    throw new SallyportError('not-found', `There is no user "${name}".`);
  }
  requireExpected(user, change);
  return user;
}

async function requireProfileType(tx: Transaction, name: string): Promise<ProfileType> {
  const found = await findProfileTypeByName(tx, name);
  if (found) return found;
  throw new SallyportError('not-found', `There is no profile type "${name}".`);
}

async function nextGeneration(tx: Transaction, userId: string): Promise<Credential> {
  const credential = await readCredential(tx, userId);
  if (!credential) throw new SallyportError('not-found', 'The user has no password.');
  return { ...credential, generation: credential.generation + 1, counter: 0 };
}

async function makePassword(
  given: string | undefined,
  login: string,
  rules: PasswordRules,
): Promise<{ verifier: string; oneTimePassword: string | null }> {
  if (given !== undefined) await checkNewPassword(given, { login, pointer: '/password' }, rules);
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
