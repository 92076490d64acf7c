import { readFile, readdir } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import {
  SallyportError,
  createLog,
  defaultSettings,
  openDatabase,
  rows,
  type Database,
  type Settings,
  type StreamName,
} from '@sallyport/shared';
import {
  exportControl,
  exportStream,
  foldersIn,
  importBatches,
  openNode,
  pruneOutbox,
  pruneStore,
  sendRecords,
  sendSnapshot,
  tidyOutbox,
  type ApplyTable,
  type Node,
  type OutgoingRecord,
} from '@sallyport/transfer';
import { readMedia, requestRecord, settingRecord, writeMedia } from '@sallyport/transfer/testing';
import { arm, beginLife, inLife, type Death, type Life } from './life.js';
import {
  MEDIUM,
  type Answer,
  type Order,
  type SentRecord,
  type Side,
  type Step,
  type StepReport,
} from './steps.js';

/**
 * The process that the drills kill: it opens both nodes of a world and does one step after the
 * other, as its parent orders. The faults module must have been loaded before it.
 */
type World = {
  life: Life;
  nodes: Record<Side, { db: Database; node: Node }>;
  time: { now: Date };
  /** A step is under way that nobody has been answered about. */
  stepping: boolean;
  /** Its life has ended: the step under way, or the next one, is answered with it. */
  death: Death | undefined;
};

let world: World | undefined;

process.on('message', (order: Order) => {
  obey(order).then(
    (answer) => answer && tell(answer),
    (error: unknown) => {
      console.error(error);
      process.exit(1);
    },
  );
});
process.once('disconnect', () => process.exit(0));
tell({ answer: 'done' });

function tell(answer: Answer): void {
  process.send?.(answer);
}

async function obey(order: Order): Promise<Answer | undefined> {
  if (order.order === 'open') {
    world = await openWorld(order);
    return { answer: 'done' };
  }
  const current = world;
  if (!current) throw new Error('no world is open');
  if (order.order === 'arm') {
    arm(current.life, order.fault ?? undefined);
    return { answer: 'done' };
  }
  if (order.order === 'close') {
    for (const { db } of Object.values(current.nodes)) await db.destroy();
    world = undefined;
    return { answer: 'done' };
  }
  if (current.death) return { answer: 'died', death: current.death };
  current.time.now = new Date(order.now);
  current.stepping = true;
  if (current.life.dead) return undefined;
  const report = await inLife(current.life, () => doStep(current, order.step));
  // What a step leaves to run behind it can be where the fault strikes.
  if (current.life.dead) return undefined;
  current.stepping = false;
  return { answer: 'report', report };
}

async function openWorld(order: Extract<Order, { order: 'open' }>): Promise<World> {
  const { place, seed, sabotage } = order;
  const time = { now: new Date(order.now) };
  const settings: Settings = {
    ...defaultSettings(),
    'transfer.keep_days': 1,
    'transfer.not_after_days': 30,
    'transfer.reserve_bytes': 0,
  };
  if (!order.encrypt) {
    for (const stream of ['requests', 'requests.urgent', 'results', 'settings'] as const) {
      settings[`transfer.crypt.${stream}`] = 'none';
    }
  }
  const open = async (side: Side) => ({
    db: openDatabase(place[side].url, { poolMax: 8 }),
    node: await openNode({
      role: side === 'red' ? 'request' : 'response',
      folders: foldersIn(place[side].root),
      settings: () => settings,
      clock: { now: () => time.now },
      log: createLog(side, 'silent'),
      build: '0.1.0',
    }),
  });
  const nodes = { red: await open('red'), blue: await open('blue') };
  const life = beginLife({
    roots: [place.red.root, place.blue.root],
    seed,
    ...(order.followUnsynced && { grave: join(place.red.root, '.drill-grave') }),
    ...(sabotage !== null && { sabotage }),
    onDeath(death) {
      opened.death = death;
      if (opened.stepping) tell({ answer: 'died', death });
    },
  });
  const opened: World = { life, nodes, time, stepping: false, death: undefined };
  return opened;
}

async function doStep(current: World, step: Step): Promise<StepReport> {
  const { life } = current;
  const report: StepReport = { errors: [], files: [], struck: null, names: [] };
  const works = 'twice' in step && step.twice ? [run, run] : [run];
  for (const done of await Promise.allSettled(works.map((work) => work(current, step, report)))) {
    if (done.status === 'rejected') report.errors.push(describe(done.reason));
  }
  const { struck, names } = life;
  return { ...report, struck: struck ?? null, names: [...names.keys()] };
}

function describe(error: unknown): StepReport['errors'][number] {
  const { code, message } = error as { code?: unknown; message?: string };
  return {
    code: typeof code === 'string' ? code : 'none',
    ours: error instanceof SallyportError,
    sentence: message ?? String(error),
  };
}

async function run({ nodes, time }: World, step: Step, report: StepReport): Promise<void> {
  const { db, node } = nodes['side' in step ? step.side : 'blue'];
  switch (step.do) {
    case 'send':
      return send(db, step, time.now);
    case 'export':
      if (step.stream === 'control') await exportControl(db, node);
      else await exportStream(db, node, step.stream);
      return;
    case 'import': {
      const { files } = await importBatches(db, node, applies);
      const told = files.map(({ file, outcome, sentence }) => ({ file, outcome, sentence }));
      report.files.push(...told);
      return;
    }
    case 'snapshot':
      await sendSnapshot(db, node, 'settings', async (tx) => {
        const all = await rows<{ id: string; key: string; version: number }>(
          tx,
          'select id, key, version from drill_settings order by key',
        );
        return all.map(({ id, key, version }) => settingRecord(id, key, version));
      });
      return;
    case 'write-medium':
      return writeMedium(nodes.red.node, time.now, report);
    case 'read-medium':
      return readMedium(nodes.blue.node, nodes.red.node, time.now, report);
    case 'tidy':
      await tidyOutbox(db, node);
      await pruneStore(db, node);
      await pruneOutbox(db, node);
  }
}

/** A folder beside red's outbox stands for the medium; each side has a carrier of its own. */
const besides = (node: Node, name: string) => join(dirname(node.folders.outbox), name);

async function writeMedium(node: Node, now: Date, report: StepReport): Promise<void> {
  const root = besides(node, MEDIUM);
  const { media } = await writeMedia({
    from: node.folders.outbox,
    roots: [root],
    carrier: { name: 'drill', folder: besides(node, 'carrier') },
    clock: { now: () => now },
  });
  for (const { fault, state, files } of media) {
    if (fault) report.errors.push({ code: fault.code, ours: true, sentence: fault.message });
    if (state === 'not-safe') continue;
    const paths = await readdir(root, { recursive: true });
    for (const { name } of files) {
      const there = paths.find((path) => basename(path) === name) ?? name;
      const written = await readFile(join(root, there)).catch(() => Buffer.alloc(0));
      if (written.equals(await readFile(join(node.folders.outbox, name)))) continue;
      throw new Error(`${name} was called ${state}, and is wrong`);
    }
  }
}

async function readMedium(node: Node, far: Node, now: Date, report: StepReport): Promise<void> {
  const { media } = await readMedia({
    roots: [besides(far, MEDIUM)],
    into: node.folders.inbox,
    carrier: { name: 'drill', folder: besides(node, 'carrier') },
    clock: { now: () => now },
    clear: true,
  });
  for (const { failure, faults } of media) {
    const told = [failure, ...faults].filter((each) => each !== undefined);
    report.errors.push(
      ...told.map(({ code, message }) => ({ code, ours: true, sentence: message })),
    );
  }
}

class RolledBack extends Error {}

async function send(db: Database, step: Extract<Step, { do: 'send' }>, now: Date): Promise<void> {
  const { stream, records, commit } = step;
  await db
    .transaction(async (tx) => {
      await sendRecords(
        tx,
        stream,
        records.map((record) => toRecord(stream, record)),
        now,
      );
      await tx('drill_sent').insert(
        records.map(({ id, version }) => ({ record_id: id, stream, version })),
      );
      if (stream === 'settings') {
        await tx('drill_settings')
          .insert(records.map(({ id, key, version }) => ({ id, key, version })))
          .onConflict('id')
          .merge(['version']);
      }
      if (!commit) throw new RolledBack();
    })
    .catch((error: unknown) => {
      if (!(error instanceof RolledBack)) throw error;
    });
}

function toRecord(stream: StreamName, { id, key, version, padding }: SentRecord): OutgoingRecord {
  if (stream === 'settings') return settingRecord(id, key, version);
  if (stream !== 'results') return requestRecord(id, 'x'.repeat(padding));
  const at = '2026-03-01T12:00:00.000Z';
  return {
    type: 'result',
    id,
    data: {
      status: 'delivered',
      failure: null,
      media_type: 'application/json',
      bytes: padding,
      sha256: `sha256:${'0'.repeat(64)}`.slice(-64),
      parts: 0,
      text: 'x'.repeat(padding),
      disclosure: null,
      dataset_version: 1,
      policy_version: 1,
      times: { received_at: at, started_at: at, finished_at: at, took_ms: 1 },
    },
  };
}

/** Every application is a row of its own, so that a second one shows. */
const applies: ApplyTable = Object.fromEntries(
  ['request', 'result', 'setting'].map((type) => [
    type,
    async (tx: Parameters<NonNullable<ApplyTable['request']>>[0], batch: { digest: string }) => {
      await tx.raw(
        `insert into drill_applied (record_id, type, version, digest)
         select id, t, coalesce((d->>'version')::integer, 1), ? from incoming where t = ?`,
        [batch.digest, type],
      );
    },
  ]),
);
