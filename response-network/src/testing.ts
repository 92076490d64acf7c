import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  ROLES,
  checkQuery,
  createLog,
  defaultLimits,
  defaultSettings,
  findUserByLogin,
  hashPassword,
  readCredential,
  makeSecrets,
  newId,
  rows,
  startServer,
  startSession,
  storeCredential,
  storeDatasets,
  storeProfileTypes,
  storeSetting,
  storeUsers,
  type Dataset,
  type Priority,
  type RecordData,
  type Role,
  type Tier,
  type Transaction,
  type User,
} from '@sallyport/shared';
import {
  callJson,
  createTestDatabase,
  eventually,
  requireEnvironment,
  type CallOptions,
  type TestAnswer,
  type TestDatabase,
} from '@sallyport/shared/testing';
import { makeFolders, makeKeys, type Apply, type ImportedBatch } from '@sallyport/transfer';
import { createResponseApp } from './app.js';
import type { Config } from './config.js';
import { storeDatasetSource } from './dataset-sources.js';
import { openElastic, type Elastic } from './elastic/client.js';
import { makeTestIndex, type TestIndex } from './elastic/testing.js';
import { createExecutor, type Executor, type ExecutorOptions } from './execute.js';
import { foldersOf, migrations, openNetwork, type ResponseNetwork } from './network.js';

type RequestData = RecordData<'request'>;
export type StagedRecord = {
  type: 'request' | 'request.cancel';
  id: string;
  data: object;
  bad?: string;
};

/** A response network with a dataset of 20 claims, without keys or files; for tests only. */
export type TestNetwork = {
  test: TestDatabase;
  elastic: Elastic;
  index: TestIndex;
  time: { now: Date };
  dataset: Dataset;
  /** Ada and Bob may query claims with tier B, Eve is disabled. */
  users: Record<'ada' | 'bob' | 'eve', User>;
  profileTypeId: string;
  executor(elastic?: Elastic, change?: Partial<ExecutorOptions>): Executor;
  request(change?: Partial<RequestData>, query?: object): { id: string; data: RequestData };
  /** Applies records as an import would; returns the id of the batch. */
  apply(apply: Apply, records: StagedRecord[]): Promise<string>;
  /** Lets requests arrive and returns their ids. */
  arrive(...requests: { id: string; data: RequestData }[]): Promise<string[]>;
  state(id: string): Promise<Record<string, unknown> | undefined>;
  result(id: string): Promise<Record<string, unknown> | undefined>;
  /** The records that wait in the outbox, oldest first. */
  outbox(
    id?: string,
  ): Promise<{ stream: string; t: string; id: string; d: Record<string, unknown> }[]>;
  stop(): Promise<void>;
};

export const BIG_INTEGER = '9007199254740993123';

/** Makes a network with its own database and index; its clock stands still unless moved. */
export async function makeTestNetwork(applyRequests: Apply): Promise<TestNetwork> {
  const url = requireEnvironment('ELASTICSEARCH_URL');
  const test = await createTestDatabase(migrations);
  const index = await makeTestIndex(
    url,
    {
      code: { type: 'keyword' },
      amount: { type: 'long' },
      at: { type: 'date' },
      secret: { type: 'keyword' },
    },
    Array.from(
      { length: 20 },
      (_, n) =>
        `{"code":"c${n % 4}","amount":${n === 7 ? BIG_INTEGER : n},"at":"2026-02-${String(n + 1).padStart(2, '0')}","secret":"s${n}"}`,
    ),
  );
  const elastic = openElastic({ url });
  const time = { now: new Date('2026-03-01T12:00:00.000Z') };
  const dataset: Dataset = {
    id: newId(),
    version: 4,
    epoch: 1,
    name: 'claims',
    title: 'Claims',
    description: '',
    time_field: null,
    fields: [
      { name: 'code', type: 'keyword' },
      { name: 'amount', type: 'long' },
      { name: 'at', type: 'date' },
    ],
    disabled: false,
  };
  const profileTypeId = newId();
  const users = {
    ada: userOf('ada', profileTypeId),
    bob: userOf('bob', profileTypeId),
    eve: { ...userOf('eve', profileTypeId), disabled: true },
  };
  await test.db.transaction(async (tx) => {
    await storeDatasets(tx, [dataset], time.now);
    await storeDatasetSource(tx, dataset.id, { indexName: index.name, rowFilter: null });
    await storeProfileTypes(tx, [profileTypeOf(profileTypeId)], time.now);
    await storeUsers(tx, Object.values(users), time.now);
  });
  const network: TestNetwork = {
    test,
    elastic,
    index,
    time,
    dataset,
    users,
    profileTypeId,
    executor: (other = elastic, change = {}) =>
      createExecutor({
        db: test.db,
        elastic: other,
        clock: { now: () => time.now },
        log: createLog('test', 'silent'),
        concurrencyMax: () => 32,
        ...change,
      }),
    request: (change = {}, query = { query: { match_all: {} } }) => {
      const checked = checkQuery({
        dataset: { ...dataset, timeField: null },
        tier: 'B',
        query,
        now: time.now,
      });
      const data = {
        user_id: users.ada.id,
        dataset: dataset.name,
        dataset_version: dataset.version,
        policy_version: checked.policyVersion,
        tier: 'B' as Tier,
        pinned_now: time.now.toISOString(),
        expires_at: new Date(time.now.getTime() + 86_400_000).toISOString(),
        priority: 'normal' as Priority,
        query: checked.canonical,
        query_digest: checked.digest,
        traceparent: null,
        ...change,
      };
      return { id: newId(), data };
    },
    apply: (apply, records) =>
      test.db.transaction((tx) => applyStaged(tx, { apply, records, now: time.now })),
    async arrive(...requests) {
      await network.apply(
        applyRequests,
        requests.map((one) => ({ type: 'request', ...one })),
      );
      return requests.map(({ id }) => id);
    },
    state: (id) => test.db<Record<string, unknown>>('requests').where({ id }).first(),
    result: (id) => test.db<Record<string, unknown>>('results').where({ request_id: id }).first(),
    async outbox(id) {
      const found = await rows<{ stream: string; line: string }>(
        test.db,
        'select stream, line from outbox_records where record_id = coalesce(?, record_id) order by position',
        [id ?? null],
      );
      return found.map(({ stream, line }) => ({ stream, ...JSON.parse(line) }) as never);
    },
    async stop() {
      await elastic.close();
      await index.remove();
      await test.drop();
    },
  };
  return network;
}

async function applyStaged(
  tx: Transaction,
  { apply, records, now }: { apply: Apply; records: StagedRecord[]; now: Date },
): Promise<string> {
  await tx.raw(
    `create temporary table if not exists incoming (
       line integer not null, t text not null, id uuid not null, v integer not null,
       at timestamptz not null, d jsonb not null, text text, code text, detail text,
       batch_id uuid not null
     ) on commit delete rows`,
  );
  const batch: ImportedBatch = {
    id: newId(),
    link: 'link',
    stream: 'requests',
    epoch: 1,
    seq: 1,
    kind: 'delta',
    digest: 'd'.repeat(64),
    kid: 'k'.repeat(43),
    createdAt: now,
  };
  await tx('incoming').insert(
    records.map(({ type, id, data, bad }, n) => ({
      line: n + 1,
      t: type,
      id,
      v: 1,
      at: now,
      d: JSON.stringify(data),
      code: bad === undefined ? null : 'SCHEMA',
      detail: bad ?? null,
      batch_id: batch.id,
    })),
  );
  await apply(tx, batch, now);
  return batch.id;
}

function userOf(login: string, profileTypeId: string): User {
  return {
    id: newId(),
    version: 1,
    login,
    profile_type_id: profileTypeId,
    roles: [{ network: 'request', role: 'user' }],
    disabled: false,
    must_change_password: false,
    profile_version: 0,
    display_name: login,
    email: null,
    language: null,
    notices: {},
  };
}

function profileTypeOf(id: string) {
  return {
    id,
    version: 1,
    name: 'analysts',
    description: '',
    datasets: ['claims'],
    tier: 'B' as const,
    priorities: ['low' as const, 'normal' as const, 'urgent' as const],
    limits: defaultLimits(defaultSettings()),
    retention_days: 30,
    disabled: false,
  };
}

export const PASSWORD = 'correct horse battery staple';

/** The HTTP API of a response network with somebody of every role, who is called like it. */
export type TestApi = ResponseNetwork & {
  url: string;
  time: { now: Date };
  /** A session token of somebody who has this role alone. */
  tokenOf(who: Role): Promise<string>;
  /** Calls the API, as admin unless another token (or null) is given. */
  call(path: string, options?: CallOptions): Promise<TestAnswer>;
  stop(): Promise<void>;
};

/** Opens it; its clock stands still until a test moves `time.now`. */
export async function openTestApi(): Promise<TestApi> {
  const root = await mkdtemp(join(tmpdir(), 'sallyport-response-'));
  const test = await createTestDatabase(migrations);
  const config: Config = {
    DATABASE_URL: test.url,
    ELASTICSEARCH_URL: requireEnvironment('ELASTICSEARCH_URL'),
    STATE_DIR: root,
    NODE_NAME: 'blue',
    HTTP_HOST: '127.0.0.1',
    HTTP_PORT: 0,
    LOG_LEVEL: 'silent',
  };
  const folders = foldersOf(config);
  await makeFolders(folders);
  await makeKeys(folders.keys, 'blue', 'response');
  await makeSecrets(folders.keys);
  const time = { now: new Date() };
  await seedPeople(test.db, time.now);
  await allowLogins(test.db, time.now);
  const log = createLog('test', 'silent');
  const network = await openNetwork(config, { log, clock: { now: () => time.now } });
  const server = await startServer(createResponseApp(network), { host: '127.0.0.1', port: 0 });
  await eventually(() => network.principals.ready());
  const tokenOf = (who: Role) => makeToken(network, who);
  return {
    ...network,
    url: server.url,
    time,
    tokenOf,
    call: async (path, options = {}) =>
      callJson(server.url, path, { as: await tokenOf('admin'), ...options }),
    async stop() {
      await server.close(100);
      await network.close();
      await test.drop();
      await rm(root, { recursive: true, force: true });
    },
  };
}

/** Tests log in more often than people do. */
async function allowLogins(db: TestDatabase['db'], now: Date): Promise<void> {
  await db.transaction(async (tx) => {
    await storeSetting(tx, { key: 'login.account_per_minute', value: 1_000 }, now);
    await storeSetting(tx, { key: 'login.address_per_minute', value: 10_000 }, now);
  });
}

async function makeToken(network: ResponseNetwork, login: string): Promise<string> {
  const { db, node } = network;
  const user = await findUserByLogin(db, login);
  const credential = user && (await readCredential(db, user.id));
  if (!credential) throw new Error(`there is no user ${login}`);
  const issuer = {
    ...network,
    network: 'response' as const,
    issuer: node.name,
    settings: network.settings(),
  };
  const origin = { address: '127.0.0.1', client: 'test' };
  const session = await db.transaction((tx) => startSession(tx, { credential, origin }, issuer));
  return session.token;
}

async function seedPeople(db: TestDatabase['db'], now: Date): Promise<void> {
  const profileTypeId = newId();
  const verifier = await hashPassword(PASSWORD);
  await db.transaction(async (tx) => {
    await storeProfileTypes(tx, [profileTypeOf(profileTypeId)], now);
    for (const role of ROLES) {
      const user = {
        ...userOf(role, profileTypeId),
        roles: [{ network: 'response' as const, role }],
      };
      await storeUsers(tx, [user], now);
      await storeCredential(tx, { user_id: user.id, generation: 1, counter: 0, verifier }, now);
    }
  });
}
