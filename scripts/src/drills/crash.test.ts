import { expect } from 'chai';
import { runCrashLoop } from './crash.js';

const SEED = 20_260_301;

describe('runCrashLoop', function () {
  this.timeout(900_000);

  it('loses nothing and applies nothing twice, wherever the product is killed', async () => {
    const { cycles, lost, doubled, wrong, points } = await runCrashLoop({
      seed: SEED,
      cycles: 200,
      say: () => undefined,
    });
    expect({ cycles, lost, doubled, wrong }).to.deep.equal({
      cycles: 200,
      lost: 0,
      doubled: 0,
      wrong: [],
    });
    expect(Object.keys(points).length).to.be.at.least(30);
  });
});
