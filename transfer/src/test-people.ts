import {
  hashPassword,
  newId,
  storeCredential,
  storeUsers,
  type Database,
  type RoleGrant,
} from '@sallyport/shared';

/** Makes a user whose password is `right`; for tests only. */
export async function makeTestUser(
  db: Database,
  login: string,
  {
    roles,
    disabled = false,
    must = false,
  }: {
    roles: RoleGrant[];
    disabled?: boolean;
    must?: boolean;
  },
): Promise<void> {
  const id = newId();
  const user = {
    id,
    version: 1,
    login,
    profile_type_id: newId(),
    roles,
    disabled,
    must_change_password: must,
    profile_version: 1,
    display_name: login,
    email: null,
    language: null,
    notices: {},
  };
  const verifier = await hashPassword('right');
  const now = new Date();
  await db.transaction(async (tx) => {
    await storeUsers(tx, [user], now);
    await storeCredential(tx, { user_id: id, generation: 1, counter: 0, verifier }, now);
  });
}
