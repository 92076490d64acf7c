import {
  SallyportError,
  appendAudit,
  rows,
  type Database,
  type Transaction,
} from '@sallyport/shared';
import { noExecution } from './execution-views.js';
import { KILLED, endRequest } from './requests.js';

/** Who acts on a request that came across, and why. */
export type ExecutionAct = { id: string; actor: string; reason: string };

/**
 * Ends a request without an answer: at once while it waits, else the process that searches for it is
 * told to stop.
 * @throws SallyportError `not-found`, `already-final`.
 */
export async function killExecution(
  db: Database,
  { id, actor, reason }: ExecutionAct,
  now: Date,
): Promise<'cancelled' | 'stopping'> {
  return db.transaction(async (tx) => {
    const state = await lockOpen(tx, id);
    await appendAudit(tx, {
      at: now,
      actor,
      action: 'execution.kill',
      subject: id,
      details: { reason, before: { state } },
    });
    if (state === 'received' && (await endRequest(tx, { id, ending: KILLED }, now))) {
      return 'cancelled';
    }
    await rows(
      tx,
      `update requests set cancel_asked_at = coalesce(cancel_asked_at, ?), version = version + 1
       where id = ?`,
      [now, id],
    );
    await rows(tx, `select pg_notify('sallyport_cancel', '')`);
    return 'stopping';
  });
}

/**
 * Lets a request that waits after a failed search be tried again now, with all its attempts.
 * @throws SallyportError `not-found`, `already-final` when it is answered, `in-flight` while it runs.
 */
export async function retryExecution(
  db: Database,
  { id, actor, reason }: ExecutionAct,
  now: Date,
): Promise<void> {
  await db.transaction(async (tx) => {
    const state = await lockOpen(tx, id);
    if (state === 'running') {
      throw new SallyportError('in-flight', 'The request is being searched for right now.', {
        next: 'Wait for it, or kill it.',
      });
    }
    const [before] = await rows<{ attempts: number }>(
      tx,
      'select attempts from requests where id = ?',
      [id],
    );
    await rows(
      tx,
      `update requests set attempts = 0, not_before = '-infinity', version = version + 1
       where id = ?`,
      [id],
    );
    await appendAudit(tx, {
      at: now,
      actor,
      action: 'execution.retry',
      subject: id,
      details: { reason, before, after: { attempts: 0 } },
    });
  });
}

async function lockOpen(tx: Transaction, id: string): Promise<'received' | 'running'> {
  const [found] = await rows<{ state: 'received' | 'running' | 'done' }>(
    tx,
    'select state from requests where id = ? for update',
    [id],
  );
  if (!found) throw noExecution(id);
  if (found.state !== 'done') return found.state;
  throw new SallyportError('already-final', 'The request has been answered.', {
    next: 'An answer never changes; its user can submit the query again.',
  });
}
