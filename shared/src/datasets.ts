import { rows, type Database, type Transaction } from './database.js';
import type { DatasetRecord } from './records.js';
import { containing } from './text.js';

/** A named index or alias with its field rules; where its documents are is not part of it. */
export type Dataset = DatasetRecord & { id: string };

const COLUMNS = [
  'id',
  'version',
  'epoch',
  'name',
  'title',
  'description',
  'time_field',
  'fields',
  'disabled',
] as const;

/** The dataset of this name; names are never reused. */
export async function findDataset(db: Database, name: string): Promise<Dataset | undefined> {
  return db<Dataset>('datasets')
    .where({ name })
    .first(...COLUMNS);
}

/** The dataset of this id. */
export async function findDatasetById(db: Database, id: string): Promise<Dataset | undefined> {
  return db<Dataset>('datasets')
    .where({ id })
    .first(...COLUMNS);
}

/** All datasets by name, the disabled ones too. */
export async function listDatasets(db: Database): Promise<Dataset[]> {
  return db<Dataset>('datasets')
    .select(...COLUMNS)
    .orderBy('name');
}

/** Datasets by name, those after the cursor; `text` stands anywhere in their texts. */
export async function searchDatasets(
  db: Database,
  { text, disabled }: { text?: string | undefined; disabled?: boolean | undefined },
  { after, limit }: { after?: string | undefined; limit: number },
): Promise<Dataset[]> {
  return rows<Dataset>(
    db,
    `select ${COLUMNS.join(', ')} from datasets
     where name > :after and disabled = coalesce(cast(:disabled as boolean), disabled)
       and (cast(:pattern as text) is null or name like :pattern or lower(title) like :pattern or lower(description) like :pattern)
     order by name limit :limit`,
    {
      after: after ?? '',
      disabled: disabled ?? null,
      pattern: text === undefined ? null : containing(text),
      limit,
    },
  );
}

/** Writes datasets; a stored one gives way to a greater version only. */
export async function storeDatasets(
  tx: Transaction,
  datasets: Dataset[],
  now: Date,
): Promise<void> {
  await rows(tx, upsertFrom(`select (d->>'id')::uuid as id, d from jsonb_array_elements(?) as d`), [
    JSON.stringify(datasets),
    now,
  ]);
}

/**
 * Applies the `dataset` records in `incoming`: the greatest version of each wins; a snapshot
 * disables those it does not name, and takes the name from one that it gives to another.
 */
export async function applyDatasets(
  tx: Transaction,
  batch: { kind: string },
  now: Date,
): Promise<void> {
  await rows(tx, upsertFrom(`select id, d from incoming where t = 'dataset'`), [now]);
  if (batch.kind !== 'snapshot') return;
  await rows(
    tx,
    `update datasets s set disabled = true, updated_at = ?,
       name = case when named.again then s.name || '~' || s.id else s.name end
     from (
       select o.id, exists (
         select 1 from incoming i where i.t = 'dataset' and i.d->>'name' = o.name) as again
       from datasets o
       where not exists (select 1 from incoming i where i.t = 'dataset' and i.id = o.id)
     ) named
     where named.id = s.id and (named.again or not s.disabled)`,
    [now],
  );
}

function upsertFrom(source: string): string {
  return `
    with source as (${source})
    insert into datasets (
      id, version, epoch, name, title, description, time_field, fields, disabled, updated_at)
    select distinct on (id) id, (d->>'version')::integer, (d->>'epoch')::integer, d->>'name',
      d->>'title', d->>'description', d->>'time_field', d->'fields',
      (d->>'disabled')::boolean, ?::timestamptz
    from source order by id, (d->>'version')::integer desc
    on conflict (id) do update set
      version = excluded.version, epoch = greatest(excluded.epoch, datasets.epoch),
      name = excluded.name, title = excluded.title, description = excluded.description,
      time_field = excluded.time_field, fields = excluded.fields, disabled = excluded.disabled,
      updated_at = excluded.updated_at
    where excluded.version > datasets.version`;
}
