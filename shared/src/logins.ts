import type { Database } from './database.js';
import { burnPassword, verifyPassword } from './passwords.js';
import { unauthenticated } from './session-tokens.js';
import {
  startSession,
  type SessionIssuer,
  type SessionOrigin,
  type SessionTokens,
} from './sessions.js';
import { findUserByLogin, readCredential, rolesOn, type User } from './users.js';

/**
 * Opens a session for somebody who knows the password. It takes as long, and answers the same,
 * whether the name is unknown, the password wrong, the user disabled or without a role here.
 * @throws SallyportError `unauthenticated`.
 */
export async function logIn(
  db: Database,
  { login, password, origin }: { login: string; password: string; origin: SessionOrigin },
  issuer: SessionIssuer,
): Promise<SessionTokens & { user: User }> {
  const user = await findUserByLogin(db, login);
  const credential = user && (await readCredential(db, user.id));
  if (!user || !credential || user.disabled || rolesOn(user, issuer.network).length === 0) {
    await burnPassword(password);
    throw unauthenticated();
  }
  if (!(await verifyPassword(credential.verifier, password))) throw unauthenticated();
  const tokens = await db.transaction((tx) => startSession(tx, { credential, origin }, issuer));
  return { ...tokens, user };
}
