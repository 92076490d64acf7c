import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { Type } from 'typebox';
import {
  PageQuery,
  Timestamp,
  UserTime,
  listAudit,
  readPageToken,
  writePageToken,
  type AuditFilter,
  type Database,
  type Principal,
  type Routes,
} from '@sallyport/shared';
import { exportAudit } from '../custody/audit-export.js';
import { verifyAuditLog } from '../custody/audit-heads.js';
import type { Node } from '../node.js';

const AUDITORS = { roles: ['auditor', 'admin'] } as const;
const NDJSON = 'application/x-ndjson';

const Text = (maxLength: number) => Type.Optional(Type.String({ minLength: 1, maxLength }));
const ListSchema = Type.Object(
  {
    ...PageQuery,
    actor: Text(200),
    action: Text(100),
    subject: Text(200),
    since: Type.Optional(UserTime),
    until: Type.Optional(UserTime),
    text: Text(200),
  },
  { additionalProperties: false },
);
const EntrySchema = Type.Object({
  position: Type.Integer(),
  at: Timestamp,
  actor: Type.String(),
  action: Type.String(),
  subject: Type.String(),
  details: Type.Record(Type.String(), Type.Unknown()),
  prev: Type.String(),
  hash: Type.String(),
});
const PageSchema = Type.Object({
  items: Type.Array(EntrySchema),
  next_page_token: Type.Optional(Type.String()),
});
const Position = Type.Union([Type.Integer(), Type.Null()]);
const VerdictSchema = Type.Object({
  ok: Type.Boolean(),
  entries: Type.Integer(),
  head: Type.String(),
  broken_at: Position,
  told: Type.Integer(),
  stored: Type.Integer(),
  lost: Type.Array(
    Type.Object({
      head: Type.String(),
      batch: Type.Union([Type.String(), Type.Null()]),
      position: Position,
    }),
  ),
});

/** Reading, checking and exporting the audit log; the same on both networks. */
export function addAuditRoutes(
  routes: Routes<Principal>,
  { db, node, pageSecret }: { db: Database; node: Node; pageSecret: Buffer },
): void {
  routes.add({
    ...AUDITORS,
    method: 'get',
    path: '/v1/admin/audit',
    summary: 'The audit log, newest first; `action` may be a beginning, `text` stands anywhere',
    query: ListSchema,
    responses: { 200: { description: 'A page.', schema: PageSchema } },
    async handler({ query, actor }) {
      const { page_size: pageSize, page_token: pageToken, since, until, ...rest } = query;
      const filter: AuditFilter = {
        ...rest,
        since: since === undefined ? undefined : new Date(since),
        until: until === undefined ? undefined : new Date(until),
      };
      const binding = `audit ${actor.userId} ${JSON.stringify(filter)}`;
      const cursor = readPageToken(pageSecret, binding, pageToken);
      const before = cursor === undefined ? undefined : Number(cursor);
      const found = await listAudit(db, { filter, before, limit: pageSize + 1 });
      const items = found.slice(0, pageSize);
      const last = items.at(-1);
      const more = last && found.length > pageSize;
      return {
        status: 200,
        body: {
          items,
          ...(more && {
            next_page_token: writePageToken(pageSecret, binding, String(last.position)),
          }),
        },
      };
    },
  });

  routes.add({
    ...AUDITORS,
    method: 'post',
    path: '/v1/admin/audit:verify',
    summary: 'Recompute the whole chain and look for every head of it that ever left',
    responses: {
      200: { description: '`broken_at` is the first entry that is wrong.', schema: VerdictSchema },
    },
    async handler() {
      const { brokenAt, ...report } = await verifyAuditLog(db, node);
      return { status: 200, body: { ...report, broken_at: brokenAt } };
    },
  });

  routes.add({
    ...AUDITORS,
    method: 'get',
    path: '/v1/admin/audit:export',
    summary: 'The whole audit log as JSON lines; the last one has their signed digest',
    responses: {
      200: { description: 'To be compared on the other network.', mediaType: NDJSON },
    },
    async handler({ res }) {
      res.statusCode = 200;
      res.setHeader('Content-Type', NDJSON);
      res.setHeader('Content-Disposition', `attachment; filename="audit.${node.name}.jsonl"`);
      await pipeline(Readable.from(exportAudit(db, node)), res);
      return undefined;
    },
  });
}
