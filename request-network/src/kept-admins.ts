import { applyUsers, rows, type Transaction } from '@sallyport/shared';
import { requireLetIn, type Apply } from '@sallyport/transfer';

type Admin = { id: string; login: string };

const ENABLED_ADMIN = `not disabled and 'request:admin' = any(roles)`;
/** So long somebody new does not count as one who stays; nobody is new where nobody is older. */
const NEW_DAYS = 7;

/**
 * Applies the `user` records in `incoming`, unless they leave nobody of those who administer this
 * network for a while: then the batch waits until a person here lets it in. Whoever has the far side in
 * hand could otherwise shut everybody here out of their accounts, or put others in their place, with one
 * file or two. Passwords are not guarded: they are made over there, and whoever administers alone must
 * be able to get a new one.
 * @throws SallyportError WAIT_APPROVAL.
 */
export const applyUsersKeepingAdmins: Apply = async (tx, batch, now) => {
  const before = await rows<Admin>(tx, STANDING, { now });
  await applyUsers(tx, batch, now);
  await noteAdmins(tx, now);
  if (before.length === 0) return;
  const kept = await rows<Admin>(
    tx,
    `select id, login from users where id = any(?::uuid[]) and ${ENABLED_ADMIN} limit 1`,
    [before.map(({ id }) => id)],
  );
  if (kept.length > 0) return;
  const logins = before.map(({ login }) => login).join(', ');
  await requireLetIn(
    tx,
    batch,
    `Number ${batch.seq} of ${batch.stream} would leave none of those who administer this network now: ${logins}.`,
  );
};

async function noteAdmins(tx: Transaction, now: Date): Promise<void> {
  await rows(
    tx,
    `delete from administrators a where not exists (
       select 1 from users u where u.id = a.user_id and ${ENABLED_ADMIN})`,
  );
  await rows(
    tx,
    `insert into administrators (user_id, since) select id, ? from users where ${ENABLED_ADMIN}
     on conflict do nothing`,
    [now],
  );
}

const STANDING = `
  with admins as (
    select id, login, coalesce(since, created_at) as since
    from users left join administrators on user_id = id where ${ENABLED_ADMIN}
  )
  select id, login from admins
  where since <= greatest(
    cast(:now as timestamptz) - interval '${NEW_DAYS} days', (select min(since) from admins))
  order by login`;
