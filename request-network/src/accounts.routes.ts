import { Type } from 'typebox';
import {
  DatasetSchema,
  LimitsSchema,
  Name,
  PRIORITIES,
  ROLES,
  TIERS,
  Timestamp,
  UserTime,
  Uuid,
  findUser,
  unauthenticated,
  type Routes,
  IDENTITY_CHANGED,
  notifyChanged,
  type Principal,
} from '@sallyport/shared';
import { SCOPES, createKey, listKeys, revokeKey, type ApiKey } from './api-keys.js';
import type { RequestNetwork } from './network.js';
import { findRights, listAllowed } from './submissions.js';

const object = Type.Object;
const oneOf = <T extends string>(...values: readonly T[]) =>
  Type.Unsafe<T>({ type: 'string', enum: values });
const nullable = Type.Union;
const ScopesSchema = Type.Array(oneOf(...SCOPES), {
  minItems: 1,
  maxItems: SCOPES.length,
  uniqueItems: true,
});

const MeSchema = object({
  id: Uuid,
  login: Type.String(),
  display_name: Type.String(),
  email: nullable([Type.String(), Type.Null()]),
  language: nullable([Type.String(), Type.Null()]),
  roles: Type.Array(oneOf(...ROLES)),
  must_change_password: Type.Boolean(),
  profile_type: nullable([
    object({
      name: Name,
      tier: oneOf(...TIERS),
      datasets: Type.Array(Name),
      priorities: Type.Array(oneOf(...PRIORITIES)),
      limits: LimitsSchema,
    }),
    Type.Null(),
  ]),
});
const KeySchema = object({
  id: Uuid,
  name: Type.String(),
  prefix: Type.String(),
  last_four: Type.String(),
  scopes: ScopesSchema,
  created_at: Timestamp,
  expires_at: nullable([Timestamp, Type.Null()]),
  revoked_at: nullable([Timestamp, Type.Null()]),
  last_used_at: nullable([Timestamp, Type.Null()]),
});
const NewKeySchema = object({ ...KeySchema.properties, key: Type.String() });
const DatasetViewSchema = Type.Omit(DatasetSchema, ['disabled']);

/** One's own account and keys, and what one may query. */
export function addAccountRoutes(routes: Routes<Principal>, network: RequestNetwork): void {
  const { db, clock, replica, principals, apiKeySecret } = network;

  routes.add({
    method: 'get',
    path: '/v1/me',
    summary: 'Who you are and what you may do',
    roles: ROLES,
    beforePasswordChange: true,
    scope: 'requests:read',
    responses: { 200: { description: 'Your account.', schema: MeSchema } },
    async handler({ actor }) {
      const user = await findUser(db, actor.userId);
      if (!user) throw unauthenticated();
      const profileType = (await replica.rules()).profileTypes.get(user.profile_type_id);
      const { name, tier, datasets, priorities, limits } = profileType ?? {};
      return {
        status: 200,
        body: {
          id: user.id,
          login: user.login,
          display_name: user.display_name,
          email: user.email,
          language: user.language,
          roles: actor.roles,
          must_change_password: user.must_change_password,
          profile_type: profileType ? { name, tier, datasets, priorities, limits } : null,
        },
      };
    },
  });

  routes.add({
    method: 'get',
    path: '/v1/datasets',
    summary: 'What you may query',
    roles: ['user'],
    scope: 'requests:read',
    responses: {
      200: {
        description: 'By name.',
        schema: object({ items: Type.Array(DatasetViewSchema) }),
      },
    },
    async handler({ actor }) {
      const rules = await replica.rules();
      const items = listAllowed(rules, findRights(rules, actor)).map(
        ({ id: _id, disabled: _disabled, ...shown }) => shown,
      );
      return { status: 200, body: { items } };
    },
  });

  routes.add({
    method: 'get',
    path: '/v1/me/keys',
    summary: 'Your API keys, newest first',
    roles: ['user'],
    responses: {
      200: { description: 'Without the keys.', schema: object({ items: Type.Array(KeySchema) }) },
    },
    async handler({ actor }) {
      return { status: 200, body: { items: (await listKeys(db, actor.userId)).map(viewKey) } };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/me/keys',
    summary: 'Make an API key; it is shown this once',
    roles: ['user'],
    body: Type.Object(
      {
        name: Type.String({ minLength: 1, maxLength: 100 }),
        scopes: Type.Optional(ScopesSchema),
        expires_at: Type.Optional(UserTime),
      },
      { additionalProperties: false },
    ),
    responses: { 201: { description: 'The key.', schema: NewKeySchema } },
    async handler({ body, actor }) {
      const made = await createKey(db, apiKeySecret, {
        userId: actor.userId,
        name: body.name,
        scopes: body.scopes ?? SCOPES,
        expiresAt: body.expires_at === undefined ? null : new Date(body.expires_at),
        at: clock.now(),
      });
      return { status: 201, body: { ...viewKey(made), key: made.key } };
    },
  });

  routes.add({
    method: 'delete',
    path: '/v1/me/keys/{id}',
    summary: 'Revoke an API key; may be repeated',
    roles: ['user'],
    responses: {
      204: { description: 'It is worthless now.' },
      404: { description: 'No key of yours has this id.' },
    },
    async handler({ params, actor }) {
      const key = { id: params['id'] ?? '', userId: actor.userId };
      await revokeKey(db, key, clock.now());
      principals.drop();
      await notifyChanged(db, IDENTITY_CHANGED);
      return { status: 204 };
    },
  });
}

function viewKey(key: ApiKey) {
  const { id, name, prefix, last_four, scopes } = key;
  return {
    id,
    name,
    prefix,
    last_four,
    scopes,
    created_at: key.created_at.toISOString(),
    expires_at: key.expires_at?.toISOString() ?? null,
    revoked_at: key.revoked_at?.toISOString() ?? null,
    last_used_at: key.last_used_at?.toISOString() ?? null,
  };
}
