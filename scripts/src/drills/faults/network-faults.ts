import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import {
  checkQuery,
  createLog,
  defaultSettings,
  hashPassword,
  newId,
  rows,
  storeCredential,
  storeDatasets,
  storeProfileTypes,
  storeUsers,
  type Dataset,
  type Limits,
  type User,
} from '@sallyport/shared';
import { exportStreams, type ApplyTable, type OutgoingRecord } from '@sallyport/transfer';
import { carryAll, decideApproval, listApprovals } from '@sallyport/transfer/testing';
import { requestApplies, submitRequest } from '@sallyport/request-network';
import { applies as answering, createExecutor, openElastic } from '@sallyport/response-network';
import type { Fault } from './fault.js';
import {
  expectImport,
  expectNextApplied,
  expectRefused,
  forge,
  deliver,
  linesOf,
  readCursor,
  wait,
  type World,
} from './world.js';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

/** What the networks themselves make of records that are well formed. */
export const NETWORK_FAULTS: readonly Fault[] = [
  {
    number: 31,
    name: 'a request past its own deadline',
    expected: 'accepted, answered expired, and the user is told',
    async run(world) {
      const site = await settle(world);
      const id = await ask(world, site, { match_all: {} });
      await exportStreams(world.red.test.db, world.red, ['requests']);
      await carryAll(world.red, world.blue);
      wait(world.blue, 3 * DAY_MS);
      wait(world.red, 3 * DAY_MS);
      await expectImport(world.blue, ['APPLIED'], answering);
      await exportStreams(world.blue.test.db, world.blue, ['results']);
      await carryAll(world.blue, world.red);
      await expectImport(world.red, ['APPLIED'], asking);
      const [told] = await rows<{ status: string }>(
        world.red.test.db,
        'select status from requests where id = ?',
        [id],
      );
      assert.equal(told?.status, 'expired');
    },
  },
  {
    number: 43,
    name: 'a request id seen in an older batch with other content',
    expected: 'the first stays, the conflict is audited',
    async run(world) {
      const { blue } = world;
      const site = await settle(world);
      const first = await questionOf(site, world, { term: { code: 'a' } });
      const second = { ...(await questionOf(site, world, { term: { code: 'b' } })), id: first.id };
      for (const record of [first, second]) {
        await deliver(world, await forge(world, { records: [record] }));
        await expectImport(blue, ['APPLIED'], answering);
      }
      const stored = await rows(blue.test.db, 'select query from requests where id = ?', [
        first.id,
      ]);
      assert.deepEqual(stored, [{ query: (first.data as { query: string }).query }]);
      const [noted] = await rows(blue.test.db, 'select action from audit_log where subject = ?', [
        first.id,
      ]);
      assert.deepEqual(noted, { action: 'request.conflict' });
    },
  },
  {
    number: 44,
    name: 'the result of a request that nobody here knows (ORPHAN)',
    expected: 'parked, shown to nobody, adopted once its request is known',
    async run(world) {
      const { red, blue } = world;
      const site = await settle(world);
      const unknown = newId();
      const parked = await forge(world, {
        from: blue,
        stream: 'results',
        records: [answerOf(unknown, 'parked', blue.clock.now())],
      });
      await deliver(world, parked);
      await expectImport(red, ['APPLIED'], asking);
      assert.equal((await rows(red.test.db, 'select 1 from results')).length, 0);
      assert.equal((await rows(red.test.db, 'select 1 from orphans')).length, 1);
      const known = await ask(world, site, { match_all: {} }, unknown);
      const other = await ask(world, site, { match_all: {} });
      const next = await forge(world, {
        from: blue,
        stream: 'results',
        records: [answerOf(other, 'second', blue.clock.now())],
      });
      await deliver(world, next);
      await expectImport(red, ['APPLIED'], asking);
      const shown = await rows<{ id: string; text: string }>(
        red.test.db,
        'select request_id as id, text from results order by text',
      );
      assert.deepEqual(shown, [
        { id: known, text: 'parked' },
        { id: other, text: 'second' },
      ]);
      assert.equal((await rows(red.test.db, 'select 1 from orphans')).length, 0);
    },
  },
  {
    number: 46,
    name: 'a password verifier of absurd cost or of another algorithm',
    expected: 'SCHEMA',
    async run(world) {
      const { red, blue } = world;
      const tail = 'c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaGhhc2g';
      const verifiers = [
        `$argon2id$v=19$m=1073741824,t=3,p=4$${tail}`,
        `$argon2id$v=19$m=65536,t=1073741824,p=4$${tail}`,
        `$argon2id$v=19$m=65536,t=3,p=99$${tail}`,
        `$argon2id$v=19$m=99999999999999999999,t=3,p=4$${tail}`,
        `$argon2id$v=19$m=8,t=1,p=1$${tail}`,
        `$argon2i$v=19$m=65536,t=3,p=4$${tail}`,
        `$2b$31$abcdefghijklmnopqrstuvabcdefghijklmnopqrstuvabcdefghijklm`,
        `plain text of a password`,
      ];
      for (const verifier of verifiers) {
        await world.reset();
        const bad = await forge(world, {
          from: blue,
          stream: 'identity',
          records: [
            { type: 'user.credential', id: newId(), data: { generation: 1, counter: 0, verifier } },
          ],
        });
        await expectRefused(world, bad, 'SCHEMA', { node: red, applies: asking });
        assert.equal((await rows(red.test.db, 'select 1 from credentials')).length, 0);
        // Content of an ordered stream: the cursor stays, and the sender owes a snapshot.
        assert.equal((await readCursor(red, 'identity')).contiguous, 0);
      }
      await expectNextApplied(world, { from: blue, stream: 'results' });
      return `${verifiers.length} verifiers`;
    },
  },
  {
    number: 47,
    name: 'an identity batch that disables every admin here',
    expected: 'WAIT_APPROVAL, applied once a person here lets it in; the next one restores them',
    async run(world) {
      const { red, blue } = world;
      const user = userOf('admin', newId(), [{ network: 'request', role: 'admin' }]);
      const send = async (version: number, disabled: boolean) => {
        const { id, ...data } = { ...user, version, disabled };
        const records: OutgoingRecord[] = [{ type: 'user', id, data }];
        await deliver(world, await forge(world, { from: blue, stream: 'identity', records }));
      };
      const isDisabled = async () =>
        (await rows<{ disabled: boolean }>(red.test.db, 'select disabled from users'))[0]?.disabled;
      await send(1, false);
      await expectImport(red, ['APPLIED'], asking);
      await send(2, true);
      await expectImport(red, ['WAIT_APPROVAL'], asking);
      assert.equal(await isDisabled(), false);
      const [held] = await listApprovals(red.test.db);
      assert.equal(held?.act, 'apply');
      const approval = { id: held.id, by: 'cli:ann', decision: 'approved' } as const;
      await decideApproval(red.test.db, red, approval);
      await expectImport(red, ['APPLIED'], asking);
      assert.equal(await isDisabled(), true);
      await send(3, false);
      await expectImport(red, ['APPLIED'], asking);
      assert.equal(await isDisabled(), false);
    },
  },
  {
    number: 48,
    name: 'queries with a script, a huge size, a wildcard index',
    expected: 'each request rejected, the batch applied',
    run: rejectQueries,
  },
];

const replica = { settings: defaultSettings } as Parameters<typeof requestApplies>[0];
const asking: ApplyTable = requestApplies(replica);

type Site = { user: User; dataset: Dataset; sessionId: string };

/** A user who may query one dataset, known on both sides. */
async function settle(world: World): Promise<Site> {
  const profileTypeId = newId();
  const user = userOf('ada', profileTypeId, [{ network: 'request', role: 'user' }]);
  const dataset: Dataset = {
    id: newId(),
    version: 1,
    epoch: 1,
    name: 'claims',
    title: 'Claims',
    description: '',
    time_field: null,
    fields: [{ name: 'code', type: 'keyword' }],
    disabled: false,
  };
  verifier ??= await hashPassword('correct horse battery staple');
  const credential = { user_id: user.id, generation: 1, counter: 0, verifier };
  for (const node of [world.red, world.blue]) {
    const now = node.clock.now();
    await node.test.db.transaction(async (tx) => {
      await storeProfileTypes(tx, [profileTypeOf(profileTypeId)], now);
      await storeDatasets(tx, [dataset], now);
      await storeUsers(tx, [user], now);
      await storeCredential(tx, credential, now);
    });
  }
  await world.blue.test.db.raw(
    `insert into dataset_sources (dataset_id, index_name) values (?, 'nowhere')`,
    [dataset.id],
  );
  const now = world.red.clock.now();
  const sessionId = newId();
  await world.red.test.db('sessions').insert({
    id: sessionId,
    user_id: user.id,
    generation: credential.generation,
    counter: credential.counter,
    address: '',
    client: '',
    created_at: now,
    refreshed_at: now,
    expires_at: 'infinity',
    ends_at: 'infinity',
  });
  return { user, dataset, sessionId };
}

let verifier: string | undefined;

function userOf(login: string, profileTypeId: string, roles: User['roles']): User {
  return {
    id: newId(),
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
}

const LIMITS: Limits = {
  submit_per_minute: 1_000,
  submit_per_hour: 10_000,
  submit_per_day: 100_000,
  read_per_minute: 1_000,
  warn_percent: 80,
  ceiling_percent: 110,
  grace_s: 300,
  rearm_minute_s: 3_600,
  rearm_hour_s: 86_400,
  rearm_day_s: 604_800,
  open_requests: 10_000,
  stored_bytes: 1_073_741_824,
};

function profileTypeOf(id: string) {
  return {
    id,
    version: 1,
    name: 'analysts',
    description: '',
    datasets: ['claims'],
    tier: 'B' as const,
    priorities: ['normal' as const],
    limits: LIMITS,
    retention_days: 30,
    disabled: false,
  };
}

/** Submits a question as the API does. */
async function ask(world: World, site: Site, query: object, id: string = newId()): Promise<string> {
  const { data } = await questionOf(site, world, query);
  const now = world.red.clock.now();
  const principal = {
    userId: site.user.id,
    login: site.user.login,
    profileTypeId: site.user.profile_type_id,
    keyId: null,
    sessionId: site.sessionId,
  } as Parameters<typeof submitRequest>[1];
  const { refusal } = await submitRequest(world.red.test.db, principal, {
    id,
    dataset: data.dataset,
    datasetVersion: data.dataset_version,
    policyVersion: data.policy_version,
    tier: data.tier,
    query: data.query,
    queryDigest: data.query_digest,
    cost: 1,
    pinnedNow: now,
    priority: 'normal',
    customId: null,
    tags: [],
    traceparent: null,
    createdAt: now,
    expiresAt: new Date(now.getTime() + DAY_MS),
  });
  if (refusal) throw new Error(`the submit was refused: ${refusal}`);
  return id;
}

type Question = Extract<OutgoingRecord, { type: 'request' }>;

function questionOf({ user, dataset }: Site, world: World, query: object): Promise<Question> {
  const now = world.red.clock.now();
  const checked = checkQuery({
    dataset: { ...dataset, timeField: null },
    tier: 'B',
    query: { query },
    now,
  });
  return Promise.resolve({
    type: 'request',
    id: newId(),
    data: {
      user_id: user.id,
      dataset: dataset.name,
      dataset_version: dataset.version,
      policy_version: checked.policyVersion,
      tier: 'B',
      pinned_now: now.toISOString(),
      expires_at: new Date(now.getTime() + DAY_MS).toISOString(),
      priority: 'normal',
      query: checked.canonical,
      query_digest: checked.digest,
      traceparent: null,
    },
  });
}

function answerOf(id: string, text: string, at: Date): OutgoingRecord {
  const times = { received_at: at.toISOString(), finished_at: at.toISOString() };
  return {
    type: 'result',
    id,
    data: {
      status: 'delivered',
      failure: null,
      media_type: 'application/json',
      bytes: Buffer.byteLength(text),
      sha256: createHash('sha256').update(text).digest('hex'),
      parts: 0,
      text,
      disclosure: null,
      dataset_version: 1,
      policy_version: 1,
      times: { ...times, started_at: null, took_ms: null },
    },
  };
}

/** The asking side is taken to be broken: what it never let through arrives signed all the same. */
async function rejectQueries(world: World): Promise<string> {
  const { blue } = world;
  const site = await settle(world);
  const good = await questionOf(site, world, { match_all: {} });
  const withQuery = (query: unknown): Question => {
    const text = JSON.stringify(query);
    const query_digest = `sha256:${createHash('sha256').update(text).digest('hex')}`;
    return { ...good, id: newId(), data: { ...good.data, query: text, query_digest } };
  };
  const script = { script: { source: 'while (true) {}', lang: 'painless' } };
  const bad = [
    withQuery({ query: { script } }),
    withQuery({ query: { function_score: { script_score: script } } }),
    withQuery({ query: { match_all: {} }, script_fields: { x: script } }),
    withQuery({ query: { match_all: {} }, size: 2_000_000_000 }),
    withQuery({ query: { match_all: {} }, runtime_mappings: { x: { type: 'long', ...script } } }),
    withQuery({ query: { terms: { code: { index: '*', id: '1', path: 'code' } } } }),
    { ...good, id: newId(), data: { ...good.data, dataset: 'other' } },
    { ...good, id: newId(), data: { ...good.data, query_digest: `sha256:${'0'.repeat(64)}` } },
  ];
  const wild = { ...good, id: newId(), data: { ...good.data, dataset: 'claims' } };
  const text = linesOf([...bad, wild], world.red.clock.now()).toString();
  // A dataset that is no name is refused by the schema of its record, which the others survive.
  const raw = Buffer.from(replaceLast(text, '"dataset":"claims"', '"dataset":"*,-x"'));
  await deliver(world, await forge(world, { records: [...bad, wild], raw }));
  await expectImport(blue, ['APPLIED'], answering);
  const elastic = openElastic({ url: 'http://127.0.0.1:9' });
  try {
    const executor = createExecutor({
      db: blue.test.db,
      elastic,
      clock: blue.clock,
      log: createLog('drill', 'silent'),
      concurrencyMax: () => 4,
    });
    await executor.run(new AbortController().signal);
  } finally {
    await elastic.close();
  }
  const found = await rows<{ id: string; status: string }>(
    blue.test.db,
    `select record_id as id, line::jsonb->'d'->>'status' as status from outbox_records
     where type = 'result'`,
  );
  const answered = new Map(found.map(({ id, status }) => [id, status]));
  const expected = new Map([...bad, wild].map(({ id }) => [id, 'rejected']));
  assert.deepEqual([...answered].sort(), [...expected].sort());
  return `${expected.size} requests`;
}

function replaceLast(text: string, what: string, by: string): string {
  const at = text.lastIndexOf(what);
  return text.slice(0, at) + by + text.slice(at + what.length);
}
