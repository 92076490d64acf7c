import { randomFrom, type Random } from '../random.js';
import { knowEachOther, setRights } from './administrators.js';
import { FAITHFUL } from './carrier.js';
import {
  findDifferences,
  findDoubled,
  findFalseReceipts,
  findGaps,
  findUndeserved,
} from './checks.js';
import { collect, work, WORK } from './networks.js';
import { look } from './people.js';
import { blame, HOUR_MS, note, type Run } from './run.js';
import { SIDES } from './sides.js';

/** More than two times the gap hours of the slowest lane that has numbers here. */
const QUIET_ROUNDS = 40;
const QUIET_HOURS = 3;
const QUIET_LEAST = 4;

/** Without faults everything comes to rest; answers the gaps that stay. */
export async function comeToRest(run: Run): Promise<string[]> {
  const { site, oracle } = run;
  const random = randomFrom(run.step);
  note(run, 'from here on nothing fails');
  for (const login of ['eve', 'mallory'] as const) {
    if (oracle.isDenied(login)) await setRights(site, login, false);
    oracle.noteRights(run.step, login, false);
  }
  for (let round = 1; round <= QUIET_ROUNDS; round += 1) {
    run.step += 1;
    site.time.now = new Date(site.time.now.getTime() + QUIET_HOURS * HOUR_MS);
    await knowEachOther(run);
    for (const side of SIDES) for (const name of WORK[side]) await work(run, side, name);
    await carryAll(run, random);
    // Nothing has been sealed since: what was carried now closes the last numbers.
    for (const side of SIDES) await work(run, side, 'import-batches');
    const unsettled = [
      ...(await findGaps(site)),
      ...(await findDifferences(site)),
      ...(await countOpen(run)),
    ];
    note(run, `quiet round ${round}: ${unsettled.length} unsettled; ${unsettled[0] ?? ''}`);
    if (unsettled.length === 0 && round >= QUIET_LEAST) break;
  }
  return findGaps(site);
}

async function carryAll(run: Run, random: Random): Promise<void> {
  for (const side of SIDES) {
    await collect(run, side, random, FAITHFUL);
    await run.carrier.deliver(side, random, { all: true });
  }
}

async function countOpen(run: Run): Promise<string[]> {
  const open: string[] = [];
  for (const one of run.oracle.promises.values()) {
    if (one.ended || one.lost) continue;
    const { seen } = await look(run, one);
    if (!seen || one.ended === undefined) open.push(`${one.id} is ${seen?.status ?? 'unknown'}`);
    if (open.length === 20) break;
  }
  return open;
}

/** Compares how everything has ended with what the model says must have become of it. */
export async function judgeAll(
  run: Run,
  gaps: string[],
): Promise<{ unanswered: number; doubled: number; gaps: number }> {
  const { site, oracle, carrier, revoked } = run;
  const now = site.open('request').node.clock.now().getTime();
  const bad = {
    unanswered: new Set<string>(),
    doubled: new Set<string>(),
    wrong: new Set<string>(),
  };
  for (const one of oracle.promises.values()) {
    const { seen, verdict: changed } = await look(run, one);
    const verdict = changed ?? oracle.judge(one, seen, now, run.step);
    if (!verdict) continue;
    if (!changed) blame(run, verdict.sentence);
    bad[verdict.kind].add(one.id);
  }
  for (const sentence of [
    ...gaps,
    ...carrier.forks,
    ...(await findFalseReceipts(site)),
    ...(await findDifferences(site)),
    ...(await findUndeserved(site, carrier, revoked)),
  ]) {
    blame(run, sentence);
  }
  const twice = await findDoubled(site);
  for (const sentence of twice) blame(run, sentence);
  const { unanswered, doubled } = bad;
  return { unanswered: unanswered.size, doubled: doubled.size + twice.length, gaps: gaps.length };
}
