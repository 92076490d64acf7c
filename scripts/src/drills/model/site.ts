import { randomBytes } from 'node:crypto';
import { copyFile, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  listUsers,
  makeSecrets,
  type Priority,
  type Tier,
  type Transaction,
} from '@sallyport/shared';
import {
  createTestDatabase,
  requireEnvironment,
  type TestDatabase,
} from '@sallyport/shared/testing';
import { createKey, MIGRATIONS, readKeyRules, SCOPES } from '@sallyport/request-network';
import {
  changeSetting,
  createDataset,
  createProfileType,
  createUser,
  migrations,
  publishSnapshot,
  type DatasetChange,
  type ResponseNetwork,
} from '@sallyport/response-network';
import { foldersIn, prepareNode, trustCard, type Folders } from '@sallyport/transfer';
import { claimsFields } from '../../demo-site.js';
import { generateClaims, loadClaims, type Claim } from '../../dataset.js';
import { callElasticsearch } from '../../elasticsearch-http.js';
import { query } from '../../services/database.js';
import {
  farOf,
  NODE,
  openRequestSide,
  openResponseSide,
  SIDES,
  type Opened,
  type OpenRequest,
  type OpenResponse,
  type Place,
  type Side,
} from './sides.js';

export const DATASET = 'claims';
/** Two whose rights never change, one who is shut out at times, one who loses the dataset at times. */
export const LOGINS = ['ada', 'bob', 'eve', 'mallory'] as const;
export type Login = (typeof LOGINS)[number];

/** Both networks, their clocks, what they keep on disk, and what may be done to them from outside. */
export type Site = {
  /** The true time; each network's clock is wrong by its own minutes. */
  time: { now: Date };
  folders: Record<Side, Folders>;
  open(side: Side): Opened;
  /** What the dataset holds. */
  claims: Claim[];
  /** Changes something as an administrator of the response network. */
  administer(change: Administer): Promise<void>;
  snapshot(stream: 'identity' | 'settings'): Promise<void>;
  /** Calls the API of the request network. */
  call(login: Login, path: string, options?: CallOptions): Promise<Answer>;
  /** Closes a network and opens it again; meanwhile its database is backed up, or restored. */
  restart(side: Side, how?: 'backed up' | 'restored'): Promise<void>;
  close(): Promise<void>;
};
export type Administer = (
  tx: Transaction,
  by: { actor: string; now: Date },
  network: ResponseNetwork,
) => Promise<unknown>;
export type CallOptions = { text?: string; headers?: Record<string, string> };
export type Answer = { status: number; text: string; replayed: boolean };

const ACTOR = 'drill';
const START = '2026-03-01T00:00:00.000Z';
/** Batches of requests and results older than this are refused: some are carried later. */
const NOT_AFTER_DAYS = 3;
const PASSWORD = 'correct horse battery staple';
const DOCUMENTS = 300;
const RIGHTS = {
  datasets: [DATASET],
  tier: 'B' as Tier,
  priorities: ['low', 'normal', 'urgent'] as Priority[],
  limits: {
    submit_per_minute: 1_000_000,
    submit_per_hour: 1_000_000,
    submit_per_day: 1_000_000,
    read_per_minute: 1_000_000,
  },
};

/** Makes both networks, which trust each other and know the same users. */
export async function openSite(skewMs: Record<Side, number>): Promise<Site> {
  const elasticsearchUrl = requireEnvironment('ELASTICSEARCH_URL');
  const root = await mkdtemp(join(tmpdir(), 'sallyport-model-'));
  const index = `sallyport-model-${randomBytes(6).toString('hex')}`;
  const time = { now: new Date(START) };
  const databases = {
    request: await makeDatabase(MIGRATIONS),
    response: await makeDatabase(migrations),
  };
  const placeOf = (side: Side): Place => {
    const folder = join(root, side);
    const clock = { now: () => new Date(time.now.getTime() + skewMs[side]) };
    return { url: hasty(databases[side].url), folder, folders: foldersIn(folder), clock };
  };
  const places = { request: placeOf('request'), response: placeOf('response') };
  const open: { request?: OpenRequest; response?: OpenResponse } = {};
  const apiKeys = new Map<string, string>();
  const start = async (side: Side): Promise<void> => {
    if (side === 'request') open.request = await openRequestSide(places.request);
    else open.response = await openResponseSide(places.response, elasticsearchUrl);
  };
  const stop = async (side: Side): Promise<void> => {
    const running = open[side];
    delete open[side];
    await running?.close();
  };
  const site: Site = {
    time,
    folders: { request: places.request.folders, response: places.response.folders },
    open: (side) => required(open[side]),
    claims: [...generateClaims(DOCUMENTS)],
    async administer(change) {
      const { network } = required(open.response);
      const by = { actor: ACTOR, now: network.clock.now() };
      await network.db.transaction((tx) => change(tx, by, network));
      await network.refreshSettings();
    },
    async snapshot(stream) {
      const { db, node } = required(open.response);
      await publishSnapshot(db, node, stream, ACTOR);
    },
    call: (login, path, options) =>
      call(required(open.request).url + path, apiKeys.get(login) ?? '', options),
    async restart(side, how) {
      await stop(side);
      const name = nameOf(databases[side].url);
      if (how === 'backed up') await copyDatabase(name, `${name}_backup`);
      if (how === 'restored') await copyDatabase(`${name}_backup`, name);
      await start(side);
    },
    async close() {
      for (const side of SIDES) {
        await stop(side);
        const name = nameOf(databases[side].url);
        await onServer(`drop database if exists ${name}_backup with (force)`);
        await databases[side].drop();
      }
      await callElasticsearch(elasticsearchUrl, index, { method: 'DELETE' });
      await rm(root, { recursive: true, force: true });
    },
  };
  try {
    await loadClaims(elasticsearchUrl, index, DOCUMENTS);
    for (const side of SIDES) {
      await prepare(side, places[side]);
      await start(side);
    }
    await introduce(site, index);
    await makeApiKeys(required(open.request), apiKeys);
    return site;
  } catch (error) {
    await site.close();
    throw error;
  }
}

async function makeDatabase(folders: string[]): Promise<TestDatabase> {
  const made = await createTestDatabase(folders);
  // A database with connections cannot be copied.
  await made.db.destroy();
  return made;
}

async function prepare(side: Side, { url, folders }: Place): Promise<void> {
  await prepareNode({
    role: side,
    databaseUrl: url,
    migrations: side === 'request' ? MIGRATIONS : migrations,
    folders,
    nodeName: NODE[side],
  });
  await makeSecrets(folders.keys);
}

/** Lets both sides trust each other and brings users, rights and a dataset to the request side. */
async function introduce(site: Site, index: string): Promise<void> {
  for (const side of SIDES) {
    const { db, node } = site.open(side);
    await trustCard(db, node, site.open(farOf(side)).node.keys.card, ACTOR);
  }
  await site.administer(async (tx, by, network) => {
    const fields = claimsFields() as NonNullable<DatasetChange['fields']>;
    const source = { indexName: index };
    await createDataset(tx, DATASET, { fields, source }, by);
    const change = { ...by, settings: network.settings() };
    for (const name of ['analysts', 'visitors']) await createProfileType(tx, name, RIGHTS, change);
    await changeSetting(tx, { key: 'transfer.not_after_days', value: NOT_AFTER_DAYS }, by);
    for (const login of LOGINS) {
      const profileType = login === 'mallory' ? 'visitors' : 'analysts';
      const roles = [{ network: 'request', role: 'user' } as const];
      const wanted = { login, profileType, roles, password: PASSWORD };
      await createUser(tx, wanted, change);
    }
  });
  for (const stream of ['identity', 'settings'] as const) await site.snapshot(stream);
  const { outbox } = site.folders.response;
  for (const name of await readdir(outbox)) {
    await copyFile(join(outbox, name), join(site.folders.request.inbox, name));
  }
  await site.open('request').work('import-batches');
}

async function makeApiKeys({ network }: OpenRequest, apiKeys: Map<string, string>): Promise<void> {
  const { db, clock } = network;
  const rules = await readKeyRules(network);
  for (const user of await listUsers(db)) {
    const at = clock.now();
    const owner = { userId: user.id, login: user.login, profileTypeId: user.profile_type_id };
    const expiresAt = new Date(at.getTime() + rules.settings['keys.max_days'] * 86_400_000);
    const made = await db.transaction((tx) =>
      createKey(tx, rules, { owner, name: ACTOR, scopes: SCOPES, expiresAt, at, actor: ACTOR }),
    );
    apiKeys.set(user.login, made.key);
  }
}

async function call(
  url: string,
  apiKey: string,
  { text, headers = {} }: CallOptions = {},
): Promise<Answer> {
  const answer = await fetch(url, {
    headers: {
      authorization: `Bearer ${apiKey}`,
      ...(text === undefined ? {} : { 'content-type': 'application/json' }),
      ...headers,
    },
    ...(text === undefined ? {} : { method: 'POST', body: text }),
  });
  return {
    status: answer.status,
    text: await answer.text(),
    replayed: answer.headers.get('idempotency-replayed') === 'true',
  };
}

async function copyDatabase(from: string, to: string): Promise<void> {
  await onServer(`drop database if exists ${to} with (force)`);
  // Connections that were closed this moment may linger.
  for (let tries = 1; ; tries += 1) {
    try {
      return await onServer(`create database ${to} template ${from}`);
    } catch (error) {
      if ((error as { code?: string }).code !== '55006' || tries === 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

async function onServer(sql: string): Promise<void> {
  await query(requireEnvironment('DATABASE_URL'), sql);
}

/** The server does not die in this drill: what it said is committed, is. */
function hasty(url: string): string {
  const changed = new URL(url);
  changed.searchParams.set('options', '-c synchronous_commit=off');
  return changed.href;
}

function nameOf(url: string): string {
  return new URL(url).pathname.slice(1);
}

function required<T>(opened: T | undefined): T {
  if (opened === undefined) throw new Error('the network is not open');
  return opened;
}
