import { FAULTS, describeFault } from './faults-suite.js';
import { openWorld, type World } from './faults/world.js';

describe('a bad input or a failing machine', function () {
  this.timeout(300_000);
  let world: World;

  before(async () => {
    world = await openWorld();
  });
  after(() => world.close());
  beforeEach(() => world.reset());

  for (const fault of FAULTS) {
    it(describeFault(fault), async () => {
      await fault.run(world);
    });
  }
});
