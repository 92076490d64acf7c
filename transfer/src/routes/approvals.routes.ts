import { Type } from 'typebox';
import {
  PageQuery,
  READERS,
  ReasonText,
  Timestamp,
  Uuid,
  actorOf,
  readPage,
  type Principal,
  type Routes,
} from '@sallyport/shared';
import { decideApproval, listApprovals, type Approval } from '../custody/approvals.js';
import { tidyOutbox } from '../sending/store.js';
import { afterCursor, timeCursor } from './lists.js';
import { ACTORS, type OperationsContext } from './context.js';

const nullable = (schema: typeof Timestamp) => Type.Union([schema, Type.Null()]);
const strict = { additionalProperties: false };

/** What waits for a second person, or was decided by one. */
export const ApprovalSchema = Type.Object(
  {
    id: Uuid,
    act: Type.String(),
    subject: Type.String(),
    details: Type.Record(Type.String(), Type.Unknown()),
    reason: Type.String(),
    asked_by: Type.String(),
    asked_at: Timestamp,
    decision: nullable(Type.String()),
    decided_by: nullable(Type.String()),
    decided_at: nullable(Timestamp),
    answer: nullable(Type.String()),
    /** False where somebody had asked for the same before. */
    fresh: Type.Optional(Type.Boolean()),
  },
  strict,
);

/** An approval as it is answered. */
export function viewApproval(approval: Approval & { fresh?: boolean }) {
  const { asked_at: askedAt, decided_at: decidedAt } = approval;
  return {
    ...approval,
    asked_at: askedAt.toISOString(),
    decided_at: decidedAt?.toISOString() ?? null,
  };
}

/** What two people decide: who asked may take it back, but never approve it. */
export function addApprovalRoutes(routes: Routes<Principal>, context: OperationsContext): void {
  const { db, node, pageSecret: secret, queues } = context;
  const responses = {
    200: { description: 'What was decided.', schema: ApprovalSchema },
    403: { description: 'Whoever asked must not approve it.' },
    404: { description: 'Nothing of this id waits.' },
    409: { description: 'It was decided already.' },
  };

  routes.add({
    method: 'get',
    path: '/v1/approvals',
    summary: 'What waits for a second person, newest first; with all=true, what was decided too',
    roles: READERS,
    query: Type.Object({ all: Type.Boolean({ default: false }), ...PageQuery }, strict),
    responses: {
      200: {
        description: 'A page.',
        schema: Type.Object({
          items: Type.Array(ApprovalSchema),
          next_page_token: Type.Optional(Type.String()),
        }),
      },
    },
    async handler({ query, actor }) {
      const page = await readPage(
        { secret, list: 'approvals', actor, query },
        (limit, cursor) => listApprovals(db, { all: query.all, limit, ...afterCursor(cursor) }),
        { cursorOf: ({ asked_at: at, id }) => timeCursor(at, id), view: viewApproval },
      );
      return { status: 200, body: page };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/approvals/{id}:approve',
    summary: 'Approve what somebody else asked for, and do it',
    roles: ACTORS,
    responses,
    async handler({ params, actor }) {
      const decided = { id: params['id'] ?? '', by: actorOf(actor), decision: 'approved' } as const;
      const approval = await decideApproval(db, node, decided);
      if (approval.act === 'withdraw') {
        // It is decided; where its file cannot be removed now, the next import tries again.
        await tidyOutbox(db, node).catch((err: unknown) => {
          node.log.warn({ err }, 'outbox could not be tidied');
        });
      } else queues.wake('import-batches');
      return { status: 200, body: viewApproval(approval) };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/approvals/{id}:decline',
    summary: 'Decline what somebody asked for, or take back what one asked for oneself',
    roles: ACTORS,
    body: Type.Object({ reason: ReasonText }, strict),
    responses,
    async handler({ params, body: { reason }, actor }) {
      const decided = { id: params['id'] ?? '', by: actorOf(actor), decision: 'declined' } as const;
      const approval = await decideApproval(db, node, { ...decided, reason });
      return { status: 200, body: viewApproval(approval) };
    },
  });
}
