import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { SallyportError } from '@sallyport/shared';

/** Where the API is and what proves who calls. */
export type CliSession = {
  url: string;
  token: string;
  /** Gets the next pair of tokens; an API key has none. */
  refreshToken?: string;
};

const DEFAULT_URL = 'http://127.0.0.1:8080';

/** The URL to log in at: the one given, else SALLYPORT_URL, else that of the last session. */
export async function loginUrl(given: string | undefined): Promise<string> {
  const url = given ?? process.env['SALLYPORT_URL'] ?? (await readSession())?.url ?? DEFAULT_URL;
  return url.replace(/\/+$/, '');
}

/**
 * What to call with: SALLYPORT_URL and SALLYPORT_API_KEY where they are set, else the session.
 * @throws SallyportError `unauthenticated` when there is neither.
 */
export async function currentSession(): Promise<CliSession> {
  const key = process.env['SALLYPORT_API_KEY'];
  if (key) return { url: await loginUrl(undefined), token: key };
  const session = await readSession();
  if (session) return { ...session, url: await loginUrl(undefined) };
  throw new SallyportError('unauthenticated', 'You are not logged in.', {
    next: 'Run "sallyport login", or set SALLYPORT_URL and SALLYPORT_API_KEY.',
  });
}

/** Keeps the session for the next command, for this account of the machine alone. */
export async function saveSession(session: CliSession): Promise<void> {
  const path = sessionPath();
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const temporary = `${path}.${process.pid}`;
  try {
    await writeFile(temporary, `${JSON.stringify(session)}\n`, { flag: 'wx', mode: 0o600 });
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/** Forgets the session. */
export async function dropSession(): Promise<void> {
  await rm(sessionPath(), { force: true });
}

/** The session that was kept, if there is one. */
export async function readSession(): Promise<CliSession | undefined> {
  try {
    const session = JSON.parse(await readFile(sessionPath(), 'utf8')) as Partial<CliSession>;
    const { url, token, refreshToken } = session;
    if (typeof url !== 'string' || typeof token !== 'string') return undefined;
    return typeof refreshToken === 'string' ? { url, token, refreshToken } : { url, token };
  } catch {
    return undefined;
  }
}

function sessionPath(): string {
  const base = process.env['XDG_CONFIG_HOME'] || join(homedir(), '.config');
  return join(base, 'sallyport', 'session.json');
}
