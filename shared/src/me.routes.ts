import { Type } from 'typebox';
import type { Clock } from './clock.js';
import type { Database } from './database.js';
import type { Routes } from './http-routes.js';
import { IDENTITY_CHANGED, notifyChanged } from './network-events.js';
import { changeOwnPassword, changeOwnProfile } from './own-account.js';
import type { Principal, Principals } from './principals.js';
import { findProfileType } from './profile-types.js';
import {
  DisplayName,
  Email,
  Language,
  LimitsSchema,
  Name,
  NoticesSchema,
  PRIORITIES,
  ROLES,
  TIERS,
  Uuid,
  type NetworkName,
} from './records.js';
import { unauthenticated } from './session-tokens.js';
import type { Settings } from './settings.js';
import { findUser, type User } from './users.js';
import type { SendAccount } from './verifier-changes.js';

/** What the routes of one's own account work with. */
export type MeContext = {
  db: Database;
  clock: Clock;
  principals: Principals;
  network: NetworkName;
  config: { BREACHED_PASSWORDS_FILE?: string };
  settings(): Settings | Promise<Settings>;
  sendAccount: SendAccount;
};

const oneOf = <T extends string>(...values: readonly T[]) =>
  Type.Unsafe<T>({ type: 'string', enum: values });
const orNull = <T extends Parameters<typeof Type.Union>[0][number]>(schema: T) =>
  Type.Union([schema, Type.Null()]);

const MeSchema = Type.Object({
  id: Uuid,
  login: Type.String(),
  display_name: Type.String(),
  email: orNull(Type.String()),
  language: orNull(Type.String()),
  notices: NoticesSchema,
  roles: Type.Array(oneOf(...ROLES)),
  must_change_password: Type.Boolean(),
  profile_type: orNull(
    Type.Object({
      name: Name,
      tier: oneOf(...TIERS),
      datasets: Type.Array(Name),
      priorities: Type.Array(oneOf(...PRIORITIES)),
      limits: LimitsSchema,
    }),
  ),
});
const ProfileSchema = Type.Object(
  {
    display_name: Type.Optional(DisplayName),
    email: Type.Optional(orNull(Email)),
    language: Type.Optional(orNull(Language)),
    notices: Type.Optional(NoticesSchema),
  },
  { additionalProperties: false, minProperties: 1 },
);
const Password = Type.String({ minLength: 1, maxLength: 1_024 });

/** One's own account, the same on both networks. */
export function addMeRoutes(routes: Routes<Principal>, context: MeContext): void {
  const { db, clock, principals } = context;
  const view = async (user: User, { roles }: Principal) => {
    const { id, login, display_name, email, language, notices, must_change_password } = user;
    const found = await findProfileType(db, user.profile_type_id);
    const { name, tier, datasets, priorities, limits } = found ?? {};
    return {
      id,
      login,
      display_name,
      email,
      language,
      notices,
      roles,
      must_change_password,
      profile_type: found ? { name, tier, datasets, priorities, limits } : null,
    };
  };

  routes.add({
    method: 'get',
    path: '/v1/me',
    summary: 'Who you are and what you may do',
    roles: ROLES,
    scope: 'requests:read',
    beforePasswordChange: true,
    responses: { 200: { description: 'Your account.', schema: MeSchema } },
    async handler({ actor }) {
      const user = await findUser(db, actor.userId);
      if (!user) throw unauthenticated();
      return { status: 200, body: await view(user, actor) };
    },
  });

  routes.add({
    method: 'patch',
    path: '/v1/me',
    summary: 'Change your profile on both networks',
    roles: ROLES,
    body: ProfileSchema,
    responses: { 200: { description: 'Your account.', schema: MeSchema } },
    async handler({ actor, body }) {
      const rules = { ...context, now: clock.now() };
      const user = await db.transaction((tx) =>
        changeOwnProfile(tx, { actor, wanted: body }, rules),
      );
      return { status: 200, body: await view(user, actor) };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/me/password',
    summary: 'Change your password on both networks; every other session ends',
    roles: ROLES,
    beforePasswordChange: true,
    body: Type.Object({ current: Password, new: Password }, { additionalProperties: false }),
    responses: {
      204: { description: 'The new one works here now, and there with the next batch.' },
      422: { description: 'The current one is wrong, or the new one breaks a rule.' },
    },
    async handler({ req, actor, body }) {
      const wanted = { current: body.current, wanted: body.new, address: req.ip ?? '' };
      await changeOwnPassword(
        db,
        { actor, ...wanted },
        {
          ...context,
          settings: await context.settings(),
          breachedFile: context.config.BREACHED_PASSWORDS_FILE,
        },
      );
      principals.drop();
      await notifyChanged(db, IDENTITY_CHANGED);
      return { status: 204 };
    },
  });
}
