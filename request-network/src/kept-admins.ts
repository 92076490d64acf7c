import { applyUsers, rows } from '@sallyport/shared';
import { requireLetIn, type Apply } from '@sallyport/transfer';

type Admin = { id: string; login: string };

const ENABLED_ADMIN = `not disabled and 'request:admin' = any(roles)`;

/**
 * Applies the `user` records in `incoming`, unless they leave nobody of those who administer this
 * network now: then the batch waits until a person here lets it in. Whoever has the far side in hand
 * could otherwise lock everybody here out, or put others in their place, with one file.
 * @throws SallyportError WAIT_APPROVAL.
 */
export const applyUsersKeepingAdmins: Apply = async (tx, batch, now) => {
  const before = await rows<Admin>(
    tx,
    `select id, login from users where ${ENABLED_ADMIN} order by login`,
  );
  await applyUsers(tx, batch, now);
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
