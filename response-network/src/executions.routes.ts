import { Type } from 'typebox';
import {
  PageQuery,
  READERS,
  ReasonText,
  actorOf,
  readPage,
  type Principal,
  type Routes,
} from '@sallyport/shared';
import { killExecution, retryExecution } from './execution-acts.js';
import {
  ExecutionFilter,
  ExecutionSchema,
  getExecution,
  searchExecutions,
} from './execution-views.js';
import type { ResponseNetwork } from './network.js';

const strict = { additionalProperties: false };
const ReasonBody = Type.Object({ reason: ReasonText }, strict);
const NOT_FOUND = { description: 'No such request has come across.' };

/** Requests that came across, and the searches that answer them. */
export function addExecutionRoutes(routes: Routes<Principal>, network: ResponseNetwork): void {
  const { db, clock, queues, pageSecret: secret } = network;

  routes.add({
    method: 'get',
    path: '/v1/admin/executions',
    summary: 'Search what came across, newest first; what runs or waits with cost and age',
    roles: READERS,
    query: Type.Object({ ...ExecutionFilter, ...PageQuery }, strict),
    responses: {
      200: {
        description: 'A page.',
        schema: Type.Object({
          items: Type.Array(ExecutionSchema),
          next_page_token: Type.Optional(Type.String()),
        }),
      },
    },
    async handler({ query, actor }) {
      const now = clock.now();
      const page = await readPage(
        { secret, list: 'executions', actor, query },
        (limit, after) => searchExecutions(db, { filter: query, limit, after, now }),
        { cursorOf: ({ id }) => id, view: (execution) => execution },
      );
      return { status: 200, body: page };
    },
  });

  routes.add({
    method: 'get',
    path: '/v1/admin/executions/{id}',
    summary: 'One request that came across',
    roles: READERS,
    responses: { 200: { description: 'The request.', schema: ExecutionSchema }, 404: NOT_FOUND },
    handler: async ({ params }) => ({
      status: 200,
      body: await getExecution(db, params['id'] ?? '', clock.now()),
    }),
  });

  routes.add({
    method: 'post',
    path: '/v1/admin/executions/{id}:kill',
    summary: 'End a request unanswered: at once while it waits, else its search is stopped',
    roles: ['admin'],
    body: ReasonBody,
    responses: {
      200: { description: 'It was waiting and is cancelled.', schema: ExecutionSchema },
      202: { description: 'Its search is told to stop.', schema: ExecutionSchema },
      404: NOT_FOUND,
      409: { description: 'It has been answered.' },
    },
    async handler({ params, body: { reason }, actor }) {
      const act = { id: params['id'] ?? '', reason, actor: actorOf(actor) };
      const outcome = await killExecution(db, act, clock.now());
      const body = await getExecution(db, act.id, clock.now());
      return { status: outcome === 'cancelled' ? 200 : 202, body };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/admin/executions/{id}:retry',
    summary: 'Let a request that waits after a failed search be tried again now',
    roles: ['admin'],
    body: ReasonBody,
    responses: {
      202: { description: 'It is next in its lane.', schema: ExecutionSchema },
      404: NOT_FOUND,
      409: { description: 'It runs, or has been answered: an answer never changes.' },
    },
    async handler({ params, body: { reason }, actor }) {
      const act = { id: params['id'] ?? '', reason, actor: actorOf(actor) };
      await retryExecution(db, act, clock.now());
      queues.wake('execute-queries');
      return { status: 202, body: await getExecution(db, act.id, clock.now()) };
    },
  });
}
