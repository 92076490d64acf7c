import { randomUUID } from 'node:crypto';
import { copyFile, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  createLog,
  rows,
  sharedMigrations,
  type NetworkName,
  type Transaction,
} from '@sallyport/shared';
import { createTestDatabase, type TestDatabase } from '@sallyport/shared/testing';
import type { ApplyTable } from './receiving/apply.js';
import { makeKeys } from './keys/keys.js';
import { transferMigrations, trustCard } from './keys/links.js';
import { foldersIn, makeFolders, type Node, type TransferOptions } from './node.js';
import type { OutgoingRecord } from './sending/outbox.js';

// What benchmarks and drills take apart that nobody else should.
export { signManifest } from './format/manifest.js';
export { openBody, writeBody } from './format/body.js';
export { checkLength, claimBatch, readHeaderLine } from './format/batch-file.js';
export { readCandidate } from './receiving/candidate.js';
export { listBadMedia } from './carrying/carrier.js';
export { unfreezeStream } from './receiving/freezes.js';
export { revokeFarKey, rotateKeys } from './keys/key-rotation.js';
export { decideApproval, listApprovals } from './custody/approvals.js';
export { readLinkStatus } from './custody/link-status.js';
export { readMedia } from './carrying/media-read.js';
export { writeMedia } from './carrying/media-write.js';
export { spaceOf } from './carrying/medium.js';
export { reAdopt } from './keys/re-adopt.js';
export { readBack } from './carrying/read-back.js';

/** A node of its own with a database, folders and keys; for tests only. */
export type TestNode = Node & { test: TestDatabase; time: { now: Date }; remove(): Promise<void> };

/** Makes a node. Its clock stands still until a test moves `time.now`. */
export async function makeTestNode(
  role: NetworkName,
  {
    migrations = [],
    options = {},
  }: { migrations?: string[]; options?: Partial<TransferOptions> } = {},
): Promise<TestNode> {
  const root = await mkdtemp(join(tmpdir(), 'sallyport-test-'));
  const folders = foldersIn(root);
  await makeFolders(folders);
  const name = role === 'request' ? 'red' : 'blue';
  const keys = await makeKeys(folders.keys, name, role);
  const test = await createTestDatabase([sharedMigrations, transferMigrations, ...migrations]);
  const time = { now: new Date('2026-03-01T12:00:00.000Z') };
  return {
    name,
    role,
    folders,
    keys,
    clock: { now: () => time.now },
    log: createLog(name, 'silent'),
    account: 'test',
    build: '0.1.0',
    options: {
      crypt: () => 'age',
      paused: () => false,
      notAfterDays: 30,
      keepDays: 30,
      reserveBytes: 0,
      gapHours: () => 24,
      oneWay: false,
      repeat: 3,
      historyDays: 7,
      ...options,
    },
    test,
    time,
    async remove() {
      await test.drop();
      await rm(root, { recursive: true, force: true });
    },
  };
}

/** Two nodes that trust each other. */
export async function makeTestPair(
  options: Partial<TransferOptions> = {},
): Promise<{ red: TestNode; blue: TestNode; remove(): Promise<void> }> {
  const red = await makeTestNode('request', { options });
  const blue = await makeTestNode('response', { options });
  await trustCard(red.test.db, red, blue.keys.card, 'test');
  await trustCard(blue.test.db, blue, red.keys.card, 'test');
  return {
    red,
    blue,
    async remove() {
      await red.remove();
      await blue.remove();
    },
  };
}

/** Copies batch files from one node's outbox to the other's inbox. */
export async function carryAll(
  from: Node,
  to: Node,
  wanted: (name: string) => boolean = () => true,
): Promise<string[]> {
  const names = (await readdir(from.folders.outbox)).filter(wanted).sort();
  for (const name of names) {
    await copyFile(join(from.folders.outbox, name), join(to.folders.inbox, name));
  }
  return names;
}

/** A request record that passes its schema. */
export function requestRecord(id: string = randomUUID(), marker = 'x'): OutgoingRecord {
  return {
    type: 'request',
    id,
    data: {
      user_id: '0197b2a0-0000-7000-8000-000000000001',
      dataset: 'claims',
      dataset_version: 1,
      policy_version: 1,
      tier: 'B',
      pinned_now: '2026-03-01T12:00:00.000Z',
      expires_at: '2026-03-04T12:00:00.000Z',
      priority: 'normal',
      query: JSON.stringify({ query: { match_all: {} }, marker }),
      query_digest: `sha256:${'a'.repeat(64)}`,
      traceparent: null,
    },
  };
}

/** A setting record that passes its schema. */
export function settingRecord(id: string, key: string, version: number): OutgoingRecord {
  return { type: 'setting', id, data: { key, version, value: version } };
}

/** Keeps what arrives in a table of its own, `applied(t, id, d, text)`, one row per entity. */
export const recordingApplies: ApplyTable = {
  request: keepRecords('request'),
  'request.cancel': keepRecords('request.cancel'),
  setting: keepRecords('setting'),
  result: keepRecords('result'),
};

/** An apply function that keeps the records of a type as {@link recordingApplies} does. */
export function keepRecords(type: string) {
  return async (tx: Transaction): Promise<void> => {
    await tx.raw(
      `create table if not exists applied (t text, id uuid, d jsonb, text text, code text,
         times integer not null default 1, primary key (t, id))`,
    );
    await tx.raw(
      `insert into applied as a (t, id, d, text, code)
       select distinct on (id) t, id, d, text, code from incoming where t = ? order by id, line desc
       on conflict (t, id) do update set d = excluded.d, times = a.times + 1`,
      [type],
    );
  };
}

/** The ids that {@link recordingApplies} kept, in order. */
export async function appliedIds(node: TestNode): Promise<string[]> {
  const exists = await rows(node.test.db, `select 1 from pg_tables where tablename = 'applied'`);
  if (exists.length === 0) return [];
  const kept = await rows<{ id: string }>(node.test.db, 'select id from applied order by id');
  return kept.map(({ id }) => id);
}
