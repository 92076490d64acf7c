import type { Clock } from './clock.js';
import { runPrepared, type Database } from './database.js';
import type { Actor } from './http-routes.js';
import type { Log } from './log.js';
import type { NetworkName, Role } from './records.js';
import {
  audienceOf,
  unauthenticated,
  verifySessionToken,
  type SessionKey,
} from './session-tokens.js';
import { liveSession } from './sessions.js';
import { MUST_CHANGE_PASSWORD } from './users.js';

/** Who calls, as far as the process remembers; the guard of a submit asks the database again. */
export type Principal = Actor & {
  userId: string;
  login: string;
  profileTypeId: string;
  /** Set when an API key was shown, null for a session. */
  keyId: string | null;
  /** Set for a session, null for an API key. */
  sessionId: string | null;
};

export type Principals = {
  /**
   * Who sent this Authorization header.
   * @throws SallyportError `unauthenticated`, the same for unknown, expired, revoked and disabled.
   */
  authenticate(authorization: string | undefined): Principal | Promise<Principal>;
  /** Whether changes are heard of, so that remembering is safe. */
  ready(): boolean;
  /** Forgets everybody: rights may have changed. */
  drop(): void;
  /** Writes down which keys were used; also runs by itself now and then. */
  flush(): Promise<void>;
  close(): Promise<void>;
};

/** How the API keys of a network are looked up; a network without them takes sessions only. */
export type KeyLookup = {
  /** @throws SallyportError `unauthenticated`. */
  find(key: string): Promise<FoundPrincipal>;
  /** Notes when keys were last used, to the minute. */
  noteUsed(used: ReadonlyMap<string, Date>): Promise<void>;
};

export type PrincipalsOptions = {
  db: Database;
  clock: Clock;
  log: Log;
  network: NetworkName;
  sessionKey: SessionKey;
  issuer: string;
  keys?: KeyLookup;
  /** While this is false, changes are not heard of and nothing is remembered. */
  hearsChanges: () => boolean;
};

type Remembered = { principal: Principal; until: number; expiresAtMs: number };
/** A row of {@link PRINCIPAL_COLUMNS} and the members of the key or session that was shown. */
export type PrincipalRow = {
  user_id: string;
  login: string;
  profile_type_id: string;
  roles: string[];
  key_id?: string;
  session_id?: string;
  must_change_password?: boolean;
  scopes?: string[];
  expires_at?: Date | null;
};

const KEY_PREFIX = 'sp_';
const REMEMBER_MS = 10_000;
const MAX_REMEMBERED = 10_000;
const FLUSH_MS = 30_000;
const MINUTE_MS = 60_000;
const BEARER = 'bearer ';

/** Opens the memory of one process for who is who. */
export function openPrincipals(options: PrincipalsOptions): Principals {
  const { clock, log, keys, hearsChanges } = options;
  const remembered = new Map<string, Remembered>();
  const used = new Map<string, Date>();
  let generation = 0;

  const find = async (token: string): Promise<Principal> => {
    const mine = generation;
    const found = await findPrincipal(options, token);
    if (hearsChanges() && mine === generation) {
      if (remembered.size >= MAX_REMEMBERED) {
        const oldest = remembered.keys().next();
        if (!oldest.done) remembered.delete(oldest.value);
      }
      remembered.set(token, { ...found, until: performance.now() + REMEMBER_MS });
    }
    return noteUse(found.principal);
  };

  const noteUse = (principal: Principal): Principal => {
    if (principal.keyId !== null) used.set(principal.keyId, clock.now());
    return principal;
  };

  const flush = async () => {
    const noted = [...used];
    used.clear();
    if (noted.length === 0) return;
    const minutes = noted.map(
      ([id, at]) => [id, new Date(Math.floor(at.getTime() / MINUTE_MS) * MINUTE_MS)] as const,
    );
    try {
      await keys?.noteUsed(new Map(minutes));
    } catch (error) {
      // The next time will do, unless the key was used again meanwhile.
      for (const [id, at] of noted) if (!used.has(id)) used.set(id, at);
      throw error;
    }
  };
  const timer = setInterval(() => {
    flush().catch((err: unknown) => log.warn({ err }, 'could not note which keys were used'));
  }, FLUSH_MS);
  timer.unref();

  return {
    flush,
    ready: hearsChanges,
    authenticate(authorization) {
      if (authorization?.slice(0, BEARER.length).toLowerCase() !== BEARER) throw unauthenticated();
      const token = authorization.slice(BEARER.length);
      const known = remembered.get(token);
      if (known && hearsChanges() && known.until > performance.now()) {
        if (known.expiresAtMs > clock.now().getTime()) return noteUse(known.principal);
      }
      if (known) remembered.delete(token);
      return find(token);
    },
    drop() {
      generation += 1;
      remembered.clear();
    },
    async close() {
      clearInterval(timer);
      await flush().catch((err: unknown) =>
        log.warn({ err }, 'could not note which keys were used'),
      );
    },
  };
}

/** Who was found, and until when at most they may be remembered. */
export type FoundPrincipal = { principal: Principal; expiresAtMs: number };

function findPrincipal(options: PrincipalsOptions, token: string): Promise<FoundPrincipal> {
  if (!token.startsWith(KEY_PREFIX)) return findBySession(options, token);
  if (!options.keys) throw unauthenticated();
  return options.keys.find(token);
}

async function findBySession(options: PrincipalsOptions, token: string): Promise<FoundPrincipal> {
  const { db, clock, network, sessionKey, issuer } = options;
  const realm = { issuer, audience: audienceOf(network) };
  const claims = await verifySessionToken(sessionKey, token, { realm, clock });
  const values = [claims.sessionId, claims.userId, clock.now()];
  const found = toPrincipal(network, await runPrepared<PrincipalRow>(db, FIND_BY_SESSION, values));
  // A token's own end is nearer than its signature is checked again: at most by the memory's time.
  return { ...found, expiresAtMs: expiryOf(token) };
}

function expiryOf(token: string): number {
  const payload = Buffer.from(token.split('.')[1] ?? '', 'base64url').toString();
  return (JSON.parse(payload) as { exp: number }).exp * 1_000;
}

/**
 * The principal of the row that a look-up gave.
 * @throws SallyportError `unauthenticated` when it gave none.
 */
export function toPrincipal(network: NetworkName, [row]: PrincipalRow[]): FoundPrincipal {
  if (!row) throw unauthenticated();
  const prefix = `${network}:`;
  const roles = row.roles.flatMap((grant) =>
    grant.startsWith(prefix) ? [grant.slice(prefix.length) as Role] : [],
  );
  return {
    expiresAtMs: row.expires_at?.getTime() ?? Infinity,
    principal: {
      id: row.login,
      roles,
      scopes: row.scopes ?? 'all',
      userId: row.user_id,
      login: row.login,
      profileTypeId: row.profile_type_id,
      keyId: row.key_id ?? null,
      sessionId: row.session_id ?? null,
      mustChangePassword: row.must_change_password ?? false,
    },
  };
}

/** What a look-up reads of the user `u`. */
export const PRINCIPAL_COLUMNS = 'u.id as user_id, u.login, u.profile_type_id, u.roles';
const FIND_BY_SESSION = {
  name: 'find_principal_by_session',
  text: `
    select ${PRINCIPAL_COLUMNS}, s.id as session_id, ${MUST_CHANGE_PASSWORD} as must_change_password
    from ${liveSession('$3')} where s.id = $1 and s.user_id = $2`,
};
