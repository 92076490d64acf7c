import {
  appendAudit,
  auditChanges,
  findDataset,
  keepRevision,
  listChanges,
  newId,
  notifyChanged,
  readRevision,
  RULES_CHANGED,
  SallyportError,
  storeDatasets,
  type Dataset,
  type DatasetRecord,
  type Transaction,
} from '@sallyport/shared';
import { sendRecords, type OutgoingRecord } from '@sallyport/transfer';
import { requireExpected, type Change } from './change.js';
import {
  readDatasetSource,
  storeDatasetSource,
  viewSource,
  type DatasetSource,
  type SourceView,
} from './dataset-sources.js';
import { lockNames } from './names.js';

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
  await lockNames(tx);
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

/** Which dataset: by name, or by id. */
export type WhichDataset = string | { id: string };

/**
 * Changes what is named; a change that changes nothing makes no version.
 * @throws SallyportError `not-found`, `version-conflict`, `bad-field`.
 */
export async function changeDataset(
  tx: Transaction,
  which: WhichDataset,
  { reloaded, source, ...wanted }: DatasetChange,
  change: Change,
): Promise<Dataset> {
  const found = await requireDataset(tx, which, change);
  const dataset = { ...found.dataset, ...wanted };
  if (reloaded) dataset.epoch += 1;
  const place = found.source && { ...found.source, ...source };
  return replace(tx, found, { dataset, source: place }, 'dataset.set', change);
}

/**
 * Makes what a dataset was in an older version its next one; its epoch, and whether it is disabled,
 * stay.
 * @throws SallyportError `not-found`, `version-conflict`, `bad-field`.
 */
export async function rollBackDataset(
  tx: Transaction,
  which: WhichDataset,
  version: number,
  change: Change,
): Promise<Dataset> {
  const found = await requireDataset(tx, which, change);
  const { id, epoch, disabled } = found.dataset;
  const kept = await readRevision(tx, { kind: 'dataset', id }, version);
  const { source, ...old } = kept as DatasetRecord & { source: SourceView };
  const dataset = { ...old, id, epoch, disabled, version: found.dataset.version };
  const place = source && { indexName: source.index_name, rowFilter: source.row_filter };
  const wanted = { dataset, source: place ?? found.source };
  return replace(tx, found, wanted, 'dataset.roll-back', change);
}

/** A dataset as it crosses. */
export function datasetRecord({ id, ...data }: Dataset): OutgoingRecord {
  return { type: 'dataset', id, data };
}

type Placed = { dataset: Dataset; source: DatasetSource | undefined };

async function replace(
  tx: Transaction,
  found: Placed,
  wanted: Placed,
  action: string,
  change: Change,
): Promise<Dataset> {
  if (listChanges(found, wanted).length === 0) return found.dataset;
  const dataset = { ...wanted.dataset, version: found.dataset.version + 1 };
  await publish(tx, { before: found, dataset, source: wanted.source, action }, change);
  return dataset;
}

async function publish(
  tx: Transaction,
  { before, dataset, source, action }: Placed & { before?: Placed; action: string },
  { now, actor, reason = null }: Change,
): Promise<void> {
  const { id, ...data } = dataset;
  const { name, version, epoch, time_field: timeField, fields } = dataset;
  if (timeField !== null && !fields.some((one) => one.name === timeField && one.type === 'date')) {
    throw new SallyportError(
      'bad-field',
      `The time field ${timeField} is no date field of ${name}.`,
    );
  }
  await sendRecords(tx, 'settings', [datasetRecord(dataset)], now);
  await storeDatasets(tx, [dataset], now);
  if (source) await storeDatasetSource(tx, id, source);
  const all = { ...data, source: viewSource(source) };
  const revision = { version, at: now, actor, reason, data: all };
  await keepRevision(tx, { kind: 'dataset', id }, revision);
  const old = before ? { ...before.dataset, source: viewSource(before.source) } : {};
  const changes = auditChanges(old, { id, ...all });
  const details = { name, version, epoch, reason, ...changes };
  await appendAudit(tx, { at: now, actor, action, subject: id, details });
  await notifyChanged(tx, RULES_CHANGED);
}

async function requireDataset(
  tx: Transaction,
  which: WhichDataset,
  change: Change,
): Promise<Placed> {
  const [by, name] =
    typeof which === 'string' ? [{ name: which }, which] : [{ id: which.id }, which.id];
  const row = await tx('datasets')
    .where(by)
    .forUpdate()
    .first<{ name: string } | undefined>('name');
  const dataset = row && (await findDataset(tx, row.name));
  if (!dataset) throw new SallyportError('not-found', `There is no dataset "${name}".`);
  requireExpected(dataset, change);
  return { dataset, source: await readDatasetSource(tx, dataset.id) };
}
