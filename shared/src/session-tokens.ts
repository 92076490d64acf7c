import {
  calculateJwkThumbprint,
  exportJWK,
  generateKeyPair,
  importJWK,
  jwtVerify,
  SignJWT,
  type CryptoKey,
  type JWK,
} from 'jose';
import type { Clock } from './clock.js';
import { SallyportError } from './errors.js';
import { isId } from './ids.js';
import type { NetworkName } from './records.js';

export type SessionKey = { id: string; privateKey: CryptoKey; publicKey: CryptoKey };

/** What a token says. Roles are looked up for each call: a token must not keep one that was taken. */
export type SessionClaims = { userId: string; sessionId: string };

/** Who issues a token and for whom; a token of another node or use is refused. */
export type TokenRealm = { issuer: string; audience: string };

/** No token is taken that is older, whatever the settings said when it was made. */
const MAX_AGE_S = 24 * 60 * 60;

/** RFC 9864's name; the older "EdDSA" is neither written nor read. */
const ALGORITHM = 'Ed25519';
const TYPE = 'sallyport-session+jwt';
// The issuer reads its own tokens, perhaps in another process: seconds at most.
const CLOCK_TOLERANCE_S = 5;

/** A new signing key as the text of a private JWK (RFC 8037), to be kept secret. */
export async function generateSessionKey(): Promise<string> {
  const { privateKey } = await generateKeyPair(ALGORITHM, { extractable: true });
  return JSON.stringify(await exportJWK(privateKey));
}

/**
 * Reads the text of a private JWK.
 * @throws SallyportError `config-invalid` when it is not an Ed25519 private key.
 */
export async function loadSessionKey(text: string): Promise<SessionKey> {
  try {
    const { kty, crv, x, d } = JSON.parse(text) as Record<'kty' | 'crv' | 'x' | 'd', unknown>;
    if (kty !== 'OKP' || crv !== 'Ed25519' || typeof x !== 'string' || typeof d !== 'string') {
      throw new Error('kty must be OKP, crv must be Ed25519, x and d must be given');
    }
    const publicJwk: JWK = { kty, crv, x };
    return {
      id: await calculateJwkThumbprint(publicJwk),
      publicKey: (await importJWK(publicJwk, ALGORITHM)) as CryptoKey,
      privateKey: (await importJWK({ ...publicJwk, d }, ALGORITHM)) as CryptoKey,
    };
  } catch (cause) {
    throw new SallyportError('config-invalid', 'The session key is not an Ed25519 private JWK.', {
      cause,
    });
  }
}

/** Whom session tokens of a network are for. */
export function audienceOf(network: NetworkName): string {
  return `sallyport-${network}`;
}

/** A token for some minutes. */
export async function issueSessionToken(
  key: SessionKey,
  claims: SessionClaims,
  { realm, clock, minutes }: { realm: TokenRealm; clock: Clock; minutes: number },
): Promise<{ token: string; expiresAt: Date }> {
  const issuedAt = Math.floor(clock.now().getTime() / 1_000);
  const expiresAt = issuedAt + minutes * 60;
  const token = await new SignJWT({ sid: claims.sessionId })
    .setProtectedHeader({ alg: ALGORITHM, typ: TYPE, kid: key.id })
    .setIssuer(realm.issuer)
    .setAudience(realm.audience)
    .setSubject(claims.userId)
    .setIssuedAt(issuedAt)
    .setExpirationTime(expiresAt)
    .sign(key.privateKey);
  return { token, expiresAt: new Date(expiresAt * 1_000) };
}

/**
 * What a token of ours says. Whether user and session still stand is for the caller.
 * @throws SallyportError `unauthenticated`, the same for every reason.
 */
export async function verifySessionToken(
  key: SessionKey,
  token: string,
  { realm, clock }: { realm: TokenRealm; clock: Clock },
): Promise<SessionClaims> {
  try {
    const { payload } = await jwtVerify(token, key.publicKey, {
      algorithms: [ALGORITHM],
      typ: TYPE,
      issuer: realm.issuer,
      audience: realm.audience,
      requiredClaims: ['sub', 'sid', 'iat', 'exp'],
      maxTokenAge: MAX_AGE_S,
      clockTolerance: CLOCK_TOLERANCE_S,
      currentDate: clock.now(),
    });
    const { sub, sid } = payload;
    if (typeof sub !== 'string' || !isId(sub) || typeof sid !== 'string' || !isId(sid)) {
      throw new Error('a claim is not of its type');
    }
    return { userId: sub, sessionId: sid };
  } catch (cause) {
    throw unauthenticated(cause);
  }
}

/** The one answer to whoever cannot prove who they are, whatever the reason. */
export function unauthenticated(cause?: unknown): SallyportError {
  return new SallyportError('unauthenticated', 'The credentials are missing or not valid.', {
    cause,
    next: 'Log in again or send a valid API key.',
  });
}
