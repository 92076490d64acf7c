import { createHash, randomBytes } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import pg from 'pg';
import { migrate, openDatabase, type Database } from './database.js';

export type TestDatabase = { db: Database; url: string; drop(): Promise<void> };

/**
 * A fresh database cloned from a template that has the migrations of the folders; for tests only.
 * The server is the one DATABASE_URL names; `drop` closes the pool and removes the database.
 */
export async function createTestDatabase(folders: string[]): Promise<TestDatabase> {
  const serverUrl = requireEnvironment('DATABASE_URL');
  const template = `sallyport_template_${await digestFolders(folders)}`;
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
  const url = databaseUrl(serverUrl, name);
  const db = openDatabase(url);
  return {
    db,
    url,
    async drop() {
      await db.destroy();
      await withClient(serverUrl, (client) =>
        client.query(`drop database if exists ${name} with (force)`),
      );
    },
  };
}

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
  await client.query(`drop database if exists ${unfinished} with (force)`);
  await client.query(`create database ${unfinished}`);
  const db = openDatabase(databaseUrl(serverUrl, unfinished));
  await migrate(db, folders).finally(() => db.destroy());
  await client.query(`alter database ${unfinished} rename to ${template}`);
}

async function digestFolders(folders: string[]): Promise<string> {
  const hash = createHash('sha256');
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
