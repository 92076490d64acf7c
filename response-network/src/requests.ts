import {
  appendAudit,
  rows,
  shorten,
  type Database,
  type Failure,
  type Transaction,
} from '@sallyport/shared';
import type { ImportedBatch } from '@sallyport/transfer';
import { resendResults, storeOutcomes, type Outcome } from './results.js';

/** Clocks of the networks differ; this much after its deadline a request may still start. */
export const DEADLINE_TOLERANCE_MS = 5 * 60_000;
const ENDINGS_PER_STATEMENT = 1_000;
const NAMED_CONFLICTS = 20;
const NONE: [] = [];
const NIL = '00000000-0000-0000-0000-000000000000';

/**
 * Applies the `request` records in `incoming`. One that is not well formed is answered `rejected`,
 * one that a cancellation overtook `cancelled`, one past its deadline `expired`, one that was
 * answered before with the same answer again.
 */
export async function applyRequests(
  tx: Transaction,
  _batch: ImportedBatch,
  now: Date,
): Promise<void> {
  const limit = new Date(now.getTime() - DEADLINE_TOLERANCE_MS);
  const [unusual] = await rows<Unusual>(tx, FIND_UNUSUAL, { limit });
  if (unusual?.unreadable) await rejectUnreadable(tx, now);
  if (unusual?.known) await auditConflicts(tx, now);
  if (unusual?.answered) await resendAnswered(tx, now);
  await rows(tx, INSERT_REQUESTS, { now });
  if (unusual?.cancelled) {
    await endWaiting(tx, now, {
      where: `${ARRIVED} and exists (select 1 from cancellations c
        where c.request_id = r.id and c.user_id = r.user_id)`,
      bindings: NONE,
      ending: CANCELLED,
    });
  }
  if (unusual?.late) {
    const late = pastDeadline(now);
    await endWaiting(tx, now, { ...late, where: `${ARRIVED} and ${late.where}` });
  }
}

/** What a batch of requests need not hold, asked at once: most hold none of it. */
type Unusual = Record<'unreadable' | 'known' | 'answered' | 'cancelled' | 'late', boolean>;

const FIND_UNUSUAL = `
select
  exists (select 1 from incoming where t = 'request' and code is not null) as unreadable,
  exists (select 1 from incoming i join requests r on r.id = i.id where i.t = 'request') as known,
  exists (select 1 from incoming i join results s on s.request_id = i.id
          where i.t = 'request') as answered,
  exists (select 1 from incoming i join cancellations c on c.request_id = i.id
          where i.t = 'request') as cancelled,
  exists (select 1 from incoming where t = 'request' and code is null
          and case when code is null then (d->>'expires_at')::timestamptz end < :limit) as late`;

/**
 * Applies the `request.cancel` records in `incoming`: what has not started is cancelled, what runs is
 * told to stop, what is unknown is remembered until its deadline, what is done stays.
 */
export async function applyCancellations(
  tx: Transaction,
  _batch: ImportedBatch,
  now: Date,
): Promise<void> {
  const asked = `exists (select 1 from incoming i where i.t = 'request.cancel' and i.code is null
    and i.id = r.id and (i.d->>'user_id')::uuid = r.user_id)`;
  await endWaiting(tx, now, { where: asked, bindings: NONE, ending: CANCELLED });
  // Not only what runs: what was put back since the statement before waits again.
  const marked = await rows(
    tx,
    `update requests r set cancel_asked_at = ?, version = version + 1
     where r.state <> 'done' and r.cancel_asked_at is null and r.id in (
       select r.id from requests r where ${asked} order by r.id for update) returning r.id`,
    [now],
  );
  if (marked.length > 0) await rows(tx, `select pg_notify('sallyport_cancel', '')`);
  await rows(
    tx,
    `insert into cancellations (request_id, user_id, expires_at, received_at)
     select distinct on (i.id) i.id, (i.d->>'user_id')::uuid, (i.d->>'expires_at')::timestamptz, ?
     from incoming i
     where i.t = 'request.cancel' and i.code is null
       and not exists (select 1 from requests r where r.id = i.id)
       and not exists (select 1 from results s where s.request_id = i.id)
     order by i.id
     on conflict (request_id) do nothing`,
    [now],
  );
}

/** Ends what waited past its deadline and forgets cancellations past theirs. */
export async function expireRequests(db: Database, now: Date): Promise<{ expired: number }> {
  const limit = new Date(now.getTime() - DEADLINE_TOLERANCE_MS);
  await rows(db, 'delete from cancellations where expires_at < ?', [limit]);
  return { expired: await endWaiting(db, now, pastDeadline(now)) };
}

/** A failure that is no fault of anybody's query: nothing was searched. */
export const CANCELLED: Ending = {
  status: 'cancelled',
  failure: { class: null, code: 'cancelled', detail: 'It was cancelled before it was answered.' },
};
export const KILLED: Ending = {
  status: 'cancelled',
  failure: {
    class: null,
    code: 'cancelled',
    detail: 'It was stopped by those who run the network.',
  },
};
export const EXPIRED: Ending = {
  status: 'expired',
  failure: { class: null, code: 'expired', detail: 'Its deadline passed before it could start.' },
};

/** How a request ends without an answer. */
export type Ending = { status: 'cancelled' | 'expired' | 'rejected'; failure: Failure };

/** Ends one request if it still waits; whether it did. */
export async function endRequest(
  db: Database,
  { id, ending }: { id: string; ending: Ending },
  now: Date,
): Promise<boolean> {
  return (await endWaiting(db, now, { where: 'r.id = ?', bindings: [id], ending })) > 0;
}

type Waiting = {
  where: string;
  bindings: readonly (string | Date)[];
  ending: Ending;
};

/** What the records in `incoming` have just become. */
const ARRIVED = 'r.batch_id in (select batch_id from incoming)';

function pastDeadline(now: Date): Waiting {
  return {
    where: 'r.expires_at < ?',
    bindings: [new Date(now.getTime() - DEADLINE_TOLERANCE_MS)],
    ending: EXPIRED,
  };
}

/** Ends, page by page, the waiting requests for which the condition holds; returns how many. */
async function endWaiting(
  db: Database,
  now: Date,
  { where, bindings, ending }: Waiting,
): Promise<number> {
  let ended = 0;
  for (;;) {
    const found = await rows<{ id: string; received_at: Date }>(
      db,
      `select r.id, r.received_at from requests r
       where r.state = 'received' and ${where}
       limit ${ENDINGS_PER_STATEMENT}`,
      bindings,
    );
    const outcomes = found.map((one) => endedOutcome({ ...one, ending }, now));
    const stored = (await storeOutcomes(db, outcomes, 'unstarted')).length;
    ended += stored;
    // Fewer than found: somebody else has them now.
    if (found.length < ENDINGS_PER_STATEMENT || stored === 0) return ended;
  }
}

function endedOutcome(
  request: { id: string; received_at: Date; ending: Ending },
  now: Date,
): Outcome {
  return {
    requestId: request.id,
    ...request.ending,
    text: null,
    datasetVersion: null,
    policyVersion: null,
    receivedAt: request.received_at,
    startedAt: null,
    finishedAt: now,
    tookMs: null,
  };
}

async function rejectUnreadable(tx: Transaction, now: Date): Promise<void> {
  for (let after = { batch: NIL, line: 0 }; ;) {
    const found = await rows<{ batch: string; line: number; id: string; detail: string | null }>(
      tx,
      `select batch_id as batch, line, id, detail from incoming
       where t = 'request' and code is not null and (batch_id, line) > (:batch, :line)
       order by batch_id, line limit ${ENDINGS_PER_STATEMENT}`,
      after,
    );
    const outcomes = found.map(({ id, detail }) =>
      endedOutcome({ id, received_at: now, ending: unreadable(detail) }, now),
    );
    if (outcomes.length > 0) await storeOutcomes(tx, outcomes, 'unreadable');
    const last = found.at(-1);
    if (!last) return;
    after = last;
  }
}

function unreadable(detail: string | null): Ending {
  const sentence = `The request is not well formed: ${detail ?? 'no detail'}`;
  return {
    status: 'rejected',
    failure: { class: null, code: 'bad-field', detail: shorten(sentence, 2_000) },
  };
}

async function auditConflicts(tx: Transaction, now: Date): Promise<void> {
  const found = await rows<{ id: string; batch: string | null; total: number }>(
    tx,
    `select i.id, count(*) over () as total,
       (select digest from inbound_batches b where b.id = i.batch_id) as batch
     from incoming i join requests r on r.id = i.id
     where i.t = 'request' and i.code is null and (
       r.user_id <> (i.d->>'user_id')::uuid or r.dataset <> i.d->>'dataset'
       or r.tier <> i.d->>'tier' or r.query_digest <> i.d->>'query_digest'
       or r.query <> i.d->>'query')
     order by i.batch_id, i.line limit ${NAMED_CONFLICTS}`,
  );
  const [first] = found;
  if (!first) return;
  await appendAudit(tx, {
    at: now,
    actor: 'system',
    action: 'request.conflict',
    subject: first.id,
    details: { batch: first.batch, total: first.total, ids: found.map(({ id }) => id) },
  });
}

async function resendAnswered(tx: Transaction, now: Date): Promise<void> {
  const found = await rows<{ id: string }>(
    tx,
    `select i.id from incoming i join results s on s.request_id = i.id
     where i.t = 'request' and i.code is null order by i.batch_id, i.line`,
  );
  await resendResults(
    tx,
    found.map(({ id }) => id),
    now,
  );
}

const INSERT_REQUESTS = `
insert into requests (
  id, user_id, dataset, dataset_version, policy_version, tier, pinned_now, expires_at, priority,
  query, query_digest, traceparent, state, version, attempts, not_before, batch_id, batch_line,
  received_at)
select i.id, (d->>'user_id')::uuid, d->>'dataset', (d->>'dataset_version')::integer,
  (d->>'policy_version')::integer, d->>'tier', (d->>'pinned_now')::timestamptz,
  (d->>'expires_at')::timestamptz,
  case d->>'priority' when 'urgent' then 0 when 'normal' then 1 else 2 end,
  d->>'query', d->>'query_digest', d->>'traceparent', 'received', 1, 0, '-infinity', i.batch_id, i.line,
  :now
from incoming i
where i.t = 'request' and i.code is null
  and not exists (select 1 from results s where s.request_id = i.id)
order by i.batch_id, i.line
on conflict (id) do nothing`;
