import { ROLES, type Principal, type Routes } from '@sallyport/shared';
import { Type } from 'typebox';
import type { RequestNetwork } from './network.js';
import { readUsage } from './usage.js';

const Count = Type.Integer({ minimum: 0 });
const UsageSchema = Type.Object({
  items: Type.Array(
    Type.Object({
      day: Type.String({ format: 'date' }),
      submitted: Count,
      delivered: Count,
      open: Count,
    }),
  ),
});

/** What one has submitted lately. */
export function addUsageRoutes(routes: Routes<Principal>, { db, clock }: RequestNetwork): void {
  routes.add({
    method: 'get',
    path: '/v1/me/usage',
    summary: 'Your requests by day, of the last 30 days (UTC)',
    roles: ROLES,
    scope: 'requests:read',
    responses: { 200: { description: 'Days with requests, oldest first.', schema: UsageSchema } },
    async handler({ actor }) {
      return { status: 200, body: { items: await readUsage(db, actor.userId, clock.now()) } };
    },
  });
}
