import { Type } from 'typebox';
import { actorOf } from './audit.js';
import type { CacheScope } from './byte-cache.js';
import { clearCache, optimiseCache, type Cache } from './caches.js';
import type { Clock } from './clock.js';
import type { Database } from './database.js';
import { SallyportError } from './errors.js';
import type { Routes } from './http-routes.js';
import type { Principal } from './principals.js';
import { LoginName, Name } from './records.js';
import { READERS } from './role-sets.js';
import { ReasonText } from './schema.js';
import { findUserByLogin } from './users.js';

/** What the routes of a network's cache work with. */
export type CacheContext = { db: Database; clock: Clock; cache: Cache };

const strict = { additionalProperties: false };
const ClearSchema = Type.Object(
  {
    scope: Type.Unsafe<'all' | 'dataset' | 'user'>({
      type: 'string',
      enum: ['all', 'dataset', 'user'],
    }),
    dataset: Type.Optional(Name),
    user: Type.Optional(LoginName),
    reason: ReasonText,
  },
  strict,
);
const whole = Type.Integer({ minimum: 0 });
const TallySchema = Type.Object({ entries: whole, bytes: whole, dry_run: Type.Boolean() });
const StatsSchema = Type.Object({
  name: Type.String(),
  entries: whole,
  bytes: whole,
  hits: whole,
  misses: whole,
  evictions: whole,
  max_bytes: whole,
  entry_max_bytes: whole,
  ttl_s: whole,
  levels: Type.Array(
    Type.Object({
      level: Type.String(),
      processes: Type.Union([whole, Type.Null()]),
      entries: whole,
      bytes: whole,
      hits: whole,
      evictions: whole,
    }),
  ),
});

/** Looking at the cache of a network, clearing it and tidying it. */
export function addCacheRoutes(routes: Routes<Principal>, context: CacheContext): void {
  const { db, clock, cache } = context;

  routes.add({
    method: 'get',
    path: '/v1/admin/cache',
    summary: 'Entries, bytes, hits, misses and evictions of the cache, over all processes',
    roles: READERS,
    responses: { 200: { description: 'Since each process began.', schema: StatsSchema } },
    handler: async () => ({ status: 200, body: await cache.stats() }),
  });

  routes.add({
    method: 'post',
    path: '/v1/admin/cache:clear',
    summary: 'Forget what the cache holds, in every process; dry_run counts first',
    roles: ['admin'],
    query: Type.Object({ dry_run: Type.Boolean({ default: false }) }, strict),
    body: ClearSchema,
    responses: {
      200: { description: 'What was in this process and in Redis.', schema: TallySchema },
      404: { description: 'There is no such user.' },
    },
    async handler({ body, query, actor }) {
      const scope = await scopeOf(db, body);
      const by = { actor: actorOf(actor), at: clock.now(), reason: body.reason };
      const tally = query.dry_run
        ? await cache.count(scope)
        : await clearCache(db, cache, { scope, by });
      return { status: 200, body: { ...tally, dry_run: query.dry_run } };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/admin/cache:optimise',
    summary: 'Drop what is too old, trim to size and count anew, in every process',
    roles: ['admin'],
    body: Type.Object({ reason: ReasonText }, strict),
    responses: { 200: { description: 'As it is now.', schema: StatsSchema } },
    async handler({ body, actor }) {
      const by = { actor: actorOf(actor), at: clock.now(), reason: body.reason };
      await optimiseCache(db, cache, by);
      return { status: 200, body: await cache.stats() };
    },
  });
}

/**
 * What a clear is about.
 * @throws SallyportError `bad-field` unless the member that the scope names, and no other, is there;
 * `not-found` for an unknown user.
 */
export async function scopeOf(
  db: Database,
  { scope, dataset, user }: { scope: string; dataset?: string; user?: string },
): Promise<CacheScope> {
  const given = [dataset !== undefined && 'dataset', user !== undefined && 'user'];
  const named = given.filter((each) => each !== false);
  if (named.join() !== (scope === 'all' ? '' : scope)) {
    const found = named.join(' and ') || 'neither';
    throw new SallyportError('bad-field', `The scope is ${scope}, and ${found} is named.`, {
      next: 'Name the dataset or the user that the scope says; for "all" name none.',
      errors: [{ pointer: '/scope', code: 'bad-field', detail: `does not fit: ${found} is named` }],
    });
  }
  if (user === undefined) return dataset === undefined ? {} : { dataset };
  const found = await findUserByLogin(db, user);
  if (!found) throw new SallyportError('not-found', `There is no user "${user}".`);
  return { user: found.id };
}
