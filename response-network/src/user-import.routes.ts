import { Type } from 'typebox';
import { readBody, requireMediaType, type Principal, type Routes } from '@sallyport/shared';
import { changeBy } from './change.js';
import type { ResponseNetwork } from './network.js';
import { MAX_IMPORT_BYTES, MAX_IMPORT_LINES, importUsers } from './user-import.js';

const NDJSON = 'application/x-ndjson';
const TIME_LIMIT_MS = 60_000;

/** Accounts of another system. */
export function addUserImportRoutes(routes: Routes<Principal>, network: ResponseNetwork): void {
  const { db, clock } = network;
  routes.add({
    method: 'post',
    path: '/v1/admin/users:import',
    summary: `Import up to ${MAX_IMPORT_LINES} accounts with argon2id or bcrypt verifiers, all or none`,
    roles: ['admin'],
    query: Type.Object(
      {
        dry_run: Type.Boolean({ default: false }),
        reason: Type.Optional(Type.String({ minLength: 1, maxLength: 500 })),
      },
      { additionalProperties: false },
    ),
    rawBody: NDJSON,
    responses: {
      200: {
        description: 'Imported, or with dry_run what would be.',
        schema: Type.Object({ lines: Type.Integer(), logins: Type.Array(Type.String()) }),
      },
      422: { description: 'Some lines are not valid; nothing was imported.' },
    },
    async handler({ req, query: { dry_run: dryRun, reason }, actor }) {
      requireMediaType(req, NDJSON);
      const bytes = await readBody(req, { sizeBytes: MAX_IMPORT_BYTES, timeMs: TIME_LIMIT_MS });
      const by = { ...changeBy(actor, clock, { reason }), settings: network.settings(), dryRun };
      const text = Buffer.from(bytes).toString();
      return { status: 200, body: await db.transaction((tx) => importUsers(tx, text, by)) };
    },
  });
}
