import { monitorEventLoopDelay } from 'node:perf_hooks';
import { SallyportError, hashPassword, verifyPassword } from '@sallyport/shared';
import { floorRow, limitRow, type Bench, type Benchmark, type Row } from './benchmark.js';

const CALLERS = 200;
const NS_PER_MS = 1_000_000;
const PASSWORD = 'correct horse battery staple';

/**
 * What a storm of log-ins does to a process: passwords are checked beside the event loop, and what is
 * beyond the line is refused at once instead of waiting.
 */
export const loginBenchmark: Benchmark = {
  names: ['login-lag', 'login-refused'],
  async run(bench: Bench): Promise<Row[]> {
    const verifier = await hashPassword(PASSWORD);
    const delay = monitorEventLoopDelay({ resolution: 5 });
    let [checked, refused] = [0, 0];
    delay.enable();
    for (let round = 0; round < (bench.quick ? 1 : 5); round += 1) {
      await Promise.all(
        Array.from({ length: CALLERS }, async () => {
          try {
            if (await verifyPassword(verifier, PASSWORD)) checked += 1;
          } catch (error) {
            if (!(error instanceof SallyportError)) throw error;
            refused += 1;
          }
        }),
      );
    }
    delay.disable();
    bench.say(`login: ${checked} passwords checked, ${refused} refused with 503`);
    const rows = [
      limitRow('login-lag', 'ms', 100, delay.percentile(99) / NS_PER_MS),
      floorRow('login-refused', '%', 1, (refused / (checked + refused)) * 100),
    ];
    return rows.filter(({ name }) => bench.wants(name));
  },
};
