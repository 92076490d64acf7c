import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  createLog,
  findUser,
  findUserByLogin,
  hashPassword,
  newId,
  rows,
  startServer,
  startSession,
  storeCredential,
  storeDatasets,
  storeProfileTypes,
  storeSetting,
  storeUsers,
  type Limits,
  type Priority,
  ROLES,
  readCredential,
  type RecordData,
  type Role,
  type Transaction,
  makeSecrets,
} from '@sallyport/shared';
import {
  callJson,
  createTestDatabase,
  eventually,
  type CallOptions,
  type TestAnswer,
  type TestDatabase,
} from '@sallyport/shared/testing';
import { makeFolders, makeKeys, type Apply, type ImportedBatch } from '@sallyport/transfer';
import { SCOPES, type Scope } from './api-keys.js';
import { createRequestApp } from './app.js';
import type { Config } from './config.js';
import { MIGRATIONS, foldersOf, openNetwork, type RequestNetwork } from './network.js';
import { createKey, readKeyRules } from './new-api-keys.js';

export const PASSWORD = 'correct horse battery staple';

/** A request network with a database, keys, users and a server of its own; for tests only. */
export type TestNetwork = RequestNetwork & {
  url: string;
  time: { now: Date };
  /** Ada may query claims; Bob too; Eve is disabled. */
  users: Record<'ada' | 'bob' | 'eve', TestUser>;
  /** A session token of somebody who has this role alone; `ada` and `bob` are users too. */
  tokenOf(who: Role | 'ada' | 'bob'): Promise<string>;
  /** Calls the API as a user, with JSON in and out. */
  call(path: string, options?: CallOptions): Promise<TestAnswer>;
  /** Applies records as an import would. */
  apply(applies: Apply[], records: IncomingRecord[], batch?: Partial<ImportedBatch>): Promise<void>;
  /** Puts the waiting records of a stream into a batch in this state. */
  bindWaiting(state: string): Promise<string>;
  stop(): Promise<void>;
};
export type TestUser = { id: string; login: string; key: string };
export type IncomingRecord = {
  [T in 'result' | 'result.part' | 'request.progress' | 'setting']: {
    t: T;
    id: string;
    d: RecordData<T>;
  };
}['result' | 'result.part' | 'request.progress' | 'setting'];

const LIMITS: Limits = {
  submit_per_minute: 1_000,
  submit_per_hour: 10_000,
  submit_per_day: 100_000,
  read_per_minute: 100_000,
  warn_percent: 80,
  ceiling_percent: 110,
  grace_s: 300,
  rearm_minute_s: 3_600,
  rearm_hour_s: 86_400,
  rearm_day_s: 604_800,
  open_requests: 10_000,
  stored_bytes: 1_073_741_824,
};

/** A query that the test rules allow. */
export const QUERY = { query: { term: { state: 'open' } }, size: 5 };

/** Opens a network; its clock stands still until a test moves `time.now`. */
export async function openTestNetwork(): Promise<TestNetwork> {
  const root = await mkdtemp(join(tmpdir(), 'sallyport-request-'));
  const test = await createTestDatabase(MIGRATIONS);
  const config: Config = {
    DATABASE_URL: test.url,
    STATE_DIR: root,
    NODE_NAME: 'red',
    HTTP_HOST: '127.0.0.1',
    HTTP_PORT: 0,
    LOG_LEVEL: 'silent',
    API_KEY_ENVIRONMENT: 'test',
    CORS_ORIGINS: 'https://pages.example',
  };
  const folders = foldersOf(config);
  await makeFolders(folders);
  await makeKeys(folders.keys, 'red', 'request');
  await makeSecrets(folders.keys);
  const time = { now: new Date() };
  const users = await seed(test.db, time.now);
  await allowLogins(test.db, time.now);
  const log = createLog('test', 'silent');
  const clock = { now: () => time.now };
  const network = await openNetwork(config, { log, clock, limiterClock: clock });
  const server = await startServer(createRequestApp(network), { host: '127.0.0.1', port: 0 });
  await eventually(() => network.principals.ready());
  for (const user of Object.values(users)) {
    user.key = await makeKey(network, user.id, SCOPES);
  }
  await test.db('users').where({ login: 'eve' }).update({ disabled: true });
  return {
    ...network,
    url: server.url,
    time,
    users,
    tokenOf: (who) => makeToken(network, who),
    call: (path, options = {}) => callJson(server.url, path, { as: users.ada.key, ...options }),
    apply: (applies, records, batch = {}) =>
      network.db.transaction((tx) => applyRecords(tx, { applies, records, batch }, time.now)),
    bindWaiting: (state) => bindWaiting(network, state),
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

/** A session token of the user of this login, as a log-in would give it. */
async function makeToken(network: RequestNetwork, login: string): Promise<string> {
  const { db, node } = network;
  const user = await findUserByLogin(db, login);
  const credential = user && (await readCredential(db, user.id));
  if (!credential) throw new Error(`there is no user ${login}`);
  const issuer = {
    ...network,
    network: 'request' as const,
    issuer: node.name,
    settings: network.replica.settings(),
  };
  const origin = { address: '127.0.0.1', client: 'test' };
  const session = await db.transaction((tx) => startSession(tx, { credential, origin }, issuer));
  return session.token;
}

/** An API key of a user that outlives every test. */
export async function makeKey(
  network: RequestNetwork,
  userId: string,
  scopes: readonly Scope[],
): Promise<string> {
  const { db, clock } = network;
  const user = await findUser(db, userId);
  if (!user) throw new Error(`there is no user ${userId}`);
  const rules = await readKeyRules(network);
  const at = clock.now();
  const made = await db.transaction((tx) =>
    createKey(tx, rules, {
      owner: { userId, login: user.login, profileTypeId: user.profile_type_id },
      name: 'test',
      scopes,
      expiresAt: new Date(at.getTime() + rules.settings['keys.max_days'] * 86_400_000),
      at,
      actor: 'test',
    }),
  );
  return made.key;
}

async function seed(db: RequestNetwork['db'], now: Date): Promise<TestNetwork['users']> {
  const profileTypeId = newId();
  const users = {
    ada: { id: newId(), login: 'ada', key: '' },
    bob: { id: newId(), login: 'bob', key: '' },
    eve: { id: newId(), login: 'eve', key: '' },
  };
  const priorities: Priority[] = ['low', 'normal', 'urgent'];
  const verifier = await hashPassword(PASSWORD);
  await db.transaction(async (tx) => {
    await storeProfileTypes(
      tx,
      [
        {
          id: profileTypeId,
          version: 1,
          name: 'analysts',
          description: '',
          datasets: ['claims'],
          tier: 'B',
          priorities,
          limits: LIMITS,
          retention_days: 30,
          disabled: false,
        },
      ],
      now,
    );
    const dataset = (name: string) => ({
      id: newId(),
      version: 3,
      epoch: 1,
      name,
      title: name,
      description: '',
      time_field: null,
      fields: [
        { name: 'state', type: 'keyword' as const },
        { name: 'amount', type: 'long' as const },
      ],
      disabled: false,
    });
    await storeDatasets(tx, [dataset('claims'), dataset('secrets')], now);
    const people = [
      ...Object.values(users).map(({ id, login }) => ({ id, login, role: 'user' as Role })),
      ...ROLES.map((role) => ({ id: newId(), login: role as string, role })),
    ];
    for (const { id, login, role } of people) {
      const roles = [{ network: 'request' as const, role }];
      const user = {
        id,
        version: 1,
        login,
        profile_type_id: profileTypeId,
        roles,
        disabled: false,
        must_change_password: false,
        profile_version: 0,
        display_name: login,
        email: null,
        language: null,
        notices: {},
      };
      await storeUsers(tx, [user], now);
      await storeCredential(tx, { user_id: id, generation: 1, counter: 0, verifier }, now);
    }
  });
  return users;
}

async function applyRecords(
  tx: Transaction,
  given: { applies: Apply[]; records: IncomingRecord[]; batch: Partial<ImportedBatch> },
  now: Date,
): Promise<void> {
  await tx.raw(`create temporary table if not exists incoming (
    line integer not null, t text not null, id uuid not null, v integer not null,
    at timestamptz not null, d jsonb not null, text text, code text, detail text,
    batch_id uuid not null
  ) on commit delete rows`);
  const batch: ImportedBatch = {
    id: newId(),
    link: 'test',
    stream: 'results',
    epoch: 1,
    seq: 1,
    kind: 'delta',
    digest: 'd'.repeat(64),
    kid: 'k'.repeat(43),
    createdAt: now,
    ...given.batch,
  };
  await insertBatch(tx, batch, now);
  for (const [index, { t, id, d }] of given.records.entries()) {
    const text = 'text' in d ? d.text : null;
    const data = 'text' in d ? { ...d, text: null } : d;
    await tx.raw('insert into incoming values (?, ?, ?, 1, ?, ?::jsonb, ?, null, null, ?)', [
      index + 1,
      t,
      id,
      now,
      JSON.stringify(data),
      text as string,
      batch.id,
    ]);
  }
  for (const apply of given.applies) await apply(tx, batch, now);
  await rows(tx, `select pg_notify('sallyport_imported', ?)`, [batch.stream]);
}

async function insertBatch(tx: Transaction, batch: ImportedBatch, now: Date): Promise<void> {
  await insertLink(tx, now);
  await rows(
    tx,
    `insert into inbound_batches (id, link, stream, epoch, seq, digest, prev, kind, state,
       file_name, file_bytes, records, types, duplicates, created_at, seen_at)
     select ?, ?, ?, ?, coalesce(max(seq), 0) + 1, ?, '', ?, 'applied', '', 0, 0, '{}', 0, ?, ?
     from inbound_batches`,
    [batch.id, batch.link, batch.stream, batch.epoch, batch.digest, batch.kind, now, now],
  );
}

async function insertLink(tx: Transaction, now: Date): Promise<void> {
  await rows(
    tx,
    `insert into links (link, far_node, epoch, far_epoch, manifest_no, ack_version, created_at)
     values ('test', 'blue', 1, 1, 0, 0, ?) on conflict do nothing`,
    [now],
  );
}

async function bindWaiting({ db, clock }: RequestNetwork, state: string): Promise<string> {
  const id = newId();
  const now = clock.now();
  await db.transaction(async (tx) => {
    await insertLink(tx, now);
    await rows(
      tx,
      `insert into outbound_batches (id, link, stream, epoch, seq, kind, state, build_token,
         version, records, digest, created_at, sealed_at, acked_at)
       select ?, 'test', 'requests', 1, coalesce(max(seq), 0) + 1, 'delta', ?, ?, 2, 1, 'abc', ?,
         ?, ? from outbound_batches`,
      [id, state, newId(), now, now, state === 'acked' ? now : null],
    );
    await rows(
      tx,
      `update outbox_records o set batch_id = ?, batch_line = n.n from
       (select position, row_number() over (order by position) as n from outbox_records
        where batch_id is null) n where n.position = o.position`,
      [id],
    );
  });
  await rows(db, `select pg_notify('sallyport_sealed', 'requests')`);
  return id;
}
