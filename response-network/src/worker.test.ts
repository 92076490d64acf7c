import { expect } from 'chai';
import { createLog } from '@sallyport/shared';
import type { Executor } from './execute.js';
import type { ResponseNetwork } from './network.js';
import { workersOf } from './worker.js';

describe('execute-queries', () => {
  for (const more of [true, false]) {
    it(`${more ? 'wakes itself' : 'rests'} when there is ${more ? 'more' : 'nothing left'}`, async () => {
      const network = {
        refreshSettings: () => Promise.resolve({}),
        log: createLog('test', 'silent'),
      } as unknown as ResponseNetwork;
      const executor = {
        run: () => Promise.resolve({ answered: 1, putBack: 0, more }),
      } as unknown as Executor;
      const woken: string[] = [];
      const wake = (name: string) => Promise.resolve(void woken.push(name));
      const workers = workersOf(network, executor, { wake });
      await workers['execute-queries']?.(new AbortController().signal);
      expect(woken).to.deep.equal(more ? ['execute-queries'] : []);
    });
  }
});
