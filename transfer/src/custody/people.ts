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
import { commandLineActor } from '../open-node.js';
import { askHidden } from '../commands/terminal.js';

/** Asks for a secret and gives what was answered. */
export type AskSecret = (question: string) => Promise<string>;

const MAX_SECRET_BYTES = 1_024;

/**
 * Who acts at a command line: `account`, that of the operating system; or with `as`, once the
 * password was given, `user:<login>` of an enabled operator or admin of this network. An answer takes
 * as long, and says the same, whatever was wrong.
 * @throws SallyportError `unauthenticated`.
 */
export async function identifyPerson(
  db: Database,
  {
    as,
    network,
    account = commandLineActor(),
  }: { as?: string | undefined; network: NetworkName; account?: string | undefined },
  askSecret: AskSecret = askOnTerminal,
): Promise<string> {
  if (as === undefined) return account;
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
 * That a name is that of one person: root's is anybody's, whoever called sudo.
 * @throws SallyportError `unauthenticated`.
 */
export function requirePerson(name: string): void {
  if (!isRoot(name)) return;
  throw new SallyportError('unauthenticated', `${name} may be anybody.`, {
    next: 'Say who you are with --as LOGIN, or act under an account of your own.',
  });
}

/** Whether two names are those of two different people, neither of them root's account. */
export function areTwoPeople(one: string, other: string): boolean {
  return !isRoot(one) && !isRoot(other) && !isSamePerson(one, other);
}

/**
 * Whether two names are the same person's: accounts of the operating system and logins of one name
 * count as one, of whatever domain.
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

function isRoot(name: string): boolean {
  return /^cli:/i.test(name) && bareName(name) === 'root';
}

/** `cli:CORP\Ada`, `user:ada@corp` and `cli:ada (a note)` are all `ada`. */
function bareName(name: string): string {
  return name
    .normalize('NFKC')
    .toLowerCase()
    .replace(/^[^:]*:/, '')
    .replace(/\s*\(.*$/s, '')
    .replace(/^.*\\/s, '')
    .replace(/@.*$/s, '')
    .trim();
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
