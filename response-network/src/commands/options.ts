import { readFile } from 'node:fs/promises';
import { SallyportError, type CommandArguments } from '@sallyport/shared';

/** The items of a comma-separated option; undefined when it was not given. */
export function listOf(text: string | undefined): string[] | undefined {
  return text
    ?.split(',')
    .map((item) => item.trim())
    .filter((item) => item !== '');
}

/** The item, if it is one of those allowed. */
export function oneOf<T extends string>(allowed: readonly T[], text: string, what: string): T {
  const found = allowed.find((item) => item === text);
  if (found !== undefined) return found;
  throw new SallyportError('usage', `"${text}" is no ${what}.`, {
    next: `Choose from ${allowed.join(', ')}.`,
  });
}

/** `--enable` and `--disable` as the value of `disabled`; undefined when neither was given. */
export function disabledBy({ switches }: CommandArguments): boolean | undefined {
  if (switches.has('enable') && switches.has('disable')) {
    throw new SallyportError('usage', '--enable and --disable contradict each other.');
  }
  return switches.has('disable') || (switches.has('enable') ? false : undefined);
}

/** Parses JSON that somebody typed. */
export function jsonOf(text: string, what: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new SallyportError('usage', `${what} is not JSON: ${(cause as Error).message}.`, {
      cause,
    });
  }
}

/** The JSON in a file. */
export async function jsonIn(path: string): Promise<unknown> {
  return jsonOf(await textIn(path), path);
}

/** The text in a file. */
export async function textIn(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    throw new SallyportError('usage', `Cannot read ${path}: ${(cause as Error).message}.`, {
      cause,
    });
  }
}

/** The first line of standard input, for secrets that must not appear in a process list. */
export async function firstInputLine(): Promise<string> {
  let text = '';
  for await (const chunk of process.stdin.setEncoding('utf8')) {
    text += chunk as string;
    if (text.includes('\n') || text.length > 4_096) break;
  }
  return (text.split('\n')[0] ?? '').replace(/\r$/, '');
}

/** The members that have a value, so that an option not given leaves things as they are. */
export function given<T extends object>(members: T): { [Key in keyof T]?: NonNullable<T[Key]> } {
  const entries = Object.entries(members).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [Key in keyof T]?: NonNullable<T[Key]> };
}
