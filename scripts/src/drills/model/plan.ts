import * as fc from 'fast-check';
import type { Random } from '../random.js';
import type { Side } from './sides.js';

/** One step of the plan: its choices follow from its number alone. */
export type Step = { do: StepName; entropy: number; minutes: number };

export const STEPS_A_DAY = 36;
/** On average, so that they make a day. */
const STEP_MINUTES = (24 * 60) / STEPS_A_DAY;
/** Weights of what may happen in a step; what happens rarely is planned by the day. */
const EVERYDAY = {
  submit: 9,
  repeat: 1,
  cancel: 2,
  poll: 2,
  work: 14,
  carry: 12,
  user: 2,
  setting: 1,
  snapshot: 1,
  restart: 1,
  resend: 1,
  persons: 2,
} as const;
type Everyday = keyof typeof EVERYDAY;
/** What happens in a step. */
export type StepName =
  Everyday | `${'backup' | 'restore' | 'rotate'} ${Side}` | 'storm of holes' | 'storm of late ones';

/** All steps of the days, the rare ones among them: in three days each of them happens once. */
export function planSteps(seed: number, days: number, random: Random): Step[] {
  const step = fc.record({
    do: fc.oneof(
      ...(Object.entries(EVERYDAY) as [Everyday, number][]).map(([name, weight]) => ({
        weight,
        arbitrary: fc.constant<StepName>(name),
      })),
    ),
    entropy: fc.noBias(fc.nat()),
    minutes: fc.noBias(fc.integer({ min: 0, max: 2 * STEP_MINUTES })),
  });
  const length = { minLength: days * STEPS_A_DAY, maxLength: days * STEPS_A_DAY };
  const [plan = []] = fc.sample(fc.array(step, { ...length, size: 'max' }), { seed, numRuns: 1 });
  for (let day = 0; day < days; day += 1) {
    const place = () => (day + random.between(0, 99) / 100) * STEPS_A_DAY;
    for (const name of rareOf(day, random)) {
      const at = Math.floor(place());
      plan[at] = { do: name, entropy: random.between(0, 2 ** 31), minutes: 0 };
    }
  }
  return plan;
}

function rareOf(day: number, random: Random): StepName[] {
  const certain = day < 3;
  const often = (names: StepName[], chance: number) =>
    names.filter(() => certain || random.chance(chance));
  switch (day % 3) {
    case 0:
      return often(
        ['backup request', 'backup response', 'rotate request', 'storm of late ones'],
        0.4,
      );
    case 1:
      return [...often(['rotate response'], 0.4), ...often(['restore response'], 0.4)];
    default:
      return [
        ...often(['restore request'], 0.4),
        ...(random.chance(0.2) && day > 5 ? (['storm of holes'] as const) : []),
      ];
  }
}
