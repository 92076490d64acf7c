import { FINAL_STATUSES, rows, type Transaction } from '@sallyport/shared';
import type { LostBatch, NetworkRules } from '@sallyport/transfer';
import { damage } from './results.js';

const OPEN = `status not in (${FINAL_STATUSES.map((status) => `'${status}'`).join(', ')})`;

/** What becomes of requests whose batch the far side will not apply. */
export const requestRules: NetworkRules = { beforeRequeue, failRecords };

/**
 * Says which records of lost batches are of no use any more: requests that have ended, with `inTime`
 * those past their deadline, and their cancellations. The others are shown as waiting again; their
 * versions rise by what they lose with the batch, so that no version is ever shown twice.
 */
export async function beforeRequeue(
  tx: Transaction,
  batchIds: string[],
  { now, inTime }: { now: Date; inTime: boolean },
): Promise<number[]> {
  const useless = await rows<{ position: number }>(tx, REQUEUE, { batchIds, now, inTime });
  return useless.map(({ position }) => position);
}

const REQUEUE = `
with bound as (
  select o.position, o.type, b.version, exists (
      select 1 from requests r where r.id = o.record_id and r.${OPEN}
        and (r.expires_at > :now or not cast(:inTime as boolean))) as wanted
  from outbox_records o join outbound_batches b on b.id = o.batch_id
  where o.batch_id = any(cast(:batchIds as uuid[])) and o.type in ('request', 'request.cancel')
), moved as (
  update requests r set version = r.version + n.version + 1
  from bound n where n.type = 'request' and n.wanted and r.outbox_position = n.position
  returning r.id
), told as (
  insert into request_events (request_id, at, network, event)
  select id, :now, 'request', 'queued_again' from moved
)
select position from bound where not wanted`;

/** Ends the requests that stay with a batch which the far side refused: nobody will read them. */
export async function failRecords(tx: Transaction, lost: LostBatch, now: Date): Promise<void> {
  const failure = {
    ...damage('The far side refused the batch that carried the request.'),
    code: lost.code,
  };
  await rows(tx, FAIL, {
    batch: lost.id,
    failure: JSON.stringify(failure),
    code: lost.code,
    now,
  });
}

const FAIL = `
with moved as (
  update requests r set status = 'failed', stage = null, reason_code = null,
    failure = cast(:failure as jsonb), version = r.version + 1, finished_at = :now,
    known_as_of = greatest(r.known_as_of, :now)
  from outbox_records o
  where o.batch_id = :batch and o.type = 'request' and r.outbox_position = o.position and r.${OPEN}
  returning r.id)
insert into request_events (request_id, at, network, event, reason)
select id, :now, 'request', 'failed', :code from moved`;
