import { Type } from 'typebox';
import type { Clock } from './clock.js';
import type { Database } from './database.js';
import type { Routes } from './http-routes.js';
import {
  NOTICE_SEVERITIES,
  listNotices,
  listSentNotices,
  readNotices,
  type Notice,
  type NoticeReader,
} from './notices.js';
import { PageQuery } from './page-token.js';
import type { Principal } from './principals.js';
import { ROLES, Timestamp, Uuid } from './records.js';

/** What the routes of notices work with. */
export type NoticeContext = { db: Database; clock: Clock; pageSecret: Buffer };

const MAX_IDS = 500;
const nullableTime = Type.Union([Timestamp, Type.Null()]);
const nullableText = Type.Union([Type.String(), Type.Null()]);
const SeveritySchema = Type.Unsafe<(typeof NOTICE_SEVERITIES)[number]>({
  type: 'string',
  enum: NOTICE_SEVERITIES,
});
const NoticeSchema = Type.Object({
  id: Uuid,
  kind: Type.String(),
  severity: SeveritySchema,
  title: Type.String(),
  detail: Type.String(),
  subject: nullableText,
  at: Timestamp,
  read_at: nullableTime,
});
const SentNoticeSchema = Type.Object({
  ...NoticeSchema.properties,
  recipient: nullableText,
  read_by: nullableText,
});
const pageOf = (item: typeof NoticeSchema | typeof SentNoticeSchema) =>
  Type.Object({ items: Type.Array(item), next_page_token: Type.Optional(Type.String()) });

/** One's own notices and, for admins, everybody's; the same on both networks. */
export function addNoticeRoutes(
  routes: Routes<Principal>,
  { db, clock, pageSecret }: NoticeContext,
): void {
  routes.add({
    method: 'get',
    path: '/v1/me/notices',
    summary: 'Your notices, newest first; admins see those to all admins too',
    roles: ROLES,
    query: Type.Object(
      { ...PageQuery, unread: Type.Boolean({ default: false }) },
      { additionalProperties: false },
    ),
    responses: { 200: { description: 'A page.', schema: pageOf(NoticeSchema) } },
    async handler({ query, actor }) {
      const { page_size: pageSize, page_token: pageToken, unread } = query;
      const paging = { pageSize, pageToken, secret: pageSecret };
      const page = await listNotices(db, readerOf(actor), { ...paging, unread });
      return { status: 200, body: { ...page, items: page.items.map(viewNotice) } };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/me/notices:read',
    summary: 'Mark notices as read; may be repeated',
    roles: ROLES,
    body: Type.Object(
      {
        ids: Type.Optional(Type.Array(Uuid, { minItems: 1, maxItems: MAX_IDS })),
        all: Type.Optional(Type.Literal(true)),
      },
      { additionalProperties: false, minProperties: 1, maxProperties: 1 },
    ),
    responses: {
      200: {
        description: 'How many of yours were unread until now.',
        schema: Type.Object({ read: Type.Integer() }),
      },
    },
    async handler({ body, actor }) {
      const which = { ids: body.ids ?? ('all' as const), now: clock.now() };
      const read = await readNotices(db, readerOf(actor), which);
      return { status: 200, body: { read } };
    },
  });

  routes.add({
    method: 'get',
    path: '/v1/admin/notices',
    summary: 'What was told to whom on this network, newest first',
    roles: ['admin', 'auditor'],
    query: Type.Object(
      {
        ...PageQuery,
        recipient: Type.Optional(Type.String({ minLength: 1, maxLength: 64 })),
        kind: Type.Optional(Type.String({ minLength: 1, maxLength: 80 })),
        severity: Type.Optional(SeveritySchema),
        unread: Type.Boolean({ default: false }),
      },
      { additionalProperties: false },
    ),
    responses: { 200: { description: 'A page.', schema: pageOf(SentNoticeSchema) } },
    async handler({ query, actor }) {
      const { page_size: pageSize, page_token: pageToken, ...filter } = query;
      const paging = { pageSize, pageToken, secret: pageSecret };
      const page = await listSentNotices(db, { ...paging, userId: actor.userId, filter });
      return { status: 200, body: { ...page, items: page.items.map(viewNotice) } };
    },
  });
}

function readerOf({ userId, login, roles }: Principal): NoticeReader {
  return { userId, login, isAdmin: roles.includes('admin') };
}

function viewNotice<T extends Notice>(notice: T) {
  return {
    ...notice,
    at: notice.at.toISOString(),
    read_at: notice.read_at?.toISOString() ?? null,
  };
}
