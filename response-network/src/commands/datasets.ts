import {
  compileSchema,
  DatasetSchema,
  formatTable,
  listDatasets,
  SallyportError,
  type CommandArguments,
  type CommandOutput,
  type Commands,
  type Dataset,
} from '@sallyport/shared';
import { changeDataset, createDataset, type DatasetChange } from '../dataset-rules.js';
import { describeIndex, type Elastic } from '../elastic/client.js';
import type { CommandContext } from './context.js';
import { disabledBy, given, jsonIn } from './options.js';

const OPTIONS = {
  positionals: [1, 1],
  values: ['index', 'title', 'description', 'time-field', 'fields', 'row-filter'],
  switches: ['discover', 'reloaded', 'enable', 'disable'],
} as const;
const OPTIONS_USAGE =
  '[--title TEXT] [--description TEXT] [--fields FILE | --discover] [--time-field NAME] [--row-filter FILE]';

/** The commands that publish datasets. */
export function datasetCommands(context: CommandContext): Commands {
  return {
    'dataset create': {
      usage: `dataset create NAME --index NAME ${OPTIONS_USAGE}`,
      does: 'Publishes an index or alias under a name; --discover takes the fields from its mapping.',
      ...OPTIONS,
      run: (args) =>
        context.change(async (tx, by, { elastic }) => {
          const wanted = await wantedBy(args, elastic);
          return show(await createDataset(tx, args.positionals[0] ?? '', wanted, by));
        }),
    },
    'dataset set': {
      usage: `dataset set NAME [--index NAME] ${OPTIONS_USAGE} [--reloaded] [--enable|--disable]`,
      does: 'Changes a dataset; what is not named stays; --reloaded says that its data is new.',
      ...OPTIONS,
      run: (args) =>
        context.change(async (tx, by, { elastic }) => {
          const wanted = await wantedBy(args, elastic);
          return show(await changeDataset(tx, args.positionals[0] ?? '', wanted, by));
        }),
    },
    'dataset ls': {
      usage: 'dataset ls',
      does: 'Lists the datasets.',
      run: () =>
        context.use(async ({ db }) => {
          const found = await listDatasets(db);
          const lines = found.map((one) => [
            one.name,
            `${one.version}/${one.epoch}`,
            String(one.fields.length),
            one.time_field ?? '',
            one.disabled ? 'disabled' : 'enabled',
            one.title,
          ]);
          const heading = ['NAME', 'VERSION/EPOCH', 'FIELDS', 'TIME FIELD', 'STATE', 'TITLE'];
          return { text: formatTable(heading, lines), data: found };
        }),
    },
  };
}

async function wantedBy(args: CommandArguments, elastic: Elastic): Promise<DatasetChange> {
  const { values, switches } = args;
  const index = values['index'];
  const filter = values['row-filter'];
  const timeField = values['time-field'];
  return given({
    title: values['title'],
    description: values['description'],
    time_field: timeField,
    fields: switches.has('discover')
      ? await describeIndex(elastic, requireIndex(index))
      : await fieldsIn(values['fields']),
    disabled: disabledBy(args),
    reloaded: switches.has('reloaded') || undefined,
    source: given({
      indexName: index,
      rowFilter: filter === undefined ? undefined : await filterIn(filter),
    }),
  });
}

function requireIndex(index: string | undefined): string {
  if (index !== undefined) return index;
  throw new SallyportError('usage', '--discover needs --index.');
}

async function fieldsIn(path: string | undefined): Promise<Dataset['fields'] | undefined> {
  if (path === undefined) return undefined;
  return compileSchema(DatasetSchema.properties.fields)(await jsonIn(path));
}

async function filterIn(path: string): Promise<Record<string, unknown>> {
  const filter = await jsonIn(path);
  if (typeof filter === 'object' && filter !== null && !Array.isArray(filter)) {
    return filter as Record<string, unknown>;
  }
  throw new SallyportError('usage', `${path} must hold one query clause, a JSON object.`);
}

function show(dataset: Dataset): CommandOutput {
  const { name, version, fields } = dataset;
  return {
    text: `${name} is at version ${version} with ${fields.length} fields.`,
    data: { dataset },
  };
}
