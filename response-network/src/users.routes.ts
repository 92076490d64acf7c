import { Type, type TSchema } from 'typebox';
import {
  AdminUserSchema,
  answerVersioned,
  DisplayName,
  Email,
  GrantText,
  Language,
  NoticesSchema,
  readListedUser,
  ReasonText,
  versionOf,
  viewUser,
  type NetworkName,
  type Principal,
  type Role,
  type RoleGrant,
  type Routes,
  type Transaction,
} from '@sallyport/shared';
import { changeBy, type Change } from './change.js';
import type { ResponseNetwork } from './network.js';
import {
  accountRulesOf,
  createUser,
  disableUser,
  enableUser,
  endSessions,
  resetPassword,
  rollBackUser,
  updateUser,
} from './user-accounts.js';

const object = <T extends Record<string, TSchema>>(properties: T) =>
  Type.Object(properties, { additionalProperties: false });
const nullable = <T extends TSchema>(schema: T) => Type.Union([schema, Type.Null()]);

const Grants = Type.Array(GrantText, { maxItems: 10, uniqueItems: true });
const ProfileTypeName = Type.String({ minLength: 1, maxLength: 63 });
const OneTimeSchema = Type.Object({
  user: AdminUserSchema,
  /** Shown this once, to be changed at the first login. */
  one_time_password: Type.String(),
});
const changed = {
  200: { description: 'It as it is now.', schema: AdminUserSchema },
  404: { description: 'There is no user of this id.' },
  409: { description: 'Somebody else was first, or nobody would be left who can administer this.' },
};

/** What admins do with accounts; each change leaves for the request network. */
export function addUserRoutes(routes: Routes<Principal>, network: ResponseNetwork): void {
  const { db, clock } = network;
  const roles = ['admin'] as const;
  const answer = async (id: string, status = 200) => {
    const user = await readListedUser(db, id);
    return answerVersioned({ version: user.version, body: viewUser(user) }, status);
  };
  type Act = (tx: Transaction, which: { id: string }, by: Change) => Promise<unknown>;
  const addAct = (name: string, summary: string, act: Act) =>
    routes.add({
      method: 'post',
      path: `/v1/admin/users/{id}:${name}`,
      summary,
      roles,
      body: object({ reason: ReasonText }),
      responses: changed,
      async handler({ params, body, actor }) {
        const id = params['id'] ?? '';
        await db.transaction((tx) => act(tx, { id }, changeBy(actor, clock, body)));
        return answer(id);
      },
    });

  routes.add({
    method: 'post',
    path: '/v1/admin/users',
    summary: 'Make an account with a password to be changed at the first login',
    roles,
    body: object({
      login: Type.String({ minLength: 1, maxLength: 64 }),
      display_name: Type.Optional(DisplayName),
      email: Type.Optional(Email),
      profile_type: ProfileTypeName,
      roles: Grants,
      reason: Type.Optional(ReasonText),
    }),
    responses: {
      201: { description: 'The account, and its password this once.', schema: OneTimeSchema },
      409: { description: 'The login name is taken.' },
    },
    async handler({ body, actor }) {
      const by = {
        ...changeBy(actor, clock, { reason: body.reason }),
        ...accountRulesOf(network),
      };
      const wanted = {
        login: body.login,
        displayName: body.display_name,
        email: body.email,
        profileType: body.profile_type,
        roles: body.roles.map(toGrant),
      };
      const made = await db.transaction((tx) => createUser(tx, wanted, by));
      const user = viewUser(await readListedUser(db, made.user.id));
      const { headers } = answerVersioned({ version: user.version, body: user });
      const location = { Location: `/v1/admin/users/${user.id}` };
      const body201 = { user, one_time_password: made.oneTimePassword };
      return { status: 201, headers: { ...headers, ...location }, body: body201 };
    },
  });

  routes.add({
    method: 'patch',
    path: '/v1/admin/users/{id}',
    summary: 'Change what is named of an account; a change of roles needs a reason',
    roles,
    body: object({
      display_name: Type.Optional(DisplayName),
      email: Type.Optional(nullable(Email)),
      language: Type.Optional(nullable(Language)),
      notices: Type.Optional(NoticesSchema),
      profile_type: Type.Optional(ProfileTypeName),
      roles: Type.Optional(Grants),
      reason: Type.Optional(ReasonText),
    }),
    responses: changed,
    async handler({ req, params, body, actor }) {
      const id = params['id'] ?? '';
      const expected = versionOf(req.headers['if-match']);
      const { reason, display_name: displayName, profile_type: profileType, ...wanted } = body;
      const grants = wanted.roles?.map(toGrant);
      const change = { ...wanted, displayName, profileType, roles: grants };
      await db.transaction((tx) =>
        updateUser(tx, { id }, change, changeBy(actor, clock, { reason, expected })),
      );
      return answer(id);
    },
  });

  addAct('disable', 'Shut a user out of both networks', disableUser);
  addAct('enable', 'Let a user in again', enableUser);
  addAct('end-sessions', 'End every session of a user on both networks', endSessions);

  routes.add({
    method: 'post',
    path: '/v1/admin/users/{id}:reset-password',
    summary: 'Give a user a new password, to be changed, and end every session',
    roles,
    body: object({ reason: ReasonText }),
    responses: {
      200: { description: 'The new password, this once.', schema: OneTimeSchema },
      404: changed[404],
    },
    async handler({ params, body, actor }) {
      const id = params['id'] ?? '';
      const by = { ...changeBy(actor, clock, body), ...accountRulesOf(network) };
      const { oneTimePassword } = await db.transaction((tx) => resetPassword(tx, { id }, by));
      const user = viewUser(await readListedUser(db, id));
      return { status: 200, body: { user, one_time_password: oneTimePassword } };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/admin/users/{id}:roll-back',
    summary: 'Give a user the rights and the profile of an older version',
    roles,
    body: object({ version: Type.Integer({ minimum: 1 }), reason: ReasonText }),
    responses: changed,
    async handler({ req, params, body, actor }) {
      const id = params['id'] ?? '';
      const by = changeBy(actor, clock, {
        reason: body.reason,
        expected: versionOf(req.headers['if-match']),
      });
      await db.transaction((tx) => rollBackUser(tx, { id }, body.version, by));
      return answer(id);
    },
  });
}

function toGrant(text: string): RoleGrant {
  const [network, role] = text.split(':') as [NetworkName, Role];
  return { network, role };
}
