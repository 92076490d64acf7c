import type { Request } from 'express';
import { Type } from 'typebox';
import { actorOf } from './audit.js';
import type { Database } from './database.js';
import type { Routes } from './http-routes.js';
import { logIn } from './logins.js';
import { IDENTITY_CHANGED, notifyChanged } from './network-events.js';
import type { Principal, Principals } from './principals.js';
import { ROLES, Timestamp, Uuid } from './records.js';
import {
  endSessions,
  listSessions,
  refreshSession,
  type SessionIssuer,
  type SessionOrigin,
  type SessionTokens,
} from './sessions.js';
import type { Settings } from './settings.js';
import type { SendAccount } from './verifier-changes.js';

/** What the session routes of a network work with. */
export type SessionContext = Omit<SessionIssuer, 'settings'> & {
  db: Database;
  principals: Principals;
  settings(): Settings | Promise<Settings>;
  sendAccount: SendAccount;
};

const TokensSchema = Type.Object({
  token: Type.String(),
  token_type: Type.Unsafe<'Bearer'>({ type: 'string', enum: ['Bearer'] }),
  expires_at: Timestamp,
  refresh_token: Type.String(),
  refresh_expires_at: Timestamp,
});
const SessionSchema = Type.Object({
  ...TokensSchema.properties,
  must_change_password: Type.Boolean(),
});
const SessionListSchema = Type.Object({
  items: Type.Array(
    Type.Object({
      id: Uuid,
      current: Type.Boolean(),
      address: Type.String(),
      client: Type.String(),
      created_at: Timestamp,
      refreshed_at: Timestamp,
      expires_at: Timestamp,
    }),
  ),
});

/** Logging in and out, the same on both networks. */
export function addSessionRoutes(routes: Routes<Principal>, context: SessionContext): void {
  const { db, clock, principals } = context;
  const issuer = async () => ({ ...context, settings: await context.settings() });
  const end = async (actor: Principal, which: { id?: string }) => {
    const ended = { where: { ...which, userId: actor.userId }, actor: actorOf(actor) };
    await db.transaction((tx) =>
      endSessions(tx, { ...ended, action: 'session.end', now: clock.now() }),
    );
    principals.drop();
    await notifyChanged(db, IDENTITY_CHANGED);
  };

  routes.addPublic({
    method: 'post',
    path: '/v1/sessions',
    summary: 'Log in with login name and password',
    body: Type.Object(
      {
        login: Type.String({ minLength: 1, maxLength: 64 }),
        password: Type.String({ minLength: 1, maxLength: 1_024 }),
      },
      { additionalProperties: false },
    ),
    responses: {
      201: {
        description: 'A token for the header Authorization, and one for the next pair.',
        schema: SessionSchema,
      },
      401: { description: 'Name or password are wrong.' },
    },
    async handler({ req, body }) {
      const attempt = { ...body, origin: originOf(req) };
      const { user, ...tokens } = await logIn(db, attempt, await issuer());
      const { must_change_password } = user;
      return { status: 201, body: { ...viewTokens(tokens), must_change_password } };
    },
  });

  routes.addPublic({
    method: 'post',
    path: '/v1/sessions:refresh',
    summary: 'Change a refresh token for the next pair of tokens; each is good once',
    body: Type.Object(
      { refresh_token: Type.String({ minLength: 1, maxLength: 200 }) },
      { additionalProperties: false },
    ),
    responses: {
      200: { description: 'The next pair.', schema: TokensSchema },
      401: { description: 'The session is over; a token used before has ended it.' },
      409: { description: 'Another call has just used it.' },
    },
    async handler({ body }) {
      const tokens = await refreshSession(db, body.refresh_token, await issuer());
      return { status: 200, body: viewTokens(tokens) };
    },
  });

  routes.add({
    method: 'get',
    path: '/v1/sessions',
    summary: 'Where you are logged in on this network',
    roles: ROLES,
    responses: { 200: { description: 'The one used last first.', schema: SessionListSchema } },
    async handler({ actor }) {
      const items = await listSessions(db, actor.userId, clock.now());
      return {
        status: 200,
        body: { items: items.map((item) => ({ ...item, current: item.id === actor.sessionId })) },
      };
    },
  });

  routes.add({
    method: 'delete',
    path: '/v1/sessions/current',
    summary: 'Log out',
    roles: ROLES,
    beforePasswordChange: true,
    responses: { 204: { description: 'The session is over.' } },
    async handler({ actor }) {
      await end(actor, actor.sessionId === null ? {} : { id: actor.sessionId });
      return { status: 204 };
    },
  });

  routes.add({
    method: 'delete',
    path: '/v1/sessions',
    summary: 'Log out everywhere on this network',
    roles: ROLES,
    beforePasswordChange: true,
    responses: { 204: { description: 'All your sessions are over.' } },
    async handler({ actor }) {
      await end(actor, {});
      return { status: 204 };
    },
  });
}

function originOf(req: Request): SessionOrigin {
  return { address: req.ip ?? '', client: req.headers['user-agent'] ?? '' };
}

function viewTokens(tokens: SessionTokens) {
  return {
    token: tokens.token,
    token_type: 'Bearer',
    expires_at: tokens.expiresAt.toISOString(),
    refresh_token: tokens.refreshToken,
    refresh_expires_at: tokens.refreshExpiresAt.toISOString(),
  };
}
