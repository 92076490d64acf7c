import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import knex, { type Knex } from 'knex';
import pg from 'pg';
import { SallyportError } from './errors.js';
import type { Log } from './log.js';

export type Database = Knex;
export type Transaction = Knex.Transaction;

/** A named, parameterised statement that each connection prepares once. */
export type Statement = { name: string; text: string };

const MAX_NOTIFY_WAIT_MS = 5_000;

// 64-bit counters fit a JavaScript number until 2^53; beyond it an exact text is the safer answer.
pg.types.setTypeParser(pg.types.builtins.INT8, (text) => {
  const value = Number(text);
  return Number.isSafeInteger(value) ? value : text;
});

const ignore = (): void => undefined;

/** Opens a pool of connections; nothing is connected until the first statement. */
export function openDatabase(url: string, { poolMax = 20 } = {}): Database {
  return knex({
    client: 'pg',
    connection: { connectionString: url, connectionTimeoutMillis: 10_000, keepAlive: true },
    pool: { min: 0, max: poolMax, afterCreate: noticeDeath },
    acquireConnectionTimeout: 15_000,
    // What goes wrong is thrown; knex would write it to the terminal besides.
    log: { warn: ignore, error: ignore, deprecate: ignore, debug: ignore },
  });
}

/**
 * Lets the server end a statement whose client is gone, as one that was killed: its locks would stay
 * until the statement ends. A server before version 14, or on a system that cannot, does without.
 */
function noticeDeath(connection: pg.Client, done: (error: null, connection: pg.Client) => void) {
  connection.query(`set client_connection_check_interval = '500ms'`, () => done(null, connection));
}

/** Runs a statement that each connection prepares once: the hot path's way to the database. */
export async function runPrepared<Row>(
  db: Database,
  statement: Statement,
  values: unknown[],
): Promise<Row[]> {
  return withConnection(db, async (connection) => {
    const result = await connection.query<Row & pg.QueryResultRow>({ ...statement, values });
    return result.rows;
  });
}

/**
 * The rows of a statement with `:name` bindings that each connection prepares once: as {@link rows},
 * without the planning. For texts that are constants and run once per batch or more often.
 */
export async function preparedRows<Row>(
  db: Database,
  sql: string,
  values: Readonly<Record<string, unknown>>,
): Promise<Row[]> {
  const { statement, names } = compiled.get(sql) ?? compileNamed(sql);
  return runPrepared<Row>(
    db,
    statement,
    names.map((name) => values[name]),
  );
}

const compiled = new Map<string, { statement: Statement; names: string[] }>();

function compileNamed(sql: string): { statement: Statement; names: string[] } {
  const names: string[] = [];
  const text = sql.replace(/(?<![:\w]):([a-z]\w*)/gi, (_, name: string) => {
    if (!names.includes(name)) names.push(name);
    return `$${names.indexOf(name) + 1}`;
  });
  const name = `p${createHash('sha256').update(text).digest('hex').slice(0, 32)}`;
  const entry = { statement: { name, text }, names };
  compiled.set(sql, entry);
  return entry;
}

/** Lends the raw connection behind a handle, of the transaction if it is one (for COPY). */
export async function withConnection<T>(
  db: Database,
  use: (connection: pg.Client) => Promise<T>,
): Promise<T> {
  const client = db.client as Knex.Client;
  const connection = (await client.acquireConnection()) as pg.Client;
  try {
    return await use(connection);
  } finally {
    await client.releaseConnection(connection);
  }
}

/**
 * Runs the work while holding a session-level advisory lock.
 * @returns undefined, without running it, when somebody else holds the lock.
 */
export async function withAdvisoryLock<T>(
  db: Database,
  name: string,
  work: () => Promise<T>,
): Promise<{ done: T } | undefined> {
  return withConnection(db, async (connection) => {
    const taken = await connection.query<{ held: boolean }>(
      'select pg_try_advisory_lock(hashtextextended($1, 0)) as held',
      [name],
    );
    if (!taken.rows[0]?.held) return undefined;
    try {
      return { done: await work() };
    } finally {
      await connection.query('select pg_advisory_unlock(hashtextextended($1, 0))', [name]);
    }
  });
}

/** The rows of a raw statement. */
export async function rows<Row>(
  db: Database,
  sql: string,
  bindings: readonly Knex.RawBinding[] | Knex.ValueDict = [],
): Promise<Row[]> {
  const result: { rows: Row[] } = await db.raw(sql, bindings as Knex.ValueDict);
  return result.rows;
}

/** The migrations of this package, for {@link migrate}. */
export const sharedMigrations = fileURLToPath(new URL('../migrations/', import.meta.url));

/**
 * Brings the database up to date with the numbered `.sql` files of the folders, in the order given.
 * Forward only; each file in its own transaction; safe to run from several processes at once.
 */
export async function migrate(db: Database, folders: string[]): Promise<string[]> {
  const [, applied] = (await db.migrate.latest(await migrationConfig(folders))) as [
    number,
    string[],
  ];
  return applied;
}

/** @throws SallyportError `migrations-pending` when the database lacks a migration of the folders. */
export async function requireMigrated(db: Database, folders: string[]): Promise<void> {
  const [, pending] = (await db.migrate.list(await migrationConfig(folders))) as [
    unknown[],
    { name: string }[],
  ];
  if (pending.length === 0) return;
  throw new SallyportError(
    'migrations-pending',
    `The database lacks ${pending.length} migration(s), first ${pending[0]?.name}.`,
    { next: 'Run the migrate command (or init) of this network.' },
  );
}

async function migrationConfig(folders: string[]): Promise<Knex.MigratorConfig> {
  const files: { name: string; path: string }[] = [];
  for (const folder of folders) {
    const names = (await readdir(folder)).filter((name) => name.endsWith('.sql')).sort();
    files.push(...names.map((name) => ({ name: name.slice(0, -4), path: join(folder, name) })));
  }
  return {
    tableName: 'migrations',
    migrationSource: {
      getMigrations: () => Promise.resolve(files),
      getMigrationName: (file: { name: string }) => file.name,
      getMigration: async (file: { path: string }) => {
        const sql = await readFile(file.path, 'utf8');
        return { up: async (tx: Knex) => tx.raw(sql), down: () => Promise.resolve() };
      },
    },
  };
}

/** Asks the database for a sign of life. */
export async function pingDatabase(db: Database): Promise<void> {
  await db.raw('select 1');
}

/** Whether the error means that the database cannot be reached (as against: it refused). */
export function isConnectionError(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const code = (error as { code?: unknown }).code;
  if (typeof code === 'string' && /^(ECONN|EPIPE|ETIMEDOUT|ENOTFOUND|EHOST|57P0|08)/.test(code)) {
    return true;
  }
  return /Connection terminated|connection timeout|Timeout acquiring a connection|Client has encountered a connection error/i.test(
    error.message,
  );
}

const DEADLOCK_TRIES = 3;

/** Does one transaction's work again, at most twice, when PostgreSQL ended it to break a deadlock. */
export async function retryDeadlock<T>(work: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries += 1) {
    try {
      return await work();
    } catch (error) {
      const { code } = error as { code?: unknown };
      if (code !== '40P01' || tries === DEADLOCK_TRIES) throw error;
    }
  }
}

/**
 * A failure to reach or enter the database as a failure that its reader can mend; others unchanged.
 * For the edges: command lines and the start of a process.
 */
export function explainDatabaseError(error: unknown): unknown {
  const code = (error as { code?: unknown } | undefined)?.code;
  const refused = code === '28P01' || code === '28000' || code === '3D000';
  if (error instanceof SallyportError || (!refused && !isConnectionError(error))) return error;
  const { message, errors } = error as Error & { errors?: Error[] };
  const found = message || errors?.map((each) => each.message).join('; ');
  return new SallyportError('store-unavailable', `PostgreSQL cannot be used: ${found}.`, {
    cause: error,
    next: 'Check that it runs, and that DATABASE_URL names the right host, database and account.',
  });
}

export type Listener = { connected(): boolean; close(): Promise<void> };

/**
 * Listens to PostgreSQL notifications on one connection of its own and reconnects by itself with
 * back-off. `onGap` runs after each (re)connect, because notifications sent meanwhile are lost.
 */
export function listen(
  url: string,
  channels: Record<string, (payload: string) => void>,
  { log, onGap }: { log: Log; onGap?: () => void },
): Listener {
  let client: pg.Client | undefined;
  let closed = false;
  let connected = false;
  let waitMs = 100;
  let timer: NodeJS.Timeout | undefined;

  const retry = () => {
    connected = false;
    if (closed || timer) return;
    timer = setTimeout(() => {
      timer = undefined;
      void connect();
    }, waitMs);
    waitMs = Math.min(waitMs * 2, MAX_NOTIFY_WAIT_MS);
  };

  const connect = async () => {
    const fresh = new pg.Client({ connectionString: url, keepAlive: true });
    client = fresh;
    fresh.on('error', (err) => log.warn({ err }, 'lost the notification connection'));
    fresh.on('end', retry);
    fresh.on('notification', ({ channel, payload }) => channels[channel]?.(payload ?? ''));
    try {
      await fresh.connect();
      for (const channel of Object.keys(channels)) {
        await fresh.query(`listen ${fresh.escapeIdentifier(channel)}`);
      }
      connected = true;
      waitMs = 100;
      onGap?.();
    } catch (err) {
      log.debug({ err }, 'could not listen for notifications');
      await fresh.end().catch(() => undefined);
      retry();
    }
  };

  void connect();
  return {
    connected: () => connected,
    async close() {
      closed = true;
      clearTimeout(timer);
      await client?.end().catch(() => undefined);
    },
  };
}
