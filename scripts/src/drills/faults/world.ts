import assert from 'node:assert/strict';
import { createHash, sign } from 'node:crypto';
import { copyFile, mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { newId, rows, type Database, type RecordType, type StreamName } from '@sallyport/shared';
import {
  ZERO_DIGEST,
  batchName,
  exportStream,
  importBatches,
  recordLine,
  sendRecords,
  trustCard,
  type ApplyTable,
  type FileReport,
  type ImportReport,
  type Manifest,
  type NodeKeys,
  type OutgoingRecord,
} from '@sallyport/transfer';
import {
  keepRecords,
  makeTestNode,
  requestRecord,
  writeBody,
  type TestNode,
} from '@sallyport/transfer/testing';
import { MIGRATIONS } from '@sallyport/request-network';
import { migrations } from '@sallyport/response-network';

/** Both networks with their databases, keys and folders; red asks, blue answers. */
export type World = {
  red: TestNode;
  blue: TestNode;
  /** The last forged number and digest of each stream. */
  chains: Map<StreamName, { seq: number; digest: string }>;
  /** Makes everything as it was before the first batch. */
  reset(): Promise<void>;
  close(): Promise<void>;
};

/** A batch file that a fault makes by itself; `body` begins after the line feed of line 1. */
export type Forged = {
  name: string;
  bytes: Buffer;
  line: Buffer;
  body: Buffer;
  digest: string;
  manifest: Manifest;
};

export type Forgery = {
  from?: TestNode;
  stream?: StreamName;
  records?: readonly OutgoingRecord[];
  /** The body before it is packed; else made of the records. */
  raw?: Buffer;
  enc?: 'none' | 'gzip';
  crypt?: 'none' | 'age';
  /** Instead of packing. */
  packed?: Buffer;
  /** Changes the packed body before it is hashed and signed. */
  tamper?(packed: Buffer): Buffer;
  change?: Partial<Manifest>;
  /** Changes the text that is signed. */
  rewrite?(manifest: string): string;
  header?: Record<string, unknown>;
};

const OWN_TABLES = `
  select tablename as name from pg_tables
  where schemaname = 'public' and tablename not like 'knex%' order by 1`;
const FOLDERS = [
  'inbox',
  'outbox',
  'store',
  'staging',
  'waiting',
  'archive',
  'quarantine',
] as const;
const DAY_MS = 86_400_000;

/** Keeps records of every type in the table `applied`. */
export const keepAll: ApplyTable = Object.fromEntries(
  (
    [
      'request',
      'request.cancel',
      'request.progress',
      'result',
      'result.part',
      'profile_type',
      'user',
      'dataset',
      'setting',
    ] as const satisfies RecordType[]
  ).map((type) => [type, keepRecords(type)]),
);

/** Opens a world with databases of its own, on the server that DATABASE_URL names. */
export async function openWorld(): Promise<World> {
  const red = await makeTestNode('request', { migrations: MIGRATIONS.slice(2) });
  const blue = await makeTestNode('response', { migrations: migrations.slice(2) });
  await trustCard(red.test.db, red, blue.keys.card, 'test');
  await trustCard(blue.test.db, blue, red.keys.card, 'test');
  const start = red.time.now;
  for (const node of [red, blue]) await rememberTables(node.test.db);
  const world: World = {
    red,
    blue,
    chains: new Map(),
    async reset() {
      world.chains.clear();
      for (const node of [red, blue]) {
        node.time.now = start;
        await restoreTables(node.test.db);
        for (const folder of FOLDERS) {
          await rm(node.folders[folder], { recursive: true, force: true });
          await mkdir(node.folders[folder], { mode: 0o700 });
        }
      }
    },
    async close() {
      await red.remove();
      await blue.remove();
    },
  };
  return world;
}

async function rememberTables(db: Database): Promise<void> {
  await db.raw('create schema remembered');
  for (const { name } of await rows<{ name: string }>(db, OWN_TABLES)) {
    const [found] = await rows(db, 'select 1 from ?? limit 1', [name]);
    if (found) await db.raw('create table ??.?? as table ??', ['remembered', name, name]);
  }
}

async function restoreTables(db: Database): Promise<void> {
  const tables = (await rows<{ name: string }>(db, OWN_TABLES)).map(({ name }) => name);
  const kept = await rows<{ name: string }>(
    db,
    `select tablename as name from pg_tables where schemaname = 'remembered'`,
  );
  // Rows that refer to each other are checked at the end of a statement: all go, and come, in one.
  const emptied = tables.map((name, at) => `d${at} as (delete from public."${name}")`);
  const filled = kept.map(
    ({ name }, at) =>
      `i${at} as (insert into public."${name}" overriding system value
         select * from remembered."${name}")`,
  );
  await db.transaction(async (tx) => {
    // What only grows refuses it otherwise.
    await tx.raw('set local session_replication_role = replica');
    await tx.raw(`with ${emptied.join(', ')} select 1`);
    await tx.raw(`with ${filled.join(', ')} select 1`);
  });
}

/** The node at the other end. */
export function farNode({ red, blue }: World, node: TestNode): TestNode {
  return node.role === red.role ? blue : red;
}

/** Makes the next batch of a stream as its sender would, with whatever is to be wrong with it. */
export async function forge(world: World, wanted: Forgery = {}): Promise<Forged> {
  const { from = world.red, stream = 'requests' } = wanted;
  const to = farNode(world, from);
  const records = wanted.records ?? (stream === 'requests' ? [requestRecord(newId())] : []);
  const raw = wanted.raw ?? linesOf(records, from.clock.now());
  const always = stream === 'identity' || stream === 'accounts';
  const { enc = 'gzip', crypt = always ? 'age' : 'none' } = wanted;
  const packed =
    wanted.packed ?? (await pack(raw, { enc, crypt, recipient: to.keys.card.age, from }));
  const body = wanted.tamper?.(packed) ?? packed;
  const last = world.chains.get(stream) ?? { seq: 0, digest: ZERO_DIGEST };
  const types: Record<string, number> = {};
  for (const { type } of records) types[type] = (types[type] ?? 0) + 1;
  const manifest: Manifest = {
    fmt: 'sallyport-batch',
    v: 1,
    link: await readLinkId(from.test.db),
    from: from.name,
    to: to.name,
    stream,
    epoch: 1,
    seq: last.seq + 1,
    prev: last.digest,
    kind: records.length === 0 && wanted.raw === undefined ? 'heartbeat' : 'delta',
    createdAt: from.clock.now().toISOString(),
    ...(['requests', 'results'].includes(stream) && {
      notAfter: new Date(from.clock.now().getTime() + 30 * DAY_MS).toISOString(),
    }),
    records: records.length,
    types,
    body: { bytes: body.length, sha256: sha256(body), enc, rawBytes: raw.length, crypt },
    ack: { no: last.seq + 1, incarnation: INCARNATION, streams: {} },
    tail: {},
    auditHead: ZERO_DIGEST,
    by: 'test',
    build: '0.1.0',
    ...wanted.change,
  };
  const text = JSON.stringify(manifest);
  const payload = Buffer.from(wanted.rewrite?.(text) ?? text);
  const line = signLine(payload, from.keys, wanted.header);
  const digest = sha256(payload);
  world.chains.set(stream, { seq: manifest.seq, digest });
  const bytes = Buffer.concat([line, Buffer.from('\n'), body]);
  return { name: batchName(manifest, digest), bytes, line, body, digest, manifest };
}

const INCARNATION = '0197b2a0-0000-4000-8000-00000000d1f7';

/** Line 1 over any bytes, signed with Ed25519 as RFC 7515 says. */
export function signLine(
  payload: Buffer,
  keys: Pick<NodeKeys, 'kid' | 'signKey'>,
  header: Record<string, unknown> = {},
): Buffer {
  const head = { alg: 'Ed25519', kid: keys.kid, typ: 'sallyport-batch+jws', ...header };
  const parts = { payload: payload.toString('base64url'), protected: base64Url(head) };
  const signature = sign(null, Buffer.from(`${parts.protected}.${parts.payload}`), keys.signKey);
  return Buffer.from(JSON.stringify({ ...parts, signature: signature.toString('base64url') }));
}

/** JSON as a part of a JWS. */
export function base64Url(value: unknown): string {
  return Buffer.from(JSON.stringify(value)).toString('base64url');
}

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** The lines of records as a sender writes them. */
export function linesOf(records: readonly OutgoingRecord[], at: Date): Buffer {
  return Buffer.from(records.map((record) => `${recordLine(record, at)}\n`).join(''));
}

async function pack(
  raw: Buffer,
  options: { enc: 'none' | 'gzip'; crypt: 'none' | 'age'; recipient: string; from: TestNode },
): Promise<Buffer> {
  const { enc, crypt, recipient, from } = options;
  const inner = enc === 'gzip' ? gzipSync(raw, { level: 1 }) : raw;
  if (crypt === 'none') return inner;
  const path = join(from.folders.root, `forged-${newId()}`);
  const pieces = async function* () {
    yield await Promise.resolve(inner);
  };
  await writeBody(pieces, { path, enc: 'none', crypt, recipients: [recipient] });
  const sealed = await readFile(path);
  await rm(path);
  return sealed;
}

async function readLinkId(db: Database): Promise<string> {
  const [row] = await rows<{ link: string }>(db, 'select link from links');
  assert(row, 'the node trusts nobody');
  return row.link;
}

/** Lays a file into a node's inbox. */
export async function put(node: TestNode, name: string, bytes: Uint8Array): Promise<string> {
  const path = join(node.folders.inbox, name);
  await writeFile(path, bytes);
  return path;
}

/** Lays a forged batch into the inbox of the node it is for. */
export async function deliver(world: World, ...batches: Forged[]): Promise<void> {
  for (const { name, bytes, manifest } of batches) {
    const from = manifest.from === world.red.name ? world.red : world.blue;
    await put(farNode(world, from), name, bytes);
  }
}

export async function importInto(
  node: TestNode,
  applies: ApplyTable = keepAll,
  path?: string,
): Promise<ImportReport> {
  return importBatches(node.test.db, node, applies, path === undefined ? {} : { path });
}

/** Imports, and requires these outcomes in the order of the report. */
export async function expectImport(
  node: TestNode,
  outcomes: readonly FileReport['outcome'][],
  applies?: ApplyTable,
): Promise<ImportReport> {
  const report = await importInto(node, applies);
  const found = report.files.map(({ outcome }) => outcome);
  assert.deepEqual(found, outcomes, JSON.stringify(report.files, undefined, 1).slice(0, 2_000));
  return report;
}

/** How often each record was applied, by its id. */
export async function appliedTimes(node: TestNode): Promise<Map<string, number>> {
  const [table] = await rows(node.test.db, `select 1 from pg_tables where tablename = 'applied'`);
  if (!table) return new Map();
  const found = await rows<{ id: string; times: number }>(
    node.test.db,
    'select id, times from applied order by id',
  );
  return new Map(found.map(({ id, times }) => [id, times]));
}

/** Requires that nothing at all was applied. */
export async function expectNothingApplied(node: TestNode): Promise<void> {
  assert.equal((await appliedTimes(node)).size, 0, 'something was applied');
  const applied = await rows(node.test.db, `select 1 from inbound_batches where state = 'applied'`);
  assert.equal(applied.length, 0, 'a batch counts as applied');
  assert.deepEqual(await readdir(node.folders.archive), []);
}

/** Requires that these records, and no others, were applied, each once. */
export async function expectAppliedOnce(node: TestNode, ids: readonly string[]): Promise<void> {
  const expected = new Map(ids.toSorted().map((id) => [id, 1]));
  assert.deepEqual(await appliedTimes(node), expected);
}

/** Requires a file in quarantine with its report, and returns the reports of the code. */
export async function expectQuarantined(
  node: TestNode,
  code: string,
  count = 1,
): Promise<Record<string, unknown>[]> {
  const folder = join(node.folders.quarantine, code);
  const digests = await readdir(folder).catch(() => []);
  assert.equal(digests.length, count, `${count} file(s) in quarantine as ${code}`);
  const reports = [];
  for (const digest of digests) {
    const files = (await readdir(join(folder, digest))).sort();
    assert.deepEqual(files, ['refused.batch', 'report.json']);
    const text = await readFile(join(folder, digest, 'report.json'), 'utf8');
    const report = JSON.parse(text) as Record<string, unknown>;
    assert.equal(report['code'], code);
    assert.equal(typeof report['sentence'], 'string');
    assert.equal(typeof report['next'], 'string', `${code} tells no next step`);
    const kept = await readFile(join(folder, digest, 'refused.batch'));
    assert.equal(sha256(kept), digest);
    reports.push(report);
  }
  return reports;
}

/** Requires the names that lie in a folder of the node. */
export async function expectFiles(
  node: TestNode,
  folder: (typeof FOLDERS)[number],
  names: readonly string[],
): Promise<void> {
  const found = (await readdir(node.folders[folder])).sort();
  assert.deepEqual(found, [...names].sort(), `the files in ${folder}`);
}

/**
 * Imports a damaged or refused file and requires its code, that nothing is applied, and that it has
 * moved from the inbox to quarantine.
 */
export async function expectRefused(
  world: World,
  file: { name: string; bytes: Uint8Array },
  code: FileReport['outcome'],
  { node = world.blue, applies }: { node?: TestNode; applies?: ApplyTable } = {},
): Promise<Record<string, unknown>> {
  const before = await appliedTimes(node);
  await put(node, file.name, file.bytes);
  const report = await expectImport(node, [code], applies);
  assert.deepEqual(await appliedTimes(node), before, 'something of it was applied');
  const left = await readdir(node.folders.inbox);
  assert.deepEqual(left, [], JSON.stringify(report.files));
  await expectFiles(node, 'staging', []);
  const [told] = (await listReports(node, code)).filter((one) => one['file'] === file.name);
  assert(told, `no report of ${file.name} under ${code}`);
  assert(report.files[0]?.sentence);
  return told;
}

async function listReports(node: TestNode, code: string): Promise<Record<string, unknown>[]> {
  const digests = await readdir(join(node.folders.quarantine, code)).catch(() => []);
  return expectQuarantined(node, code, digests.length);
}

/** Requires that the next sound batch of a stream is applied: the number that was refused stays open. */
export async function expectGoodCopy(world: World, good: Forged): Promise<void> {
  const node = good.manifest.to === world.blue.name ? world.blue : world.red;
  await deliver(world, good);
  await expectImport(node, ['APPLIED']);
  await expectFiles(node, 'inbox', []);
}

/** Makes a sound batch of one new record, lets it be imported, and requires that it is applied. */
export async function expectNextApplied(world: World, wanted: Forgery = {}): Promise<void> {
  await expectGoodCopy(world, await forge(world, wanted));
}

/** Forgets a forged number, so that the next one takes its place. */
export function takeBack(world: World, { manifest }: Forged): void {
  world.chains.set(manifest.stream, { seq: manifest.seq - 1, digest: manifest.prev });
}

/** Sends records as the product does, and returns the name of the newest batch in the outbox. */
export async function seal(
  node: TestNode,
  stream: StreamName,
  records: OutgoingRecord[],
): Promise<string> {
  await sendRecords(node.test.db, stream, records, node.clock.now());
  await exportStream(node.test.db, node, stream);
  const names = (await readdir(node.folders.outbox)).filter((name) =>
    name.includes(`.${stream}.e`),
  );
  const newest = names.sort().at(-1);
  assert(newest, `nothing of ${stream} in the outbox`);
  return newest;
}

/** Copies one file from an outbox to the far inbox. */
export async function carry(world: World, from: TestNode, name: string, as = name): Promise<void> {
  const to = farNode(world, from);
  await copyFile(join(from.folders.outbox, name), join(to.folders.inbox, as));
}

/** Moves a node's clock on. */
export function wait(node: TestNode, ms: number): void {
  node.time.now = new Date(node.time.now.getTime() + ms);
}

/** How far a stream has come in. */
export async function readCursor(
  node: TestNode,
  stream: StreamName,
): Promise<{ contiguous: number; frozen: string | null; tail: number }> {
  const [row] = await rows<{ contiguous: number; frozen: string | null; tail: number }>(
    node.test.db,
    `select contiguous, frozen_code as frozen, tail_seq as tail
     from inbound_streams where stream = ?`,
    [stream],
  );
  assert(row, `no cursor of ${stream}`);
  return row;
}
