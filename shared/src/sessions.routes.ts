import type { Request, Response } from 'express';
import { Type } from 'typebox';
import { actorOf } from './audit.js';
import type { Database } from './database.js';
import { SallyportError } from './errors.js';
import { refreshCookieOf, requireSameOrigin, setSessionCookies } from './http-browsers.js';
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

/** In cookies there are no tokens in the answer. */
const TokensSchema = Type.Object({
  token: Type.Optional(Type.String()),
  token_type: Type.Optional(Type.Unsafe<'Bearer'>({ type: 'string', enum: ['Bearer'] })),
  expires_at: Timestamp,
  refresh_token: Type.Optional(Type.String()),
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

type Ending = { req: Request; res: Response; actor: Principal };

/** Logging in and out, the same on both networks. */
export function addSessionRoutes(routes: Routes<Principal>, context: SessionContext): void {
  const { db, clock, principals } = context;
  const issuer = async () => ({ ...context, settings: await context.settings() });
  const end = async ({ req, res, actor }: Ending, which: { id?: string }) => {
    const ended = { where: { ...which, userId: actor.userId }, actor: actorOf(actor) };
    await db.transaction((tx) =>
      endSessions(tx, { ...ended, action: 'session.end', now: clock.now() }),
    );
    principals.drop();
    await notifyChanged(db, IDENTITY_CHANGED);
    if (refreshCookieOf(req) !== undefined) setSessionCookies(res, null, clock.now());
    return { status: 204 };
  };
  const hand = (res: Response, tokens: SessionTokens, cookie: boolean) => {
    const { token, refresh_token, token_type, ...times } = viewTokens(tokens);
    if (!cookie) return { token, token_type, refresh_token, ...times };
    setSessionCookies(res, tokens, clock.now());
    return times;
  };

  routes.addPublic({
    method: 'post',
    path: '/v1/sessions',
    summary: 'Log in with login name and password',
    body: Type.Object(
      {
        login: Type.String({ minLength: 1, maxLength: 64 }),
        password: Type.String({ minLength: 1, maxLength: 1_024 }),
        cookie: Type.Optional(
          Type.Boolean({ description: 'For a console: the tokens come in cookies instead.' }),
        ),
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
    async handler({ req, res, body: { cookie = false, ...proof } }) {
      if (cookie) requireSameOrigin(req);
      const attempt = { ...proof, origin: originOf(req) };
      const { user, ...tokens } = await logIn(db, attempt, await issuer());
      const { must_change_password } = user;
      return { status: 201, body: { ...hand(res, tokens, cookie), must_change_password } };
    },
  });

  routes.addPublic({
    method: 'post',
    path: '/v1/sessions:refresh',
    summary: 'Change a refresh token for the next pair of tokens; each is good once',
    body: Type.Object(
      { refresh_token: Type.Optional(Type.String({ minLength: 1, maxLength: 200 })) },
      { additionalProperties: false },
    ),
    responses: {
      200: { description: 'The next pair.', schema: TokensSchema },
      401: { description: 'The session is over; a token used before has ended it.' },
      409: { description: 'Another call has just used it.' },
    },
    async handler({ req, res, body }) {
      const cookie = body.refresh_token === undefined;
      const given = body.refresh_token ?? refreshCookieOf(req);
      if (given === undefined) throw missingToken();
      if (cookie) requireSameOrigin(req);
      const tokens = await refreshSession(db, given, await issuer());
      return { status: 200, body: hand(res, tokens, cookie) };
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
    handler: (call) => end(call, call.actor.sessionId === null ? {} : { id: call.actor.sessionId }),
  });

  routes.add({
    method: 'delete',
    path: '/v1/sessions',
    summary: 'Log out everywhere on this network',
    roles: ROLES,
    beforePasswordChange: true,
    responses: { 204: { description: 'All your sessions are over.' } },
    handler: (call) => end(call, {}),
  });
}

function missingToken(): SallyportError {
  const [pointer, detail] = ['/refresh_token', 'is missing, and there is no cookie'];
  return new SallyportError('bad-field', `${pointer} ${detail}.`, {
    errors: [{ pointer, code: 'bad-field', detail }],
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
