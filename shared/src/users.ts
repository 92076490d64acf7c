import { rows, type Database, type Transaction } from './database.js';
import { SallyportError } from './errors.js';
import type { NetworkName, RecordData, Role, RoleGrant, UserRecord } from './records.js';
import type { Argon2Range } from './settings.js';
import { containing } from './text.js';

/** Somebody with an account; the id is the same on both networks. */
export type User = UserRecord & { id: string };

/** How a user proves a password; the lexicographically greater (generation, counter) is the newer. */
export type Credential = RecordData<'user.credential'> & { user_id: string };

type UserRow = Omit<User, 'roles'> & { roles: string[] };

/**
 * Whether the user `u` with the credential `c` must change the password: what was set for them counts
 * until they have changed it themselves, which the counter tells on both networks.
 */
export const MUST_CHANGE_PASSWORD = '(u.must_change_password and coalesce(c.counter, 0) = 0)';

/** What the response network alone decides. */
const GIVEN_COLUMNS = [
  'version',
  'login',
  'profile_type_id',
  'roles',
  'disabled',
  'must_change_password',
];
/** What users change themselves, on either network. */
const OWN_COLUMNS = ['profile_version', 'display_name', 'email', 'language', 'notices'];

const SELECT_USERS = `
  select u.id, u.version, u.login, u.profile_type_id, u.roles, u.disabled,
    ${MUST_CHANGE_PASSWORD} as must_change_password, u.profile_version, u.display_name, u.email,
    u.language, u.notices
  from users u left join credentials c on c.user_id = u.id`;

/** The form in which login names are stored, compared and sent. */
export function foldLogin(login: string): string {
  return login.normalize('NFKC').toLowerCase();
}

/** The user of this login name, in whatever case it was typed. */
export async function findUserByLogin(db: Database, login: string): Promise<User | undefined> {
  const found = await rows<UserRow>(db, `${SELECT_USERS} where u.login = ?`, [foldLogin(login)]);
  return found.map(toUser)[0];
}

/** The user of this id. */
export async function findUser(db: Database, id: string): Promise<User | undefined> {
  const found = await rows<UserRow>(db, `${SELECT_USERS} where u.id = ?`, [id]);
  return found.map(toUser)[0];
}

/** All users by login name, the disabled ones too. */
export async function listUsers(db: Database): Promise<User[]> {
  return (await rows<UserRow>(db, `${SELECT_USERS} order by u.login`)).map(toUser);
}

/** What users are narrowed to. */
export type UserFilter = {
  /** Anywhere in the login name, the display name or the e-mail address, in capitals or not. */
  text?: string | undefined;
  disabled?: boolean | undefined;
  /** `network:role`. */
  role?: string | undefined;
  /** By name. */
  profileType?: string | undefined;
};

/** A user as administrators see it. */
export type ListedUser = User & { profileType: string | null; createdAt: Date; updatedAt: Date };

/** Users by login name, those after the cursor; `id` finds one. */
export async function searchUsers(
  db: Database,
  { text, disabled, role, profileType, id }: UserFilter & { id?: string | undefined },
  { after, limit }: { after?: string | undefined; limit: number },
): Promise<ListedUser[]> {
  type ListedRow = UserRow & Pick<ListedUser, 'profileType' | 'createdAt' | 'updatedAt'>;
  const found = await rows<ListedRow>(
    db,
    `select listed.*, p.name as "profileType", u.created_at as "createdAt",
       u.updated_at as "updatedAt"
     from (${SELECT_USERS}) listed join users u on u.id = listed.id
     left join profile_types p on p.id = u.profile_type_id
     where u.login > :after and u.id = coalesce(cast(:id as uuid), u.id)
       and (cast(:pattern as text) is null or u.login like :pattern
         or lower(u.display_name) like :pattern or lower(u.email) like :pattern)
       and u.disabled = coalesce(cast(:disabled as boolean), u.disabled)
       and (cast(:role as text) is null or :role = any(u.roles))
       and (cast(:profileType as text) is null or p.name = :profileType)
     order by u.login limit :limit`,
    {
      after: after ?? '',
      id: id ?? null,
      pattern: text === undefined ? null : containing(text),
      disabled: disabled ?? null,
      role: role ?? null,
      profileType: profileType ?? null,
      limit,
    },
  );
  return found.map((row) => ({ ...row, ...toUser(row) }));
}

/** The roles of a user on one network. */
export function rolesOn(user: User, network: NetworkName): Role[] {
  return user.roles.filter((grant) => grant.network === network).map((grant) => grant.role);
}

/** Writes users; a stored one gives way to a greater version only. */
export async function storeUsers(tx: Transaction, users: User[], now: Date): Promise<void> {
  const source = `select (d->>'id')::uuid as id, d from jsonb_array_elements(?) as d`;
  await rows(tx, upsertUsersFrom(source), [JSON.stringify(users), now, now]);
}

/**
 * Applies the `user` records in `incoming`: the greatest version of each wins, but a user's own
 * newer profile stays; a snapshot disables those it does not name, and takes the login from one that
 * it gives to another: after a restore the same person may have been made anew.
 */
export async function applyUsers(
  tx: Transaction,
  batch: { kind: string },
  now: Date,
): Promise<void> {
  await rows(tx, upsertUsersFrom(`select id, d from incoming where t = 'user'`), [now, now]);
  if (batch.kind !== 'snapshot') return;
  await rows(
    tx,
    `update users u set disabled = true, updated_at = ?,
       login = case when named.again then u.login || '~' || u.id else u.login end
     from (
       select o.id, exists (
         select 1 from incoming i where i.t = 'user' and i.d->>'login' = o.login) as again
       from users o
       where not exists (select 1 from incoming i where i.t = 'user' and i.id = o.id)
     ) named
     where named.id = u.id and (named.again or not u.disabled)`,
    [now],
  );
}

/** The newest credential of a user. */
export async function readCredential(
  db: Database,
  userId: string,
): Promise<Credential | undefined> {
  return db<Credential>('credentials')
    .where({ user_id: userId })
    .first('user_id', 'generation', 'counter', 'verifier');
}

/** All credentials, for a snapshot. */
export async function listCredentials(db: Database): Promise<Credential[]> {
  return db<Credential>('credentials')
    .select('user_id', 'generation', 'counter', 'verifier')
    .orderBy('user_id');
}

/** Writes credentials unless the stored ones are as new. */
export async function storeCredentials(
  tx: Transaction,
  credentials: Credential[],
  now: Date,
): Promise<void> {
  const source = `select (d->>'user_id')::uuid as id, d from jsonb_array_elements(?) as d`;
  await rows(tx, upsertCredentialsFrom(source), [JSON.stringify(credentials), now]);
}

/** Writes a credential unless the stored one is as new; says whether it was written. */
export async function storeCredential(
  tx: Transaction,
  credential: Credential,
  now: Date,
): Promise<boolean> {
  const { user_id: id, ...d } = credential;
  const written = await rows(
    tx,
    upsertCredentialsFrom(`select ?::uuid as id, ?::jsonb as d`) + ' returning user_id',
    [id, JSON.stringify(d), now],
  );
  return written.length > 0;
}

/**
 * Applies the credentials in `incoming`, those of one record type: the lexicographically greatest
 * (generation, counter) of each user wins.
 * @throws SallyportError `SCHEMA` when the argon2 parameters of a verifier lie outside the range; of
 * bcrypt, which is only imported, the response network alone sends verifiers.
 */
export async function applyCredentials(
  tx: Transaction,
  { type, range }: { type: 'user.credential' | 'account.credential'; range: Argon2Range },
  now: Date,
): Promise<void> {
  await refuseVerifiersOutside(tx, type, range);
  await rows(tx, upsertCredentialsFrom(`select id, d from incoming where t = ?`), [type, now]);
}

/**
 * Applies the `account.profile` records in `incoming`: the greatest profile version of each user wins.
 * A user that nobody has told of yet is left out; their record brings the profile.
 */
export async function applyProfiles(tx: Transaction, now: Date): Promise<void> {
  await rows(
    tx,
    `update users u set ${OWN_COLUMNS.map((column) => `${column} = p.${column}`).join(', ')},
       version = u.version + 1, updated_at = ?
     from (
       select distinct on (id) id, (d->>'profile_version')::integer as profile_version,
         d->>'display_name' as display_name, d->>'email' as email, d->>'language' as language,
         d->'notices' as notices
       from incoming where t = 'account.profile'
       order by id, (d->>'profile_version')::integer desc, line desc
     ) p
     where p.id = u.id and ${rankOfProfile('p')} > ${rankOfProfile('u')}`,
    [now],
  );
}

async function refuseVerifiersOutside(
  tx: Transaction,
  type: string,
  range: Argon2Range,
): Promise<void> {
  const [bad] = await rows<{ line: number }>(
    tx,
    `select i.line from incoming i
     left join lateral regexp_match(i.d->>'verifier',
       '^[$]argon2id[$]v=19[$]m=([0-9]{1,9}),t=([0-9]{1,9}),p=([0-9]{1,9})[$][^$]+[$][^$]+$')
       as m on true
     where i.t = ?
       and not (i.t = 'user.credential'
         and i.d->>'verifier' ~ '^[$]2[aby][$](0[89]|1[0-5])[$][./A-Za-z0-9]{53}$')
       and (m is null
       or m[1]::integer not between ? and ? or m[2]::integer not between ? and ?
       or m[3]::integer not between ? and ?)
     order by i.line limit 1`,
    [type, ...[range.memory, range.time, range.parallelism].flatMap(({ min, max }) => [min, max])],
  );
  if (!bad) return;
  throw new SallyportError(
    'SCHEMA',
    `The verifier in line ${bad.line} is not argon2id with parameters inside the allowed range.`,
    { next: 'Compare the setting argon2.range of both networks.' },
  );
}

function upsertUsersFrom(source: string): string {
  const newer = 'excluded.version > users.version';
  const newerProfile = `${rankOfProfile('excluded')} > ${rankOfProfile('users')}`;
  const set = (columns: readonly string[], condition: string) =>
    columns.map(
      (column) =>
        `${column} = case when ${condition} then excluded.${column} else users.${column} end`,
    );
  return `
    with source as (${source})
    insert into users (
      id, version, login, profile_type_id, roles, disabled, must_change_password,
      profile_version, display_name, email, language, notices, created_at, updated_at)
    select distinct on (id) id, (d->>'version')::integer, d->>'login',
      (d->>'profile_type_id')::uuid,
      array(select (g->>'network') || ':' || (g->>'role') from jsonb_array_elements(d->'roles') g),
      (d->>'disabled')::boolean, (d->>'must_change_password')::boolean,
      (d->>'profile_version')::integer, d->>'display_name', d->>'email', d->>'language',
      d->'notices', ?::timestamptz, ?::timestamptz
    from source order by id, (d->>'version')::integer desc
    on conflict (id) do update set
      ${[...set(GIVEN_COLUMNS, newer), ...set(OWN_COLUMNS, newerProfile)].join(', ')},
      updated_at = excluded.updated_at
    where ${newer} or ${newerProfile}`;
}

// Of two profiles of one version the greater text wins, so that both networks keep the same one.
function rankOfProfile(from: string): string {
  const text = (column: string) => `coalesce(${from}.${column}, '') collate "C"`;
  return `(${from}.profile_version, ${text('display_name')}, ${text('email')}, ${text('language')},
    ${from}.notices::text collate "C")`;
}

function upsertCredentialsFrom(source: string): string {
  return `
    with source as (${source})
    insert into credentials (user_id, generation, counter, verifier, updated_at)
    select distinct on (id) id, (d->>'generation')::integer, (d->>'counter')::integer,
      d->>'verifier', ?::timestamptz
    from source order by id, (d->>'generation')::integer desc, (d->>'counter')::integer desc,
      d->>'verifier' collate "C" desc
    on conflict (user_id) do update set
      generation = excluded.generation, counter = excluded.counter,
      verifier = excluded.verifier, updated_at = excluded.updated_at
    where (excluded.generation, excluded.counter, excluded.verifier collate "C")
      > (credentials.generation, credentials.counter, credentials.verifier collate "C")`;
}

function toUser({ roles, ...user }: UserRow): User {
  return { ...user, roles: roles.map(toGrant) };
}

function toGrant(text: string): RoleGrant {
  const [network, role] = text.split(':') as [NetworkName, Role];
  return { network, role };
}
