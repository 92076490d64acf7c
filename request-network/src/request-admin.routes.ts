import { Type } from 'typebox';
import { PageQuery, READERS, readPage, type Principal, type Routes } from '@sallyport/shared';
import type { RequestNetwork } from './network.js';
import { EventSchema } from './request-schemas.js';
import {
  FoundRequestSchema,
  RequestSearchFilter,
  findRequest,
  searchRequests,
} from './request-search.js';
import { readTimeline } from './timeline.js';

/** Requests of all users, for those who run the network; never a result. */
export function addRequestAdminRoutes(routes: Routes<Principal>, network: RequestNetwork): void {
  const { db, pageSecret: secret } = network;

  routes.add({
    method: 'get',
    path: '/v1/admin/requests',
    summary: 'Search the requests of all users, newest first',
    roles: READERS,
    query: Type.Object({ ...RequestSearchFilter, ...PageQuery }, { additionalProperties: false }),
    responses: {
      200: {
        description: 'A page.',
        schema: Type.Object({
          items: Type.Array(FoundRequestSchema),
          next_page_token: Type.Optional(Type.String()),
        }),
      },
    },
    async handler({ query, actor }) {
      const page = await readPage(
        { secret, list: 'admin-requests', actor, query },
        (limit, after) => searchRequests(db, { filter: query, limit, after }),
        { cursorOf: ({ id }) => id, view: (request) => request },
      );
      return { status: 200, body: page };
    },
  });

  routes.add({
    method: 'get',
    path: '/v1/admin/requests/{id}',
    summary: 'A request of anybody, with what happened to it on both networks',
    roles: READERS,
    responses: {
      200: {
        description: 'The request and its timeline.',
        schema: Type.Object({
          ...FoundRequestSchema.properties,
          timeline: Type.Array(EventSchema),
        }),
      },
      404: { description: 'There is no such request.' },
    },
    async handler({ params }) {
      const found = await findRequest(db, params['id'] ?? '');
      const timeline = await readTimeline(db, { id: found.id, userId: found.user.id });
      return { status: 200, body: { ...found, timeline } };
    },
  });
}
