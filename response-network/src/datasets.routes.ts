import { Type } from 'typebox';
import {
  AdminDatasetSchema,
  answerVersioned,
  DatasetSchema,
  Name,
  ReasonText,
  versionOf,
  viewDataset,
  type Dataset,
  type Principal,
  type Routes,
  type Transaction,
} from '@sallyport/shared';
import { changeBy } from './change.js';
import {
  changeDataset,
  createDataset,
  rollBackDataset,
  type DatasetChange,
} from './dataset-rules.js';
import { readDatasetSource, viewSource } from './dataset-sources.js';
import { previewDataset, PreviewSchema } from './impact.js';
import type { ResponseNetwork } from './network.js';

const strict = { additionalProperties: false };
const { title, description, time_field, fields } = DatasetSchema.properties;
const IndexName = Type.String({ minLength: 1, maxLength: 255, pattern: '^[^\\s,*?"<>|/\\\\]+$' });
const RowFilter = Type.Union([Type.Record(Type.String(), Type.Unknown()), Type.Null()]);
const changeable = {
  ...Type.Partial(Type.Object({ title, description, time_field, fields, reason: ReasonText }))
    .properties,
  /** The data was loaded anew: the epoch rises. */
  reloaded: Type.Optional(Type.Boolean()),
  source: Type.Optional(
    Type.Object(
      { index_name: Type.Optional(IndexName), row_filter: Type.Optional(RowFilter) },
      strict,
    ),
  ),
};
const DryRun = Type.Object({ dry_run: Type.Boolean({ default: false }) }, strict);
const changed = {
  200: {
    description: 'It as it is now, or what would change.',
    schema: Type.Union([AdminDatasetSchema, PreviewSchema]),
  },
  404: { description: 'There is no dataset of this id.' },
  409: { description: 'Somebody else was first.' },
};
type Work = (tx: Transaction) => Promise<Dataset>;
type GivenSource = { index_name?: string; row_filter?: Record<string, unknown> | null };

/** What admins do with datasets; each change leaves for the request network, but for the source. */
export function addDatasetRoutes(routes: Routes<Principal>, network: ResponseNetwork): void {
  const { db, clock } = network;
  const roles = ['admin'] as const;
  const answer = async (dataset: Dataset) => {
    const body = viewDataset(dataset, viewSource(await readDatasetSource(db, dataset.id)));
    return answerVersioned({ version: dataset.version, body });
  };
  const changeOrPreview = async (id: string, work: Work, { dry_run }: { dry_run: boolean }) =>
    dry_run
      ? { status: 200, body: await previewDataset(db, id, work) }
      : answer(await db.transaction(work));

  routes.add({
    method: 'post',
    path: '/v1/admin/datasets',
    summary: 'Publish an index or alias under a name',
    roles,
    body: Type.Object({ ...changeable, name: Name }, strict),
    responses: {
      201: { description: 'It.', schema: AdminDatasetSchema },
      409: { description: 'The name is, or was, taken.' },
    },
    async handler({ body: { name, reason, source, ...wanted }, actor }) {
      const by = changeBy(actor, clock, { reason });
      const placed = { ...wanted, ...placedAt(source) };
      const made = await db.transaction((tx) => createDataset(tx, name, placed, by));
      const { headers, body } = await answer(made);
      const location = { Location: `/v1/admin/datasets/${made.id}` };
      return { status: 201, headers: { ...headers, ...location }, body };
    },
  });

  routes.add({
    method: 'patch',
    path: '/v1/admin/datasets/{id}',
    summary: 'Change what is named of a dataset, or see what that would do',
    roles,
    query: DryRun,
    body: Type.Object(changeable, strict),
    responses: changed,
    async handler({ req, params, query, body: { reason, source, ...wanted }, actor }) {
      const id = params['id'] ?? '';
      const by = changeBy(actor, clock, { reason, expected: versionOf(req.headers['if-match']) });
      const placed = { ...wanted, ...placedAt(source) };
      return changeOrPreview(id, (tx) => changeDataset(tx, { id }, placed, by), query);
    },
  });

  for (const [act, disabled] of [
    ['disable', true],
    ['enable', false],
  ] as const) {
    routes.add({
      method: 'post',
      path: `/v1/admin/datasets/{id}:${act}`,
      summary: disabled ? 'Let nobody query it' : 'Let it be queried again',
      roles,
      query: DryRun,
      body: Type.Object({ reason: ReasonText }, strict),
      responses: changed,
      async handler({ params, query, body, actor }) {
        const id = params['id'] ?? '';
        const by = changeBy(actor, clock, body);
        return changeOrPreview(id, (tx) => changeDataset(tx, { id }, { disabled }, by), query);
      },
    });
  }

  routes.add({
    method: 'post',
    path: '/v1/admin/datasets/{id}:roll-back',
    summary: 'Make what it was in an older version its next one, or see what that would do',
    roles,
    query: DryRun,
    body: Type.Object({ version: Type.Integer({ minimum: 1 }), reason: ReasonText }, strict),
    responses: changed,
    async handler({ req, params, query, body: { version, reason }, actor }) {
      const id = params['id'] ?? '';
      const by = changeBy(actor, clock, { reason, expected: versionOf(req.headers['if-match']) });
      return changeOrPreview(id, (tx) => rollBackDataset(tx, { id }, version, by), query);
    },
  });
}

function placedAt(given: GivenSource | undefined): Pick<DatasetChange, 'source'> {
  if (!given) return {};
  const { index_name: indexName, row_filter: rowFilter } = given;
  return {
    source: {
      ...(indexName === undefined ? {} : { indexName }),
      ...(rowFilter === undefined ? {} : { rowFilter }),
    },
  };
}
