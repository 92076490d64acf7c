import { rows, type Database, type Transaction } from './database.js';
import type { ProfileTypeRecord } from './records.js';
import { containing } from './text.js';

/** A set of rights: which datasets, how rich a query, how much. */
export type ProfileType = ProfileTypeRecord & { id: string };

const COLUMNS = [
  'id',
  'version',
  'name',
  'description',
  'datasets',
  'tier',
  'priorities',
  'limits',
  'retention_days',
  'disabled',
] as const;

/** The profile type of this id. */
export async function findProfileType(db: Database, id: string): Promise<ProfileType | undefined> {
  return db<ProfileType>('profile_types')
    .where({ id })
    .first(...COLUMNS);
}

/** The profile type of this name. */
export async function findProfileTypeByName(
  db: Database,
  name: string,
): Promise<ProfileType | undefined> {
  return db<ProfileType>('profile_types')
    .where({ name })
    .first(...COLUMNS);
}

/** All profile types by name, the disabled ones too. */
export async function listProfileTypes(db: Database): Promise<ProfileType[]> {
  return db<ProfileType>('profile_types')
    .select(...COLUMNS)
    .orderBy('name');
}

/** Profile types by name, those after the cursor; `text` stands anywhere in their texts. */
export async function searchProfileTypes(
  db: Database,
  { text, disabled }: { text?: string | undefined; disabled?: boolean | undefined },
  { after, limit }: { after?: string | undefined; limit: number },
): Promise<ProfileType[]> {
  return rows<ProfileType>(
    db,
    `select ${COLUMNS.join(', ')} from profile_types
     where name > :after and disabled = coalesce(cast(:disabled as boolean), disabled)
       and (cast(:pattern as text) is null or name like :pattern or lower(description) like :pattern)
     order by name limit :limit`,
    {
      after: after ?? '',
      disabled: disabled ?? null,
      pattern: text === undefined ? null : containing(text),
      limit,
    },
  );
}

/** Writes profile types; a stored one gives way to a greater version only. */
export async function storeProfileTypes(
  tx: Transaction,
  profileTypes: ProfileType[],
  now: Date,
): Promise<void> {
  await rows(tx, upsertFrom(`select (d->>'id')::uuid as id, d from jsonb_array_elements(?) as d`), [
    JSON.stringify(profileTypes),
    now,
  ]);
}

/**
 * Applies the `profile_type` records in `incoming`: the greatest version of each wins; a snapshot
 * disables those it does not name, and takes the name from one that it gives to another.
 */
export async function applyProfileTypes(
  tx: Transaction,
  batch: { kind: string },
  now: Date,
): Promise<void> {
  await rows(tx, upsertFrom(`select id, d from incoming where t = 'profile_type'`), [now]);
  if (batch.kind !== 'snapshot') return;
  await rows(
    tx,
    `update profile_types p set disabled = true, updated_at = ?,
       name = case when named.again then p.name || '~' || p.id else p.name end
     from (
       select o.id, exists (
         select 1 from incoming i where i.t = 'profile_type' and i.d->>'name' = o.name) as again
       from profile_types o
       where not exists (select 1 from incoming i where i.t = 'profile_type' and i.id = o.id)
     ) named
     where named.id = p.id and (named.again or not p.disabled)`,
    [now],
  );
}

function upsertFrom(source: string): string {
  return `
    with source as (${source})
    insert into profile_types (
      id, version, name, description, datasets, tier, priorities, limits, retention_days,
      disabled, updated_at)
    select distinct on (id) id, (d->>'version')::integer, d->>'name', d->>'description',
      array(select jsonb_array_elements_text(d->'datasets')), d->>'tier',
      array(select jsonb_array_elements_text(d->'priorities')), d->'limits',
      (d->>'retention_days')::integer, (d->>'disabled')::boolean, ?::timestamptz
    from source order by id, (d->>'version')::integer desc
    on conflict (id) do update set
      version = excluded.version, name = excluded.name, description = excluded.description,
      datasets = excluded.datasets, tier = excluded.tier, priorities = excluded.priorities,
      limits = excluded.limits, retention_days = excluded.retention_days,
      disabled = excluded.disabled, updated_at = excluded.updated_at
    where excluded.version > profile_types.version`;
}
