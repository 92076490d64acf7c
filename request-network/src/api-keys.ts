import {
  IDENTITY_CHANGED,
  SallyportError,
  addNotices,
  appendAudit,
  foldLogin,
  notifyChanged,
  readPageToken,
  rows,
  writePageToken,
  type Database,
  type Limits,
  type Principals,
  type Transaction,
} from '@sallyport/shared';

/** What an API key can be made for; a route without one of them takes no key. */
export const SCOPES = ['requests:read', 'requests:write', 'results:read'] as const;
export type Scope = (typeof SCOPES)[number];

/** How a key stands; only an active one lets anybody in. */
export const KEY_STATES = ['active', 'disabled', 'expired', 'revoked'] as const;
export type KeyState = (typeof KEY_STATES)[number];

/** The windows that a key may have a limit of its own for, besides its user's. */
export const KEY_LIMITS = ['submit_per_minute', 'submit_per_hour', 'submit_per_day'] as const;
export type KeyLimits = Partial<Pick<Limits, (typeof KEY_LIMITS)[number]>>;

/** What is shown of a key after it was made. */
export type ApiKey = {
  id: string;
  user_id: string;
  login: string;
  name: string;
  prefix: string;
  last_four: string;
  scopes: Scope[];
  limits: KeyLimits | null;
  state: KeyState;
  created_at: Date;
  expires_at: Date | null;
  disabled_at: Date | null;
  revoked_at: Date | null;
  first_used_at: Date | null;
  last_used_at: Date | null;
  /** The key that this one takes the place of, and how long that one works beside it. */
  rotated_from: string | null;
  overlap_s: number | null;
  /** The key that takes the place of this one. */
  replaced_by: string | null;
};

/** Who does something to a key, and why: people who act on another's key give a reason. */
export type KeyAct = { at: Date; actor: string; reason: string | null };

/** Which key; with `userId` only if it is that user's. */
export type KeyRef = { id: string; userId?: string };

/**
 * Gives a key another name.
 * @throws SallyportError `not-found`.
 */
export async function renameKey(
  tx: Transaction,
  ref: KeyRef & { name: string },
  { at, actor, reason }: KeyAct,
): Promise<ApiKey> {
  const before = await readKey(tx, ref, at, 'lock');
  if (before.name === ref.name) return before;
  await rows(tx, 'update api_keys set name = ? where id = ?', [ref.name, ref.id]);
  const details = {
    ...describeKey(before),
    reason,
    before: { name: before.name },
    after: { name: ref.name },
  };
  await appendAudit(tx, { at, actor, action: 'key.rename', subject: ref.id, details });
  return { ...before, name: ref.name };
}

const CHANGES = {
  revoke: {
    set: 'revoked_at = :at',
    isDone: (key: ApiKey) => key.revoked_at !== null,
    said: 'was revoked',
  },
  disable: {
    set: 'disabled_at = :at',
    isDone: (key: ApiKey) => key.disabled_at !== null,
    said: 'was disabled',
  },
  enable: {
    set: 'disabled_at = null',
    isDone: (key: ApiKey) => key.disabled_at === null,
    said: 'was enabled',
  },
} as const;

/**
 * Revokes, disables or enables a key; repeating it changes nothing. Its user is told when somebody
 * else did it.
 * @throws SallyportError `not-found`, `already-final` for a revoked key that is to be anything else.
 */
export async function changeKey(
  tx: Transaction,
  change: keyof typeof CHANGES,
  { ref, at, actor, reason }: KeyAct & { ref: KeyRef },
): Promise<ApiKey> {
  const { set, isDone, said } = CHANGES[change];
  const before = await readKey(tx, ref, at, 'lock');
  if (before.revoked_at && change !== 'revoke') throw hasEnded(before);
  if (isDone(before)) return before;
  await rows(tx, `update api_keys set ${set} where id = :id`, { at, id: ref.id });
  const after = await readKey(tx, ref, at);
  const details = {
    ...describeKey(before),
    reason,
    before: { state: before.state },
    after: { state: after.state },
  };
  await appendAudit(tx, { at, actor, action: `key.${change}`, subject: ref.id, details });
  if (ref.userId === undefined) await tellOwner(tx, after, { change, said, at, reason });
  return after;
}

/** What a list of keys may be narrowed to. */
export type KeyFilter = {
  userId?: string;
  /** A part of the login name. */
  login?: string;
  /** The beginning of a key, as far as it is shown. */
  prefix?: string;
  lastFour?: string;
  state?: KeyState;
};

/**
 * Keys, newest first, those that have ended too.
 * @throws SallyportError `bad-page-token`.
 */
export async function listKeys(
  db: Database,
  options: {
    caller: string;
    filter: KeyFilter;
    pageSize: number;
    pageToken?: string | undefined;
    secret: Buffer;
    now: Date;
  },
): Promise<{ items: ApiKey[]; next_page_token?: string }> {
  const { caller, pageSize, pageToken, secret, now } = options;
  const { userId = null, login = null, prefix = null, lastFour = null } = options.filter;
  const { state = null } = options.filter;
  const filter = [userId, login, prefix, lastFour, state];
  const binding = `keys ${caller} ${JSON.stringify(filter)}`;
  const found = await rows<ApiKey>(
    db,
    `select * from (${SELECT}) k
     where (:before::uuid is null or id < :before) and (:user_id::uuid is null or user_id = :user_id)
       and (:login::text is null or position(:login in login) > 0)
       and (:prefix::text is null or starts_with(prefix, :prefix))
       and (:last_four::text is null or last_four = :last_four)
       and (:state::text is null or state = :state)
     order by id desc limit :limit`,
    {
      now,
      before: readPageToken(secret, binding, pageToken) ?? null,
      user_id: userId,
      login: login === null ? null : foldLogin(login),
      prefix,
      last_four: lastFour,
      state,
      limit: pageSize + 1,
    },
  );
  const items = found.slice(0, pageSize);
  const last = items.at(-1);
  if (found.length <= pageSize || !last) return { items };
  return { items, next_page_token: writePageToken(secret, binding, last.id) };
}

/**
 * One key as it is shown.
 * @throws SallyportError `not-found`, for somebody else's too.
 */
export async function readKey(
  db: Database,
  { id, userId }: KeyRef,
  now: Date,
  lock?: 'lock',
): Promise<ApiKey> {
  const [found] = await rows<ApiKey>(
    db,
    `${SELECT} where k.id = :id and (:user_id::uuid is null or k.user_id = :user_id)
     ${lock ? 'for update of k' : ''}`,
    { now, id, user_id: userId ?? null },
  );
  if (found) return found;
  throw new SallyportError('not-found', `There is no key ${id}.`, {
    next: 'List the keys to see their ids.',
  });
}

/** Does a change of keys in one transaction and lets every process forget who it knew by them. */
export async function withKeyChange<T>(
  { db, principals }: { db: Database; principals: Pick<Principals, 'drop'> },
  work: (tx: Transaction) => Promise<T>,
): Promise<T> {
  const done = await db.transaction(work);
  principals.drop();
  await notifyChanged(db, IDENTITY_CHANGED);
  return done;
}

const SELECT = `
  select k.id, k.user_id, u.login, k.name, k.prefix, k.last_four, k.scopes, k.limits,
    case when k.revoked_at is not null then 'revoked' when k.expires_at <= :now then 'expired'
      when k.disabled_at is not null then 'disabled' else 'active' end as state,
    k.created_at, k.expires_at, k.disabled_at, k.revoked_at, k.first_used_at, k.last_used_at,
    k.rotated_from, k.overlap_s,
    (select s.id from api_keys s where s.rotated_from = k.id and s.revoked_at is null
     order by s.id desc limit 1) as replaced_by
  from api_keys k join users u on u.id = k.user_id`;

/** The key has ended, and stays so. */
export function hasEnded({ id, state }: ApiKey): SallyportError {
  return new SallyportError('already-final', `The key ${id} is ${state}.`, {
    next: 'Make a new one.',
  });
}

async function tellOwner(
  tx: Transaction,
  key: ApiKey,
  { change, said, at, reason }: { change: string; said: string; at: Date; reason: string | null },
): Promise<void> {
  await addNotices(tx, [
    {
      userId: key.user_id,
      kind: `key.${change}`,
      severity: change === 'enable' ? 'info' : 'warning',
      title: `Your key "${key.name}" ${said}`,
      detail: `The key ${key.prefix}…${key.last_four} ${said} by an administrator: ${reason ?? 'no reason given'}`,
      subject: key.id,
      at,
    },
  ]);
}

/** What the audit log says of a key: how its user knows it. */
export function describeKey({ login, name, prefix, last_four }: ApiKey) {
  return { login, name, prefix, last_four };
}
