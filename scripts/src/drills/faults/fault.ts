import type { World } from './world.js';

/** One bad input or failure of a machine, and what must become of it. */
export type Fault = {
  /** As the list of bad inputs counts them, 1 to 70. */
  number: number;
  /** What happens. */
  name: string;
  /** The code that must come of it, or the state where there is none. */
  expected: string;
  /**
   * Makes it happen in a world that nothing has happened in, and throws when anything comes of it
   * but what is expected. It may return a remark for the report.
   */
  run(world: World): Promise<string | void>;
};
