import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { format } from 'prettier';
import type { TObject, TSchema } from 'typebox';
import { ConfigSchema as RequestConfig } from '@sallyport/request-network';
import { ConfigSchema as ResponseConfig } from '@sallyport/response-network';
import { EXIT, SETTINGS, httpProblem, listHttpCodes } from '@sallyport/shared';

const root = resolve(fileURLToPath(import.meta.url), '../../..');

/** The pages with parts that are made from the code, and their paths below the clone. */
export const REFERENCE_PAGES = [
  'docs/reference/configuration.md',
  'docs/reference/commands.md',
  'docs/reference/http.md',
] as const;

/** Where each tool is started. */
const TOOLS = {
  sallyport: 'request-network/bin/sallyport.js',
  'sallyport-carry': 'transfer/bin/sallyport-carry.js',
  'sallyport-request': 'request-network/bin/sallyport-request.js',
  'sallyport-response': 'response-network/bin/sallyport-response.js',
} as const;

const EXIT_MEANINGS: Record<keyof typeof EXIT, string> = {
  ok: 'done',
  usage: 'the command or the configuration is not right',
  auth: 'not logged in, or without the right',
  policy: 'refused by the policy or as not valid',
  limited: 'a limit is reached',
  notFound: 'there is no such thing',
  integrity: 'a batch file or the store is not in order',
  timeout: 'still under way when the waiting time was over',
  other: 'anything else: a server, database or disk that fails',
};

/** The parts that are made from the code, by the name in their `generated` marks. */
const PARTS: Readonly<Record<string, () => string | Promise<string>>> = {
  'request-environment': () => environmentTable(RequestConfig),
  'response-environment': () => environmentTable(ResponseConfig),
  settings: settingsTable,
  'exit-codes': () =>
    table(
      ['Code', 'Meaning'],
      Object.entries(EXIT).map(([name, code]) => [
        String(code),
        EXIT_MEANINGS[name as keyof typeof EXIT],
      ]),
    ),
  problems: () =>
    table(
      ['Status', 'Code', 'Meaning'],
      listHttpCodes().map((code) => {
        const { status, title } = httpProblem(code);
        return [String(status), `\`${code}\``, title];
      }),
    ),
  ...Object.fromEntries(
    Object.entries(TOOLS).map(([name, path]) => [name, () => commandList(name, path)]),
  ),
};

const MARKED = /(<!-- generated: ([a-z-]+) -->)[\s\S]*?(<!-- end -->)/g;

/** Reads a page from the clone. */
export async function readPage(path: string): Promise<string> {
  return readFile(join(root, path), 'utf8');
}

/** The page as it should be: what lies between `generated` marks made anew, formatted. */
export async function renderPage(text: string): Promise<string> {
  const parts = new Map<string, string>();
  for (const [, , name = ''] of text.matchAll(MARKED)) {
    const make = PARTS[name];
    if (!make) throw new Error(`no part is called ${name}`);
    parts.set(name, await make());
  }
  const filled = text.replaceAll(
    MARKED,
    (_all, start: string, name: string, end: string) =>
      `${start}\n\n${parts.get(name) ?? ''}\n\n${end}`,
  );
  return format(filled, { parser: 'markdown', printWidth: 100 });
}

type Facts = {
  type?: string;
  default?: unknown;
  description?: string;
  minimum?: number;
  maximum?: number;
  enum?: unknown[];
  required?: string[];
  properties?: Record<string, TSchema>;
};

function environmentTable(schema: TObject): string {
  const { required = [], properties = {} } = schema as Facts;
  return table(
    ['Variable', 'Needed', 'Default', 'Meaning'],
    Object.entries(properties).map(([name, each]) => {
      const { default: value, description } = each as Facts;
      const needed = required.includes(name) && value === undefined;
      const range = describeRange(each);
      return [
        `\`${name}\``,
        needed ? 'yes' : 'no',
        value === undefined ? '' : `\`${text(value)}\``,
        `${description ?? ''}${range && `; ${range}`}`,
      ];
    }),
  );
}

function settingsTable(): string {
  return table(
    ['Setting', 'Default', 'Range', 'Local', 'Meaning'],
    Object.entries(SETTINGS).map(([key, spec]) => [
      `\`${key}\``,
      `\`${text(spec.default)}\``,
      describeRange(spec.schema),
      spec.local ? 'yes' : '',
      spec.description,
    ]),
  );
}

/** What values a schema lets pass, in words. */
function describeRange(schema: TSchema): string {
  const { type, minimum, maximum, enum: choices, properties } = schema as Facts;
  if (choices) return choices.map((choice) => `\`${text(choice)}\``).join(', ');
  if (type === 'integer') return `${number(minimum)} to ${number(maximum)}`;
  // A range of its own: both ends have the same limits.
  if (properties?.['min']) return describeRange(properties['min']);
  return Object.entries(properties ?? {})
    .map(([name, each]) => `${name} ${describeRange(each)}`)
    .join('; ');
}

function number(value: number | undefined): string {
  return value?.toLocaleString('en') ?? '…';
}

async function commandList(name: string, path: string): Promise<string> {
  const help = [join(root, path), '--help', '--json'];
  const { stdout } = await promisify(execFile)(process.execPath, help);
  const commands = JSON.parse(stdout) as { usage: string; does: string }[];
  return commands
    .map(({ usage, does }) => `- \`${usage.slice(name.length + 1)}\` — ${does}`)
    .join('\n');
}

function table(heading: string[], lines: string[][]): string {
  const row = (cells: string[]) =>
    `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [row(heading), row(heading.map(() => '---')), ...lines.map(row)].join('\n');
}

function text(value: unknown): string {
  return typeof value === 'string' && value !== '' ? value : JSON.stringify(value);
}
