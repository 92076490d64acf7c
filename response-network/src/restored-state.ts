import { rows, type Transaction } from '@sallyport/shared';

/** More changes of one thing than anybody makes within an epoch. */
const VERSIONS_PER_EPOCH = 100_000;

/**
 * Makes all that the request network keeps a copy of newer than whatever was forgotten with a restore
 * of this database, by the epoch, which is never used twice: over there the greater version wins. So
 * both hold what stood in the backup. Every session ends: a password may be an older one again.
 */
export async function outrankForgotten(
  tx: Transaction,
  { epoch, now }: { epoch: number; now: Date },
): Promise<void> {
  const bindings = { size: VERSIONS_PER_EPOCH, least: epoch * VERSIONS_PER_EPOCH, now };
  for (const table of ['users', 'profile_types', 'datasets', 'settings']) {
    const version = `greatest(version + 1, :least + version % :size)`;
    const sql = `update :table: set version = ${version}, updated_at = :now`;
    await rows(tx, sql, { ...bindings, table });
  }
  await rows(
    tx,
    `update users set
       profile_version = greatest(profile_version + 1, :least + profile_version % :size)`,
    bindings,
  );
  // With a counter of 0 the mark of a password that somebody else set would count again.
  await rows(
    tx,
    `update users u set must_change_password = false from credentials c
     where c.user_id = u.id and c.counter > 0 and u.must_change_password`,
  );
  await rows(
    tx,
    `update credentials set generation = greatest(generation + 1, :least + generation % :size),
       counter = 0, updated_at = :now`,
    bindings,
  );
}
