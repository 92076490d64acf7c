import {
  SallyportError,
  rows,
  type Database,
  type Priority,
  type Transaction,
} from '@sallyport/shared';
import type { RequestStatus, Submission } from './request-schemas.js';
import { isFinal, notFound } from './requests.js';

type Row = {
  status: RequestStatus;
  dataset: string;
  query: string;
  priority: Priority;
  custom_id: string | null;
  tags: string[];
  ttl_s: number;
};

/**
 * A request of the user that has ended, as a submission to be judged anew. Times relative to now are
 * still those of the first time: it is the same question.
 * @throws SallyportError `not-found`, `result-not-ready` while it is open.
 */
export async function readSubmission(
  db: Database,
  { id, userId }: { id: string; userId: string },
): Promise<Submission> {
  const [row] = await rows<Row>(
    db,
    `select status, dataset, query, priority, custom_id, tags,
       extract(epoch from expires_at - created_at)::integer as ttl_s
     from requests where id = ? and user_id = ?`,
    [id, userId],
  );
  if (!row) throw notFound(id);
  if (!isFinal(row.status)) {
    throw new SallyportError('result-not-ready', `The request is still open: ${row.status}.`, {
      next: 'Wait for its end, or cancel it first.',
    });
  }
  return {
    dataset: row.dataset,
    query: JSON.parse(row.query) as Submission['query'],
    priority: row.priority,
    ttl_s: row.ttl_s,
    ...(row.custom_id !== null && { custom_id: row.custom_id }),
    ...(row.tags.length > 0 && { tags: row.tags }),
  };
}

/** Links a request to the one that it repeats. */
export async function linkRetry(tx: Transaction, id: string, retryOf: string): Promise<void> {
  await rows(tx, 'update requests set retry_of = ? where id = ?', [retryOf, id]);
}
