import {
  burnPassword,
  findUserByLogin,
  issueSessionToken,
  newId,
  readCredential,
  unauthenticated,
  verifyPassword,
  type Clock,
  type Database,
  type SessionKey,
  type User,
} from '@sallyport/shared';
import { AUDIENCE } from './principals.js';

/**
 * Opens a session for somebody who knows the password. It takes as long, and answers the same,
 * whether the name is unknown, the password wrong or the user disabled.
 * @throws SallyportError `unauthenticated`.
 */
export async function openSession(
  db: Database,
  { login, password }: { login: string; password: string },
  {
    sessionKey,
    issuer,
    clock,
    minutes,
  }: { sessionKey: SessionKey; issuer: string; clock: Clock; minutes: number },
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
    { realm: { issuer, audience: AUDIENCE }, clock, minutes },
  );
  return { ...session, user };
}
