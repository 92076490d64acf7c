import {
  PRINCIPAL_COLUMNS,
  SallyportError,
  hashApiKey,
  newApiKey,
  newId,
  parseApiKey,
  rows,
  runPrepared,
  toPrincipal,
  unauthenticated,
  type Clock,
  type Database,
  type KeyLookup,
  type PrincipalRow,
} from '@sallyport/shared';

/** What an API key can be made for. */
export const SCOPES = ['requests:read', 'requests:write'] as const;
export type Scope = (typeof SCOPES)[number];

/** What is shown of a key after it was made. */
export type ApiKey = {
  id: string;
  name: string;
  prefix: string;
  last_four: string;
  scopes: Scope[];
  created_at: Date;
  expires_at: Date | null;
  revoked_at: Date | null;
  last_used_at: Date | null;
};

/** The part of a key that says which installation it is for. */
const ENVIRONMENT = 'live';
const MAX_KEYS = 50;
const COLUMNS = [
  'id',
  'name',
  'prefix',
  'last_four',
  'scopes',
  'created_at',
  'expires_at',
  'revoked_at',
  'last_used_at',
] as const;

/**
 * Makes a key for a user; `key` is told here and never again.
 * @throws SallyportError `bad-field` for an end in the past, `already-exists` beyond 50 live keys.
 */
export async function createKey(
  db: Database,
  secret: Buffer,
  wanted: {
    userId: string;
    name: string;
    scopes: readonly Scope[];
    expiresAt: Date | null;
    at: Date;
  },
): Promise<ApiKey & { key: string }> {
  const { userId, name, scopes, expiresAt, at } = wanted;
  if (expiresAt && expiresAt <= at) {
    throw new SallyportError('bad-field', 'The key would have expired already.', {
      errors: [{ pointer: '/expires_at', code: 'bad-field', detail: 'must lie in the future' }],
    });
  }
  const live = await rows(
    db,
    `select 1 from api_keys where user_id = ? and revoked_at is null
       and (expires_at is null or expires_at > ?) limit ${MAX_KEYS}`,
    [userId, at],
  );
  if (live.length >= MAX_KEYS) {
    throw new SallyportError('already-exists', `The user has ${MAX_KEYS} keys already.`, {
      next: 'Revoke one that is not used any more.',
    });
  }
  const { key, prefix, lastFour } = newApiKey(ENVIRONMENT);
  const [made] = await db<ApiKey>('api_keys')
    .insert({
      id: newId(),
      user_id: userId,
      name,
      hash: hashApiKey(key, secret),
      prefix,
      last_four: lastFour,
      scopes: [...scopes],
      created_at: at,
      expires_at: expiresAt,
    } as never)
    .returning(COLUMNS);
  return { ...(made as ApiKey), key };
}

/** The user's keys, newest first, the revoked ones too. */
export async function listKeys(db: Database, userId: string): Promise<ApiKey[]> {
  return db<ApiKey & { user_id: string }>('api_keys')
    .where({ user_id: userId })
    .select(...COLUMNS)
    .orderBy('id', 'desc')
    .limit(500);
}

/**
 * Ends a key of the user; repeating it changes nothing.
 * @throws SallyportError `not-found`, for somebody else's too.
 */
export async function revokeKey(
  db: Database,
  { id, userId }: { id: string; userId: string },
  now: Date,
): Promise<void> {
  const found = await rows(
    db,
    `update api_keys set revoked_at = coalesce(revoked_at, ?) where id = ? and user_id = ?
     returning id`,
    [now, id, userId],
  );
  if (found.length > 0) return;
  throw new SallyportError('not-found', `There is no key ${id}.`, {
    next: 'List your keys to see their ids.',
  });
}

/** How the API keys of this network say who calls. */
export function lookUpKeys(db: Database, secret: Buffer, clock: Clock): KeyLookup {
  return {
    async find(key) {
      if (!parseApiKey(key)) throw unauthenticated();
      const values = [hashApiKey(key, secret), clock.now()];
      return toPrincipal('request', await runPrepared<PrincipalRow>(db, FIND_BY_KEY, values));
    },
    noteUsed: (used) => noteKeysUsed(db, used),
  };
}

async function noteKeysUsed(db: Database, used: ReadonlyMap<string, Date>): Promise<void> {
  await rows(
    db,
    `update api_keys k set last_used_at = greatest(k.last_used_at, used.at)
     from unnest(?::uuid[], ?::timestamptz[]) as used (id, at) where k.id = used.id`,
    [[...used.keys()], [...used.values()].map((at) => at.toISOString())],
  );
}

const FIND_BY_KEY = {
  name: 'find_principal_by_key',
  text: `
    select ${PRINCIPAL_COLUMNS}, 0 as generation, k.id as key_id, k.scopes, k.expires_at
    from api_keys k join users u on u.id = k.user_id
    where k.hash = $1 and k.revoked_at is null and (k.expires_at is null or k.expires_at > $2)
      and not u.disabled`,
};
