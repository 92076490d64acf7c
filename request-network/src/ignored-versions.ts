import { appendAudit, rows, type Transaction } from '@sallyport/shared';

type Older = { subject: string; found: number; stored: number };

const MOST = 100;

/** Notes in the audit log which profile types in `incoming` are older than those stored. */
export async function auditOlderRights(
  tx: Transaction,
  batch: { id: string },
  now: Date,
): Promise<void> {
  const older = await rows<Older>(
    tx,
    `select i.id::text as subject, (i.d->>'version')::integer as found, p.version as stored
     from incoming i join profile_types p on p.id = i.id
     where i.t = 'profile_type' and (i.d->>'version')::integer < p.version
     order by i.line limit ${MOST}`,
  );
  for (const { subject, found, stored } of older) {
    await appendAudit(tx, {
      at: now,
      actor: 'worker:import-batches',
      action: 'profile-type.ignore-older',
      subject,
      details: { batch: batch.id, found, stored },
    });
  }
}
