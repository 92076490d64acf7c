import {
  SallyportError,
  appendAudit,
  hashApiKey,
  newApiKey,
  newId,
  rows,
  type Limits,
  type Transaction,
} from '@sallyport/shared';
import {
  KEY_LIMITS,
  describeKey,
  hasEnded,
  readKey,
  type ApiKey,
  type KeyLimits,
  type Scope,
} from './api-keys.js';
import type { Replica, Rules } from './replica.js';

/** How long the old key works at most after the first use of the new one. */
export const OVERLAP_MOST_S = 30 * 86_400;

/** Whose key it is. */
export type KeyOwner = { userId: string; login: string; profileTypeId: string };

/** What a key that is made must keep to. */
export type KeyRules = Pick<Rules, 'settings' | 'profileTypes'> & {
  secret: Buffer;
  /** The part of a key that says which installation it is for. */
  environment: string;
};

/** A key as it is told once, to whoever made it. */
export type NewKey = ApiKey & { key: string };

const MAX_KEYS = 50;
const DAY_MS = 86_400_000;

/** The rules for keys as of now. */
export async function readKeyRules(network: {
  replica: Replica;
  apiKeySecret: Buffer;
  config: { API_KEY_ENVIRONMENT: string };
}): Promise<KeyRules> {
  const { settings, profileTypes } = await network.replica.rules();
  const environment = network.config.API_KEY_ENVIRONMENT;
  return { settings, profileTypes, secret: network.apiKeySecret, environment };
}

/**
 * Makes a key for a user; `key` is told here and never again.
 * @throws SallyportError `bad-field` for an end or a limit out of range, `already-exists` beyond 50
 * keys that have not ended.
 */
export async function createKey(
  tx: Transaction,
  rules: KeyRules,
  wanted: {
    owner: KeyOwner;
    name: string;
    scopes: readonly Scope[];
    limits?: KeyLimits | undefined;
    /** The default lifetime of the settings, if missing. */
    expiresAt?: Date | undefined;
    at: Date;
    actor: string;
  },
): Promise<NewKey> {
  const { owner, name, scopes, limits, at, actor } = wanted;
  requireWithin(rules.profileTypes.get(owner.profileTypeId)?.limits, limits);
  const expiresAt = endOf(rules, { at, expiresAt: wanted.expiresAt });
  await lockOwner(tx, owner.userId);
  await requireRoom(tx, owner.userId, at);
  const made = await insertKey(tx, rules, { owner, name, scopes, limits, expiresAt, at });
  const after = { scopes: made.scopes, limits: made.limits, expires_at: made.expires_at };
  const details = { ...describeKey(made), reason: null, before: null, after };
  await appendAudit(tx, { at, actor, action: 'key.create', subject: made.id, details });
  return made;
}

/**
 * Makes a key that takes the place of another with its name, scopes and limits. The old one works
 * until the overlap after the first use of the new one, never past its own end. Repeated before that
 * use, the new key of the last time is revoked: only the newest counts.
 * @throws SallyportError `not-found`, `already-final` for a key that has ended, `blocked` for a
 * disabled one, `already-exists` when its place is taken by a key in use or the user has 50.
 */
export async function rotateKey(
  tx: Transaction,
  rules: KeyRules,
  wanted: {
    id: string;
    owner: KeyOwner;
    overlapS: number;
    /** As long a life as the old key had, if missing. */
    expiresAt?: Date | undefined;
    at: Date;
    actor: string;
  },
): Promise<NewKey> {
  const { id, owner, overlapS, at, actor } = wanted;
  await lockOwner(tx, owner.userId);
  // Locked, so that an administrator cannot disable it meanwhile.
  const old = await readKey(tx, { id, userId: owner.userId }, at, 'lock');
  requireRotatable(old);
  const unused = await revokeUnused(tx, old, at);
  await requireRoom(tx, owner.userId, at);
  const usualMs = old.expires_at ? old.expires_at.getTime() - old.created_at.getTime() : undefined;
  const made = await insertKey(tx, rules, {
    owner,
    name: old.name,
    scopes: old.scopes,
    limits: old.limits ?? undefined,
    expiresAt: endOf(rules, { at, expiresAt: wanted.expiresAt, usualMs }),
    at,
    rotatedFrom: { id, overlapS },
  });
  const before = { expires_at: old.expires_at, replaced_by: unused };
  const after = { expires_at: old.expires_at, replaced_by: made.id, overlap_s: overlapS };
  const details = { ...describeKey(old), reason: null, before, after };
  await appendAudit(tx, { at, actor, action: 'key.rotate', subject: id, details });
  return made;
}

async function insertKey(
  tx: Transaction,
  { secret, environment }: KeyRules,
  wanted: {
    owner: KeyOwner;
    name: string;
    scopes: readonly Scope[];
    limits: KeyLimits | undefined;
    expiresAt: Date;
    at: Date;
    rotatedFrom?: { id: string; overlapS: number };
  },
): Promise<NewKey> {
  const { owner, limits, rotatedFrom, at } = wanted;
  const { key, prefix, lastFour } = newApiKey(environment);
  const id = newId();
  await tx('api_keys').insert({
    id,
    user_id: owner.userId,
    name: wanted.name,
    hash: hashApiKey(key, secret),
    prefix,
    last_four: lastFour,
    scopes: [...wanted.scopes],
    limits: limits ? JSON.stringify(limits) : null,
    created_at: at,
    expires_at: wanted.expiresAt,
    rotated_from: rotatedFrom?.id ?? null,
    overlap_s: rotatedFrom?.overlapS ?? null,
  });
  return { ...(await readKey(tx, { id }, at)), key };
}

/** One change of a user's set of keys at a time. */
async function lockOwner(tx: Transaction, userId: string): Promise<void> {
  await rows(tx, 'select 1 from users where id = ? for no key update', [userId]);
}

async function requireRoom(tx: Transaction, userId: string, at: Date): Promise<void> {
  const live = await rows(
    tx,
    `select 1 from api_keys where user_id = ? and revoked_at is null
       and (expires_at is null or expires_at > ?) limit ${MAX_KEYS}`,
    [userId, at],
  );
  if (live.length < MAX_KEYS) return;
  throw new SallyportError('already-exists', `The user has ${MAX_KEYS} keys already.`, {
    next: 'Revoke one that is not used any more.',
  });
}

function requireRotatable(old: ApiKey): void {
  if (old.state === 'disabled') {
    throw new SallyportError('blocked', 'An administrator has disabled this key.', {
      next: 'Ask an administrator to enable it, or make a key of its own.',
    });
  }
  if (old.state !== 'active') throw hasEnded(old);
}

/** Revokes the key that was to take the place of another and was never used; answers its id. */
async function revokeUnused(tx: Transaction, old: ApiKey, at: Date): Promise<string | null> {
  if (old.replaced_by === null) return null;
  const revoked = await rows(
    tx,
    'update api_keys set revoked_at = ? where id = ? and first_used_at is null returning id',
    [at, old.replaced_by],
  );
  if (revoked.length > 0) return old.replaced_by;
  throw new SallyportError('already-exists', `The key ${old.replaced_by} has taken its place.`, {
    next: 'Rotate that one.',
  });
}

function endOf(
  { settings }: KeyRules,
  wanted: { at: Date; expiresAt: Date | undefined; usualMs?: number | undefined },
): Date {
  const { at, expiresAt, usualMs = settings['keys.default_days'] * DAY_MS } = wanted;
  const latest = new Date(at.getTime() + settings['keys.max_days'] * DAY_MS);
  if (!expiresAt) return new Date(Math.min(at.getTime() + usualMs, latest.getTime()));
  if (expiresAt <= at) throw badField('/expires_at', { detail: 'must lie in the future' });
  if (expiresAt <= latest) return expiresAt;
  const limit = latest.toISOString();
  throw badField('/expires_at', { detail: 'lies beyond the longest life of a key', limit });
}

function requireWithin(most: Limits | undefined, limits: KeyLimits | undefined): void {
  if (!most || !limits) return;
  for (const name of KEY_LIMITS) {
    const actual = limits[name];
    if (actual === undefined || actual <= most[name]) continue;
    const detail = 'is above the limit of the user';
    throw badField(`/limits/${name}`, { detail, limit: most[name], actual });
  }
}

function badField(
  pointer: string,
  fault: { detail: string; limit?: number | string; actual?: number },
): SallyportError {
  return new SallyportError('bad-field', `${pointer} ${fault.detail}.`, {
    errors: [{ pointer, code: 'bad-field', ...fault }],
  });
}
