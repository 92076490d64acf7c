import { rows, type Database } from './database.js';

/** The channel on which changes are told that no batch brought: cancellations, expiry, keys. */
export const CHANGED_CHANNEL = 'sallyport_changed';
/** What it says when rights may have changed: a user, a session, an API key. */
export const IDENTITY_CHANGED = 'identity';
/** What it says when settings, datasets or profile types may have changed. */
export const RULES_CHANGED = 'rules';

/** What it says when an admin changed what a user or key may submit. */
export const LIMITS_CHANGED = 'limits';

/** Tells every process of this network that something changed. Never called from a submit. */
export async function notifyChanged(
  db: Database,
  what: 'requests' | typeof IDENTITY_CHANGED | typeof RULES_CHANGED | typeof LIMITS_CHANGED,
): Promise<void> {
  await rows(db, 'select pg_notify(?, ?)', [CHANGED_CHANNEL, what]);
}
