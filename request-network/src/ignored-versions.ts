import { appendAudit, rows, type Transaction } from '@sallyport/shared';

type Older = { subject: string; found: number; stored: number };

const MOST = 100;

/** Notes in the audit log which rights and settings in `incoming` are older than those stored. */
export async function auditOlder(
  tx: Transaction,
  { type, batch }: { type: 'profile_type' | 'setting'; batch: { id: string; kind: string } },
  now: Date,
): Promise<void> {
  // A snapshot of settings is the whole truth, whatever its versions.
  if (type === 'setting' && batch.kind === 'snapshot') return;
  const older = await rows<Older>(tx, OLDER[type], { most: MOST });
  for (const { subject, found, stored } of older) {
    await appendAudit(tx, {
      at: now,
      actor: 'worker:import-batches',
      action: `${type === 'setting' ? 'setting' : 'profile-type'}.ignore-older`,
      subject,
      details: { batch: batch.id, found, stored },
    });
  }
}

const OLDER = {
  profile_type: `
    select i.id::text as subject, (i.d->>'version')::integer as found, p.version as stored
    from incoming i join profile_types p on p.id = i.id
    where i.t = 'profile_type' and (i.d->>'version')::integer < p.version order by i.line limit :most`,
  setting: `
    select s.key as subject, (i.d->>'version')::integer as found, s.version as stored
    from incoming i join settings s on s.key = i.d->>'key'
    where i.t = 'setting' and (i.d->>'version')::integer < s.version order by i.line limit :most`,
};
