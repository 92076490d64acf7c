import { createInterface } from 'node:readline/promises';
import { Writable } from 'node:stream';
import { SallyportError } from '@sallyport/shared';

/** Whether a person can be asked, whatever the output is led to. */
export function isPersonThere(): boolean {
  return process.stdin.isTTY && process.stderr.isTTY;
}

/** Asks a person for a secret; what is typed is not shown. */
export async function askHidden(question: string): Promise<string> {
  // A terminal interface echoes through its output; a secret's goes nowhere. It comes before the
  // question: until then the terminal itself would echo.
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() });
  const terminal = createInterface({ input: process.stdin, output: silent, terminal: true });
  process.stderr.write(question);
  try {
    return await terminal.question('');
  } finally {
    terminal.close();
    process.stderr.write('\n');
  }
}

/**
 * Lets a person confirm what cannot be undone.
 * @throws SallyportError `usage` when nobody is there or the answer is not yes.
 */
export async function confirmOnTerminal(
  question: string,
  { given, flag }: { given: boolean; flag: string },
): Promise<void> {
  if (given) return;
  if (!isPersonThere()) {
    throw new SallyportError('usage', 'Nobody is there to confirm this.', {
      next: `Add ${flag} once you are sure: ${question}`,
    });
  }
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  const answer = await terminal.question(`${question} (yes/no) `);
  terminal.close();
  if (answer.trim().toLowerCase() === 'yes') return;
  throw new SallyportError('usage', 'It was not confirmed; nothing changed.');
}
