import { expect } from 'chai';
import { makeBatches, oneOf, type Parts } from './fuzz-batches.js';
import { mutate } from './fuzz-mutations.js';
import { runFuzz } from './fuzz.js';
import { randomFrom } from './random.js';

describe('runFuzz', function () {
  this.timeout(120_000);

  it('finds no crash, no unsigned change accepted, no disagreement in 2,000 cases', async () => {
    const lines: string[] = [];
    const result = await runFuzz({ seed: 1, cases: 2_000, say: (line) => lines.push(line) });
    const clean = { cases: 2_000, crashes: 0, applied: 0, disagreements: 0 };
    expect(result, lines.join('\n')).to.deep.equal(clean);
  });
});

describe('mutate', () => {
  const change = (batches: Parts[], number: number) => {
    const random = randomFrom(number);
    const small = batches.slice(0, -4);
    return mutate(oneOf(random, small), random, oneOf(random, small)).bytes.toString('hex');
  };

  it('leaves the batches as they are, so that a case alone is the case in a run', () => {
    const used = makeBatches(randomFrom(1));
    const inRun = Array.from({ length: 1_000 }, (_, number) => change(used, number));
    expect(used).to.deep.equal(makeBatches(randomFrom(1)));
    const alone = [990, 993, 999].map((number) => change(makeBatches(randomFrom(1)), number));
    expect(alone).to.deep.equal([inRun[990], inRun[993], inRun[999]]);
  });
});
