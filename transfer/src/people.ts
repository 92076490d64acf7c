import { text as readAll } from 'node:stream/consumers';
import {
  SallyportError,
  burnPassword,
  findUserByLogin,
  readCredential,
  rolesOn,
  verifyPassword,
  type Database,
  type NetworkName,
} from '@sallyport/shared';
import { commandLineActor } from './open-node.js';
import { askHidden } from './terminal.js';

/** Asks for a secret and gives what was answered. */
export type AskSecret = (question: string) => Promise<string>;

const MAX_SECRET_BYTES = 1_024;

/**
 * Who acts at a command line: `cli:<account of the operating system>`; or with `as`, once the
 * password was given, `user:<login>` of an enabled operator or admin of this network. An answer takes
 * as long, and says the same, whatever was wrong.
 * @throws SallyportError `unauthenticated`.
 */
export async function identifyPerson(
  db: Database,
  { as, network }: { as?: string | undefined; network: NetworkName },
  askSecret: AskSecret = askOnTerminal,
): Promise<string> {
  if (as === undefined) return commandLineActor();
  const password = await askSecret(`Password of ${as}: `);
  const user = await findUserByLogin(db, as);
  const credential = user && (await readCredential(db, user.id));
  const mayDecide =
    user && rolesOn(user, network).some((role) => role === 'operator' || role === 'admin');
  // A password that must be changed first is known to whoever gave it out.
  if (!user || !credential || user.disabled || user.must_change_password || !mayDecide) {
    await burnPassword(password);
    throw refusal();
  }
  if (!(await verifyPassword(credential.verifier, password))) throw refusal();
  return `user:${user.login}`;
}

/**
 * Whether two names are the same person's: the account of the operating system and the login of
 * one name count as one.
 */
export function isSamePerson(one: string, other: string): boolean {
  return bareName(one) === bareName(other);
}

/** Asks for a secret without echo; where there is no terminal, takes the first line of the input. */
export async function askOnTerminal(question: string): Promise<string> {
  if (!process.stdin.isTTY) {
    const [line = ''] = (await readAll(process.stdin)).split('\n');
    return line.replace(/\r$/, '').slice(0, MAX_SECRET_BYTES);
  }
  return askHidden(question);
}

function bareName(name: string): string {
  return name
    .slice(name.indexOf(':') + 1)
    .normalize('NFKC')
    .toLowerCase();
}

function refusal(): SallyportError {
  return new SallyportError(
    'unauthenticated',
    'The login or the password is not right, or the account may not decide here.',
    {
      next: 'It takes an enabled operator or admin of this network who has changed the first password.',
    },
  );
}
