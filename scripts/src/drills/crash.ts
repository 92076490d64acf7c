import { availableParallelism } from 'node:os';
import type { Fault } from './life.js';
import { randomFrom, type Random } from './random.js';
import { comeToRest, judge, STREAMS_OF } from './rest.js';
import type { SentRecord, Side, Step } from './steps.js';
import { UNLOCKED } from './sabotage.js';
import {
  carry,
  intend,
  isDeath,
  makeWorld,
  pass,
  settle,
  startProcess,
  type World,
  type WorldProcess,
} from './world.js';

export type CrashReport = {
  seed: number;
  cycles: number;
  /** How many of the deaths were a SIGKILL of the whole process. */
  kills: number;
  powerCuts: number;
  lost: number;
  doubled: number;
  /** Whatever else must not be, one sentence each, with the seed of its world. */
  wrong: string[];
  /** How often each point was a place of death. */
  points: Record<string, number>;
};

/** One world lives this long; a world of seed s is repeated by a run of that seed and length. */
export const CYCLES_PER_WORLD = 40;
const MAX_STEPS = 80;

/** A new process costs a second, a new life in the same process nothing. */
const KINDS_OF_DEATH = ['process', ...Array<'inside'>(7).fill('inside')] as const;
const RULES = { loss: 0.1, again: 0.03, damage: 0.05 };

type Death = 'process' | 'inside';
type Deaths = readonly [Death, ...Death[]];
type Run = Omit<CrashReport, 'points'> & { points: Map<string, number>; known: Set<string> };

/**
 * Kills the product again and again at points of its own work, restarts it, and compares what
 * arrived with a pure model: what was committed arrives exactly once, what was not never does, no
 * number is signed twice, and the bytes in store, outbox and archive are the same.
 */
export async function runCrashLoop(options: {
  seed: number;
  cycles: number;
  say: (line: string) => void;
  sabotage?: string | undefined;
  deaths?: Deaths;
}): Promise<CrashReport> {
  const { seed, cycles, say, sabotage, deaths = KINDS_OF_DEATH } = options;
  const run: Run = { ...EMPTY, seed, wrong: [], points: new Map(), known: new Set() };
  const worlds = Array.from({ length: Math.ceil(cycles / CYCLES_PER_WORLD) }, (_, at) => at);
  const lane = async (): Promise<void> => {
    const child = keepProcess();
    for (let at = worlds.shift(); at !== undefined; at = worlds.shift()) {
      const length = Math.min(CYCLES_PER_WORLD, cycles - at * CYCLES_PER_WORLD);
      await runWorld(run, child, { seed: seed + at, cycles: length, sabotage, deaths });
      if (run.cycles % 400 < CYCLES_PER_WORLD || worlds.length === 0) say(progress(run));
    }
    await child.end();
  };
  const lanes = Math.min(availableParallelism(), 4, worlds.length);
  await Promise.all(Array.from({ length: lanes }, lane));
  const { points, known: _known, ...rest } = run;
  const sorted = [...points].sort(([, a], [, b]) => b - a);
  return { ...rest, points: Object.fromEntries(sorted) };
}

type KeptProcess = { running(): Promise<WorldProcess>; end(): Promise<void> };

/** One process after the other: a new one is started when the last has been killed. */
function keepProcess(): KeptProcess {
  let child: WorldProcess | undefined;
  return {
    async running() {
      if (!child?.alive()) child = await startProcess();
      return child;
    },
    end: async () => child?.end(),
  };
}

async function runWorld(
  run: Run,
  child: KeptProcess,
  options: { seed: number; cycles: number; sabotage: string | undefined; deaths: Deaths },
): Promise<void> {
  const { seed, cycles, sabotage } = options;
  const random = randomFrom(seed);
  const world = await makeWorld({ lenient: UNLOCKED.includes(sabotage ?? '') });
  const tag = (sentence: string) => `seed ${seed}: ${sentence}`;
  try {
    for (let cycle = 0; cycle < cycles; cycle += 1) {
      await liveAndDie(run, world, await child.running(), { ...options, random });
      run.cycles += 1;
    }
    const found = await comeToRest(world, await child.running(), { seed, sabotage });
    run.lost += found.lost.length;
    run.doubled += found.doubled.length;
    for (const key of found.lost.slice(0, 3)) run.wrong.push(tag(`lost ${key}`));
    for (const key of found.doubled.slice(0, 3)) run.wrong.push(tag(`applied twice ${key}`));
    for (const key of found.foreign.slice(0, 3)) run.wrong.push(tag(`never committed ${key}`));
    run.wrong.push(...world.wrong.slice(0, 5).map(tag));
  } catch (error) {
    run.wrong.push(tag((error as Error).message));
    await child.end();
  } finally {
    await world.remove();
  }
}

/** One life: some steps until the fault falls. */
async function liveAndDie(
  run: Run,
  world: World,
  child: WorldProcess,
  options: { random: Random; sabotage: string | undefined; deaths: Deaths },
): Promise<void> {
  const { random, sabotage, deaths } = options;
  const fault = chooseFault(run, random, deaths);
  await child.open({
    place: world.place,
    now: world.now.toISOString(),
    seed: random.between(1, 1e9),
    followUnsynced: fault.loss === 'power',
    sabotage: sabotage ?? null,
    encrypt: random.chance(0.3),
  });
  await child.arm(fault);
  for (let count = 1; count <= MAX_STEPS; count += 1) {
    if (random.chance(0.4)) carry(world, random.pick(['red', 'blue'] as const), random, RULES);
    const step = chooseStep(world, random);
    if (step.do === 'send') intend(world, step);
    pass(world, step.do === 'tidy' ? 26 * 60 : random.between(1, 9));
    const ended = await child.step(step, world.now);
    await settle(world, isDeath(ended));
    if (isDeath(ended)) {
      run.points.set(ended.point, (run.points.get(ended.point) ?? 0) + 1);
      run.powerCuts += fault.loss === 'power' ? 1 : 0;
      run.kills += fault.death === 'process' ? 1 : 0;
      return;
    }
    for (const name of ended.names) run.known.add(name);
    judge(world, ended);
    // A point that was not passed for long is given up for any other.
    if (count === 25) await child.arm({ ...anywhere(fault), at: random.between(1, 30) });
  }
  throw new Error(`nothing struck in ${MAX_STEPS} steps`);
}

function chooseFault(run: Run, random: Random, deaths: Deaths): Extract<Fault, { kind: 'kill' }> {
  const fault = {
    kind: 'kill',
    among: 'all',
    at: random.between(1, 150),
    side: random.pick(['before', 'during', 'after'] as const),
    loss: random.pick(['none', 'none', 'none', 'torn', 'power', 'power'] as const),
    death: random.pick(deaths),
  } as const;
  if (run.known.size === 0 || random.chance(0.5)) return fault;
  // The least visited of all points that were ever passed.
  const fewest = [...run.known].sort((a, b) => visits(run, a) - visits(run, b));
  const name = fewest[random.between(0, Math.min(5, fewest.length - 1))];
  return name === undefined ? fault : { ...fault, name };
}

function visits({ points }: Run, name: string): number {
  return points.get(name) ?? 0;
}

function anywhere(fault: Extract<Fault, { kind: 'kill' }>): Extract<Fault, { kind: 'kill' }> {
  const { name: _name, ...rest } = fault;
  return rest;
}

function chooseStep(world: World, random: Random): Step {
  const side = random.pick(['red', 'blue'] as const);
  const twice = random.chance(world.lenient ? 0.9 : 0.3);
  const dice = random.between(1, 100);
  if (dice <= 25) return chooseSending(world, side, random);
  if (dice <= 57) {
    const stream = random.pick([...STREAMS_OF[side], 'control'] as const);
    return { do: 'export', side, stream, twice };
  }
  if (dice <= 93) return { do: 'import', side, twice };
  return dice <= 97 ? { do: 'snapshot' } : { do: 'tidy', side };
}

function chooseSending(world: World, side: Side, random: Random): Step {
  const stream = random.pick(STREAMS_OF[side]);
  const commit = !random.chance(0.1);
  if (stream === 'settings') {
    const number = random.between(0, 4);
    const key = `drill.${number}`;
    const before = world.model.settings.get(key);
    const record: SentRecord = {
      id: before?.id ?? random.uuid(),
      key,
      version: (before?.version ?? 0) + 1,
      padding: 0,
    };
    world.model.settings.set(key, record);
    return { do: 'send', side, stream, records: [record], commit };
  }
  const count = random.chance(0.1) ? 300 : random.between(1, 12);
  const padding = random.chance(0.1) ? 3_000 : 20;
  const records = Array.from({ length: count }, () => ({
    id: random.uuid(),
    key: '',
    version: 1,
    padding,
  }));
  return { do: 'send', side, stream, records, commit };
}

function progress({ cycles, kills, powerCuts, lost, doubled, wrong, points }: Run): string {
  return (
    `crash: ${cycles} cycles, ${kills} by SIGKILL, ${powerCuts} power cuts, ${points.size} points, ` +
    `${lost} lost, ${doubled} doubled, ${wrong.length} wrong`
  );
}

const EMPTY = { cycles: 0, kills: 0, powerCuts: 0, lost: 0, doubled: 0 };
