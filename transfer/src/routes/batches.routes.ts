import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { Type } from 'typebox';
import {
  PageQuery,
  READERS,
  ReasonText,
  STREAM_NAMES,
  UserTime,
  actorOf,
  readPage,
  requireOwnPage,
  streamsSentBy,
  type Call,
  type Principal,
  type Routes,
} from '@sallyport/shared';
import { askBatchWriteOff, confirmHandOver, resendBatch } from '../custody/batch-acts.js';
import { findBatchFile, openBatchFile, requireUnreadable } from '../custody/batch-files.js';
import { BatchRecordSchema, listBatchRecords } from '../custody/batch-records.js';
import {
  BATCH_STATES,
  BatchDetailsSchema,
  BatchSchema,
  DIRECTIONS,
  getBatchDetails,
  listBatchViews,
} from '../custody/batch-views.js';
import { sealNow } from '../sending/seal-now.js';
import { ApprovalSchema, viewApproval } from './approvals.routes.js';
import { ACTORS, type OperationsContext } from './context.js';

const oneOf = <T extends string>(values: readonly T[]) =>
  Type.Unsafe<T>({ type: 'string', enum: values });
const pageOf = (item: typeof BatchSchema | typeof BatchRecordSchema) =>
  Type.Object({ items: Type.Array(item), next_page_token: Type.Optional(Type.String()) });
const NOT_FOUND = { description: 'No batch has this id.' };
const Text = Type.String({ minLength: 1, maxLength: 200, pattern: '\\S' });
const strict = { additionalProperties: false };

/** Batches of both directions: looking at them, and what people do with those made here. */
export function addBatchRoutes(routes: Routes<Principal>, context: OperationsContext): void {
  const { db, node, pageSecret: secret } = context;

  routes.add({
    method: 'get',
    path: '/v1/batches',
    summary: 'Batches that were made here or came, newest first',
    roles: READERS,
    query: Type.Object(
      {
        direction: Type.Optional(oneOf(DIRECTIONS)),
        stream: Type.Optional(oneOf(STREAM_NAMES)),
        state: Type.Optional(Type.Array(oneOf(BATCH_STATES), { maxItems: BATCH_STATES.length })),
        created_from: Type.Optional(UserTime),
        created_before: Type.Optional(UserTime),
        ...PageQuery,
      },
      strict,
    ),
    responses: { 200: { description: 'A page.', schema: pageOf(BatchSchema) } },
    async handler({ query, actor }) {
      const page = await readPage(
        { secret, list: 'batches', actor, query },
        (limit, after) => listBatchViews(db, { filter: query, limit, after }),
        { cursorOf: ({ id }) => id, view: (batch) => batch },
      );
      return { status: 200, body: page };
    },
  });

  routes.add({
    method: 'get',
    path: '/v1/batches/{id}',
    summary: 'Everything known of a batch: state, statistics, custody',
    roles: READERS,
    responses: {
      200: { description: 'The batch.', schema: BatchDetailsSchema },
      404: NOT_FOUND,
    },
    handler: async ({ params }) => ({
      status: 200,
      body: await getBatchDetails(db, params['id'] ?? ''),
    }),
  });

  routes.add({
    method: 'get',
    path: '/v1/batches/{id}/file',
    summary: 'The bytes of a batch; one made here counts as handed over once an operator has all',
    roles: READERS,
    responses: {
      200: { description: 'Every byte.', mediaType: 'application/octet-stream' },
      206: { description: 'The range that was asked for.', mediaType: 'application/octet-stream' },
      403: { description: 'It came from the far side and anybody could read it.' },
      404: NOT_FOUND,
      410: { description: 'Its bytes are not kept (any more).' },
    },
    handler: (call) => answerFile(context, call),
  });

  routes.add({
    method: 'get',
    path: '/v1/batches/{id}/records',
    summary: 'Type, id and fate of the records of a batch, never what they say',
    roles: READERS,
    query: Type.Object(PageQuery, strict),
    responses: {
      200: { description: 'A page.', schema: pageOf(BatchRecordSchema) },
      404: NOT_FOUND,
      410: { description: 'Its bytes are not kept (any more).' },
    },
    async handler({ params, query, actor }) {
      const id = params['id'] ?? '';
      const page = await readPage(
        { secret, list: `batch-records ${id}`, actor, query },
        (limit, after) => listBatchRecords(db, node, { id, limit, from: Number(after ?? 0) + 1 }),
        { cursorOf: ({ line }) => String(line), view: (record) => record },
      );
      return { status: 200, body: page };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/batches:seal',
    summary: 'Seal what waits in one stream, or in all, now',
    roles: ACTORS,
    body: Type.Object({ stream: Type.Optional(oneOf(streamsSentBy(node.role))) }, strict),
    responses: {
      200: { description: 'How many batches and records were sealed of each stream.' },
      409: { description: 'Nobody is trusted yet.' },
    },
    async handler({ body, actor }) {
      const streams = await sealNow(db, node, { only: body.stream, by: actorOf(actor) });
      return { status: 200, body: { streams } };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/batches/{id}:confirm-handover',
    summary: 'Note that somebody took a batch away, and on what',
    roles: ACTORS,
    body: Type.Object(
      { who: Text, medium: Type.Optional(Type.Union([Text, Type.Null()])) },
      strict,
    ),
    responses: {
      200: { description: 'The batch; it had left before or has now.', schema: BatchDetailsSchema },
      404: NOT_FOUND,
    },
    async handler({ params, body, actor }) {
      const id = params['id'] ?? '';
      const { who, medium = null } = body;
      await confirmHandOver(db, node, { id, by: actorOf(actor), who, medium });
      return { status: 200, body: await getBatchDetails(db, id) };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/batches/{id}:resend',
    summary: 'Put a batch into the outbox again, the same bytes',
    roles: ACTORS,
    responses: {
      200: { description: 'The batch.', schema: BatchDetailsSchema },
      404: NOT_FOUND,
      410: { description: 'Its bytes are gone from the store.' },
      503: { description: 'The outbox cannot be written.' },
    },
    async handler({ params, actor }) {
      const id = params['id'] ?? '';
      await resendBatch(db, node, { id, by: actorOf(actor) });
      return { status: 200, body: await getBatchDetails(db, id) };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/batches/{id}:write-off',
    summary: 'Ask to give the number of a batch up for good; a second person approves',
    roles: ACTORS,
    body: Type.Object({ reason: ReasonText }, strict),
    responses: {
      202: { description: 'It waits for a second person.', schema: ApprovalSchema },
      404: NOT_FOUND,
      409: { description: 'It is closed already, or must not be written off.' },
    },
    async handler({ params, body, actor }) {
      const ask = { id: params['id'] ?? '', reason: body.reason, by: actorOf(actor) };
      return { status: 202, body: viewApproval(await askBatchWriteOff(db, node, ask)) };
    },
  });
}

async function answerFile(
  { db, node }: OperationsContext,
  { req, res, params, actor }: Call<Principal, unknown, unknown>,
): Promise<undefined> {
  // It may note a hand-over, so a page of another host must not make a browser fetch it.
  requireOwnPage(req);
  const file = await findBatchFile(db, node, params['id'] ?? '');
  requireUnreadable(file);
  const { bytes, sha256, pieces, close } = await openBatchFile(file);
  const range = rangeOf(req.headers['range'], bytes);
  const [from, to] = range ?? [0, bytes];
  res.statusCode = range ? 206 : 200;
  res.setHeader('Content-Type', 'application/octet-stream');
  res.setHeader('Content-Length', String(to - from));
  res.setHeader('Content-Disposition', `attachment; filename="${file.name}"`);
  res.setHeader('Accept-Ranges', 'bytes');
  res.setHeader('Repr-Digest', `sha-256=:${Buffer.from(sha256, 'hex').toString('base64')}:`);
  if (range) res.setHeader('Content-Range', `bytes ${from}-${to - 1}/${bytes}`);
  if (req.method === 'HEAD') {
    await close();
    res.end();
    return undefined;
  }
  try {
    await pipeline(Readable.from(pieces(from, to)), res);
  } catch (error) {
    // A reader who leaves early is no failure of ours.
    if (!res.destroyed) throw error;
    return undefined;
  }
  const whole = from === 0 && to === bytes;
  const left = file.direction === 'out' && whole && ['sealed', 'ready'].includes(file.state);
  if (left && ACTORS.some((role) => actor.roles.includes(role))) {
    const by = actorOf(actor);
    await confirmHandOver(db, node, { id: file.id, by, who: by, medium: null });
  }
  return undefined;
}

/** One range of bytes, half-open; whatever else is asked for is answered with everything. */
function rangeOf(header: string | undefined, bytes: number): [number, number] | undefined {
  const [, first, last] = /^bytes=(\d{1,15})-(\d{0,15})$/.exec(header ?? '') ?? [];
  if (first === undefined) return undefined;
  const from = Number(first);
  const to = last ? Math.min(Number(last) + 1, bytes) : bytes;
  return from < to ? [from, to] : undefined;
}
