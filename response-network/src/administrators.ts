import {
  NETWORKS,
  rolesOn,
  rows,
  SallyportError,
  unauthenticated,
  type NetworkName,
  type Transaction,
  type User,
} from '@sallyport/shared';
import type { Change } from './change.js';

/** Held while somebody stops being an administrator. */
const ADMINS_LOCK = 7_215_003;

/** Whether somebody can administer this network. */
export async function hasAdmin(tx: Transaction): Promise<boolean> {
  const found = await rows(
    tx,
    `select 1 from users where 'response:admin' = any(roles) and not disabled limit 1`,
  );
  return found.length > 0;
}

/**
 * That somebody enabled stays who administers each network that somebody administers now. Whoever
 * acts is asked for again, after those who did the same at the same time.
 */
export async function requireAdminsKept(
  tx: Transaction,
  before: User,
  after: User,
  { actorId }: Change,
): Promise<void> {
  const lost = NETWORKS.filter((network) => isAdmin(before, network) && !isAdmin(after, network));
  if (lost.length === 0) return;
  await rows(tx, 'select pg_advisory_xact_lock(?)', [ADMINS_LOCK]);
  const others = await rows<{ id: string; roles: string[] }>(
    tx,
    `select id, roles from users
     where not disabled and id <> ? and roles && array['request:admin', 'response:admin']`,
    [before.id],
  );
  const acts = ({ id, roles }: (typeof others)[number]) =>
    id === actorId && roles.includes('response:admin');
  if (actorId !== undefined && actorId !== before.id && !others.some(acts)) {
    throw unauthenticated();
  }
  for (const network of lost) {
    if (others.some(({ roles }) => roles.includes(`${network}:admin`))) continue;
    throw new SallyportError(
      'last-admin',
      `${before.login} is the last who can administer the ${network} network.`,
      { next: 'Give somebody else the role first.' },
    );
  }
}

function isAdmin(user: User, network: NetworkName): boolean {
  return !user.disabled && rolesOn(user, network).includes('admin');
}
