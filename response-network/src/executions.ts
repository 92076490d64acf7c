import {
  POLICY_TABLE,
  rows,
  runPrepared,
  type Database,
  type Tier,
  type Transaction,
} from '@sallyport/shared';
import { sendRecords } from '@sallyport/transfer';
import { DEADLINE_TOLERANCE_MS } from './requests.js';

/** A request that this process holds a lease on, with what its user may do right now. */
export type ClaimedRequest = {
  id: string;
  user_id: string;
  dataset: string;
  dataset_version: number;
  policy_version: number;
  tier: Tier;
  query: string;
  query_digest: string;
  expires_at: Date;
  cancel_asked_at: Date | null;
  /** This attempt included. */
  attempts: number;
  received_at: Date;
  started_at: Date;
  /** Whether the user is enabled and the profile type names the dataset. */
  dataset_allowed: boolean;
  /** The richest tier the user has now; null when the user has none. */
  allowed_tier: Tier | null;
};

export type ClaimOptions = {
  leaseToken: string;
  /** At most so many. */
  limit: number;
  /** How much each user was served lately; the least served come first. */
  served: ReadonlyMap<string, number>;
  now: Date;
};

const LEASE_SLACK_MS = 30_000;
const TOLD_PER_CYCLE = 10_000;

/** How long a lease lasts unless it is renewed: twice the tier's task limit and 30 s. */
export function leaseMs(tier: Tier): number {
  return POLICY_TABLE.tiers[tier].cancelTimeoutMs * 2 + LEASE_SLACK_MS;
}

/**
 * Takes waiting requests under lease: urgent ones first, then fairly between users, so that one user's
 * thousands do not hold up another's single one.
 */
export async function claimRequests(
  db: Database,
  { leaseToken, limit, served, now }: ClaimOptions,
): Promise<ClaimedRequest[]> {
  return runPrepared(db, CLAIM, [
    now,
    new Date(now.getTime() - DEADLINE_TOLERANCE_MS),
    leaseToken,
    limit,
    [...served.keys()],
    [...served.values()],
    leaseMs('A'),
    leaseMs('B'),
    leaseMs('C'),
  ]);
}

/** Keeps the lease alive on everything that the token still holds. */
export async function renewLeases(db: Database, leaseToken: string, now: Date): Promise<void> {
  await rows(
    db,
    // What is locked is being stored.
    `update requests set lease_until = ?::timestamptz + ${leaseSql('?', '?', '?')}
     where id in (select id from requests where lease_token = ? and state = 'running'
       for update skip locked)`,
    [now, leaseMs('A'), leaseMs('B'), leaseMs('C'), leaseToken],
  );
}

/** Puts a request back to wait; an attempt that was nobody's fault is not counted. */
export async function putBack(
  db: Database,
  {
    ids,
    leaseToken,
    notBefore,
    counted,
  }: {
    ids: string[];
    leaseToken: string;
    notBefore: Date;
    counted: boolean;
  },
): Promise<void> {
  await rows(
    db,
    `update requests set state = 'received', lease_token = null, lease_until = null,
       not_before = ?, attempts = attempts - ?, version = version + 1
     where id = any(?::uuid[]) and lease_token = ? and state = 'running'`,
    [notBefore, counted ? 0 : 1, ids, leaseToken],
  );
}

/** Gives back all that a run which failed still holds; the attempt counts. */
export async function giveUpLease(db: Database, leaseToken: string): Promise<void> {
  await rows(
    db,
    `update requests set state = 'received', lease_token = null, lease_until = null,
       version = version + 1
     where state = 'running' and lease_token = ?`,
    [leaseToken],
  );
}

/** Frees what processes that died were holding; a search may repeat, an answer cannot. */
export async function freeExpiredLeases(db: Database, now: Date): Promise<number> {
  const freed = await rows(
    db,
    `update requests set state = 'received', lease_token = null, lease_until = null,
       version = version + 1
     where id in (select id from requests where state = 'running' and lease_until < ?
       for update skip locked) returning id`,
    [now],
  );
  return freed.length;
}

/** Which requests under the lease somebody wants cancelled. */
export async function listCancelAsked(db: Database, leaseToken: string): Promise<string[]> {
  const found = await rows<{ id: string }>(
    db,
    `select id from requests
     where state = 'running' and lease_token = ? and cancel_asked_at is not null`,
    [leaseToken],
  );
  return found.map(({ id }) => id);
}

/**
 * Sends the far side news of requests that take long: those that run, and those that were put back.
 * That a request has arrived is told by the acknowledgement of its batch, not here.
 */
export async function tellProgress(tx: Transaction, now: Date): Promise<number> {
  const news = await rows<{
    id: string;
    version: number;
    state: 'received' | 'running';
    received_at: Date;
    started_at: Date | null;
  }>(
    tx,
    // What is locked is being claimed or stored, and waiting for it here could be a deadlock.
    `with running as (
       select id from requests where state = 'running' and told_version < version
       order by id limit ${TOLD_PER_CYCLE} for update skip locked
     ), waiting as (
       select id from requests
       where state = 'received' and attempts > 0 and told_version < version
       order by id limit ${TOLD_PER_CYCLE} for update skip locked
     )
     update requests r set told_version = r.version
     from (select id from running union all select id from waiting) due
     where r.id = due.id
     returning r.id, r.version, r.state, r.received_at, r.started_at`,
  );
  const records = news.map(
    ({ id, version, state, received_at: received, started_at: started }) => ({
      type: 'request.progress' as const,
      id,
      data: {
        version,
        status: 'processing' as const,
        stage: state === 'running' ? ('executing' as const) : ('queued' as const),
        reason_code: state === 'running' ? null : 'waiting_capacity',
        times: {
          received_at: received.toISOString(),
          started_at: started?.toISOString() ?? null,
        },
      },
    }),
  );
  await sendRecords(tx, 'control', records, now);
  return records.length;
}

function leaseSql(a: string, b: string, c: string): string {
  return `(case tier when 'A' then ${a}::float8 when 'B' then ${b}::float8 else ${c}::float8 end)
    * interval '1 millisecond'`;
}

// A lane is one user's requests of one priority. The recursion hops from lane to lane along the
// index, so that its cost is the number of lanes, not of waiting requests. A request's turn counts
// what its user has running, was served lately, and has ahead of it.
const CLAIM = {
  name: 'claim-requests',
  text: `
with recursive lanes as (
  (select priority, user_id, 1 as n from requests where state = 'received'
   order by priority, user_id limit 1)
  union all
  select next.priority, next.user_id, l.n + 1
  from lanes l cross join lateral (
    select r.priority, r.user_id from requests r
    where r.state = 'received' and (r.priority, r.user_id) > (l.priority, l.user_id)
    order by r.priority, r.user_id limit 1) next
  where l.n < 5000
), share as (
  select greatest(1, ceil(2.0 * $4::integer / greatest(count(*), 1)))::bigint as size from lanes
), busy as (
  select user_id, count(*) as running from requests where state = 'running' group by user_id
), candidates as (
  select c.id, l.priority, coalesce(b.running, 0) + coalesce(s.served, 0)
    + row_number() over (partition by l.user_id order by l.priority, c.id) as turn
  from lanes l
  left join busy b on b.user_id = l.user_id
  left join unnest($5::uuid[], $6::float8[]) as s (user_id, served) on s.user_id = l.user_id
  cross join lateral (
    select r.id from requests r
    where r.state = 'received' and r.priority = l.priority and r.user_id = l.user_id
      and r.not_before <= $1::timestamptz and r.expires_at > $2::timestamptz
    order by r.id limit (select size from share)) c
), ranked as (
  select id from candidates order by (priority = 0) desc, turn, priority, id
  limit 2 * $4::integer
), chosen as (
  select held.id
  from ranked cross join lateral (
    select r.id from requests r where r.id = ranked.id and r.state = 'received'
    for update skip locked) held
  limit $4::integer
), claimed as (
  update requests r set state = 'running', lease_token = $3::uuid,
    lease_until = $1::timestamptz + ${leaseSql('$7', '$8', '$9')},
    attempts = r.attempts + 1, started_at = coalesce(r.started_at, $1::timestamptz),
    version = r.version + 1
  from chosen where r.id = chosen.id
  returning r.*
)
select r.id, r.user_id, r.dataset, r.dataset_version, r.policy_version, r.tier, r.query,
  r.query_digest, r.expires_at, r.cancel_asked_at, r.attempts, r.received_at, r.started_at,
  coalesce(not u.disabled and not p.disabled and r.dataset = any (p.datasets), false)
    as dataset_allowed,
  p.tier as allowed_tier
from claimed r
left join users u on u.id = r.user_id
left join profile_types p on p.id = u.profile_type_id`,
};
