import {
  FINAL_STATUSES,
  MUST_CHANGE_PASSWORD,
  SallyportError,
  liveSession,
  rows,
  runPrepared,
  unauthenticated,
  type Database,
  type FinalStatus,
  type Priority,
  type Statement,
  type StreamName,
  type Tier,
  type Transaction,
  type Principal,
} from '@sallyport/shared';
import {
  CURRENT_LINK,
  OUTBOX_INSERT,
  recallRecord,
  recordLine,
  sendRecords,
} from '@sallyport/transfer';
import type { Charge } from './limits.js';
import type { RequestStatus } from './request-schemas.js';

/** A question that was allowed and may be stored. */
export type NewRequest = {
  id: string;
  dataset: string;
  datasetVersion: number;
  policyVersion: number;
  tier: Tier;
  /** Canonical JSON, exactly as it crosses. */
  query: string;
  queryDigest: string;
  cost: number;
  pinnedNow: Date;
  priority: Priority;
  customId: string | null;
  tags: string[];
  traceparent: string | null;
  createdAt: Date;
  expiresAt: Date;
};

/** Most requests that one {@link submitMany} takes. */
export const MAX_BULK_LINES = 1_000;

/**
 * Charges a request and stores it with its outbox record and first event in one statement, one round
 * trip, unless the principal has lost its right meanwhile; when the charge is refused nothing is
 * stored. Nobody is notified; the next export takes it. `at` is for tests: the time of the charge,
 * else the database's clock.
 * @throws SallyportError `unauthenticated` when the user was disabled or the key or session ended.
 */
export async function submitRequest(
  db: Database,
  principal: Principal,
  request: NewRequest,
  { at = null }: { at?: Date | null } = {},
): Promise<Charge> {
  const statement = principal.keyId === null ? SUBMIT_BY_SESSION : SUBMIT_BY_KEY;
  const [stored] = await runPrepared<{ charge: Charge }>(db, statement, [
    principal.userId,
    principal.keyId ?? principal.sessionId,
    request.createdAt,
    streamOf(request.priority),
    request.id,
    lineOf(principal, request),
    request.dataset,
    request.datasetVersion,
    request.policyVersion,
    request.tier,
    request.query,
    request.queryDigest,
    request.cost,
    request.pinnedNow,
    request.priority,
    request.customId,
    request.tags,
    request.traceparent,
    request.expiresAt,
    principal.login,
    at,
  ]);
  if (!stored) throw unauthenticated();
  return stored.charge;
}

/**
 * Charges and stores up to {@link MAX_BULK_LINES} requests of one principal, all or none, in one
 * statement; they cross in the order given.
 * @throws SallyportError as {@link submitRequest}.
 */
export async function submitMany(
  db: Database,
  principal: Principal,
  requests: NewRequest[],
  { at = null }: { at?: Date | null } = {},
): Promise<Charge> {
  const [first] = requests;
  if (!first || requests.length > MAX_BULK_LINES) throw new Error('no bulk has so many requests');
  const statement = principal.keyId === null ? SUBMIT_MANY_BY_SESSION : SUBMIT_MANY_BY_KEY;
  const column = <T>(read: (request: NewRequest) => T) => requests.map(read);
  const [stored] = await runPrepared<{ charge: Charge }>(db, statement, [
    principal.userId,
    principal.keyId ?? principal.sessionId,
    first.createdAt,
    column((request) => streamOf(request.priority)),
    column((request) => request.id),
    column((request) => lineOf(principal, request)),
    column((request) => request.dataset),
    column((request) => request.datasetVersion),
    first.policyVersion,
    column((request) => request.tier),
    column((request) => request.query),
    column((request) => request.queryDigest),
    column((request) => request.cost),
    column((request) => request.pinnedNow.toISOString()),
    column((request) => request.priority),
    column((request) => request.customId),
    column((request) => arrayLiteral(request.tags)),
    first.traceparent,
    column((request) => request.expiresAt.toISOString()),
    principal.login,
    at,
  ]);
  if (!stored) throw unauthenticated();
  return stored.charge;
}

/**
 * Cancels a request of the user: `cancelled` when its record could still be called back, else
 * `cancelling`, and the far side tells what really happened. Repeating it changes nothing.
 * @throws SallyportError `not-found`, `already-final`.
 */
export async function cancelRequest(
  tx: Transaction,
  { id, userId, login }: { id: string; userId: string; login: string },
  now: Date,
): Promise<'cancelled' | 'cancelling'> {
  const [found] = await rows<{
    status: RequestStatus;
    priority: Priority;
    expires_at: Date;
    outbox_position: number;
  }>(
    tx,
    `select status, priority, expires_at, outbox_position from requests
     where id = ? and user_id = ? for update`,
    [id, userId],
  );
  if (!found) throw notFound(id);
  if (found.status === 'cancelled' || found.status === 'cancelling') return found.status;
  if (isFinal(found.status)) {
    throw new SallyportError('already-final', `The request has ended already: ${found.status}.`, {
      next: 'Read it to see how it ended.',
      extra: { status: found.status },
    });
  }
  const change = { id, at: now, actor: login };
  if (await recallRecord(tx, found.outbox_position)) {
    await changeStatus(tx, { ...change, status: 'cancelled' });
    return 'cancelled';
  }
  await sendRecords(
    tx,
    streamOf(found.priority),
    [
      {
        type: 'request.cancel',
        id,
        data: { user_id: userId, expires_at: found.expires_at.toISOString() },
      },
    ],
    now,
  );
  await changeStatus(tx, { ...change, status: 'cancelling' });
  return 'cancelling';
}

type StatusChange = {
  id: string;
  status: FinalStatus | 'cancelling';
  at: Date;
  actor: string | null;
  reason?: string;
};

/** Moves a request that its caller holds locked, and writes the event. */
export async function changeStatus(tx: Transaction, change: StatusChange): Promise<void> {
  const { id, status, at, actor, reason } = change;
  await rows(
    tx,
    `with moved as (
       update requests set status = ?, stage = null, reason_code = null, version = version + 1,
         known_as_of = greatest(known_as_of, ?::timestamptz), finished_at = ?
       where id = ? returning id)
     insert into request_events (request_id, at, network, event, actor, reason)
     select id, ?, 'request', ?, ?, ? from moved`,
    [status, at, isFinal(status) ? at : null, id, at, status, actor, reason ?? null],
  );
}

/** Whether nothing can change the status any more. */
export function isFinal(status: RequestStatus): status is FinalStatus {
  return (FINAL_STATUSES as readonly string[]).includes(status);
}

/** What a user is told about a request that is not there, or somebody else's. */
export function notFound(id: string): SallyportError {
  return new SallyportError('not-found', `There is no request ${id}.`, {
    next: 'List your requests to see their ids.',
  });
}

function streamOf(priority: Priority): StreamName {
  return priority === 'urgent' ? 'requests.urgent' : 'requests';
}

function lineOf(principal: Principal, request: NewRequest): string {
  const data = {
    user_id: principal.userId,
    dataset: request.dataset,
    dataset_version: request.datasetVersion,
    policy_version: request.policyVersion,
    tier: request.tier,
    pinned_now: request.pinnedNow.toISOString(),
    expires_at: request.expiresAt.toISOString(),
    priority: request.priority,
    query: request.query,
    query_digest: request.queryDigest,
    traceparent: request.traceparent,
  };
  return recordLine({ type: 'request', id: request.id, data }, request.createdAt);
}

/** A text[] in PostgreSQL's own notation, because arrays of arrays must not be ragged. */
function arrayLiteral(values: string[]): string {
  return `{${values.map((value) => `"${value.replace(/["\\]/g, '\\$&')}"`).join(',')}}`;
}

// The guard is the truth about the principal; what the process remembers of it is only a shortcut.
const SESSION_GUARD = `
  select p.limits, null::uuid as key_id, null::jsonb as key_limits
  from ${liveSession('$3')} join profile_types p on p.id = u.profile_type_id
  where s.id = $2 and u.id = $1 and not ${MUST_CHANGE_PASSWORD}`;
const KEY_GUARD = `
  select p.limits, k.id as key_id, k.limits as key_limits
  from users u join api_keys k on k.user_id = u.id join profile_types p on p.id = u.profile_type_id
  where u.id = $1 and not u.disabled and k.id = $2 and k.revoked_at is null
    and k.disabled_at is null and (k.expires_at is null or k.expires_at > $3::timestamptz)`;
// It is evaluated once, and before the inserts, which read from it.
const charged = (requests: string) => `
  select charge_submit($1, limits, key_id, key_limits, ${requests}, $21) as charge from guard`;
const ADMITTED = `charged where charge->>'refusal' is null`;

const COLUMNS = `
  id, user_id, dataset, dataset_version, policy_version, tier, query, query_digest, cost, pinned_now,
  priority, custom_id, tags, traceparent, status, version, progress_version, known_as_of, created_at,
  expires_at, outbox_position`;

const SUBMIT_BY_SESSION = submitStatement('submit_by_session', SESSION_GUARD);
const SUBMIT_BY_KEY = submitStatement('submit_by_key', KEY_GUARD);
const SUBMIT_MANY_BY_SESSION = submitManyStatement('submit_many_by_session', SESSION_GUARD);
const SUBMIT_MANY_BY_KEY = submitManyStatement('submit_many_by_key', KEY_GUARD);

function submitStatement(name: string, guard: string): Statement {
  const text = `
    with guard as (${guard}),
    charged as materialized (${charged('1')}),
    sent as (
      ${OUTBOX_INSERT} select ${CURRENT_LINK}, $4, 'request', $5::uuid, $6 from ${ADMITTED}
      returning position
    ), stored as (
      insert into requests (${COLUMNS})
      select $5::uuid, $1, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, 'submitted', 1,
        0, $3::timestamptz, $3::timestamptz, $19, sent.position
      from sent returning id
    ), events as (
      insert into request_events (request_id, at, network, event, actor)
      select id, $3::timestamptz, 'request', 'submitted', $20 from stored
    )
    select charge from charged`;
  return { name, text };
}

function submitManyStatement(name: string, guard: string): Statement {
  const text = `
    with guard as (${guard}),
    charged as materialized (${charged('cardinality($5::uuid[])')}),
    given as (
      select * from unnest(
        $4::text[], $5::uuid[], $6::text[], $7::text[], $8::integer[], $10::text[], $11::text[],
        $12::text[], $13::double precision[], $14::timestamptz[], $15::text[], $16::text[],
        $17::text[], $19::timestamptz[]
      ) with ordinality as t(
        stream, id, line, dataset, dataset_version, tier, query, query_digest, cost, pinned_now,
        priority, custom_id, tags, expires_at, n)
      where exists (select 1 from ${ADMITTED})
    ), sent as (
      ${OUTBOX_INSERT} select ${CURRENT_LINK}, stream, 'request', id, line from given order by n
      returning position, record_id
    ), stored as (
      insert into requests (${COLUMNS})
      select g.id, $1, dataset, dataset_version, $9, tier, query, query_digest, cost, pinned_now,
        priority, custom_id, tags::text[], $18, 'submitted', 1, 0, $3::timestamptz, $3::timestamptz,
        expires_at, sent.position
      from given g join sent on sent.record_id = g.id returning id
    ), events as (
      insert into request_events (request_id, at, network, event, actor)
      select id, $3::timestamptz, 'request', 'submitted', $20 from stored
    )
    select charge from charged`;
  return { name, text };
}
