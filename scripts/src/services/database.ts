import pg from 'pg';
import { SallyportError } from '@sallyport/shared';

const FLOOR = 150_000;

/** Refuses a DATABASE_URL that does not lead to a PostgreSQL 15 or newer. */
export async function checkDatabaseUrl(url: string): Promise<void> {
  let version: number;
  try {
    const [row] = await query<{ v: number }>(
      url,
      `select current_setting('server_version_num')::int as v`,
    );
    version = row?.v ?? 0;
  } catch (error) {
    const reason = (error as NodeJS.ErrnoException).code || (error as Error).message;
    throw new SallyportError(
      'store-unavailable',
      `DATABASE_URL: no PostgreSQL lets us in at ${placeOf(url)} (${reason})`,
      { cause: error, next: 'Correct DATABASE_URL, or leave it out to get one for development.' },
    );
  }
  if (version < FLOOR)
    throw new SallyportError(
      'store-unavailable',
      `DATABASE_URL: PostgreSQL ${Math.floor(version / 10_000)} at ${placeOf(url)}, 15 is needed`,
    );
}

/** Makes a database on the server of `url` unless it is there; answers its URL. */
export async function createDatabase(url: string, name: string): Promise<string> {
  if (!/^[a-z_][a-z0-9_]{0,62}$/.test(name)) throw new RangeError(`no database name: ${name}`);
  try {
    await query(url, `create database ${name} template template0`);
  } catch (error) {
    // 23505: two made it in the same moment.
    if (!['42P04', '23505'].includes((error as { code?: string }).code ?? '')) throw error;
  }
  return databaseUrl(url, name);
}

/** The URL of another database on the same server. */
export function databaseUrl(url: string, name: string): string {
  const changed = new URL(url);
  changed.pathname = `/${name}`;
  return changed.href;
}

/** Runs one statement on a connection of its own; at most 5 s to connect. */
export async function query<Row extends object>(url: string, sql: string): Promise<Row[]> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
  // A server that goes down tells idle clients; the query below fails by itself.
  client.on('error', () => undefined);
  try {
    await client.connect();
    return (await client.query<Row>(sql)).rows;
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** Host and port for a message; never the password. */
function placeOf(url: string): string {
  return URL.canParse(url) ? new URL(url).host : 'an address that is no URL';
}
