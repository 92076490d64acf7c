import { rows, type Database } from '@sallyport/shared';

/** The channel on which changes are told that no batch brought: cancellations, expiry, keys. */
export const CHANGED_CHANNEL = 'sallyport_changed';
/** What it says when an API key was revoked. */
export const IDENTITY_CHANGED = 'identity';

/** Tells every process of this network that something changed. Never called from a submit. */
export async function notifyChanged(
  db: Database,
  what: 'requests' | typeof IDENTITY_CHANGED,
): Promise<void> {
  await rows(db, 'select pg_notify(?, ?)', [CHANGED_CHANNEL, what]);
}
