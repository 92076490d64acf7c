import { Type, type Static } from 'typebox';
import {
  LimitsSchema,
  PageQuery,
  ReasonText,
  Timestamp,
  UserTime,
  Uuid,
  actorOf,
  type Principal,
  type Routes,
} from '@sallyport/shared';
import {
  KEY_LIMITS,
  KEY_STATES,
  SCOPES,
  changeKey,
  withKeyChange,
  listKeys,
  readKey,
  renameKey,
  type ApiKey,
} from './api-keys.js';
import type { RequestNetwork } from './network.js';
import { OVERLAP_MOST_S, createKey, readKeyRules, rotateKey } from './new-api-keys.js';

const oneOf = <T extends string>(values: readonly T[]) =>
  Type.Unsafe<T>({ type: 'string', enum: values });
const nullableTime = Type.Union([Timestamp, Type.Null()]);
const nullableId = Type.Union([Uuid, Type.Null()]);
const strict = { additionalProperties: false };

const KeyName = Type.String({ minLength: 1, maxLength: 100 });
const ScopesSchema = Type.Array(oneOf(SCOPES), {
  minItems: 1,
  maxItems: SCOPES.length,
  uniqueItems: true,
});
const KeyLimitsSchema = Type.Partial(Type.Pick(LimitsSchema, KEY_LIMITS), {
  ...strict,
  minProperties: 1,
});
const KeySchema = Type.Object({
  id: Uuid,
  name: Type.String(),
  prefix: Type.String(),
  last_four: Type.String(),
  scopes: ScopesSchema,
  limits: Type.Union([KeyLimitsSchema, Type.Null()]),
  state: oneOf(KEY_STATES),
  created_at: Timestamp,
  expires_at: nullableTime,
  disabled_at: nullableTime,
  revoked_at: nullableTime,
  first_used_at: nullableTime,
  last_used_at: nullableTime,
  rotated_from: nullableId,
  overlap_s: Type.Union([Type.Integer(), Type.Null()]),
  replaced_by: nullableId,
});
const NewKeySchema = Type.Object({ ...KeySchema.properties, key: Type.String() });
const OwnedKeySchema = Type.Object({
  user_id: Uuid,
  login: Type.String(),
  ...KeySchema.properties,
});
const StateQuery = { ...PageQuery, state: Type.Optional(oneOf(KEY_STATES)) };
const OwnedFilter = Type.Object(
  {
    ...StateQuery,
    login: Type.Optional(Type.String({ minLength: 1, maxLength: 64 })),
    prefix: Type.Optional(Type.String({ minLength: 1, maxLength: 32 })),
    last_four: Type.Optional(Type.String({ minLength: 4, maxLength: 4 })),
  },
  strict,
);
const pageOf = (item: typeof KeySchema | typeof OwnedKeySchema) =>
  Type.Object({ items: Type.Array(item), next_page_token: Type.Optional(Type.String()) });

const USER = { roles: ['user'] } as const;
const READER = { roles: ['admin', 'auditor'] } as const;
const NOT_YOURS = { description: 'No key of yours has this id.' };
const ENDED = { description: 'The key has ended, or is in use already.' };

/** API keys: everybody's own, and all of them for admins. */
export function addKeyRoutes(routes: Routes<Principal>, network: RequestNetwork): void {
  addOwnKeyRoutes(routes, network);
  addAdminKeyRoutes(routes, network);
}

function addOwnKeyRoutes(routes: Routes<Principal>, network: RequestNetwork): void {
  const { db, clock, pageSecret } = network;
  const refOf = (params: Record<string, string>, { userId }: Principal) => ({
    id: params['id'] ?? '',
    userId,
  });
  const actBy = (actor: Principal) => ({ at: clock.now(), actor: actorOf(actor), reason: null });

  routes.add({
    ...USER,
    method: 'get',
    path: '/v1/me/keys',
    summary: 'Your API keys, newest first',
    query: Type.Object(StateQuery, strict),
    responses: { 200: { description: 'Without the keys.', schema: pageOf(KeySchema) } },
    async handler({ query, actor }) {
      const { userId } = actor;
      const page = await listKeys(db, {
        caller: userId,
        filter: { userId, ...(query.state ? { state: query.state } : {}) },
        pageSize: query.page_size,
        pageToken: query.page_token,
        secret: pageSecret,
        now: clock.now(),
      });
      return { status: 200, body: { ...page, items: page.items.map(viewOwn) } };
    },
  });

  routes.add({
    ...USER,
    method: 'post',
    path: '/v1/me/keys',
    summary: 'Make an API key; it is shown this once',
    body: Type.Object(
      {
        name: KeyName,
        scopes: Type.Optional(ScopesSchema),
        limits: Type.Optional(KeyLimitsSchema),
        expires_at: Type.Optional(UserTime),
      },
      strict,
    ),
    responses: { 201: { description: 'The key.', schema: NewKeySchema } },
    async handler({ body, actor }) {
      const rules = await readKeyRules(network);
      const wanted = {
        owner: actor,
        name: body.name,
        scopes: body.scopes ?? SCOPES,
        limits: body.limits,
        expiresAt: timeOf(body.expires_at),
        ...actBy(actor),
      };
      const made = await db.transaction((tx) => createKey(tx, rules, wanted));
      return { status: 201, body: { ...viewOwn(made), key: made.key } };
    },
  });

  routes.add({
    ...USER,
    method: 'get',
    path: '/v1/me/keys/{id}',
    summary: 'One of your API keys',
    responses: { 200: { description: 'Without the key.', schema: KeySchema }, 404: NOT_YOURS },
    async handler({ params, actor }) {
      const key = await readKey(db, refOf(params, actor), clock.now());
      return { status: 200, body: viewOwn(key) };
    },
  });

  routes.add({
    ...USER,
    method: 'patch',
    path: '/v1/me/keys/{id}',
    summary: 'Give an API key another name',
    body: Type.Object({ name: KeyName }, strict),
    responses: { 200: { description: 'The key.', schema: KeySchema }, 404: NOT_YOURS },
    async handler({ params, body, actor }) {
      const ref = { ...refOf(params, actor), name: body.name };
      const key = await db.transaction((tx) => renameKey(tx, ref, actBy(actor)));
      return { status: 200, body: viewOwn(key) };
    },
  });

  routes.add({
    ...USER,
    method: 'post',
    path: '/v1/me/keys/{id}:rotate',
    summary: 'Make the key that takes the place of one of yours; it is shown this once',
    body: Type.Object(
      {
        overlap_s: Type.Integer({
          minimum: 0,
          maximum: OVERLAP_MOST_S,
          description: 'Seconds that the old key works after the first use of the new one.',
        }),
        expires_at: Type.Optional(UserTime),
      },
      strict,
    ),
    responses: {
      201: { description: 'The new key.', schema: NewKeySchema },
      404: NOT_YOURS,
      409: ENDED,
    },
    async handler({ params, body, actor }) {
      const rules = await readKeyRules(network);
      const wanted = {
        id: params['id'] ?? '',
        owner: actor,
        overlapS: body.overlap_s,
        expiresAt: timeOf(body.expires_at),
        ...actBy(actor),
      };
      const made = await withKeyChange(network, (tx) => rotateKey(tx, rules, wanted));
      return { status: 201, body: { ...viewOwn(made), key: made.key } };
    },
  });

  routes.add({
    ...USER,
    method: 'delete',
    path: '/v1/me/keys/{id}',
    summary: 'Revoke an API key; may be repeated',
    responses: { 204: { description: 'It is worthless now.' }, 404: NOT_YOURS },
    async handler({ params, actor }) {
      const act = { ref: refOf(params, actor), ...actBy(actor) };
      await withKeyChange(network, (tx) => changeKey(tx, 'revoke', act));
      return { status: 204 };
    },
  });
}

function addAdminKeyRoutes(routes: Routes<Principal>, network: RequestNetwork): void {
  const { db, clock, pageSecret } = network;

  routes.add({
    ...READER,
    method: 'get',
    path: '/v1/admin/keys',
    summary: 'The API keys of all users, newest first',
    query: OwnedFilter,
    responses: { 200: { description: 'Without the keys.', schema: pageOf(OwnedKeySchema) } },
    async handler({ query, actor }) {
      const page = await listKeys(db, {
        caller: actor.userId,
        filter: filterOf(query),
        pageSize: query.page_size,
        pageToken: query.page_token,
        secret: pageSecret,
        now: clock.now(),
      });
      return { status: 200, body: page };
    },
  });

  routes.add({
    ...READER,
    method: 'get',
    path: '/v1/admin/keys/{id}',
    summary: 'One API key, whoever it belongs to',
    responses: {
      200: { description: 'Without the key.', schema: OwnedKeySchema },
      404: { description: 'No key has this id.' },
    },
    async handler({ params }) {
      return { status: 200, body: await readKey(db, { id: params['id'] ?? '' }, clock.now()) };
    },
  });

  for (const [change, summary] of [
    ['disable', 'Refuse an API key until it is enabled; may be repeated'],
    ['enable', 'Take a disabled API key again; may be repeated'],
    ['revoke', 'End an API key for good; may be repeated'],
  ] as const) {
    routes.add({
      method: 'post',
      path: `/v1/admin/keys/{id}:${change}`,
      summary,
      roles: ['admin'],
      body: Type.Object({ reason: ReasonText }, strict),
      responses: {
        200: { description: 'The key as it is now.', schema: OwnedKeySchema },
        404: { description: 'No key has this id.' },
        409: { description: 'The key was revoked.' },
      },
      async handler({ params, body, actor }) {
        const act = {
          ref: { id: params['id'] ?? '' },
          at: clock.now(),
          actor: actorOf(actor),
          reason: body.reason,
        };
        const key = await withKeyChange(network, (tx) => changeKey(tx, change, act));
        return { status: 200, body: key };
      },
    });
  }
}

function filterOf({ state, login, prefix, last_four: lastFour }: Static<typeof OwnedFilter>) {
  return {
    ...(state ? { state } : {}),
    ...(login ? { login } : {}),
    ...(prefix ? { prefix } : {}),
    ...(lastFour ? { lastFour } : {}),
  };
}

function viewOwn({ user_id: _userId, login: _login, ...key }: ApiKey) {
  return key;
}

function timeOf(text: string | undefined): Date | undefined {
  return text === undefined ? undefined : new Date(text);
}
