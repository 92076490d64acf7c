import { Type } from 'typebox';
import {
  DatasetSchema,
  LimitsSchema,
  Name,
  PRIORITIES,
  ROLES,
  TIERS,
  Uuid,
  findUser,
  unauthenticated,
  type Routes,
  type Principal,
} from '@sallyport/shared';
import type { RequestNetwork } from './network.js';
import { findRights, listAllowed } from './submissions.js';

const object = Type.Object;
const oneOf = <T extends string>(...values: readonly T[]) =>
  Type.Unsafe<T>({ type: 'string', enum: values });
const nullable = Type.Union;

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
const DatasetViewSchema = Type.Omit(DatasetSchema, ['disabled']);

/** One's own account, and what one may query. */
export function addAccountRoutes(routes: Routes<Principal>, network: RequestNetwork): void {
  const { db, replica } = network;

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
}
