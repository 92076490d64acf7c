import { Type, type TSchema } from 'typebox';
import {
  LIMITS_CHANGED,
  PageQuery,
  READERS,
  ROLES,
  ReasonText,
  Timestamp,
  UserTime,
  Uuid,
  actorOf,
  notifyChanged,
  type Principal,
  type Routes,
} from '@sallyport/shared';
import { changeLimits, type LimitAct } from './limit-changes.js';
import { LIMIT_FILTERS, listLimits, readOwnLimits, readSubject } from './limit-reads.js';
import { WINDOWS } from './limits.js';
import type { RequestNetwork } from './network.js';

const oneOf = <T extends string>(...values: readonly T[]) =>
  Type.Unsafe<T>({ type: 'string', enum: values });
const nullable = <T extends TSchema>(schema: T) => Type.Union([schema, Type.Null()]);
const whole = Type.Integer({ minimum: 0 });
const used = Type.Object({ used: whole, limit: whole });
const WindowName = oneOf(...WINDOWS);

const WindowSchema = Type.Object({
  subject: oneOf('user', 'key'),
  window: WindowName,
  span_s: whole,
  state: oneOf('normal', 'warning', 'grace', 'blocked'),
  reason: nullable(oneOf('cost', 'ceiling', 'grace_spent')),
  used: whole,
  limit: whole,
  warn: whole,
  ceiling: whole,
  remaining: whole,
  free_in_s: whole,
  grace: Type.Object({
    length_s: whole,
    ends_in_s: nullable(whole),
    rearms_in_s: nullable(whole),
    spent: Type.Boolean(),
  }),
});
const LimitsViewSchema = Type.Object({
  state: oneOf('normal', 'warning', 'grace', 'blocked', 'admin_block'),
  windows: Type.Array(WindowSchema),
  max_cost_now: whole,
  open_requests: used,
  stored_bytes: used,
  blocked: nullable(Type.Object({ until: nullable(Timestamp), reason: Type.String() })),
});
const SubjectSchema = Type.Object({
  ...LimitsViewSchema.properties,
  subject: Uuid,
  kind: oneOf('user', 'key'),
  login: Type.String(),
  refused: whole,
  overrides: nullable(Type.Record(Type.String(), Type.Unknown())),
  episodes: whole,
});
const EpisodeSchema = Type.Object({
  window: WindowName,
  opened_at: Timestamp,
  ends_at: Timestamp,
  rearm_at: Timestamp,
});
const SubjectPageSchema = Type.Object({
  ...SubjectSchema.properties,
  history: Type.Array(EpisodeSchema),
});

const body = <T extends Record<string, TSchema>>(properties: T) =>
  Type.Object({ reason: ReasonText, ...properties }, { additionalProperties: false });
const window = Type.Optional(WindowName);
const until = Type.Optional(UserTime);
/** What each act takes besides a reason. */
const ACTS = {
  reset: [body({}), 'Count nothing, end grace and re-arm it'],
  'grant-grace': [
    body({ minutes: Type.Integer({ minimum: 1, maximum: 60 }), window }),
    'Open grace now, or make it last so long from now',
  ],
  'end-grace': [body({ window }), 'End grace now; it re-arms when it would have'],
  override: [
    body({
      window,
      limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 100_000_000 })),
      factor: Type.Optional(Type.Number({ exclusiveMinimum: 0, maximum: 10 })),
      until,
    }),
    'Set another limit, until a time or without end; factor 1 takes it away',
  ],
  block: [body({ until }), 'Refuse every submit'],
  unblock: [body({}), 'Take submits again'],
} as const satisfies Record<LimitAct['act'], readonly [TSchema, string]>;

const SEE = { roles: READERS };
const NOBODY = { description: 'Nobody with limits has this id.' };

/** One's own limits, and what admins see and do of everybody's. */
export function addLimitRoutes(routes: Routes<Principal>, network: RequestNetwork): void {
  const { db, clock, limiter, pageSecret } = network;

  routes.add({
    method: 'get',
    path: '/v1/me/limits',
    summary: 'What you may still submit; never counted',
    roles: ROLES,
    scope: 'requests:read',
    uncounted: true,
    responses: { 200: { description: 'Your limits.', schema: LimitsViewSchema } },
    async handler({ actor }) {
      return { status: 200, body: await readOwnLimits(db, actor, limiter.at()) };
    },
  });

  routes.add({
    ...SEE,
    method: 'get',
    path: '/v1/admin/limits',
    summary: 'The limits of all users, by login',
    query: Type.Object(
      {
        ...PageQuery,
        text: Type.Optional(Type.String({ minLength: 1, maxLength: 64 })),
        state: Type.Optional(oneOf(...LIMIT_FILTERS)),
      },
      { additionalProperties: false },
    ),
    responses: {
      200: {
        description: 'A page.',
        schema: Type.Object({
          items: Type.Array(SubjectSchema),
          next_page_token: Type.Optional(Type.String()),
        }),
      },
    },
    async handler({ query, actor }) {
      const { page_size: pageSize, page_token: pageToken, text, state: filter } = query;
      const caller = { callerId: actor.userId, secret: pageSecret };
      const wanted = { at: limiter.at(), text, filter, pageSize, pageToken };
      return { status: 200, body: await listLimits(db, caller, wanted) };
    },
  });

  routes.add({
    ...SEE,
    method: 'get',
    path: '/v1/admin/limits/{subject}',
    summary: 'The limits of a user, or of a key that has its own, with the episodes of grace',
    responses: { 200: { description: 'The limits.', schema: SubjectPageSchema }, 404: NOBODY },
    async handler({ params }) {
      return { status: 200, body: await readSubject(db, params['subject'] ?? '', limiter.at()) };
    },
  });

  for (const [act, [schema, summary]] of Object.entries(ACTS)) {
    routes.add({
      method: 'post',
      path: `/v1/admin/limits/{subject}:${act}`,
      summary,
      roles: ['admin'],
      body: schema,
      responses: {
        200: { description: 'The limits from now on.', schema: SubjectPageSchema },
        404: NOBODY,
      },
      async handler({ params, body: given, actor }) {
        const subject = params['subject'] ?? '';
        const { reason, until: end, ...rest } = given as { reason: string; until?: string };
        const wanted = { act, ...rest, ...(end && { until: new Date(end) }) } as LimitAct;
        const change = { actor: actorOf(actor), reason, now: clock.now(), at: limiter.at() };
        await db.transaction((tx) => changeLimits(tx, subject, wanted, change));
        limiter.drop();
        await notifyChanged(db, LIMITS_CHANGED);
        return { status: 200, body: await readSubject(db, subject, limiter.at()) };
      },
    });
  }
}
