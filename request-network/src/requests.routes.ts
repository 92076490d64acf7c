import type { Request } from 'express';
import { Type } from 'typebox';
import {
  HTTP_JSON_CODES,
  JSON_BODY_LIMITS,
  SallyportError,
  canonicalJson,
  etagOf,
  matchesEtag,
  readBody,
  requireMediaType,
  type Answer,
  type Call,
  type Database,
  type Routes,
  notifyChanged,
  type Principal,
} from '@sallyport/shared';
import { parseBulk } from './bulks.js';
import { MAX_KEY_LENGTH, fingerprintOf, runOnce, type Reply } from './idempotency.js';
import type { RequestNetwork } from './network.js';
import { retryAfterS, viewHeaders } from './polling.js';
import {
  BulkAnswerSchema,
  RequestListSchema,
  RequestPageSchema,
  RequestViewSchema,
  SubmissionSchema,
  TimelineSchema,
  ValidationSchema,
  type RequestView,
} from './request-schemas.js';
import { getRequest, listRequests, readState } from './request-views.js';
import { MAX_BULK_LINES, cancelRequest, isFinal } from './requests.js';
import { linkRetry, readSubmission } from './resubmissions.js';
import { admitSubmission, viewSubmitted, type Admitted } from './submissions.js';
import { readTimeline } from './timeline.js';

const BULK_LIMITS = { sizeBytes: 8 * 1024 * 1024, timeMs: 60_000 };
const NDJSON = 'application/x-ndjson';
const WAIT_MOST_S = 25;
const USER = { roles: ['user'] } as const;
const READ = { ...USER, scope: 'requests:read' } as const;
const WRITE = { ...USER, scope: 'requests:write' } as const;
const NOT_FOUND = { description: 'No request of yours has this id.' };

/** Submitting, following and cancelling requests. */
export function addRequestRoutes(routes: Routes<Principal>, network: RequestNetwork): void {
  const { db, clock, replica, limiter } = network;
  const onUrgent = () => network.queues.wake('export-requests');

  /** Charges and stores one request; a repetition of another is linked to it. */
  const submitOne = async (
    call: OnceCall,
    admit: () => Admitted,
    retryOf: string | null = null,
  ): Promise<Answer> => {
    const { settings } = await replica.rules();
    let urgent = false;
    const answered = await answerOnce(db, call, async (handle) => {
      const { request, checked } = admit();
      const charged = await (retryOf === null
        ? limiter.submit(handle, call.actor, [request])
        : handle.transaction(async (tx) => {
            const charge = await limiter.submit(tx, call.actor, [request]);
            await linkRetry(tx, request.id, retryOf);
            return charge;
          }));
      urgent = request.priority === 'urgent';
      const view = { ...viewSubmitted(request, checked.warnings), retry_of: retryOf };
      const headers = { Location: `/v1/requests/${request.id}`, ...viewHeaders(settings, view) };
      return { status: 202, headers, charged, body: JSON.stringify(view) };
    });
    // Only now is it committed, and the exporter would find it.
    if (urgent) onUrgent();
    return answered;
  };

  routes.add({
    ...WRITE,
    method: 'post',
    path: '/v1/requests',
    summary: 'Submit a query',
    query: Type.Object(
      { validate_only: Type.Boolean({ default: false }) },
      { additionalProperties: false },
    ),
    body: SubmissionSchema,
    responses: {
      200: { description: 'It would be allowed; nothing was stored.', schema: ValidationSchema },
      202: { description: 'Stored; it leaves with the next batch.', schema: RequestViewSchema },
      422: { description: 'The policy refuses the query.' },
    },
    async handler({ req, body, query, actor }) {
      const rules = await replica.rules();
      const now = clock.now();
      const traceparent = traceOf(req.headers['traceparent']);
      const admit = () => admitSubmission(rules, actor, { submission: body, now, traceparent });
      if (query.validate_only) return { status: 200, body: describeChecked(admit()) };
      const fingerprint = () => fingerprintOf('POST', '/v1/requests', canonicalJson(body));
      return submitOne({ req, actor, now, fingerprint }, admit);
    },
  });

  routes.add({
    ...WRITE,
    method: 'post',
    path: '/v1/requests/{id}:resubmit',
    summary: 'Submit a request that has ended once more, judged by the rules of now',
    responses: {
      202: { description: 'A new request, linked by retry_of.', schema: RequestViewSchema },
      404: NOT_FOUND,
      409: { description: 'It has not ended yet.' },
      422: { description: 'The policy refuses the query now.' },
    },
    async handler({ req, params, actor }) {
      const retryOf = params['id'] ?? '';
      const rules = await replica.rules();
      const now = clock.now();
      const traceparent = traceOf(req.headers['traceparent']);
      const submission = await readSubmission(db, { id: retryOf, userId: actor.userId });
      const admit = () => admitSubmission(rules, actor, { submission, now, traceparent });
      const fingerprint = () => fingerprintOf('POST', `/v1/requests/${retryOf}:resubmit`, '');
      return submitOne({ req, actor, now, fingerprint }, admit, retryOf);
    },
  });

  routes.add({
    ...WRITE,
    method: 'post',
    path: '/v1/requests:bulk',
    summary: `Submit up to ${MAX_BULK_LINES} queries, one JSON object per line`,
    query: Type.Object(
      { atomic: Type.Boolean({ default: true }) },
      { additionalProperties: false },
    ),
    rawBody: NDJSON,
    responses: {
      202: {
        description: 'Stored: all of them, or what each line says.',
        schema: BulkAnswerSchema,
      },
      422: { description: 'A line is refused (atomic), or all are; nothing was stored.' },
    },
    async handler({ req, query, actor }) {
      requireMediaType(req, NDJSON);
      const bytes = await readBody(req, BULK_LIMITS);
      const now = clock.now();
      let urgent = false;
      const rules = await replica.rules();
      const run = async (handle: typeof db): Promise<Reply> => {
        const traceparent = traceOf(req.headers['traceparent']);
        const bulk = await parseBulk(bytes, {
          limits: { ...JSON_BODY_LIMITS.json, codes: HTTP_JSON_CODES },
          lineBytes: JSON_BODY_LIMITS.sizeBytes,
          atomic: query.atomic,
          admit: (submission) => admitSubmission(rules, actor, { submission, now, traceparent }),
        });
        const charged = await limiter.submit(handle, actor, bulk.requests);
        urgent = bulk.requests.some(({ priority }) => priority === 'urgent');
        const headers = { 'Retry-After': String(retryAfterS(rules.settings, 'submitted')) };
        return { status: 202, headers, charged, body: JSON.stringify(bulk.answer) };
      };
      const path = `/v1/requests:bulk?atomic=${query.atomic}`;
      const fingerprint = () => fingerprintOf('POST', path, bytes);
      const answered = await answerOnce(db, { req, actor, now, fingerprint }, run);
      // Only now is it committed, and the exporter would find it.
      if (urgent) onUrgent();
      return answered;
    },
  });

  routes.add({
    ...READ,
    method: 'get',
    path: '/v1/requests',
    summary: 'List your requests, newest first',
    query: RequestListSchema,
    responses: { 200: { description: 'A page.', schema: RequestPageSchema } },
    async handler({ query, actor }) {
      const { page_size: pageSize, page_token: pageToken, ...filter } = query;
      const caller = { userId: actor.userId, secret: network.pageSecret };
      return { status: 200, body: await listRequests(db, caller, { filter, pageSize, pageToken }) };
    },
  });

  routes.add({
    ...READ,
    method: 'get',
    path: '/v1/requests/{id}',
    summary: 'Where a request stands; `wait` holds the answer until that changes',
    query: Type.Object(
      { wait: Type.Integer({ minimum: 0, maximum: WAIT_MOST_S, default: 0 }) },
      { additionalProperties: false },
    ),
    responses: {
      200: { description: 'The request.', schema: RequestViewSchema },
      304: { description: 'Its version is still the one of If-None-Match.' },
      404: NOT_FOUND,
    },
    async handler(call) {
      const { settings } = await replica.rules();
      const known = call.req.headers['if-none-match'];
      const isKnown = ({ version }: { version: number }) => matchesEtag(known, etagOf(version));
      if (known !== undefined && call.query.wait === 0) {
        // Most polls end here.
        const request = { id: call.params['id'] ?? '', userId: call.actor.userId };
        const state = await readState(db, request);
        if (isKnown(state)) return { status: 304, headers: viewHeaders(settings, state) };
      }
      const view = await waitForChange(network, call);
      const headers = viewHeaders(settings, view);
      if (isKnown(view)) return { status: 304, headers };
      if (!isFinal(view.status)) view.eta = await network.estimates.eta(new Date(view.created_at));
      return { status: 200, headers, body: view };
    },
  });

  routes.add({
    ...READ,
    method: 'get',
    path: '/v1/requests/{id}/timeline',
    summary: 'What happened to a request on both networks',
    responses: { 200: { description: 'Oldest first.', schema: TimelineSchema }, 404: NOT_FOUND },
    async handler({ params, actor }) {
      const request = { id: params['id'] ?? '', userId: actor.userId };
      return { status: 200, body: { events: await readTimeline(db, request) } };
    },
  });

  routes.add({
    ...WRITE,
    method: 'post',
    path: '/v1/requests/{id}:cancel',
    summary: 'Cancel a request; may be repeated',
    responses: {
      200: { description: 'Cancelled: it had not left.', schema: RequestViewSchema },
      202: { description: 'Asked for: the far side will tell.', schema: RequestViewSchema },
      404: NOT_FOUND,
      409: { description: 'It has ended already.' },
    },
    async handler({ params, actor }) {
      const request = { id: params['id'] ?? '', userId: actor.userId, login: actor.login };
      const outcome = await db.transaction((tx) => cancelRequest(tx, request, clock.now()));
      await notifyChanged(db, 'requests');
      const { settings } = await replica.rules();
      const view = await getRequest(db, request);
      const headers = viewHeaders(settings, view);
      return { status: outcome === 'cancelled' ? 200 : 202, headers, body: view };
    },
  });
}

type OnceCall = { req: Request; actor: Principal; now: Date; fingerprint: () => string };
type ReadCall = Call<Principal, { wait: number }, unknown>;

/** The request, at once or as soon as its version is no longer the one that the caller knows. */
async function waitForChange(network: RequestNetwork, call: ReadCall): Promise<RequestView> {
  const { db, waiters } = network;
  const request = { id: call.params['id'] ?? '', userId: call.actor.userId };
  const waiter = call.query.wait > 0 ? waiters.enter(request.id) : undefined;
  if (!waiter) return getRequest(db, request);
  const gone = new AbortController();
  const leave = () => gone.abort();
  call.res.once('close', leave);
  const endsAt = performance.now() + call.query.wait * 1_000;
  try {
    const first = await getRequest(db, request);
    const known = call.req.headers['if-none-match'];
    const isNews = (view: RequestView) =>
      isFinal(view.status) ||
      (known === undefined
        ? view.version !== first.version
        : !matchesEtag(known, etagOf(view.version)));
    let view = first;
    while (!isNews(view)) {
      const limitMs = endsAt - performance.now();
      if (limitMs <= 0 || gone.signal.aborted) break;
      await waiter.changed(view.version, { limitMs, signal: gone.signal });
      if (gone.signal.aborted) break;
      view = await getRequest(db, request);
    }
    return view;
  } finally {
    waiter.leave();
    call.res.off('close', leave);
  }
}

function idempotencyKey(header: string | string[] | undefined): string | undefined {
  if (header === undefined) return undefined;
  if (typeof header === 'string' && header !== '' && header.length <= MAX_KEY_LENGTH) return header;
  throw new SallyportError(
    'bad-header',
    `The Idempotency-Key must be one text of 1 to ${MAX_KEY_LENGTH} characters.`,
  );
}

const TRACEPARENT = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/;

function traceOf(header: string | string[] | undefined): string | null {
  return typeof header === 'string' && TRACEPARENT.test(header) ? header : null;
}

/** Runs a submit: once for each Idempotency-Key, where the call has one. */
async function answerOnce(
  db: Database,
  call: OnceCall,
  run: (handle: Database) => Promise<Reply>,
): Promise<Answer> {
  const key = idempotencyKey(call.req.headers['idempotency-key']);
  if (key === undefined) return toAnswer(await run(db));
  const { actor, now: at } = call;
  const fingerprint = call.fingerprint();
  const once = await runOnce(db, { userId: actor.userId, key, fingerprint, at }, run);
  const { reply, replayed } = once;
  const headers = replayed ? { ...reply.headers, 'Idempotency-Replayed': 'true' } : reply.headers;
  return toAnswer({ ...reply, headers });
}

/** What `validate_only` says of a submission that would be allowed. */
function describeChecked({ request, checked }: Admitted) {
  return {
    allowed: true,
    dataset: request.dataset,
    tier: request.tier,
    query: checked.query,
    query_digest: request.queryDigest,
    cost: request.cost,
    policy_version: request.policyVersion,
    warnings: checked.warnings,
  };
}

function toAnswer({ status, headers, charged, body }: Reply): Answer {
  return { status, headers: { ...headers, ...charged }, json: body };
}
