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
  const [key] = await purgeTexts(tx, [id], { now, actor: login });
  return key;
}

/**
 * Deletes the texts of the results of these requests, whose rows the caller has locked, and tells the
 * cache. What was purged before stays as it is.
 * @returns what the cache calls them.
 */
export async function purgeTexts(
  tx: Transaction,
  ids: readonly string[],
  { now, reason, actor }: { now: Date; reason?: string; actor?: string },
): Promise<string[]> {
  const values = { ids: [...ids], now, reason: reason ?? null, actor: actor ?? null };
  const purged = await rows<Parameters<typeof resultKey>[0]>(tx, PURGE, values);
  const keys = purged.map(resultKey);
  for (const key of keys) await tellCache(tx, { do: 'drop', scope: { key } });
  return keys;
}

const PURGE = `
  with purged as (
    update results set text = null, purged_at = :now
    where request_id = any(:ids::uuid[]) and purged_at is null returning request_id, sha256
  ), parts as (
    delete from result_parts p using purged where p.request_id = purged.request_id
  ), moved as (
    update requests r set version = r.version + 1 from purged where r.id = purged.request_id
  ), told as (
    insert into request_events (request_id, at, network, event, reason, actor)
    select request_id, :now, 'request', 'result_purged', :reason, :actor from purged
  )
  select r.id, r.user_id as "userId", r.dataset, p.sha256
  from purged p join requests r on r.id = p.request_id`;
