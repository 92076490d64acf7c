import { Type } from 'typebox';
import { actorOf } from './audit.js';
import type { Routes } from './http-routes.js';
import type { Principal } from './principals.js';
import {
  countDiscardable,
  discardQueue,
  drainQueue,
  findWorker,
  pauseQueue,
  pauseSchedule,
  readQueues,
  resumeQueue,
  retryQueue,
  runSchedule,
  setCadence,
  type QueueAdmin,
  type QueueView,
} from './queue-admin.js';
import { Timestamp, type Role } from './records.js';
import { READERS } from './role-sets.js';
import { ReasonText, compileSchema } from './schema.js';

const ADMINS: readonly Role[] = ['admin'];
const WORKER = { worker: /^[a-z-]{1,40}$/ };
const strict = { additionalProperties: false };
const Moment = Type.Union([Timestamp, Type.Null()]);
const Count = Type.Integer({ minimum: 0 });
const ReasonBody = Type.Object({ reason: ReasonText }, strict);

const LastRunSchema = Type.Union([
  Type.Object(
    {
      started_at: Timestamp,
      ended_at: Timestamp,
      ok: Type.Boolean(),
      error: Type.Union([Type.String(), Type.Null()]),
      process: Type.Union([Type.String(), Type.Null()]),
    },
    strict,
  ),
  Type.Null(),
]);
const QueueSchema = Type.Object(
  {
    name: Type.String(),
    does: Type.String(),
    paused: Type.Boolean(),
    depth: Count,
    oldest_at: Moment,
    running: Count,
    /** Runs that failed in a row. */
    retries: Count,
    runs: Count,
    next_at: Moment,
    last_run: LastRunSchema,
    last_success_at: Moment,
  },
  strict,
);
const ScheduleSchema = Type.Object(
  {
    worker: Type.String(),
    does: Type.String(),
    cadence_s: Count,
    default_s: Count,
    paused: Type.Boolean(),
    next_at: Moment,
    last_run: LastRunSchema,
    last_success_at: Moment,
  },
  strict,
);
const ProcessSchema = Type.Object(
  {
    name: Type.String(),
    workers: Type.Array(Type.String()),
    started_at: Timestamp,
    seen_at: Timestamp,
  },
  strict,
);
const NOT_FOUND = { description: 'This network has no such worker.' };
const DONE = { 204: { description: 'Done.' }, 404: NOT_FOUND };

/** The queues and schedules of the workers of a network. */
export function addQueueRoutes(routes: Routes<Principal>, admin: QueueAdmin): void {
  const nameOf = (params: Record<string, string>) =>
    findWorker(admin.network, params['worker'] ?? '');

  routes.add({
    method: 'get',
    path: '/v1/admin/queues',
    summary: 'Every worker: what waits, what runs, how it last went, and which processes live',
    roles: READERS,
    responses: {
      200: {
        description: 'The queues and the processes.',
        schema: Type.Object({
          items: Type.Array(QueueSchema),
          processes: Type.Array(ProcessSchema),
        }),
      },
    },
    async handler() {
      const { queues, processes } = await readQueues(admin);
      return { status: 200, body: { items: queues.map(viewQueue), processes } };
    },
  });

  const acts = { pause: pauseQueue, resume: resumeQueue, retry: retryQueue } as const;
  for (const [verb, act] of Object.entries(acts)) {
    routes.add({
      method: 'post',
      path: `/v1/admin/queues/{worker}:${verb}`,
      summary: SUMMARIES[verb as keyof typeof acts],
      roles: ADMINS,
      params: WORKER,
      body: ReasonBody,
      responses: DONE,
      async handler({ params, body: { reason }, actor }) {
        await act(admin, nameOf(params), { actor: actorOf(actor), reason });
        return { status: 204 };
      },
    });
  }

  routes.add({
    method: 'post',
    path: '/v1/admin/queues/{worker}:drain',
    summary: 'Pause a worker and tell what is still running: it is empty at 0',
    roles: ADMINS,
    params: WORKER,
    body: ReasonBody,
    responses: {
      200: { description: 'What still runs.', schema: Type.Object({ running: Count }) },
      404: NOT_FOUND,
    },
    async handler({ params, body: { reason }, actor }) {
      const running = await drainQueue(admin, nameOf(params), { actor: actorOf(actor), reason });
      return { status: 200, body: { running } };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/admin/queues/{worker}:discard',
    summary: 'Take away the runs that wait; with dry_run=true, only count them',
    roles: ADMINS,
    params: WORKER,
    query: Type.Object({ dry_run: Type.Boolean({ default: false }) }, strict),
    body: Type.Object(
      { reason: Type.Optional(ReasonText), expected: Type.Optional(Count) },
      strict,
    ),
    responses: {
      200: {
        description: 'How many, and whether they are gone.',
        schema: Type.Object({ count: Count, discarded: Type.Boolean() }),
      },
      404: NOT_FOUND,
      409: { description: 'There are more or fewer than expected.' },
    },
    async handler({ params, query, body, actor }) {
      const name = nameOf(params);
      if (query.dry_run) {
        return {
          status: 200,
          body: { count: await countDiscardable(admin, name), discarded: false },
        };
      }
      const act = { ...checkDiscard(body), actor: actorOf(actor) };
      return {
        status: 200,
        body: { count: await discardQueue(admin, name, act), discarded: true },
      };
    },
  });

  routes.add({
    method: 'get',
    path: '/v1/admin/schedules',
    summary: 'When each worker runs by itself, next and last',
    roles: READERS,
    responses: {
      200: {
        description: 'The schedules.',
        schema: Type.Object({ items: Type.Array(ScheduleSchema) }),
      },
    },
    async handler() {
      const { queues } = await readQueues(admin);
      return { status: 200, body: { items: queues.map(viewSchedule) } };
    },
  });

  routes.add({
    method: 'post',
    path: '/v1/admin/schedules/{worker}:run',
    summary: 'Run a worker now',
    roles: ADMINS,
    params: WORKER,
    body: ReasonBody,
    responses: { 202: { description: 'It is woken.' }, 404: NOT_FOUND },
    async handler({ params, body: { reason }, actor }) {
      await runSchedule(admin, nameOf(params), { actor: actorOf(actor), reason });
      return { status: 202 };
    },
  });

  for (const paused of [true, false]) {
    routes.add({
      method: 'post',
      path: `/v1/admin/schedules/{worker}:${paused ? 'pause' : 'resume'}`,
      summary: paused
        ? 'Let a schedule rest; what wakes the worker still runs it'
        : 'Let a schedule go on',
      roles: ADMINS,
      params: WORKER,
      body: ReasonBody,
      responses: DONE,
      async handler({ params, body: { reason }, actor }) {
        await pauseSchedule(admin, nameOf(params), { actor: actorOf(actor), reason, paused });
        return { status: 204 };
      },
    });
  }

  routes.add({
    method: 'put',
    path: '/v1/admin/schedules/{worker}/cadence',
    summary: 'Set how often a worker runs, in seconds; the setting keeps it',
    roles: ADMINS,
    params: WORKER,
    body: Type.Object(
      { cadence_s: Type.Integer({ minimum: 1, maximum: 86_400 }), reason: ReasonText },
      strict,
    ),
    responses: DONE,
    async handler({ params, body, actor }) {
      const act = { actor: actorOf(actor), reason: body.reason, seconds: body.cadence_s };
      await setCadence(admin, nameOf(params), act);
      return { status: 204 };
    },
  });
}

const SUMMARIES = {
  pause: 'Stop a worker from starting, in every process; what runs ends normally',
  resume: 'Let a worker start again',
  retry: 'Run a worker again now',
} as const;

const DiscardBody = Type.Object({ reason: ReasonText, expected: Count }, strict);
const checkDiscard = compileSchema(DiscardBody);

function viewLastRun({ state }: QueueView) {
  if (!state?.started_at) return null;
  const { started_at, ended_at, error, process } = state;
  return { started_at, ended_at, ok: error === null, error, process };
}

function viewQueue(queue: QueueView) {
  return {
    name: queue.name,
    does: queue.does,
    paused: queue.paused,
    depth: queue.waiting,
    oldest_at: queue.oldest,
    running: queue.running,
    retries: queue.state?.failures ?? 0,
    runs: queue.state?.runs ?? 0,
    next_at: queue.next,
    last_run: viewLastRun(queue),
    last_success_at: queue.state?.succeeded_at ?? null,
  };
}

function viewSchedule(queue: QueueView) {
  return {
    worker: queue.name,
    does: queue.does,
    cadence_s: queue.cadenceS,
    default_s: queue.defaultS,
    paused: queue.state?.schedule_paused ?? false,
    next_at: queue.next,
    last_run: viewLastRun(queue),
    last_success_at: queue.state?.succeeded_at ?? null,
  };
}
