import {
  SallyportError,
  addNotices,
  rows,
  shorten,
  type Database,
  type Transaction,
} from '@sallyport/shared';
import { askApproval } from '../custody/approvals.js';
import type { Node } from '../node.js';
import type { ImportedBatch } from './apply.js';

/** What a batch that is held waits for, and why. */
type Held = { digest: string; details: Record<string, unknown>; reason: string };

const MAX_REASON = 500;
const IMPORTER = 'worker:import-batches';
const NOTICE_PERIOD_MS = 30 * 86_400_000;

/**
 * That a person of this network has let the batch in, for an apply function that finds it too
 * dangerous to be applied unasked; nothing of the batch is applied before. `why` is a sentence.
 * @throws SallyportError WAIT_APPROVAL: the file waits, and whoever imports it asks for the approval.
 */
export async function requireLetIn(
  tx: Transaction,
  batch: Pick<ImportedBatch, 'digest' | 'stream' | 'epoch' | 'seq'>,
  why: string,
): Promise<void> {
  const { digest, stream, epoch, seq } = batch;
  const [last] = await rows<{ decision: string | null; by: string | null }>(
    tx,
    `select decision, decided_by as by from approvals where act = 'apply' and subject = ?
     order by asked_at desc, id desc limit 1`,
    [digest],
  );
  if (last?.decision === 'approved') return;
  if (last?.decision === 'declined') {
    throw new SallyportError('WAIT_APPROVAL', `${why} ${last.by ?? 'Somebody'} kept it out.`, {
      next: `Have the response network mend it and send a snapshot of ${stream}, which replaces it.`,
    });
  }
  const held: Held = { digest, details: { stream, epoch, seq }, reason: why };
  throw new SallyportError('WAIT_APPROVAL', why, {
    next: 'approvals ls shows what waits for a person; approvals approve lets it in.',
    extra: { held },
  });
}

/** Asks for the approval that a held batch waits for, once, and tells the admins. */
export async function askAboutHeld(
  db: Database,
  node: Node,
  { extra }: SallyportError,
): Promise<void> {
  const held = extra['held'] as Held | undefined;
  if (!held) return;
  const at = node.clock.now();
  const { digest: subject, details } = held;
  const reason = shorten(held.reason, MAX_REASON);
  await db.transaction(async (tx) => {
    const ask = { act: 'apply', subject, details, reason, by: IMPORTER, at } as const;
    const { fresh, id } = await askApproval(tx, ask);
    if (!fresh) return;
    await addNotices(tx, [
      {
        userId: null,
        kind: 'batch.held',
        severity: 'critical',
        title: 'A batch waits until somebody lets it in',
        detail: reason,
        subject: id,
        at,
        dedupe: { key: subject, withinMs: NOTICE_PERIOD_MS },
      },
    ]);
  });
}
