import { parseArgs, type ParseArgsConfig } from 'node:util';
import { explainDatabaseError } from './database.js';
import {
  batchCodeKind,
  httpProblem,
  SallyportError,
  type BatchCode,
  type ErrorCode,
} from './errors.js';

/** What a command says: `text` to people, `data` to programs (`--json`). */
export type CommandOutput = {
  text: string;
  data: unknown;
  /** Other than 0 when what was asked was done and the news is bad. */
  exitCode?: number;
};

export type CommandArguments = {
  positionals: string[];
  /** Values of options that take one, by name without dashes. */
  values: Readonly<Record<string, string | undefined>>;
  /** Names of the switches that were given. */
  switches: ReadonlySet<string>;
};

export type Command = {
  /** What follows the program's name, positionals in capitals: `user create LOGIN [--admin]`. */
  usage: string;
  /** One sentence. */
  does: string;
  /** Fewest and most positionals; none unless set. */
  positionals?: readonly [least: number, most: number];
  /** Options that take a value. */
  values?: readonly string[];
  /** Options that take none. `json` and `help` are always there. */
  switches?: readonly string[];
  /** Nothing is printed when it gives nothing: long-running commands log instead. */
  run(args: CommandArguments): Promise<CommandOutput | undefined>;
};

/** Commands by their first words: `serve`, `user create`. */
export type Commands = Readonly<Record<string, Command>>;

/** Exit codes of every tool (docs/reference/commands.md). */
export const EXIT = {
  ok: 0,
  usage: 2,
  auth: 3,
  policy: 4,
  limited: 5,
  notFound: 6,
  integrity: 7,
  timeout: 8,
  other: 9,
} as const;

/**
 * Runs one command of a table, prints what it says to standard output and a failure to standard
 * error as `CODE: sentence` and a next step, and sets the exit code of the process.
 */
export async function runCommandLine(
  program: string,
  commands: Commands,
  argv: readonly string[],
): Promise<void> {
  const json = argv.includes('--json');
  try {
    const output = await dispatch(program, commands, argv);
    if (!output) return;
    process.stdout.write(json ? `${JSON.stringify(output.data)}\n` : `${output.text}\n`);
    if (output.exitCode !== undefined) process.exitCode = output.exitCode;
  } catch (thrown) {
    const error = explainError(thrown);
    process.exitCode = exitCodeOf(error);
    process.stderr.write(`${json ? failureJson(error) : failureText(error)}\n`);
  }
}

/** Codes written in small letters that say that bytes are not what they should be. */
const INTEGRITY_CODES: readonly ErrorCode[] = [
  'store-ahead',
  'store-bytes-missing',
  'medium-bad',
  'read-back-differs',
  'index-invalid',
  'index-mismatch',
  'card-invalid',
  'medium-invalid',
  'export-invalid',
];

/** The exit code that tells what kind of failure it was. */
export function exitCodeOf(error: unknown): number {
  if (!(error instanceof SallyportError)) return EXIT.other;
  const { code } = error;
  if (code === 'usage' || code === 'config-invalid' || code === 'gap-code-wrong') return EXIT.usage;
  if (code === 'version-conflict') return EXIT.policy;
  if (INTEGRITY_CODES.includes(code)) return EXIT.integrity;
  // The codes of batches are written in capitals.
  if (code === code.toUpperCase()) {
    const kind = batchCodeKind(code as BatchCode);
    return kind === 'reject' || kind === 'alarm' ? EXIT.integrity : EXIT.other;
  }
  const { status } = httpProblem(code);
  if (status === 401 || code === 'scope-missing' || code === 'role-missing') return EXIT.auth;
  if (status === 403 || status === 413 || status === 422) return EXIT.policy;
  if (status === 429) return EXIT.limited;
  return status === 404 ? EXIT.notFound : EXIT.other;
}

const UNPRINTABLE =
  // eslint-disable-next-line no-control-regex
  /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

/**
 * Text from outside for a terminal: control characters and those that turn the direction of writing
 * are written out, so that no line can be forged.
 */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, (character) => {
    const code = character.charCodeAt(0).toString(16);
    return code.length > 2 ? `\\u${code.padStart(4, '0')}` : `\\x${code.padStart(2, '0')}`;
  });
}

/** A table for people: columns padded to their widest cell, a heading line. */
export function formatTable(
  heading: readonly string[],
  lines: readonly (readonly string[])[],
): string {
  const all = [heading, ...lines.map((line) => line.map(printable))];
  const widths = heading.map((_, column) =>
    Math.max(...all.map((line) => (line[column] ?? '').length)),
  );
  return all
    .map((line) =>
      line
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

async function dispatch(
  program: string,
  commands: Commands,
  argv: readonly string[],
): Promise<CommandOutput | undefined> {
  const words = [argv.slice(0, 2).join(' '), argv[0] ?? ''].find((name) =>
    Object.hasOwn(commands, name),
  );
  if (words === undefined) {
    const wanted = argv[0] === undefined || argv[0] === 'help' || argv.includes('--help');
    if (wanted) return helpOn(program, Object.values(commands));
    throw usageError(`There is no command "${argv[0]}".`, program);
  }
  const command = commands[words] as Command;
  if (argv.includes('--help')) return helpOn(program, [command]);
  return command.run(parse(program, command, argv.slice(words.split(' ').length)));
}

function parse(program: string, command: Command, argv: readonly string[]): CommandArguments {
  const options: NonNullable<ParseArgsConfig['options']> = { json: { type: 'boolean' } };
  for (const name of command.values ?? []) options[name] = { type: 'string' };
  for (const name of command.switches ?? []) options[name] = { type: 'boolean' };
  const usage = `${program} ${command.usage}`;
  let parsed;
  try {
    parsed = parseArgs({ args: [...argv], options, allowPositionals: true, strict: true });
  } catch (cause) {
    throw usageError((cause as Error).message, usage);
  }
  const [least, most] = command.positionals ?? [0, 0];
  const { positionals } = parsed;
  if (positionals.length < least || positionals.length > most) {
    throw usageError(`Expected ${range(least, most)}, found ${positionals.length}.`, usage);
  }
  const given = Object.entries(parsed.values);
  return {
    positionals,
    values: Object.fromEntries(
      given.flatMap(([name, value]) => (typeof value === 'string' ? [[name, value]] : [])),
    ),
    switches: new Set(given.flatMap(([name, value]) => (value === true ? [name] : []))),
  };
}

function range(least: number, most: number): string {
  if (least === most) return `${least} argument(s)`;
  return `${least} to ${most} arguments`;
}

function usageError(message: string, usage: string): SallyportError {
  return new SallyportError('usage', message, { next: `Usage: ${usage} (--help explains)` });
}

function helpOn(program: string, commands: Command[]): CommandOutput {
  const lines = commands.map(({ usage, does }) => `  ${program} ${usage}\n      ${does}`);
  return {
    text: `${lines.join('\n')}\n\n  --json prints what programs read; --help explains a command.`,
    data: commands.map(({ usage, does }) => ({ usage: `${program} ${usage}`, does })),
  };
}

function explainError(error: unknown): unknown {
  if ((error as NodeJS.ErrnoException | undefined)?.code === 'EADDRINUSE') {
    return new SallyportError('config-invalid', (error as Error).message, {
      cause: error,
      next: 'Another process has this port: set HTTP_PORT to a free one.',
    });
  }
  return explainDatabaseError(error);
}

function failureText(error: unknown): string {
  if (!(error instanceof SallyportError)) return `internal: ${messageOf(error)}`;
  const details = error.errors.map((entry) => `\n  ${entry.pointer || '/'}: ${entry.detail}`);
  return `${error.code}: ${error.message}${details.join('')}${error.next ? `\n${error.next}` : ''}`;
}

function failureJson(error: unknown): string {
  if (!(error instanceof SallyportError)) {
    return JSON.stringify({ error: { code: 'internal', message: messageOf(error) } });
  }
  const { code, message, next, errors } = error;
  return JSON.stringify({ error: { code, message, next: next ?? null, errors } });
}

// AggregateError (several addresses refused the connection) has an empty message of its own.
function messageOf(error: unknown): string {
  if (error instanceof AggregateError && !error.message) {
    return error.errors.map(messageOf).join('; ');
  }
  return error instanceof Error ? error.message : String(error);
}
