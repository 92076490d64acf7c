import { setTimeout as wait } from 'node:timers/promises';
import { actorOf, appendAudit } from './audit.js';
import type { Clock } from './clock.js';
import type { Database } from './database.js';
import {
  admitLogin,
  forgetLoginFailures,
  noteLoginFailure,
  type LoginAttempt,
} from './login-limits.js';
import { burnPassword, hashPassword, isVerifierWeak, verifyPassword } from './passwords.js';
import type { NetworkName } from './records.js';
import { unauthenticated } from './session-tokens.js';
import {
  startSession,
  type SessionIssuer,
  type SessionOrigin,
  type SessionTokens,
} from './sessions.js';
import type { Settings } from './settings.js';
import {
  findUserByLogin,
  foldLogin,
  readCredential,
  rolesOn,
  type Credential,
  type User,
} from './users.js';
import { replaceVerifier, type SendAccount } from './verifier-changes.js';

/** What a password is proved with. */
export type LoginRules = {
  network: NetworkName;
  clock: Clock;
  settings: Pick<Settings, 'login.account_per_minute' | 'login.address_per_minute'>;
};

/** An account whose password somebody knew. */
export type ProvedAccount = { user: User; credential: Credential };

/** Every refusal takes at least this long: longer than the differences between its reasons. */
const REFUSAL_MS = 400;

/**
 * Opens a session for somebody who knows the password. A verifier that is weaker than those we make
 * is replaced on the way.
 * @throws SallyportError as {@link provePassword}.
 */
export async function logIn(
  db: Database,
  { login, password, origin }: { login: string; password: string; origin: SessionOrigin },
  context: SessionIssuer & LoginRules & { sendAccount: SendAccount },
): Promise<SessionTokens & { user: User }> {
  const attempt = { login, password, address: origin.address };
  const { user, credential } = await provePassword(db, attempt, context);
  const { network, clock, sendAccount } = context;
  const verifier = isReplaced(user, credential, network) && (await hashPassword(password));
  const now = clock.now();
  const tokens = await db.transaction(async (tx) => {
    const change = { userId: user.id, from: credential, network, sendAccount, now };
    const replaced = verifier ? await replaceVerifier(tx, { ...change, verifier }) : undefined;
    const opened = { credential: replaced ?? credential, origin };
    const session = await startSession(tx, opened, context);
    await appendAudit(tx, {
      at: now,
      actor: actorOf(user),
      action: 'session.open',
      subject: user.id,
      details: { session: session.id, address: origin.address },
    });
    return session;
  });
  return { ...tokens, user };
}

/**
 * The account of a login name, for whoever knows its password. It takes as long, and answers the
 * same, whether the name is unknown, the password wrong, the user disabled or without a role here.
 * @throws SallyportError `unauthenticated`; `rate-limited` after too many attempts; `queue-full` when
 * too many passwords are being checked.
 */
export async function provePassword(
  db: Database,
  { login, password, address }: { login: string; password: string; address: string },
  { network, clock, settings }: LoginRules,
): Promise<ProvedAccount> {
  const startedAt = performance.now();
  const attempt = { login: foldLogin(login), address };
  await admitLogin(db, attempt, settings);
  const user = await findUserByLogin(db, login);
  const credential = user && (await readCredential(db, user.id));
  const knows = credential
    ? await verifyPassword(credential.verifier, password)
    : await burnPassword(password).then(() => false);
  if (user && credential && knows && !user.disabled && rolesOn(user, network).length > 0) {
    await forgetLoginFailures(db, attempt);
    return { user, credential };
  }
  await auditFailure(db, { attempt, user }, clock.now());
  await wait(REFUSAL_MS - (performance.now() - startedAt));
  throw unauthenticated();
}

/** Failures are noted as they double, so that nobody can fill the audit log. */
async function auditFailure(
  db: Database,
  { attempt, user }: { attempt: LoginAttempt; user: User | undefined },
  at: Date,
): Promise<void> {
  const { failures, locked } = await noteLoginFailure(db, attempt);
  const isPowerOfTwo = (failures & (failures - 1)) === 0;
  if (!locked && !isPowerOfTwo) return;
  // What is no login name may be somebody's password.
  const entry = { at, actor: 'anonymous', subject: user?.id ?? 'unknown' };
  const details = { login: user?.login ?? null, address: attempt.address, failures };
  await db.transaction(async (tx) => {
    if (isPowerOfTwo) await appendAudit(tx, { ...entry, action: 'login.failed', details });
    if (!locked) return;
    await appendAudit(tx, {
      ...entry,
      action: 'login.locked',
      details: { ...details, for: locked },
    });
  });
}

/**
 * Whether the verifier is replaced at this login. The response network could only do it by a new
 * generation, which would undo a change on its way from the request network: it leaves that to the
 * other one where the user logs in there, too.
 */
function isReplaced(user: User, { verifier }: Credential, network: NetworkName): boolean {
  if (!isVerifierWeak(verifier) || user.must_change_password) return false;
  return network === 'request' || rolesOn(user, 'request').length === 0;
}
