import { Type } from 'typebox';
import { ROLES, Timestamp, type Principal, type Routes } from '@sallyport/shared';
import type { RequestNetwork } from './network.js';

const nullableTime = Type.Union([Timestamp, Type.Null()]);
const StatusSchema = Type.Object({
  state: Type.Unsafe<'green' | 'amber' | 'red'>({
    type: 'string',
    enum: ['green', 'amber', 'red'],
  }),
  waiting_records: Type.Integer(),
  waiting_bytes: Type.Integer(),
  oldest_at: nullableTime,
  heard_at: nullableTime,
  banner: Type.String(),
});

/** The health of the link, for people. */
export function addStatusRoutes(routes: Routes<Principal>, network: RequestNetwork): void {
  routes.add({
    method: 'get',
    path: '/v1/status',
    summary: 'How the link does: what waits, since when, and when the far side was last heard of',
    roles: ROLES,
    scope: 'requests:read',
    responses: {
      200: { description: 'Amber: it is slow. Red: bulks are refused.', schema: StatusSchema },
    },
    async handler() {
      const { backlog, state } = await network.backPressure.look();
      const { settings } = await network.replica.rules();
      return {
        status: 200,
        body: {
          state,
          waiting_records: backlog.records,
          waiting_bytes: backlog.bytes,
          oldest_at: backlog.oldestAt?.toISOString() ?? null,
          heard_at: backlog.heardAt?.toISOString() ?? null,
          banner: settings['banner.text'],
        },
      };
    },
  });
}
