import { rows, type Transaction } from '@sallyport/shared';

/** Held while somebody takes a name. */
const NAMES_LOCK = 7_215_005;

/**
 * Lets one at a time look whether a name is free and take it, until the transaction ends: that names
 * are unique is deferred, so two who take the same one would only meet at the commit.
 */
export async function lockNames(tx: Transaction): Promise<void> {
  await rows(tx, 'select pg_advisory_xact_lock(?)', [NAMES_LOCK]);
}
