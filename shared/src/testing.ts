import { createHash, randomBytes } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import pg from 'pg';
import { migrate, openDatabase, type Database } from './database.js';

export * from './testing-access.js';

export type TestDatabase = { db: Database; url: string; drop(): Promise<void> };

// Databases given back and emptied, by template: making one takes up to a second, emptying it a few
// milliseconds.
const emptied = new Map<string, string[]>();
process.once('beforeExit', () => void dropEmptied());

/** Copies every table into a schema `pristine`, whose function makes the database what it is now. */
const PRISTINE = `
create schema pristine;
create view pristine.tables as
  select format('%I.%I', schemaname, tablename) as name, format('pristine.%I', schemaname || '.' || tablename) as copy
  from pg_tables where schemaname not in ('pg_catalog', 'information_schema', 'pristine');
do $$
declare t record;
begin
  for t in select * from pristine.tables loop
    execute format('create table %s as table %s', t.copy, t.name);
  end loop;
end $$;
create function pristine.restore() returns void language plpgsql as $$
declare
  t record;
  dirty boolean;
  seeded boolean;
begin
  perform pg_terminate_backend(pid, 5000) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid();
  -- Neither triggers nor foreign keys are asked.
  set local session_replication_role = replica;
  for t in select * from pristine.tables where to_regclass(copy) is null loop
    execute format('drop table %s cascade', t.name);
  end loop;
  for t in select nspname as name from pg_namespace
    where left(nspname, 3) <> 'pg_' and nspname not in ('information_schema', 'pristine', 'public')
      and not exists (select 1 from pg_tables where schemaname = nspname) loop
    execute format('drop schema %I cascade', t.name);
  end loop;
  for t in select * from pristine.tables loop
    execute format('select exists (select from %s)', t.name) into dirty;
    execute format('select exists (select from %s)', t.copy) into seeded;
    if dirty then execute format('delete from %s', t.name); end if;
    if seeded then
      execute format('insert into %s overriding system value table %s', t.name, t.copy);
    end if;
  end loop;
  perform setval(format('%I.%I', schemaname, sequencename), start_value, false)
    from pg_sequences where schemaname <> 'pristine' and last_value is not null;
end $$`;

/**
 * A fresh database cloned from a template that has the migrations of the folders; for tests only.
 * The server is the one DATABASE_URL names; `drop` closes the pool and gives the database back. What
 * a test does to the shape of the template's own tables or functions, it undoes.
 */
export async function createTestDatabase(folders: string[]): Promise<TestDatabase> {
  const serverUrl = requireEnvironment('DATABASE_URL');
  const template = `sallyport_template_${await digestFolders(folders)}`;
  const name = emptied.get(template)?.pop() ?? (await cloneTemplate(serverUrl, template, folders));
  const url = databaseUrl(serverUrl, name);
  const db = openDatabase(url);
  return {
    db,
    url,
    async drop() {
      await db.destroy();
      try {
        await withClient(url, (client) => client.query('select pristine.restore()'));
        emptied.set(template, [...(emptied.get(template) ?? []), name]);
      } catch {
        // The test has removed it, or the account may not: a new one will be made.
        await withClient(serverUrl, (client) => dropDatabase(client, name));
      }
    },
  };
}

async function cloneTemplate(
  serverUrl: string,
  template: string,
  folders: string[],
): Promise<string> {
  const name = `sallyport_test_${randomBytes(8).toString('hex')}`;
  await withClient(serverUrl, async (client) => {
    // One lock for all: a template with an open connection cannot be cloned.
    await client.query('select pg_advisory_lock(7215001)');
    try {
      const found = await client.query('select 1 from pg_database where datname = $1', [template]);
      if (found.rowCount === 0) await makeTemplate(client, serverUrl, template, folders);
      await client.query(`create database ${name} template ${template}`);
    } finally {
      await client.query('select pg_advisory_unlock(7215001)');
    }
  });
  return name;
}

async function dropEmptied(): Promise<void> {
  const names = [...emptied.values()].flat();
  emptied.clear();
  if (names.length === 0) return;
  await withClient(requireEnvironment('DATABASE_URL'), async (client) => {
    for (const name of names) await dropDatabase(client, name);
  });
}

const dropDatabase = (client: pg.Client, name: string) =>
  client.query(`drop database if exists ${name} with (force)`);

/** Waits until the check gives a value other than undefined or false, at most `limitMs`. */
export async function eventually<T>(
  check: () => Promise<T | undefined | false> | T | undefined | false,
  limitMs = 20_000,
): Promise<T> {
  const deadline = Date.now() + limitMs;
  for (;;) {
    const value = await check();
    if (value !== undefined && value !== false) return value;
    if (Date.now() > deadline)
      throw new Error(`${check.toString()} gave nothing within ${limitMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** An environment variable that the test run sets; without it the test fails, it is not skipped. */
export function requireEnvironment(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set; npm test starts the services that set it`);
  return value;
}

async function makeTemplate(
  client: pg.Client,
  serverUrl: string,
  template: string,
  folders: string[],
): Promise<void> {
  const unfinished = `${template}_unfinished`;
  await dropDatabase(client, unfinished);
  await client.query(`create database ${unfinished}`);
  const url = databaseUrl(serverUrl, unfinished);
  const db = openDatabase(url);
  await migrate(db, folders).finally(() => db.destroy());
  await withClient(url, (fresh) => fresh.query(PRISTINE));
  await client.query(`alter database ${unfinished} rename to ${template}`);
}

async function digestFolders(folders: string[]): Promise<string> {
  const hash = createHash('sha256').update(PRISTINE);
  for (const folder of folders) {
    for (const name of (await readdir(folder)).sort()) {
      hash.update(name).update(await readFile(join(folder, name)));
    }
  }
  return hash.digest('hex').slice(0, 16);
}

function databaseUrl(serverUrl: string, name: string): string {
  const url = new URL(serverUrl);
  url.pathname = `/${name}`;
  return url.href;
}

async function withClient<T>(url: string, use: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return await use(client);
  } finally {
    await client.end();
  }
}

/** What an API answered. */
export type TestAnswer = {
  status: number;
  headers: Headers;
  body: Record<string, unknown>;
  text: string;
};
export type CallOptions = {
  as?: string | null;
  method?: string;
  body?: unknown;
  text?: string;
  headers?: Record<string, string>;
  signal?: AbortSignal;
};

/** Calls an API with JSON in and out; a body makes it a POST unless a method is given. */
export async function callJson(
  url: string,
  path: string,
  options: CallOptions = {},
): Promise<TestAnswer> {
  const { as, method, body, text, headers = {}, signal } = options;
  const content = text ?? (body === undefined ? undefined : JSON.stringify(body));
  const response = await fetch(`${url}${path}`, {
    method: method ?? (content === undefined ? 'GET' : 'POST'),
    headers: {
      ...(as ? { authorization: `Bearer ${as}` } : {}),
      ...(content === undefined ? {} : { 'content-type': 'application/json' }),
      ...headers,
    },
    ...(content === undefined ? {} : { body: content }),
    ...(signal ? { signal } : {}),
  });
  const answered = await response.text();
  const isJson =
    /[/+]json/.test(response.headers.get('content-type') ?? '') && !path.includes('result');
  return {
    status: response.status,
    headers: response.headers,
    body: isJson && answered ? (JSON.parse(answered) as Record<string, unknown>) : {},
    text: answered,
  };
}
