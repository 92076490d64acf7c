import { actorOf, appendAudit } from './audit.js';
import { rows, type Database, type Transaction } from './database.js';
import { SallyportError } from './errors.js';
import { provePassword, type LoginRules } from './logins.js';
import { checkNewPassword, type PasswordRules } from './password-rules.js';
import { hashPassword } from './passwords.js';
import type { Principal } from './principals.js';
import type { NetworkName } from './records.js';
import { unauthenticated } from './session-tokens.js';
import { endSessions } from './sessions.js';
import { findUser, storeUsers, type User } from './users.js';
import { replaceVerifier, type SendAccount } from './verifier-changes.js';

/** What people may change of themselves. */
export type OwnProfile = Partial<Pick<User, 'display_name' | 'email' | 'language' | 'notices'>>;

/**
 * Gives the caller a new password, which works here at once and travels to the other network; every
 * other session ends. Wrong current passwords count as failed attempts to log in.
 * @throws SallyportError `bad-field`, `version-conflict` when somebody else set a password meanwhile;
 * and as {@link provePassword}.
 */
export async function changeOwnPassword(
  db: Database,
  {
    actor,
    address,
    current,
    wanted,
  }: { actor: Principal; address: string; current: string; wanted: string },
  rules: LoginRules & PasswordRules & { sendAccount: SendAccount },
): Promise<void> {
  const { login, userId } = actor;
  const { network, clock, sendAccount } = rules;
  const attempt = { login, password: current, address };
  const { credential } = await provePassword(db, attempt, rules).catch(nameCurrent);
  if (wanted === current) throw badField('/new', 'is the password of now');
  await checkNewPassword(wanted, { login, pointer: '/new' }, rules);
  const verifier = await hashPassword(wanted);
  const now = clock.now();
  const changed = await db.transaction(async (tx) => {
    const change = { userId, from: credential, verifier, network, sendAccount, now };
    const to = await replaceVerifier(tx, change);
    if (!to) return undefined;
    const { generation, counter } = to;
    await appendAudit(tx, {
      at: now,
      actor: actorOf(actor),
      action: 'password.change',
      subject: userId,
      details: { generation, counter },
    });
    const others = { userId, ...(actor.sessionId === null ? {} : { exceptId: actor.sessionId }) };
    await endSessions(tx, { where: others, actor: actorOf(actor), action: 'session.end', now });
    return to;
  });
  if (changed) return;
  throw new SallyportError('version-conflict', 'Somebody else has just set a password.', {
    next: 'Log in again, with that one.',
  });
}

/** Changes the caller's own profile and sends it to the other network. */
export async function changeOwnProfile(
  tx: Transaction,
  { actor, wanted }: { actor: Principal; wanted: OwnProfile },
  { network, sendAccount, now }: { network: NetworkName; sendAccount: SendAccount; now: Date },
): Promise<User> {
  await rows(tx, 'select 1 from users where id = ? for update', [actor.userId]);
  const user = await findUser(tx, actor.userId);
  if (!user) throw unauthenticated();
  const next: User = {
    ...user,
    ...wanted,
    profile_version: user.profile_version + 1,
    // Only the response network counts versions of the account.
    version: network === 'response' ? user.version + 1 : user.version,
  };
  await storeUsers(tx, [next], now);
  await sendAccount(tx, { user: next }, now);
  const names = Object.keys(wanted) as (keyof OwnProfile)[];
  const pick = (from: User) => Object.fromEntries(names.map((name) => [name, from[name]]));
  await appendAudit(tx, {
    at: now,
    actor: actorOf(actor),
    action: 'profile.change',
    subject: actor.userId,
    details: { before: pick(user), after: pick(next) },
  });
  return next;
}

function nameCurrent(error: unknown): never {
  const wrong = error instanceof SallyportError && error.code === 'unauthenticated';
  throw wrong ? badField('/current', 'is not your password') : error;
}

function badField(pointer: string, detail: string): SallyportError {
  return new SallyportError('bad-field', `${pointer} ${detail}.`, {
    errors: [{ pointer, code: 'bad-field', detail }],
  });
}
