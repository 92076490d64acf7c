import { rows, type Failure, type Transaction } from '@sallyport/shared';
import type { LostBatch, NetworkRules } from '@sallyport/transfer';
import { resendResults } from './results.js';

/** What becomes of results whose batch the far side refused. */
export const responseRules: NetworkRules = { failRecords: failResults };

const PAGE = 1_000;

/**
 * Replaces the results that stay with a refused batch, whole or in parts, by `failed`, class
 * integrity, and sends that instead: the far side has applied nothing of the batch, and would refuse
 * the same again. A failure that was refused in its turn is not repeated.
 */
async function failResults(tx: Transaction, lost: LostBatch, now: Date): Promise<void> {
  const failure: Failure = {
    class: 'integrity',
    code: lost.code,
    detail: 'The request network refused the batch that carried the result.',
  };
  for (;;) {
    const failed = await rows<{ request_id: string }>(tx, FAIL, {
      batch: lost.id,
      failure: JSON.stringify(failure),
      now,
    });
    const ids = failed.map((row) => row.request_id);
    await rows(tx, 'delete from result_parts where request_id = any(?::uuid[])', [ids]);
    await resendResults(tx, ids, now);
    if (ids.length < PAGE) return;
  }
}

const FAIL = `
update results set status = 'failed', failure = cast(:failure as jsonb), media_type = null,
  bytes = null, sha256 = null, parts = 0, text = null, finished_at = :now
where request_id in (
  select r.request_id from results r join outbox_records o on o.record_id = r.request_id
  where o.batch_id = :batch and o.type in ('result', 'result.part')
    and r.failure->>'class' is distinct from 'integrity'
  limit ${PAGE})
returning request_id`;
