import { Type } from 'typebox';
import {
  AdminProfileTypeSchema,
  answerVersioned,
  LimitsSchema,
  Name,
  ProfileTypeSchema,
  ReasonText,
  versionOf,
  type Principal,
  type ProfileType,
  type Routes,
} from '@sallyport/shared';
import { changeBy } from './change.js';
import { previewProfileType, PreviewSchema } from './impact.js';
import type { ResponseNetwork } from './network.js';
import { changeProfileType, createProfileType, rollBackProfileType } from './profile-type-rules.js';

const { version: _version, name: _name, limits: _limits, ...rest } = ProfileTypeSchema.properties;
const settable = Type.Partial(
  Type.Object({ ...rest, limits: Type.Partial(LimitsSchema), reason: ReasonText }),
).properties;
const { disabled: _disabled, ...changeable } = settable;
const changed = {
  200: {
    description: 'It as it is now, or what would change.',
    schema: Type.Union([AdminProfileTypeSchema, PreviewSchema]),
  },
  404: { description: 'There is no profile type of this id.' },
  409: { description: 'Somebody else was first.' },
};
const strict = { additionalProperties: false };
const DryRun = Type.Object({ dry_run: Type.Boolean({ default: false }) }, strict);

/** What admins do with sets of rights; each change leaves for the request network. */
export function addProfileTypeRoutes(routes: Routes<Principal>, network: ResponseNetwork): void {
  const { db, clock } = network;
  const roles = ['admin'] as const;
  const answer = (found: ProfileType) => answerVersioned({ version: found.version, body: found });

  routes.add({
    method: 'post',
    path: '/v1/admin/profile-types',
    summary: 'Make a set of rights',
    roles,
    body: Type.Object({ ...changeable, name: Name }, strict),
    responses: {
      201: { description: 'It.', schema: AdminProfileTypeSchema },
      409: { description: 'The name is taken.' },
    },
    async handler({ body: { name, reason, ...wanted }, actor }) {
      const by = { ...changeBy(actor, clock, { reason }), settings: network.settings() };
      const made = await db.transaction((tx) => createProfileType(tx, name, wanted, by));
      const location = { Location: `/v1/admin/profile-types/${made.id}` };
      const { headers } = answer(made);
      return { status: 201, headers: { ...headers, ...location }, body: made };
    },
  });

  routes.add({
    method: 'patch',
    path: '/v1/admin/profile-types/{id}',
    summary: 'Change what is named of a set of rights, or see what that would do',
    roles,
    query: DryRun,
    body: Type.Object(changeable, strict),
    responses: changed,
    async handler({ req, params, query, body: { reason, ...wanted }, actor }) {
      const id = params['id'] ?? '';
      const by = changeBy(actor, clock, { reason, expected: versionOf(req.headers['if-match']) });
      const work = (tx: Parameters<typeof changeProfileType>[0]) =>
        changeProfileType(tx, { id }, wanted, by);
      if (query.dry_run) return { status: 200, body: await previewProfileType(db, id, work) };
      return answer(await db.transaction(work));
    },
  });

  for (const [act, disabled] of [
    ['disable', true],
    ['enable', false],
  ] as const) {
    routes.add({
      method: 'post',
      path: `/v1/admin/profile-types/{id}:${act}`,
      summary: disabled ? 'Take every right of it away' : 'Let its rights count again',
      roles,
      query: DryRun,
      body: Type.Object({ reason: ReasonText }, strict),
      responses: changed,
      async handler({ params, query, body, actor }) {
        const id = params['id'] ?? '';
        const work = (tx: Parameters<typeof changeProfileType>[0]) =>
          changeProfileType(tx, { id }, { disabled }, changeBy(actor, clock, body));
        if (query.dry_run) return { status: 200, body: await previewProfileType(db, id, work) };
        return answer(await db.transaction(work));
      },
    });
  }

  routes.add({
    method: 'post',
    path: '/v1/admin/profile-types/{id}:roll-back',
    summary: 'Make what it was in an older version its next one, or see what that would do',
    roles,
    query: DryRun,
    body: Type.Object({ version: Type.Integer({ minimum: 1 }), reason: ReasonText }, strict),
    responses: changed,
    async handler({ req, params, query, body: { version, reason }, actor }) {
      const id = params['id'] ?? '';
      const by = changeBy(actor, clock, { reason, expected: versionOf(req.headers['if-match']) });
      const work = (tx: Parameters<typeof changeProfileType>[0]) =>
        rollBackProfileType(tx, { id }, version, by);
      if (query.dry_run) return { status: 200, body: await previewProfileType(db, id, work) };
      return answer(await db.transaction(work));
    },
  });
}
