import {
  SallyportError,
  rows,
  tellCache,
  type FinalStatus,
  type Transaction,
} from '@sallyport/shared';
import { isFinal, notFound } from './requests.js';
import type { RequestStatus } from './request-schemas.js';
import { resultKey } from './result-reads.js';

type PurgeRow = {
  status: RequestStatus | FinalStatus;
  dataset: string;
  complete: boolean | null;
  bytes: number | null;
  sha256: string | null;
  purged_at: Date | null;
};

/**
 * Deletes the text of a result for good, before its time; who asks for it afterwards hears that it
 * was here. Repeating it changes nothing.
 * @returns what the cache calls the text; undefined when it was purged before.
 * @throws SallyportError `not-found`, `result-not-ready`, `no-result`.
 */
export async function purgeResult(
  tx: Transaction,
  { id, userId, login }: { id: string; userId: string; login: string },
  now: Date,
): Promise<string | undefined> {
  const [found] = await rows<PurgeRow>(
    tx,
    `select r.status, r.dataset, s.complete, s.bytes, s.sha256, s.purged_at
     from requests r left join results s on s.request_id = r.id
     where r.id = ? and r.user_id = ? for update of r`,
    [id, userId],
  );
  if (!found) throw notFound(id);
  if (found.purged_at) return undefined;
  if (!found.complete || found.bytes === null || found.sha256 === null) {
    if (isFinal(found.status)) {
      const text = `The request ended without a result: ${found.status}.`;
      throw new SallyportError('no-result', text, { extra: { status: found.status } });
    }
    throw new SallyportError('result-not-ready', 'The request has not ended yet.', {
      next: 'Cancel it if its result is not wanted.',
    });
  }
  await rows(tx, PURGE, { id, now, login });
  const key = resultKey({ id, userId, dataset: found.dataset, sha256: found.sha256 });
  await tellCache(tx, { do: 'drop', scope: { key } });
  return key;
}

const PURGE = `
  with purged as (
    update results set text = null, purged_at = :now where request_id = :id returning request_id
  ), parts as (
    delete from result_parts where request_id = :id
  ), moved as (
    update requests set version = version + 1 where id = :id
  )
  insert into request_events (request_id, at, network, event, actor)
  select request_id, :now, 'request', 'result_purged', :login from purged`;
