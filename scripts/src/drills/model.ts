import { SallyportError } from '@sallyport/shared';
import {
  backUp,
  changeSome,
  changeUser,
  knowEachOther,
  restore,
  rotate,
} from './model/administrators.js';
import { FAITHFUL, makeCarrier } from './model/carrier.js';
import { carrySome, collect, resendSome, work, workSome } from './model/networks.js';
import { makeOracle } from './model/oracle.js';
import { cancelSome, pollSome, submitAgain, submitOne, submitSome } from './model/people.js';
import { planSteps, STEPS_A_DAY, type Step, type StepName } from './model/plan.js';
import { comeToRest, judgeAll } from './model/rest.js';
import { blame, HOUR_MS, MINUTE_MS, note, tell, type Run } from './model/run.js';
import { SIDES } from './model/sides.js';
import { openSite } from './model/site.js';
import { randomFrom, type Random } from './random.js';

export type ModelReport = {
  days: number;
  /** Accepted submissions. */
  requests: number;
  /** Of them without the end that they should have. */
  unanswered: number;
  /** Answered twice, or with an answer that changed. */
  doubled: number;
  /** Numbers that neither arrived nor were given up, when everything had come to rest. */
  gaps: number;
  /** Whatever else must not be, one sentence each. */
  wrong: string[];
};

const SKEW_MINUTES = 8;

/**
 * Lets both real networks live through simulated days: people submit, cancel and change accounts,
 * workers run in any order, carriers lose, repeat and damage, clocks differ, keys are rotated,
 * databases are restored from backups. Then all comes to rest without faults and a pure model says
 * what must have become of every promise. A seed repeats the run.
 */
export async function runModel({
  seed,
  days,
  say,
}: {
  seed: number;
  days: number;
  say: (line: string) => void;
}): Promise<ModelReport> {
  const random = randomFrom(seed);
  const skew = () => random.between(-SKEW_MINUTES, SKEW_MINUTES) * MINUTE_MS;
  const site = await openSite({ request: skew(), response: skew() });
  const run: Run = {
    site,
    carrier: makeCarrier(site.folders, site.time),
    oracle: makeOracle(),
    step: 0,
    trace: [],
    wrong: [],
    revoked: new Set(),
    cards: new Map(),
    strangerSince: {},
  };
  try {
    for (const step of planSteps(seed, days, random)) {
      await takeStep(run, step);
      if (run.step % (STEPS_A_DAY * 5) === 0) say(progress(run));
    }
    const gaps = await comeToRest(run);
    const found = await judgeAll(run, gaps);
    const report = { days, requests: run.oracle.promises.size, ...found, wrong: run.wrong };
    const failed = found.unanswered + found.doubled + found.gaps + run.wrong.length > 0;
    if (failed) tell(run, seed, say);
    return report;
  } catch (error) {
    tell(run, seed, say);
    throw error;
  } finally {
    await site.close();
  }
}

function progress({ step, oracle, wrong, trace }: Run): string {
  const day = Math.floor(step / STEPS_A_DAY);
  return `day ${day}: ${oracle.promises.size} requests, ${wrong.length} wrong; ${trace.at(-1)}`;
}

async function takeStep(run: Run, { do: name, entropy, minutes }: Step): Promise<void> {
  run.step += 1;
  run.site.time.now = new Date(run.site.time.now.getTime() + minutes * MINUTE_MS);
  const random = randomFrom(entropy);
  try {
    await ACTS[name](run, random);
  } catch (error) {
    if (!(error instanceof SallyportError)) throw error;
    blame(run, `${name}: ${error.code}: ${error.message}`);
  }
}

const ACTS: Record<StepName, (run: Run, random: Random) => Promise<void>> = {
  submit: submitSome,
  repeat: submitAgain,
  cancel: cancelSome,
  poll: pollSome,
  work: workSome,
  carry: carrySome,
  user: changeUser,
  setting: changeSome,
  snapshot: async (run, random) => {
    const stream = random.pick(['identity', 'settings'] as const);
    note(run, `snapshot of ${stream}`);
    await run.site.snapshot(stream);
  },
  restart: async (run, random) => {
    const side = random.pick(SIDES);
    note(run, `restart ${side}`);
    await run.site.restart(side);
  },
  resend: resendSome,
  persons: knowEachOther,
  'backup request': (run) => backUp(run, 'request'),
  'backup response': (run) => backUp(run, 'response'),
  'restore request': (run) => restore(run, 'request'),
  'restore response': (run) => restore(run, 'response'),
  'rotate request': (run) => rotate(run, 'request'),
  'rotate response': (run) => rotate(run, 'response'),
  'storm of holes': stormOfHoles,
  'storm of late ones': stormOfLateOnes,
};

/** Every second number of hundreds is missing. */
async function stormOfHoles(run: Run, random: Random): Promise<void> {
  await seal(run, random, random.between(410, 450));
  let at = 0;
  const delayMs = () => ((at += 1) % 2 === 0 ? 0 : random.between(6, 30) * HOUR_MS);
  await collect(run, 'request', random, { ...FAITHFUL, delayMs });
  await run.carrier.deliver('request', random);
  await work(run, 'response', 'import-batches');
}

/** Dozens of numbers come after their time. */
async function stormOfLateOnes(run: Run, random: Random): Promise<void> {
  await seal(run, random, random.between(55, 70));
  const delayMs = () => random.between(60, 85) * HOUR_MS;
  await collect(run, 'request', random, { ...FAITHFUL, delayMs });
}

async function seal(run: Run, random: Random, numbers: number): Promise<void> {
  note(run, `a storm of ${numbers} numbers`);
  for (let count = numbers; count > 0; count -= 1) {
    await submitOne(run, random, random.pick(['ada', 'bob']));
    await work(run, 'request', 'export-requests');
  }
}
