import { expect } from 'chai';
import { runModel } from './model.js';

const SEED = 20_260_301;

describe('runModel', function () {
  this.timeout(180_000);

  it('answers every promise of three days exactly once', async () => {
    const lines: string[] = [];
    const { requests, ...found } = await runModel({
      seed: SEED,
      days: 3,
      say: (line) => lines.push(line),
    });
    const clean = { days: 3, unanswered: 0, doubled: 0, gaps: 0, wrong: [] };
    expect(found, lines.join('\n')).to.deep.equal(clean);
    expect(requests).to.be.above(60);
  });
});
