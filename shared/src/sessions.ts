import { createHash, randomBytes } from 'node:crypto';
import { actorOf, appendAudit } from './audit.js';
import type { Clock } from './clock.js';
import { rows, type Database, type Transaction } from './database.js';
import { SallyportError } from './errors.js';
import { newId } from './ids.js';
import { IDENTITY_CHANGED, notifyChanged } from './network-events.js';
import type { NetworkName } from './records.js';
import {
  audienceOf,
  issueSessionToken,
  unauthenticated,
  type SessionKey,
} from './session-tokens.js';
import type { Settings } from './settings.js';
import { shorten } from './text.js';
import type { Credential } from './users.js';

/** What a network opens its sessions with. */
export type SessionIssuer = {
  network: NetworkName;
  sessionKey: SessionKey;
  /** The name of the node. */
  issuer: string;
  clock: Clock;
  settings: Pick<Settings, 'session.minutes' | 'session.refresh_days' | 'session.most_days'>;
};

/** From where somebody logged in, as far as it can be known. */
export type SessionOrigin = { address: string; client: string };

/** What proves a session: the token for each call, and the one that fetches the next pair. */
export type SessionTokens = {
  token: string;
  expiresAt: Date;
  refreshToken: string;
  refreshExpiresAt: Date;
};

/** A session as its user sees it. */
export type SessionView = {
  id: string;
  address: string;
  client: string;
  created_at: Date;
  refreshed_at: Date;
  expires_at: Date;
};

const DAY_MS = 86_400_000;
const MAX_SESSIONS = 50;
const MAX_CLIENT_LENGTH = 200;
const TOKEN_BYTES = 32;
/** So long after its use a refresh token is taken for a call that came twice, not for a theft. */
const RACE_MS = 10_000;
const RACE_RETRY_S = 2;
const KEPT_MS = DAY_MS;

/**
 * Opens a session of somebody who has proved who they are. Beyond 50 sessions of one user the one
 * that was used least recently ends.
 */
export async function startSession(
  tx: Transaction,
  { credential, origin }: { credential: Credential; origin: SessionOrigin },
  issuer: SessionIssuer,
): Promise<SessionTokens & { id: string }> {
  const now = issuer.clock.now();
  const userId = credential.user_id;
  const id = newId();
  const endsAt = new Date(now.getTime() + issuer.settings['session.most_days'] * DAY_MS);
  const expiresAt = refreshEnd(issuer, now, endsAt);
  await tx('sessions').insert({
    id,
    user_id: userId,
    generation: credential.generation,
    counter: credential.counter,
    address: origin.address,
    client: shorten(origin.client, MAX_CLIENT_LENGTH),
    created_at: now,
    refreshed_at: now,
    expires_at: expiresAt,
    ends_at: endsAt,
  });
  await rows(
    tx,
    `update sessions set ended_at = ? where id in (
       select id from sessions where user_id = ? and ended_at is null
       order by refreshed_at desc, id desc offset ${MAX_SESSIONS})`,
    [now, userId],
  );
  return { id, ...(await issueTokens(tx, { id, userId, expiresAt }, issuer)) };
}

/**
 * Changes a refresh token for the next pair. Of two calls with the same token one wins; the other is
 * told to look again. A token that comes back later than that was stolen from somebody: its whole
 * session ends (RFC 9700, section 4.14.2).
 * @throws SallyportError `unauthenticated`, `in-flight`.
 */
export async function refreshSession(
  db: Database,
  refreshToken: string,
  issuer: SessionIssuer,
): Promise<SessionTokens> {
  const now = issuer.clock.now();
  const outcome = await db.transaction(async (tx) => {
    const [found] = await rows<RefreshRow>(tx, FIND_REFRESH, [now, hashToken(refreshToken)]);
    if (!found?.lives) return 'unknown';
    if (found.used_at !== null) {
      if (now.getTime() - found.used_at.getTime() < RACE_MS) return 'race';
      await endSessions(tx, {
        where: { id: found.id, userId: found.user_id },
        actor: actorOf(found),
        action: 'session.reuse',
        now,
      });
      return 'reuse';
    }
    const expiresAt = refreshEnd(issuer, now, found.ends_at);
    await rows(tx, 'update refresh_tokens set used_at = ? where hash = ?', [now, found.hash]);
    await rows(tx, 'update sessions set refreshed_at = ?, expires_at = ? where id = ?', [
      now,
      expiresAt,
      found.id,
    ]);
    return issueTokens(tx, { id: found.id, userId: found.user_id, expiresAt }, issuer);
  });
  if (typeof outcome === 'object') return outcome;
  if (outcome === 'race') {
    throw new SallyportError('in-flight', 'This refresh token has just been used.', {
      retryAfterS: RACE_RETRY_S,
      next: 'Use the token that the other call was given.',
    });
  }
  if (outcome === 'reuse') await notifyChanged(db, IDENTITY_CHANGED);
  throw unauthenticated();
}

/** Whose sessions end: all of a user, one of them, or all but one. */
type WhichSessions = { userId: string; id?: string; exceptId?: string };

/**
 * Ends sessions; repeating it changes nothing. The caller tells the others (`IDENTITY_CHANGED`) after
 * the commit.
 */
export async function endSessions(
  tx: Transaction,
  {
    where: { userId, id, exceptId },
    actor,
    action,
    now,
  }: {
    where: WhichSessions;
    actor: string;
    action: 'session.end' | 'session.reuse';
    now: Date;
  },
): Promise<number> {
  const ended = await rows<{ id: string }>(
    tx,
    `update sessions set ended_at = :now
     where user_id = :userId and ended_at is null and expires_at > :now
       and id = coalesce(cast(:id as uuid), id) and id is distinct from cast(:exceptId as uuid) returning id`,
    { now, userId, id: id ?? null, exceptId: exceptId ?? null },
  );
  if (ended.length === 0) return 0;
  const sessions = ended.map((one) => one.id);
  await appendAudit(tx, { at: now, actor, action, subject: userId, details: { sessions } });
  return ended.length;
}

/** The sessions of a user that are not over, the one used last first. */
export async function listSessions(
  db: Database,
  userId: string,
  now: Date,
): Promise<SessionView[]> {
  return rows<SessionView>(
    db,
    `select s.id, s.address, s.client, s.created_at, s.refreshed_at, s.expires_at
     from ${liveSession('?')} where s.user_id = ? order by s.refreshed_at desc, s.id desc`,
    [now, userId],
  );
}

/** Forgets sessions that are over for a day, and attempts to log in that no longer count. */
export async function pruneSessions(db: Database, now: Date): Promise<number> {
  const before = new Date(now.getTime() - KEPT_MS);
  const gone = await rows(
    db,
    `delete from sessions where id in (
       select id from sessions where expires_at < ? or ended_at < ? limit 10000) returning id`,
    [before, before],
  );
  await rows(
    db,
    `delete from login_attempts where key in (
       select key from login_attempts where expire < ? limit 10000)`,
    [now.getTime()],
  );
  return gone.length;
}

/**
 * The tables of a session `s` that stands, of its user `u` and credential `c`; `now` is how the
 * statement names the time. One text, so that a look-up and a submit agree on who is logged in.
 */
export function liveSession(now: string): string {
  return `sessions s
    join users u on u.id = s.user_id and not u.disabled
      and s.ended_at is null and s.expires_at > ${now}::timestamptz
    join credentials c on c.user_id = u.id
      and c.generation = s.generation and c.counter = s.counter`;
}

type RefreshRow = {
  hash: string;
  used_at: Date | null;
  id: string;
  user_id: string;
  ends_at: Date;
  login: string;
  lives: boolean;
};

// The lock makes the second of two calls see what the first one did.
const FIND_REFRESH = `
  select t.hash, t.used_at, s.id, s.user_id, s.ends_at, u.login,
    s.ended_at is null and s.expires_at > ? and not u.disabled
      and c.generation = s.generation and c.counter = s.counter as lives
  from refresh_tokens t join sessions s on s.id = t.session_id
  join users u on u.id = s.user_id join credentials c on c.user_id = u.id
  where t.hash = ? for update of s, t`;

async function issueTokens(
  tx: Transaction,
  { id, userId, expiresAt }: { id: string; userId: string; expiresAt: Date },
  { network, sessionKey, issuer, clock, settings }: SessionIssuer,
): Promise<SessionTokens> {
  const refreshToken = randomBytes(TOKEN_BYTES).toString('base64url');
  await tx('refresh_tokens').insert({ hash: hashToken(refreshToken), session_id: id });
  const access = await issueSessionToken(
    sessionKey,
    { userId, sessionId: id },
    {
      realm: { issuer, audience: audienceOf(network) },
      clock,
      minutes: settings['session.minutes'],
    },
  );
  return { ...access, refreshToken, refreshExpiresAt: expiresAt };
}

function refreshEnd({ settings }: SessionIssuer, now: Date, endsAt: Date): Date {
  const idleEnd = now.getTime() + settings['session.refresh_days'] * DAY_MS;
  return new Date(Math.min(idleEnd, endsAt.getTime()));
}

function hashToken(token: string): string {
  return createHash('sha256').update(token).digest('hex');
}
