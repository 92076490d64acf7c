import type { Clock } from './clock.js';
import type { Database } from './database.js';
import { newId } from './ids.js';
import { burnPassword, verifyPassword } from './passwords.js';
import { audienceOf } from './principals.js';
import type { NetworkName } from './records.js';
import { issueSessionToken, unauthenticated, type SessionKey } from './session-tokens.js';
import { findUserByLogin, readCredential, type User } from './users.js';

/** What a network signs its access tokens with. */
export type SessionIssuer = {
  network: NetworkName;
  sessionKey: SessionKey;
  /** The name of the node. */
  issuer: string;
  clock: Clock;
};

/**
 * Opens a session for somebody who knows the password. It takes as long, and answers the same,
 * whether the name is unknown, the password wrong or the user disabled.
 * @throws SallyportError `unauthenticated`.
 */
export async function openSession(
  db: Database,
  { login, password }: { login: string; password: string },
  { network, sessionKey, issuer, clock, minutes }: SessionIssuer & { minutes: number },
): Promise<{ token: string; expiresAt: Date; user: User }> {
  const user = await findUserByLogin(db, login);
  const credential = user && (await readCredential(db, user.id));
  if (!user || !credential || user.disabled) {
    await burnPassword(password);
    throw unauthenticated();
  }
  if (!(await verifyPassword(credential.verifier, password))) throw unauthenticated();
  const session = await issueSessionToken(
    sessionKey,
    { userId: user.id, sessionId: newId(), generation: credential.generation },
    { realm: { issuer, audience: audienceOf(network) }, clock, minutes },
  );
  return { ...session, user };
}
