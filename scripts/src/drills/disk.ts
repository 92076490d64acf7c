import { copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { comeToRest, goRound, judge } from './rest.js';
import type { Fault, FaultCode } from './life.js';
import { randomFrom, type Random } from './random.js';
import { MEDIUM, type DrillStream, type Side, type Step, type StepReport } from './steps.js';
import {
  balance,
  carry,
  intend,
  isDeath,
  letGo,
  makeWorld,
  pass,
  SAFE,
  seeOutbox,
  settle,
  startProcess,
  type World,
  type WorldProcess,
} from './world.js';

export type DiskReport = {
  seed: number;
  /** Names of the operations that failed in turn. */
  points: string[];
  tried: number;
  /** What did not end as it must, with the scenario, the point's number and the fault. */
  failed: string[];
};

type Scenario = {
  name: string;
  prepare(stage: Stage): Promise<void>;
  step: Step;
  /** How it crosses after the fault; by the folders unless set. */
  again?: readonly Step[];
  /** What the sender sends; both sides of it are gone over again after the fault. */
  stream: DrillStream;
};
type Stage = { world: World; child: WorldProcess; random: Random };
type Trial = { label: string; fault(at: number): Fault };

const MAX_POINTS = 200;

/**
 * Makes every file operation of export, import and quarantine fail in turn, then cuts the power at
 * each: the failure is told by a code or a sentence, no file under a final name has wrong bytes, and
 * the next run does the work exactly once.
 */
export async function runDiskFaults(options: {
  seed: number;
  say: (line: string) => void;
  /** Also failures that last until the end of the run, and read-only disks. */
  long?: boolean;
  /** Tries only one in so many operations. */
  every?: number;
  /** Only the scenarios of these names. */
  scenarios?: readonly string[];
  sabotage?: string | undefined;
}): Promise<DiskReport> {
  const { seed, say, long = false, every = 1, scenarios, sabotage } = options;
  const report: DiskReport = { seed, points: [], tried: 0, failed: [] };
  for (const scenario of SCENARIOS) {
    if (scenarios && !scenarios.includes(scenario.name)) continue;
    const world = await makeWorld();
    const stage = { world, child: await startProcess(), random: randomFrom(seed) };
    try {
      await open(stage, { followUnsynced: true, sabotage });
      for (const trial of trials(long)) {
        await tryEach(report, scenario, trial, stage, { sabotage, say, every });
      }
      const { lost, doubled } = await comeToRest(world, stage.child, { seed });
      if (lost.length + doubled.length > 0) {
        report.failed.push(`${scenario.name}: ${lost.length} lost, ${doubled.length} doubled`);
      }
      report.failed.push(...world.wrong.map((sentence) => `${scenario.name}: ${sentence}`));
    } catch (error) {
      report.failed.push(`${scenario.name}: ${(error as Error).message}`);
    } finally {
      await stage.child.end();
      await world.remove();
    }
    say(`disk: ${scenario.name}, ${report.tried} tried, ${report.failed.length} failed`);
  }
  return { ...report, points: [...new Set(report.points)].sort() };
}

function trials(long: boolean): Trial[] {
  const fail = (code: FaultCode, lasting: boolean): Trial => ({
    label: lasting ? `${code} from there on` : code,
    fault: (at) => ({ kind: 'fail', at, code, lasting }),
  });
  const cut = (loss: 'torn' | 'power'): Trial => ({
    label: loss === 'torn' ? 'torn write' : 'power cut',
    fault: (at) => ({
      kind: 'kill',
      among: loss === 'torn' ? 'writes' : 'files',
      at,
      side: 'after',
      loss,
      death: 'inside',
    }),
  });
  const short = [fail('ENOSPC', false), fail('EIO', false), cut('torn'), cut('power')];
  return long ? [...short, fail('ENOSPC', true), fail('EIO', true), fail('EROFS', true)] : short;
}

async function tryEach(
  report: DiskReport,
  scenario: Scenario,
  trial: Trial,
  stage: Stage,
  {
    sabotage,
    say,
    every,
  }: { sabotage: string | undefined; say: (line: string) => void; every: number },
): Promise<void> {
  for (let at = 1; at <= MAX_POINTS; at += every) {
    const { world, child } = stage;
    await scenario.prepare(stage);
    await child.arm(trial.fault(at));
    const ended = await child.step(scenario.step, world.now);
    const struck = isDeath(ended) ? ended.point : ended.struck;
    if (isDeath(ended)) {
      await letGo(world);
      await open(stage, { followUnsynced: true, sabotage });
    } else await child.arm(null);
    const told = isDeath(ended) ? undefined : untold(ended);
    const wrong = world.wrong.length;
    await goAgain(stage, scenario);
    const { lost, doubled, foreign } = await balance(world);
    const left = lost.length + doubled.length + foreign.length + world.wrong.length - wrong;
    if (told || left > 0) {
      const what = [told, left > 0 && `${lost.length} lost, ${doubled.length} doubled`]
        .filter(Boolean)
        .join('; ');
      const why = world.wrong.slice(wrong).join('; ');
      const where = `${scenario.name}, ${trial.label} at ${at} (${struck ?? 'nothing'})`;
      report.failed.push(`${where}: ${what} ${why}`.trim());
      say(`disk: FOUND ${report.failed.at(-1)}`);
      world.wrong.length = wrong;
    }
    if (lost.length === 0) emptyOutboxes(world);
    if (struck === null) return;
    report.tried += 1;
    report.points.push(struck);
  }
}

/** All of it has arrived: the next trial starts with nothing to carry. */
function emptyOutboxes({ pair }: World): void {
  for (const { folders } of [pair.red, pair.blue]) {
    for (const name of readdirSync(folders.outbox)) rmSync(join(folders.outbox, name));
  }
}

/** The same work once more without a fault, and the crossing that follows. */
async function goAgain(stage: Stage, { stream, again }: Scenario): Promise<void> {
  const { world, child, random } = stage;
  if (again) {
    pass(world, 1);
    seeOutbox(world, 'red');
    for (const step of again) judge(world, await child.step(step, world.now));
    return;
  }
  const [from, to] =
    stream === 'settings' ? (['blue', 'red'] as const) : (['red', 'blue'] as const);
  pass(world, 1);
  await exportOf(stage, from, stream);
  carry(world, from, random, SAFE);
  judge(world, await child.step({ do: 'import', side: to, twice: false }, world.now));
}

/** A failure that reached its caller as nothing but a system error. */
function untold({ errors, files }: StepReport): string | undefined {
  const raw = errors.find(({ ours }) => !ours);
  if (raw) return `only said ${raw.sentence}`;
  const silent = files.find(({ outcome, sentence }) => outcome === 'FAILED' && !sentence);
  return silent && `FAILED without a sentence`;
}

async function open(
  { world, child, random }: Stage,
  { followUnsynced, sabotage }: { followUnsynced: boolean; sabotage: string | undefined },
): Promise<void> {
  await child.open({
    place: world.place,
    now: world.now.toISOString(),
    seed: random.between(1, 1e9),
    followUnsynced,
    sabotage: sabotage ?? null,
    encrypt: false,
  });
}

async function send(stage: Stage, side: Side, stream: DrillStream): Promise<void> {
  const { world, child, random } = stage;
  const before = world.model.settings.get('drill.0');
  const fresh = { id: random.uuid(), key: 'drill.0', version: 1, padding: 2_000 };
  const setting = before ? { ...before, version: before.version + 1 } : fresh;
  if (stream === 'settings') world.model.settings.set('drill.0', setting);
  const records = stream === 'settings' ? [setting] : [fresh];
  const step = { do: 'send', side, stream, records, commit: true } as const;
  intend(world, step);
  pass(world, 1);
  await child.step(step, world.now);
  await settle(world, false);
}

async function exportOf({ world, child }: Stage, side: Side, stream: DrillStream): Promise<void> {
  judge(world, await child.step({ do: 'export', side, stream, twice: false }, world.now));
}

/** Puts into blue's inbox what red has ready, with its last byte changed. */
function carryDamaged({ world }: Stage): void {
  const { outbox } = world.pair.red.folders;
  for (const name of readdirSync(outbox).filter((each) => each.includes('.requests.e'))) {
    spoil(join(outbox, name), join(world.pair.blue.folders.inbox, name));
  }
}

function spoil(source: string, target: string): void {
  const bytes = readFileSync(source);
  bytes[bytes.length - 1] = (bytes.at(-1) ?? 0) ^ 1;
  writeFileSync(target, bytes);
}

/** Sends two settings in two batches, and brings over only the second. */
async function carrySecondSetting(stage: Stage): Promise<void> {
  const { outbox } = stage.world.pair.blue.folders;
  await send(stage, 'blue', 'settings');
  await exportOf(stage, 'blue', 'settings');
  const first = readdirSync(outbox);
  await send(stage, 'blue', 'settings');
  await exportOf(stage, 'blue', 'settings');
  for (const name of readdirSync(outbox).filter((each) => !first.includes(each))) {
    copyFileSync(join(outbox, name), join(stage.world.pair.red.folders.inbox, name));
  }
}

/** A new medium in the place of the one before. */
function plugIn({ world }: Stage): void {
  const root = join(world.place.red.root, MEDIUM);
  rmSync(root, { recursive: true, force: true });
  mkdirSync(root);
}

const BY_MEDIUM: readonly Step[] = [
  { do: 'write-medium' },
  { do: 'read-medium' },
  { do: 'import', side: 'blue', twice: false },
];

const SCENARIOS: readonly Scenario[] = [
  {
    name: 'export of requests',
    stream: 'requests',
    prepare: (stage) => send(stage, 'red', 'requests'),
    step: { do: 'export', side: 'red', stream: 'requests', twice: false },
  },
  {
    name: 'snapshot of settings',
    stream: 'settings',
    prepare: (stage) => send(stage, 'blue', 'settings'),
    step: { do: 'snapshot' },
  },
  {
    name: 'import of requests',
    stream: 'requests',
    async prepare(stage) {
      await send(stage, 'red', 'requests');
      await exportOf(stage, 'red', 'requests');
      carry(stage.world, 'red', stage.random, SAFE);
    },
    step: { do: 'import', side: 'blue', twice: false },
  },
  {
    name: 'import of a setting that must wait',
    stream: 'settings',
    async prepare(stage) {
      await goRound(stage.world, stage.child);
      await carrySecondSetting(stage);
    },
    step: { do: 'import', side: 'red', twice: false },
  },
  {
    name: 'import of settings that waited',
    stream: 'settings',
    async prepare(stage) {
      await carrySecondSetting(stage);
      await stage.child.step({ do: 'import', side: 'red', twice: false }, stage.world.now);
      carry(stage.world, 'blue', stage.random, SAFE);
    },
    step: { do: 'import', side: 'red', twice: false },
  },
  {
    name: 'quarantine of a damaged batch',
    stream: 'requests',
    async prepare(stage) {
      await send(stage, 'red', 'requests');
      await exportOf(stage, 'red', 'requests');
      carryDamaged(stage);
    },
    step: { do: 'import', side: 'blue', twice: false },
  },
  {
    name: 'tidying after acknowledgements',
    stream: 'requests',
    async prepare(stage) {
      await send(stage, 'red', 'requests');
      await goRound(stage.world, stage.child);
      pass(stage.world, 26 * 60);
    },
    step: { do: 'tidy', side: 'red' },
  },
  {
    name: 'write to a medium',
    stream: 'requests',
    async prepare(stage) {
      plugIn(stage);
      await send(stage, 'red', 'requests');
      await exportOf(stage, 'red', 'requests');
    },
    step: { do: 'write-medium' },
    again: BY_MEDIUM,
  },
  {
    name: 'read from a medium',
    stream: 'requests',
    async prepare(stage) {
      plugIn(stage);
      await send(stage, 'red', 'requests');
      await exportOf(stage, 'red', 'requests');
      await stage.child.step({ do: 'write-medium' }, stage.world.now);
    },
    step: { do: 'read-medium' },
    again: BY_MEDIUM,
  },
];
