import {
  appendAudit,
  findDataset,
  newId,
  SallyportError,
  storeDatasets,
  type Dataset,
  type DatasetRecord,
  type Transaction,
} from '@sallyport/shared';
import { sendRecords, type OutgoingRecord } from '@sallyport/transfer';
import type { Change } from './change.js';
import { readDatasetSource, storeDatasetSource, type DatasetSource } from './dataset-sources.js';

/** What of a dataset an admin may set; where its documents are never crosses. */
export type DatasetChange = Partial<Omit<DatasetRecord, 'version' | 'epoch' | 'name'>> & {
  /** The data was loaded anew. */
  reloaded?: boolean;
  source?: Partial<DatasetSource>;
};

/** @throws SallyportError `already-exists`: names are never used again; `bad-field` without index. */
export async function createDataset(
  tx: Transaction,
  name: string,
  { reloaded: _reloaded, source, ...wanted }: DatasetChange,
  change: Change,
): Promise<Dataset> {
  if (await findDataset(tx, name)) {
    throw new SallyportError('already-exists', `There is, or was, a dataset ${name} already.`);
  }
  const indexName = source?.indexName;
  if (!indexName) throw new SallyportError('bad-field', 'A dataset needs an index or alias.');
  const dataset: Dataset = {
    id: newId(),
    version: 1,
    epoch: 1,
    name,
    title: name,
    description: '',
    time_field: null,
    fields: [],
    disabled: false,
    ...wanted,
  };
  const place = { indexName, rowFilter: source.rowFilter ?? null };
  await publish(tx, { dataset, source: place, action: 'dataset.create' }, change);
  return dataset;
}

/** @throws SallyportError `not-found`. */
export async function changeDataset(
  tx: Transaction,
  name: string,
  { reloaded, source, ...wanted }: DatasetChange,
  change: Change,
): Promise<Dataset> {
  await tx('datasets').where({ name }).forUpdate().first('id');
  const found = await findDataset(tx, name);
  if (!found) throw new SallyportError('not-found', `There is no dataset "${name}".`);
  const dataset: Dataset = {
    ...found,
    ...wanted,
    version: found.version + 1,
    epoch: found.epoch + (reloaded ? 1 : 0),
  };
  const before = await readDatasetSource(tx, found.id);
  const place = before && { ...before, ...source };
  await publish(tx, { dataset, source: place, action: 'dataset.set' }, change);
  return dataset;
}

/** A dataset as it crosses. */
export function datasetRecord({ id, ...data }: Dataset): OutgoingRecord {
  return { type: 'dataset', id, data };
}

async function publish(
  tx: Transaction,
  {
    dataset,
    source,
    action,
  }: {
    dataset: Dataset;
    source: DatasetSource | undefined;
    action: string;
  },
  { now, actor }: Change,
): Promise<void> {
  const { id: subject, name, version, epoch, time_field: timeField, fields, disabled } = dataset;
  if (timeField !== null && !fields.some((one) => one.name === timeField && one.type === 'date')) {
    throw new SallyportError(
      'bad-field',
      `The time field ${timeField} is no date field of ${name}.`,
    );
  }
  await sendRecords(tx, 'settings', [datasetRecord(dataset)], now);
  await storeDatasets(tx, [dataset], now);
  if (source) await storeDatasetSource(tx, subject, source);
  const details = { name, version, epoch, disabled, fields: fields.length };
  await appendAudit(tx, { at: now, actor, action, subject, details });
}
