import { rows, type Database, type Dataset, type Transaction } from '@sallyport/shared';

/** Where the documents of a dataset are and the rule that every search of it obeys. */
export type DatasetSource = {
  indexName: string;
  /** A query clause that every hit must match. */
  rowFilter: Record<string, unknown> | null;
};

export type SearchableDataset = DatasetSource & {
  dataset: Dataset;
  /** The `_source` of a query that names no fields: what the dataset lists, and nothing else. */
  listedFields: string[] | false;
};

type SourceRow = { index_name: string; row_filter: DatasetSource['rowFilter'] };

/** The datasets of these names that can be searched now, by name. */
export async function readSearchableDatasets(
  db: Database,
  names: string[],
): Promise<Map<string, SearchableDataset>> {
  const found = await rows<Dataset & SourceRow>(
    db,
    `select d.id, d.version, d.epoch, d.name, d.title, d.description, d.time_field, d.fields,
       d.disabled, s.index_name, s.row_filter
     from datasets d join dataset_sources s on s.dataset_id = d.id
     where d.name = any(?::text[]) and not d.disabled`,
    [names],
  );
  return new Map(
    found.map(({ index_name: indexName, row_filter: rowFilter, ...dataset }) => [
      dataset.name,
      { dataset, indexName, rowFilter, listedFields: listFields(dataset) },
    ]),
  );
}

// Elasticsearch reads an empty list as "everything".
function listFields({ fields }: Dataset): string[] | false {
  return fields.length > 0 && fields.map(({ name }) => name);
}

/** Where the documents of a dataset are. */
export async function readDatasetSource(
  db: Database,
  datasetId: string,
): Promise<DatasetSource | undefined> {
  const [found] = await rows<SourceRow>(
    db,
    'select index_name, row_filter from dataset_sources where dataset_id = ?',
    [datasetId],
  );
  return found && { indexName: found.index_name, rowFilter: found.row_filter };
}

/** A place as people and kept versions have it. */
export type SourceView = { index_name: string; row_filter: DatasetSource['rowFilter'] } | null;

/** Where the documents of a dataset are, as people see it; null when it is not known. */
export function viewSource(source: DatasetSource | undefined): SourceView {
  return source ? { index_name: source.indexName, row_filter: source.rowFilter } : null;
}

/** Sets where the documents of a dataset are. */
export async function storeDatasetSource(
  tx: Transaction,
  datasetId: string,
  { indexName, rowFilter }: DatasetSource,
): Promise<void> {
  await rows(
    tx,
    `insert into dataset_sources (dataset_id, index_name, row_filter) values (?, ?, ?::jsonb)
     on conflict (dataset_id) do update set
       index_name = excluded.index_name, row_filter = excluded.row_filter`,
    [datasetId, indexName, rowFilter === null ? null : JSON.stringify(rowFilter)],
  );
}
