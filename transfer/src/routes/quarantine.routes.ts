import { Type } from 'typebox';
import {
  PageQuery,
  READERS,
  ReasonText,
  STREAM_NAMES,
  actorOf,
  readPage,
  type Principal,
  type Routes,
} from '@sallyport/shared';
import { askRelease } from '../custody/approvals.js';
import {
  listQuarantine,
  readQuarantined,
  rejectQuarantined,
  type QuarantinedFile,
} from '../receiving/quarantine.js';
import { ApprovalSchema, viewApproval } from './approvals.routes.js';
import { afterCursor, timeCursor } from './lists.js';
import { ACTORS, type OperationsContext } from './context.js';

const strict = { additionalProperties: false };
const NOT_FOUND = { description: 'No refused file has this id.' };

/** Files that were refused: looking at them, and the two ways out. */
export function addQuarantineRoutes(routes: Routes<Principal>, context: OperationsContext): void {
  const { db, node, pageSecret: secret } = context;

  routes.add({
    method: 'get',
    path: '/v1/quarantine',
    summary: 'Files that were refused and why, newest first; with all=true, decided ones too',
    roles: READERS,
    query: Type.Object(
      {
        code: Type.Optional(Type.String({ pattern: '^[A-Z][A-Z0-9_]{2,40}$' })),
        stream: Type.Optional(Type.Unsafe<string>({ type: 'string', enum: STREAM_NAMES })),
        all: Type.Boolean({ default: false }),
        ...PageQuery,
      },
      strict,
    ),
    responses: { 200: { description: 'A page.' } },
    async handler({ query, actor }) {
      const { code, stream, all } = query;
      const page = await readPage(
        { secret, list: 'quarantine', actor, query },
        (limit, cursor) => listQuarantine(db, { code, stream, all, limit, ...afterCursor(cursor) }),
        { cursorOf: ({ created_at: at, id }) => timeCursor(at, id), view: viewFile },
      );
      return { status: 200, body: page };
    },
  });

  routes.add({
    method: 'get',
    path: '/v1/quarantine/{id}',
    summary: 'All that helps to decide on a refused file, never its content',
    roles: READERS,
    responses: { 200: { description: 'The file and its surroundings.' }, 404: NOT_FOUND },
    async handler({ params }) {
      const { file, known, ...rest } = await readQuarantined(db, node, params['id'] ?? '');
      const seen = known && { ...known, seen_at: known.seen_at.toISOString() };
      return { status: 200, body: { ...viewFile(file), ...rest, known: seen } };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/quarantine/{id}:release',
    summary: 'Ask to import a refused file after all; a second person approves, nothing is skipped',
    roles: ACTORS,
    body: Type.Object({ reason: ReasonText }, strict),
    responses: {
      202: { description: 'It waits for a second person.', schema: ApprovalSchema },
      404: NOT_FOUND,
      409: { description: 'It was decided on, or these bytes can never pass.' },
      410: { description: 'Its bytes were not kept whole.' },
    },
    async handler({ params, body: { reason }, actor }) {
      const ask = { id: params['id'] ?? '', reason, by: actorOf(actor) };
      return { status: 202, body: viewApproval(await askRelease(db, node, ask)) };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/quarantine/{id}:reject',
    summary: 'Reject a refused file for good: its bytes are deleted, its report stays',
    roles: ACTORS,
    body: Type.Object({ reason: ReasonText }, strict),
    responses: {
      200: { description: 'The file, and the requests to release it that this declined.' },
      404: NOT_FOUND,
      409: { description: 'It was released.' },
    },
    async handler({ params, body: { reason }, actor }) {
      const rejected = await rejectQuarantined(db, node, {
        id: params['id'] ?? '',
        reason,
        by: actorOf(actor),
      });
      return { status: 200, body: { ...viewFile(rejected), declined: rejected.declined } };
    },
  });
}

function viewFile(file: QuarantinedFile) {
  const { id, code, digest, file_name, file_bytes, report, decision, decided_by } = file;
  return {
    ...{ id, code, digest, file_name, file_bytes, report, decision, decided_by },
    created_at: file.created_at.toISOString(),
    decided_at: file.decided_at?.toISOString() ?? null,
    release_approval: file.release_approval,
  };
}
