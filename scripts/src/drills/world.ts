import { spawn, type ChildProcess } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readFileSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { rows } from '@sallyport/shared';
import { eventually } from '@sallyport/shared/testing';
import { batchName, parseBatchName, readHeader } from '@sallyport/transfer';
import { makeTestPair } from '@sallyport/transfer/testing';
import type { Death, Fault } from './life.js';
import type { Random } from './random.js';
import type { Answer, Order, SentRecord, Side, Step, StepReport, WorldPlace } from './steps.js';

const SIDES = ['red', 'blue'] as const;
const MINUTE_MS = 60_000;

/** Two networks whose databases and folders outlive the process that works on them. */
export type World = {
  pair: Awaited<ReturnType<typeof makeTestPair>>;
  place: WorldPlace;
  now: Date;
  model: Model;
  carried: Map<string, CarriedFile>;
  /** What must never be: one sentence each. */
  wrong: string[];
  /** Steps may fail, because two that work at once are not kept apart; the end alone counts. */
  lenient: boolean;
  remove(): Promise<void>;
};

type CarriedFile = { from: Side; name: string; sha256: string; bytes: Buffer };

/** Pure: what was sent in committed transactions, and what was not. */
export type Model = {
  sent: Map<string, { side: Side; stream: string; version: number }>;
  /** Sent in a transaction whose commit nobody has confirmed. */
  open: Map<string, { side: Side; stream: string; version: number }>;
  never: Set<string>;
  settings: Map<string, SentRecord>;
};

/** Makes both networks, which trust each other, and the tables of the model's witnesses. */
export async function makeWorld({ lenient = false } = {}): Promise<World> {
  const pair = await makeTestPair();
  for (const side of SIDES) {
    await pair[side].test.db.raw(
      `create table drill_sent (record_id uuid not null, stream text not null,
         version integer not null, primary key (record_id, version));
       create table drill_settings (id uuid primary key, key text not null unique,
         version integer not null);
       create table drill_applied (record_id uuid not null, type text not null,
         version integer not null, digest text not null);`,
    );
  }
  const place = (side: Side) => {
    const url = new URL(pair[side].test.url);
    // The server does not die in these drills: what it said is committed, is.
    url.searchParams.set('options', '-c synchronous_commit=off');
    return { root: pair[side].folders.root, url: url.href };
  };
  return {
    pair,
    place: { red: place('red'), blue: place('blue') },
    now: new Date('2026-03-01T12:00:00.000Z'),
    model: { sent: new Map(), open: new Map(), never: new Set(), settings: new Map() },
    carried: new Map(),
    wrong: [],
    lenient,
    remove: () => pair.remove(),
  };
}

/** The process that does the steps; it dies where its fault says. */
export type WorldProcess = {
  open(order: Omit<Extract<Order, { order: 'open' }>, 'order'>): Promise<void>;
  arm(fault: Fault | null): Promise<void>;
  step(step: Step, now: Date): Promise<StepReport | Death>;
  close(): Promise<void>;
  /** Whether it can be given orders. */
  alive(): boolean;
  end(): Promise<void>;
};

/** Starts a process with the faults loaded; it is ready when this resolves. */
export async function startProcess(): Promise<WorldProcess> {
  const module = (name: string) => new URL(`./${name}.js`, import.meta.url);
  const child = spawn(
    process.execPath,
    ['--import', module('faults').href, fileURLToPath(module('world-process'))],
    { stdio: ['ignore', 'inherit', 'inherit', 'pipe', 'ipc'] },
  );
  let death = '';
  const pipe = child.stdio[3] as Readable;
  pipe.setEncoding('utf8').on('data', (text: string) => (death += text));
  const closed = Promise.all([once(pipe, 'end'), once(child, 'exit')]).then(() => undefined);
  const told = { resolve: (answer: Answer): void => void answer };
  child.on('message', (answer: Answer) => told.resolve(answer));
  const answer = async (order?: Order): Promise<Answer> => {
    const heard = new Promise<Answer>((resolve) => (told.resolve = resolve));
    if (order && isRunning(child)) child.send(order, () => undefined);
    const { promise: late, cancel } = timeLimit(child, order);
    const first = await Promise.race([heard, closed, late]).finally(cancel);
    if (first) return first;
    if (death === '') throw new Error(`the drill's process ended by itself (${child.exitCode})`);
    return { answer: 'died', death: JSON.parse(death) as Death };
  };
  await answer();
  const must = async (order: Order): Promise<void> => {
    const { answer: kind } = await answer(order);
    if (kind !== 'done') throw new Error(`${order.order} was answered with ${kind}`);
  };
  return {
    open: (order) => must({ order: 'open', ...order }),
    // Died behind its last step: the next one is told.
    arm: async (fault) => void (await answer({ order: 'arm', fault })),
    close: () => must({ order: 'close' }),
    async step(step, now) {
      const heard = await answer({ order: 'step', step, now: now.toISOString() });
      if (heard.answer === 'report') return heard.report;
      if (heard.answer === 'died') return heard.death;
      throw new Error('a step was answered without a report');
    },
    alive: () => isRunning(child),
    async end() {
      if (isRunning(child)) child.disconnect();
      await closed;
    },
  };
}

/** Nothing that a drill orders takes this long; a process that hangs is ended and told. */
const ANSWER_LIMIT_MS = 30_000;

function timeLimit(
  child: ChildProcess,
  order: Order | undefined,
): { promise: Promise<never>; cancel: () => void } {
  let timer: NodeJS.Timeout | undefined;
  const promise = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      child.kill('SIGKILL');
      reject(new Error(`no answer within ${ANSWER_LIMIT_MS} ms to ${JSON.stringify(order)}`));
    }, ANSWER_LIMIT_MS);
  });
  return { promise, cancel: () => clearTimeout(timer) };
}

function isRunning(child: ChildProcess): boolean {
  return child.exitCode === null && child.signalCode === null && child.connected;
}

/** Whether a step ended with the process or life instead of a report. */
export function isDeath(report: StepReport | Death): report is Death {
  return 'point' in report;
}

/** Tells the model of a sending before it is tried; {@link settle} learns what became of it. */
export function intend({ model }: World, step: Extract<Step, { do: 'send' }>): void {
  for (const { id, version } of step.records) {
    const sent = { side: step.side, stream: step.stream, version };
    if (step.commit) model.open.set(`${id} ${version}`, sent);
    else model.never.add(`${id} ${version}`);
  }
}

/** A step that was reported as done has committed; after a death the sender's own row says it. */
export async function settle(world: World, died: boolean): Promise<void> {
  const { model, pair } = world;
  if (died) await letGo(world);
  if (model.open.size === 0) return;
  const known = new Set<string>();
  for (const side of died ? SIDES : []) {
    const found = await rows<{ key: string }>(
      pair[side].test.db,
      `select record_id || ' ' || version as key from drill_sent`,
    );
    for (const { key } of found) known.add(key);
  }
  for (const [key, sent] of model.open) {
    if (!died || known.has(key)) model.sent.set(key, sent);
    else model.never.add(key);
  }
  model.open.clear();
}

/**
 * After a death: a commit that was on its way may still be done, and a lock is held until the server
 * has noticed. Waits until neither is so.
 */
export async function letGo({ pair }: World): Promise<void> {
  for (const side of SIDES) {
    await eventually(async () => {
      const left = await rows(
        pair[side].test.db,
        `select 1 from pg_stat_activity a
         where datname = current_database() and pid <> pg_backend_pid() and (
           state <> 'idle' or exists (
             select 1 from pg_locks l where l.pid = a.pid and l.locktype = 'advisory'))`,
      );
      return left.length === 0;
    });
  }
}

/** Time goes on. */
export function pass(world: World, minutes: number): void {
  world.now = new Date(world.now.getTime() + minutes * MINUTE_MS);
}

/** How a carrier treats each file, in probabilities. */
export type Carriage = { loss: number; again: number; damage: number };
export const SAFE: Carriage = { loss: 0, again: 0, damage: 0 };

/**
 * Looks at every file in a node's outbox, and brings them over as the carriage says. A final name
 * with other bytes than its line 1 states, or a number with two contents, is wrong.
 */
export function carry(world: World, from: Side, random: Random, carriage: Carriage): void {
  const inbox = world.pair[from === 'red' ? 'blue' : 'red'].folders.inbox;
  const names = batchesIn(world.pair[from].folders.outbox);
  for (const name of names) {
    const bytes = see(world, from, name);
    if (!bytes || random.chance(carriage.loss)) continue;
    deliver(inbox, name, random.chance(carriage.damage) ? damage(bytes, random) : bytes);
  }
  for (const old of world.carried.values()) {
    if (old.from === from && random.chance(carriage.again)) deliver(inbox, old.name, old.bytes);
  }
}

/** Notes all that lies in an outbox and leaves it to others to carry. */
export function seeOutbox(world: World, side: Side): void {
  for (const name of batchesIn(world.pair[side].folders.outbox)) see(world, side, name);
}

/** Notes what lies in an outbox; undefined when its bytes are wrong. */
function see(world: World, from: Side, name: string): Buffer | undefined {
  const bytes = readFileSync(join(world.pair[from].folders.outbox, name));
  const sha256 = sha256Of(bytes);
  const number = numberOf(from, name);
  const known = world.carried.get(number);
  if (known?.sha256 === sha256) return bytes;
  const fault = faultOf(bytes, name);
  if (fault) world.wrong.push(`outbox of ${from}: ${name} ${fault}`);
  else if (known) world.wrong.push(`outbox of ${from}: ${name} was ${known.name} before`);
  if (fault) return undefined;
  if (!known) world.carried.set(number, { from, name, sha256, bytes });
  return bytes;
}

function deliver(inbox: string, name: string, bytes: Buffer): void {
  const temporary = join(inbox, `.${name}.part`);
  writeFileSync(temporary, bytes);
  renameSync(temporary, join(inbox, name));
}

function damage(bytes: Buffer, random: Random): Buffer {
  const damaged = Buffer.from(bytes);
  if (random.chance(0.4)) return damaged.subarray(0, random.between(0, bytes.length - 1));
  const at = random.between(0, bytes.length - 1);
  damaged[at] = (damaged[at] ?? 0) ^ (1 << random.between(0, 7));
  return damaged;
}

/** What everything adds up to, once nothing moves any more. */
export type Balance = { lost: string[]; doubled: string[]; foreign: string[] };

/** Compares what was applied with what the model says was sent. */
export async function balance({ model, pair }: World): Promise<Balance> {
  const applied = new Map<string, number>();
  const newest = new Map<string, number>();
  const found: Balance = { lost: [], doubled: [], foreign: [] };
  for (const side of SIDES) {
    const all = await rows<{ id: string; type: string; version: number; digests: string[] }>(
      pair[side].test.db,
      `select record_id as id, type, version, array_agg(digest) as digests from drill_applied
       group by record_id, type, version`,
    );
    for (const { id, type, version, digests } of all) {
      const key = `${id} ${version}`;
      applied.set(key, digests.length);
      newest.set(id, Math.max(newest.get(id) ?? 0, version));
      // A setting comes again with a snapshot, but never twice from the same batch.
      const times = type === 'setting' ? new Set(digests).size : 1;
      if (digests.length > times) found.doubled.push(key);
      if (!model.sent.has(key)) found.foreign.push(key);
    }
  }
  for (const [key, { stream, version }] of model.sent) {
    const id = key.split(' ')[0] ?? '';
    const there =
      stream === 'settings' ? (newest.get(id) ?? 0) >= version : (applied.get(key) ?? 0) > 0;
    if (!there) found.lost.push(key);
  }
  return found;
}

/** What must hold of the files of a world at rest; adds to `wrong`. */
export async function inspect(world: World): Promise<void> {
  for (const side of SIDES) {
    await inspectStore(world, side);
    await inspectArchive(world, side);
    await inspectQuarantine(world, side);
    const { store, staging, outbox, waiting } = world.pair[side].folders;
    for (const folder of [store, staging, outbox, waiting]) {
      const left = readdirSync(folder).filter((name) => !name.endsWith('.batch'));
      if (left.length > 0) wrong(world, side, `${basename(folder)} holds ${left.join(', ')}`);
    }
    const staged = batchesIn(staging);
    if (staged.length > 0) wrong(world, side, `staging holds ${staged.join(', ')}`);
  }
}

async function inspectStore(world: World, side: Side): Promise<void> {
  const { folders, test } = world.pair[side];
  const batches = await rows<{ name: string | null; state: string; stream: string; seq: number }>(
    test.db,
    `select file_name as name, state, stream, seq from outbound_batches`,
  );
  const known = new Set<string>();
  for (const { name, state, stream, seq } of batches) {
    if (name === null) {
      wrong(world, side, `${stream} ${seq} is still ${state}`);
      continue;
    }
    known.add(name);
    const path = join(folders.store, name);
    const seen = world.carried.get(numberOf(side, name));
    if (!existsSync(path)) {
      if (state !== 'acked') wrong(world, side, `${name} is ${state} and not in the store`);
      continue;
    }
    const bytes = readFileSync(path);
    const fault = faultOf(bytes, name);
    if (fault) wrong(world, side, `store: ${name} ${fault}`);
    if (seen && seen.sha256 !== sha256Of(bytes)) {
      wrong(world, side, `store: ${name} differs from what was in the outbox`);
    }
  }
  const strange = batchesIn(folders.store).filter((name) => !known.has(name));
  if (strange.length > 0) wrong(world, side, `store holds ${strange.join(', ')}, known to nobody`);
}

async function inspectArchive(world: World, side: Side): Promise<void> {
  const { folders, test } = world.pair[side];
  const from = side === 'red' ? 'blue' : 'red';
  const applied = await rows<{ digest: string; stream: string; epoch: number; seq: number }>(
    test.db,
    `select digest, stream, epoch, seq from inbound_batches where state = 'applied'`,
  );
  for (const { digest, stream, epoch, seq } of applied) {
    const sent = world.carried.get(`${from} ${stream} ${epoch} ${seq}`);
    if (!sent) {
      wrong(world, side, `${stream} ${seq} was applied and never carried`);
      continue;
    }
    const path = join(folders.archive, sent.name);
    if (!sent.name.includes(digest.slice(0, 12))) {
      wrong(world, side, `${sent.name} was applied as ${digest}`);
    }
    if (!existsSync(path)) wrong(world, side, `${sent.name} is not in the archive`);
    else if (sha256Of(readFileSync(path)) !== sent.sha256) {
      wrong(world, side, `archive: ${sent.name} has other bytes than were carried`);
    }
  }
}

async function inspectQuarantine(world: World, side: Side): Promise<void> {
  const { folders, test } = world.pair[side];
  const kept = await rows<{ code: string; digest: string }>(
    test.db,
    'select code, digest from quarantine where decided_at is null',
  );
  for (const { code, digest } of kept) {
    const path = join(folders.quarantine, code, digest, 'refused.batch');
    if (!existsSync(path)) wrong(world, side, `quarantine: ${code} ${digest} is gone`);
    else if (sha256Of(readFileSync(path)) !== digest) {
      wrong(world, side, `quarantine: ${code} ${digest} has other bytes`);
    }
  }
}

function wrong(world: World, side: Side, sentence: string): void {
  world.wrong.push(`${side}: ${sentence}`);
}

function batchesIn(folder: string): string[] {
  return readdirSync(folder).filter((name) => parseBatchName(name) !== undefined);
}

function numberOf(from: Side, name: string): string {
  const parts = parseBatchName(name);
  return parts ? `${from} ${parts.stream} ${parts.epoch} ${parts.seq}` : name;
}

/** What is wrong with a file under a final name: it must be whole and named by its manifest. */
function faultOf(bytes: Buffer, name: string): string | undefined {
  const end = bytes.indexOf(0x0a);
  if (end === -1) return 'has no line 1';
  try {
    const { manifest, digest } = readHeader(bytes.subarray(0, end));
    const body = bytes.subarray(end + 1);
    if (batchName(manifest, digest) !== name) return 'is named wrongly';
    if (body.length !== manifest.body.bytes) return `has ${body.length} bytes of a body`;
    return sha256Of(body) === manifest.body.sha256 ? undefined : 'has other bytes than were signed';
  } catch (error) {
    return `cannot be read: ${(error as Error).message}`;
  }
}

function sha256Of(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
