import { Type } from 'typebox';
import type { Database } from './database.js';
import type { Routes } from './http-routes.js';
import type { Principal } from './principals.js';
import { Timestamp } from './records.js';
import { openSession, type SessionIssuer } from './sessions.js';
import type { Settings } from './settings.js';

/** What the session routes of a network work with. */
export type SessionContext = SessionIssuer & {
  db: Database;
  settings(): Settings | Promise<Settings>;
};

const SessionSchema = Type.Object({
  token: Type.String(),
  token_type: Type.Unsafe<'Bearer'>({ type: 'string', enum: ['Bearer'] }),
  expires_at: Timestamp,
  must_change_password: Type.Boolean(),
});

/** Logging in and out, the same on both networks. */
export function addSessionRoutes(routes: Routes<Principal>, context: SessionContext): void {
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
      201: { description: 'A token for the header Authorization.', schema: SessionSchema },
      401: { description: 'Name or password are wrong.' },
    },
    async handler({ body }) {
      const minutes = (await context.settings())['session.minutes'];
      const { token, expiresAt, user } = await openSession(context.db, body, {
        ...context,
        minutes,
      });
      return {
        status: 201,
        body: {
          token,
          token_type: 'Bearer',
          expires_at: expiresAt.toISOString(),
          must_change_password: user.must_change_password,
        },
      };
    },
  });
}
