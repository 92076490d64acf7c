import { expect } from 'chai';
import { runDiskFaults } from './disk.js';

describe('runDiskFaults', function () {
  this.timeout(900_000);

  it('survives writes, fsyncs and renames that fail, are torn, or are lost', async () => {
    const { points, tried, failed } = await runDiskFaults({
      seed: 1,
      every: 8,
      say: () => undefined,
    });
    expect(failed).to.deep.equal([]);
    expect(points.length).to.be.at.least(10);
    expect(tried).to.be.at.least(60);
  });

  it('finds the bytes that a store without fsync loses', async () => {
    const { failed } = await runDiskFaults({
      seed: 1,
      scenarios: ['export of requests'],
      sabotage: 'skip-store-fsync',
      say: () => undefined,
    });
    expect(failed.join()).to.match(/outbox of red: .* has \d+ bytes of a body|lost/);
  });
});
