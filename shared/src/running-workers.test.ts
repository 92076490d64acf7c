import { spawn } from 'node:child_process';
import { expect } from 'chai';
import { Redis } from 'ioredis';
import pg from 'pg';
import { retryDeadlock } from './database.js';
import { SallyportError } from './errors.js';
import { newId } from './ids.js';
import { createLog, type Log } from './log.js';
import { openQueues, type Queues } from './queue.js';
import { startWorkers, type RunningWorkers, type WorkerOptions } from './running-workers.js';
import { createTestDatabase, eventually, type TestDatabase } from './testing.js';

const HOUR_MS = 3_600_000;
const NAME = 'export-control';

type Line = { level: string; msg: string; worker?: string; err?: { message: string } };

function recordLog(): { log: Log; lines: Line[] } {
  const lines: Line[] = [];
  const log = createLog('test', 'debug', {
    write: (text: string) => void lines.push(JSON.parse(text) as Line),
  });
  return { log, lines };
}

/** A promise that is settled from outside. */
function gate(): { opened: Promise<void>; open: () => void } {
  let open: () => void = () => undefined;
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { opened, open };
}

const redisUrl = process.env['TEST_REDIS_URL'];
const backends = redisUrl ? ['postgresql', 'redis'] : ['postgresql'];

for (const backend of backends) {
  describe(`workers on ${backend}`, () => {
    let database: TestDatabase;
    let prefix: string;
    let opened: { close(): Promise<void> }[];
    let log: Log;
    let lines: Line[];

    const open = async (): Promise<Queues> => {
      const url = backend === 'redis' ? redisUrl : undefined;
      const target = { databaseUrl: database.url, redisUrl: url, prefix };
      const queues = await openQueues({ network: 'request', ...target, log });
      opened.push(queues);
      return queues;
    };
    const start = async (
      queues: Queues,
      run: (signal: AbortSignal) => Promise<unknown>,
      options: Partial<WorkerOptions> = {},
    ): Promise<RunningWorkers> => {
      const running = await startWorkers({
        queues,
        workers: { [NAME]: run },
        cadence: () => HOUR_MS,
        log,
        graceMs: 100,
        ...options,
      });
      opened.push({ close: () => running.close(0) });
      return running;
    };
    const clearStore = async () => {
      if (backend === 'redis') {
        const redis = new Redis(redisUrl as string);
        const keys = await redis.keys(`${prefix}:*`);
        await redis.del(keys);
        redis.disconnect();
        return;
      }
      const found: { rows: { name: string }[] } = await database.db.raw(
        `select string_agg(format('%I.%I', schemaname, tablename), ', ') as name
           from pg_tables where schemaname = 'bullmq' and tablename <> 'migration'`,
      );
      // The workers at work may be in the way.
      await retryDeadlock(() => database.db.raw(`truncate ${found.rows[0]?.name}`));
    };
    const cutConnections = async () => {
      if (backend === 'redis') {
        const redis = new Redis(redisUrl as string);
        await redis.call('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
        redis.disconnect();
        return;
      }
      const client = new pg.Client({ connectionString: database.url });
      await client.connect();
      await client.query(
        `select pg_terminate_backend(pid) from pg_stat_activity
          where datname = current_database() and pid <> pg_backend_pid()`,
      );
      await client.end();
    };

    beforeEach(async () => {
      database = await createTestDatabase([]);
      prefix = `queue_${newId().replaceAll('-', '')}`;
      opened = [];
      ({ log, lines } = recordLog());
    });
    afterEach(async () => {
      for (const each of opened.toReversed()) await each.close();
      if (backend === 'redis') await clearStore();
      await database.drop();
    });

    it('run at their cadence', async () => {
      let runs = 0;
      await start(await open(), () => Promise.resolve((runs += 1)), { cadence: () => 100 });
      await eventually(() => runs >= 3);
    });

    it('run when woken, once for many wakes', async () => {
      const queues = await open();
      let runs = 0;
      await start(queues, () => Promise.resolve((runs += 1)));
      await eventually(() => runs === 1);
      await queues.pause(NAME);
      await Promise.all(Array.from({ length: 20 }, () => queues.wake(NAME)));
      await queues.resume(NAME);
      await eventually(() => runs === 2);
      await queues.wake(NAME);
      await eventually(() => runs >= 3);
      expect(runs).to.equal(3);
    });

    it('run once more when woken during a run', async () => {
      const queues = await open();
      const [first, second] = [gate(), gate()];
      let runs = 0;
      await start(queues, async () => {
        runs += 1;
        await (runs === 1 ? first.opened : second.opened);
      });
      await eventually(() => runs === 1);
      await queues.wake(NAME);
      first.open();
      await eventually(() => runs === 2);
      await queues.wake(NAME);
      await queues.wake(NAME);
      second.open();
      await eventually(() => runs === 3);
    });

    it('run after their own wake failed', async () => {
      const queues = await open();
      let runs = 0;
      await start(queues, () => {
        runs += 1;
        return Promise.reject(new Error('no'));
      });
      for (const expected of [1, 2, 3]) {
        await eventually(() => runs === expected);
        await queues.wake(NAME);
      }
      await eventually(() => runs === 4);
    });

    it('never overlap themselves, whoever started them', async () => {
      let [now, most, runs] = [0, 0, 0];
      const run = async () => {
        now += 1;
        most = Math.max(most, now);
        await new Promise((resolve) => setTimeout(resolve, 30));
        now -= 1;
        runs += 1;
      };
      const both = [await open(), await open()];
      for (const queues of both) await start(queues, run, { cadence: () => 20 });
      await eventually(async () => {
        await Promise.all(both.map((queues) => queues.wake(NAME)));
        return runs >= 15;
      });
      expect(most).to.equal(1);
    });

    it('are told to stop at their time limit, and run again', async () => {
      const reasons: unknown[] = [];
      const run = (signal: AbortSignal) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener('abort', () => {
            reasons.push(signal.reason);
            reject(new Error('stopped half-way'));
          });
        });
      await start(await open(), run, { cadence: () => 100, timeLimitMs: 50 });
      await eventually(() => reasons.length >= 2);
      expect(String(reasons[0])).to.contain('longer than 50 ms');
      const warning = lines.find((line) => line.level === 'warn');
      expect(warning).to.include({ msg: 'worker run failed', worker: NAME });
    });

    it('do not start again beside a run that ignores its signal', async () => {
      let runs = 0;
      const run = () => {
        runs += 1;
        return new Promise(() => undefined);
      };
      await start(await open(), run, { cadence: () => 50, timeLimitMs: 30, graceMs: 30 });
      await eventually(() => lines.find((line) => line.err?.message.includes('not stopped yet')));
      expect(runs).to.equal(1);
    });

    it('log a failed run once and run at the next tick', async () => {
      let runs = 0;
      const run = () => {
        runs += 1;
        return runs === 1 ? Promise.reject(new Error('disk full')) : Promise.resolve();
      };
      await start(await open(), run, { cadence: () => 100 });
      await eventually(() => runs >= 2);
      const failures = lines.filter((line) => line.err?.message === 'disk full');
      expect(failures.map((line) => line.level)).to.deep.equal(['warn']);
    });

    it('come back when the queue store has lost everything', async () => {
      let runs = 0;
      const options = { cadence: () => 100, sweepMs: 50 };
      await start(await open(), () => Promise.resolve((runs += 1)), options);
      await eventually(() => runs >= 1);
      await clearStore();
      const before = runs;
      await eventually(() => runs >= before + 3);
    });

    it('come back when the connections are cut', async () => {
      let runs = 0;
      await start(await open(), () => Promise.resolve((runs += 1)), {
        cadence: () => 100,
        lockMs: 1_000,
      });
      await eventually(() => runs >= 1);
      await cutConnections();
      const before = runs;
      await eventually(() => runs >= before + 3);
    });

    it('are taken over when their process is killed', async () => {
      const url = backend === 'redis' ? redisUrl : undefined;
      const target = { network: 'request', databaseUrl: database.url, redisUrl: url, prefix };
      const script = `
        import { createLog } from ${JSON.stringify(new URL('./log.js', import.meta.url).href)};
        import { openQueues } from ${JSON.stringify(new URL('./queue.js', import.meta.url).href)};
        import { startWorkers } from ${JSON.stringify(new URL('./running-workers.js', import.meta.url).href)};
        const log = createLog('child', 'silent');
        const queues = await openQueues({ ...${JSON.stringify(target)}, log });
        const run = () => { console.log('runs'); return new Promise(() => undefined); };
        await startWorkers({ queues, workers: { '${NAME}': run }, cadence: () => 3600000, log, lockMs: 1000 });
      `;
      const child = spawn(process.execPath, ['--input-type=module', '-e', script]);
      let output = '';
      child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
      await eventually(() => output.includes('runs'));
      child.kill('SIGKILL');
      let runs = 0;
      await start(await open(), () => Promise.resolve((runs += 1)), { lockMs: 1_000 });
      await eventually(() => runs >= 1);
    });

    it('finish the run in progress when they are closed', async () => {
      const queues = await open();
      const work = gate();
      let [started, finished] = [false, false];
      const running = await start(queues, async () => {
        started = true;
        await work.opened;
        finished = true;
      });
      await eventually(() => started);
      const closed = running.close(10_000);
      work.open();
      await closed;
      expect(finished).to.equal(true);
      expect((await queues.status()).find((each) => each.name === NAME)?.running).to.equal(0);
    });

    it('are told to stop when closing takes longer than its limit', async () => {
      let started = false;
      let reason: unknown;
      const running = await start(await open(), (signal) => {
        started = true;
        return new Promise<void>((resolve) => {
          signal.addEventListener('abort', () => {
            reason = signal.reason;
            resolve();
          });
        });
      });
      await eventually(() => started);
      await running.close(10);
      expect(String(reason)).to.contain('stopping');
    });

    it('tell their state', async () => {
      const queues = await open();
      await start(queues, () => Promise.resolve(), { cadence: () => '0 3 * * *' });
      const read = async () => (await queues.status()).find((each) => each.name === NAME);
      await queues.pause(NAME);
      const state = await read();
      expect(state).to.include({ paused: true, cadence: '0 3 * * *' });
      expect(state?.next?.getUTCHours()).to.equal(3);
      await queues.resume(NAME);
      expect(await read()).to.include({ paused: false });
    });

    it('refuse a cadence that is not one', async () => {
      const queues = await open();
      const error: unknown = await start(queues, () => Promise.resolve(), {
        cadence: () => 'every now and then',
      }).catch((err: unknown) => err);
      expect(error).to.be.instanceOf(SallyportError).and.to.include({ code: 'bad-field' });
    });

    it('follow a cadence that changed elsewhere', async () => {
      const queues = await open();
      let cadence = HOUR_MS;
      let runs = 0;
      const options = { cadence: () => cadence, sweepMs: 50 };
      await start(queues, () => Promise.resolve((runs += 1)), options);
      await eventually(() => runs === 1);
      cadence = 100;
      await eventually(() => runs >= 3);
    });
  });
}

describe('openQueues', () => {
  const { log } = recordLog();
  const target = { network: 'request', prefix: 'queue', log } as const;

  it('refuses to start without PostgreSQL', async () => {
    const databaseUrl = 'postgresql://nobody@127.0.0.1:1/none';
    const error: unknown = await openQueues({ ...target, databaseUrl }).catch(
      (err: unknown) => err,
    );
    expect(error).to.be.instanceOf(SallyportError).and.to.include({ code: 'store-unavailable' });
    expect((error as SallyportError).message).to.contain('PostgreSQL');
  });

  it('refuses to start without the Redis it was given', async () => {
    const options = { ...target, databaseUrl: '', redisUrl: 'redis://127.0.0.1:1' };
    const error: unknown = await openQueues(options).catch((err: unknown) => err);
    expect(error).to.be.instanceOf(SallyportError).and.to.include({ code: 'store-unavailable' });
    expect((error as SallyportError).message).to.contain('Redis');
  });
});
