import {
  SallyportError,
  appendAudit,
  rows,
  type Database,
  type StreamName,
} from '@sallyport/shared';
import { findLink } from '../keys/links.js';
import type { Node } from '../node.js';
import { resendNumbers, type Resent } from '../sending/resend.js';
import { askWriteOff, type Approval } from './approvals.js';
import { handOverBatches } from './batches.js';

type SentBatch = { stream: StreamName; epoch: number; seq: number; digest: string | null };

/**
 * Notes that somebody took a sealed batch away.
 * @returns whether it had not left before.
 * @throws SallyportError `not-found` for what was not made and sealed here.
 */
export async function confirmHandOver(
  db: Database,
  node: Node,
  taken: { id: string; by: string; who: string; medium: string | null },
): Promise<boolean> {
  const { id, ...facts } = taken;
  return db.transaction(async (tx) => {
    const batch = await findSent(tx, id);
    if (batch.digest === null) throw notSent(id);
    return (await handOverBatches(tx, node, { ids: [id], ...facts })).length > 0;
  });
}

/**
 * Publishes a batch again, with the same bytes.
 * @throws SallyportError `not-found` for what was not sealed here in the present epoch, and as
 * `resendNumbers`.
 */
export async function resendBatch(
  db: Database,
  node: Node,
  { id, by }: { id: string; by: string },
): Promise<Resent> {
  const { stream, epoch, seq } = await findPresent(db, id);
  const resent = await resendNumbers(db, node, { stream, ranges: [[seq, seq]] });
  if (resent.gone.length > 0) {
    throw new SallyportError('store-bytes-missing', 'The bytes of this batch are gone.', {
      next: 'Restore its file from a backup of the store, or two people write it off.',
    });
  }
  const entry = { at: node.clock.now(), actor: by, action: 'batch.resend' };
  await db.transaction((tx) =>
    appendAudit(tx, { ...entry, subject: `${stream} ${seq}`, details: { epoch } }),
  );
  return resent;
}

/**
 * Asks to give the number of a batch up for good.
 * @throws SallyportError `not-found`, and as `askWriteOff`.
 */
export async function askBatchWriteOff(
  db: Database,
  node: Node,
  { id, reason, by }: { id: string; reason: string; by: string },
): Promise<Approval & { fresh: boolean }> {
  const { stream, epoch, seq } = await findPresent(db, id);
  return askWriteOff(db, node, { stream, epoch, seq, reason, by });
}

async function findPresent(db: Database, id: string): Promise<SentBatch> {
  const batch = await findSent(db, id);
  const link = await findLink(db);
  if (batch.epoch === link?.epoch) return batch;
  throw new SallyportError('not-found', `Epoch ${batch.epoch} of this batch is over.`, {
    next: 'What was lost with it has left again in the present epoch.',
  });
}

async function findSent(db: Database, id: string): Promise<SentBatch> {
  const [batch] = await rows<SentBatch>(
    db,
    'select stream, epoch, seq, digest from outbound_batches where id = ?',
    [id],
  );
  if (batch) return batch;
  throw notSent(id);
}

function notSent(id: string): SallyportError {
  return new SallyportError('not-found', `No batch ${id} was sealed here.`, {
    next: 'List the batches with direction=out to see their ids.',
  });
}
