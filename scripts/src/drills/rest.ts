import type { Death } from './life.js';
import { randomFrom } from './random.js';
import type { DrillStream, Side, StepReport } from './steps.js';
import {
  balance,
  carry,
  inspect,
  isDeath,
  pass,
  SAFE,
  type Balance,
  type World,
  type WorldProcess,
} from './world.js';

const QUIET_ROUNDS = 10;
const ROUND_MINUTES = 16;

/** What each side of a drill's world sends, besides control. */
export const STREAMS_OF: Record<Side, [DrillStream, DrillStream]> = {
  red: ['requests', 'requests.urgent'],
  blue: ['results', 'settings'],
};

/** Without faults and with a faithful carrier everything arrives, and is told to have arrived. */
export async function comeToRest(
  world: World,
  child: WorldProcess,
  { seed, sabotage }: { seed: number; sabotage?: string | undefined },
): Promise<Balance> {
  const order = { place: world.place, now: world.now.toISOString(), seed, encrypt: true };
  await child.open({ ...order, followUnsynced: false, sabotage: sabotage ?? null });
  let found = await balance(world);
  for (let round = 0, quiet = 0; round < QUIET_ROUNDS && quiet < 3; round += 1) {
    await goRound(world, child);
    found = await balance(world);
    quiet = found.lost.length === 0 ? quiet + 1 : 0;
  }
  await child.close();
  await inspect(world);
  return found;
}

/** Both networks export everything, a faithful carrier brings it over, both import. */
export async function goRound(world: World, child: WorldProcess): Promise<void> {
  const random = randomFrom(1);
  pass(world, ROUND_MINUTES);
  for (const side of ['red', 'blue'] as const) {
    for (const stream of [...STREAMS_OF[side], 'control'] as const) {
      judge(world, await child.step({ do: 'export', side, stream, twice: false }, world.now));
    }
    carry(world, side, random, SAFE);
    const other = side === 'red' ? 'blue' : 'red';
    judge(world, await child.step({ do: 'import', side: other, twice: false }, world.now));
  }
}

const ALARMS = ['FAILED', 'SEQ_FORK', 'CHAIN_BREAK', 'ACK_FORK', 'VALIDATOR_DISAGREE'];

/** Without file-system faults nothing fails but what a lock holds back. */
export function judge(world: World, ended: StepReport | Death): void {
  if (isDeath(ended)) throw new Error(`died at ${ended.point} although nothing was armed`);
  if (world.lenient) return;
  const { errors, files } = ended;
  for (const { code, sentence } of errors) {
    if (code !== 'WAIT_LOCK') world.wrong.push(`${code}: ${sentence}`);
  }
  for (const { file, outcome, sentence } of files) {
    if (ALARMS.includes(outcome)) world.wrong.push(`${file}: ${outcome} ${sentence ?? ''}`);
  }
}
