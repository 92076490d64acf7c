import {
  SallyportError,
  discardQueue,
  countDiscardable,
  drainQueue,
  findWorker,
  formatTable,
  pauseQueue,
  pauseSchedule,
  readQueues,
  resumeQueue,
  retryQueue,
  runSchedule,
  setCadence,
  type CommandArguments,
  type CommandOutput,
  type Commands,
  type QueueAct,
  type QueueAdmin,
  type QueueView,
  type WorkerName,
} from '@sallyport/shared';
import { commandLineActor } from '../open-node.js';
import { readNumber, reasonOf } from './decision-commands.js';

/** Opens the queues of the network for a command and closes them whatever happens. */
export type UseQueues = (
  use: (admin: QueueAdmin) => Promise<CommandOutput>,
) => Promise<CommandOutput>;

type Act = (admin: QueueAdmin, name: WorkerName, act: QueueAct) => Promise<unknown>;

/** The commands that show workers, their queues and schedules, and act on them. */
export function queueCommands(use: UseQueues): Commands {
  const act = (usage: string, does: string, work: Act, said: (name: string) => string) => ({
    usage: `${usage} WORKER --reason TEXT`,
    does,
    positionals: [1, 1] as [number, number],
    values: ['reason'],
    run: (args: CommandArguments) =>
      use(async (admin) => {
        const name = findWorker(admin.network, args.positionals[0] ?? '');
        await work(admin, name, { actor: commandLineActor(), reason: reasonOf(args) });
        return { text: said(name), data: { worker: name } };
      }),
  });
  return {
    'queue ls': {
      usage: 'queue ls',
      does: 'Lists the workers: what waits, what runs, how each last went, which processes live.',
      run: () => use(showQueues),
    },
    'queue pause': act(
      'queue pause',
      'Stops a worker from starting, in every process; what runs ends normally.',
      pauseQueue,
      (name) => `${name} is paused.`,
    ),
    'queue resume': act(
      'queue resume',
      'Lets a worker start again.',
      resumeQueue,
      (name) => `${name} goes on.`,
    ),
    'queue retry': act(
      'queue retry',
      'Runs a worker again now, whatever became of its last run.',
      retryQueue,
      (name) => `${name} is woken.`,
    ),
    'queue drain': {
      ...act('queue drain', '', pauseQueue, () => ''),
      does: 'Pauses a worker and tells how many of its runs are still under way.',
      run: (args) =>
        use(async (admin) => {
          const name = findWorker(admin.network, args.positionals[0] ?? '');
          const by = { actor: commandLineActor(), reason: reasonOf(args) };
          const running = await drainQueue(admin, name, by);
          return {
            text: `${name} is paused; ${running} run(s) are still under way.`,
            data: { worker: name, running },
          };
        }),
    },
    'queue discard': {
      usage: 'queue discard WORKER [--expected COUNT --reason TEXT]',
      does: 'Counts the runs that wait; with that count and a reason, takes them away.',
      positionals: [1, 1],
      values: ['expected', 'reason'],
      run: (args) => use((admin) => discard(admin, args)),
    },
    'schedule ls': {
      usage: 'schedule ls',
      does: 'Lists when each worker runs by itself, and how it last went.',
      run: () => use(showSchedules),
    },
    'schedule run': act(
      'schedule run',
      'Runs a worker now.',
      runSchedule,
      (name) => `${name} is woken.`,
    ),
    'schedule pause': act(
      'schedule pause',
      'Lets a schedule rest; what wakes the worker still runs it.',
      (admin, name, by) => pauseSchedule(admin, name, { ...by, paused: true }),
      (name) => `The schedule of ${name} rests.`,
    ),
    'schedule resume': act(
      'schedule resume',
      'Lets a schedule go on.',
      (admin, name, by) => pauseSchedule(admin, name, { ...by, paused: false }),
      (name) => `The schedule of ${name} goes on.`,
    ),
    'schedule set': {
      usage: 'schedule set WORKER SECONDS --reason TEXT',
      does: 'Sets how often a worker runs; on a request network for this network alone.',
      positionals: [2, 2],
      values: ['reason'],
      run: (args) =>
        use(async (admin) => {
          const name = findWorker(admin.network, args.positionals[0] ?? '');
          const seconds = readNumber(args.positionals[1]);
          const by = { actor: commandLineActor(), reason: reasonOf(args) };
          await setCadence(admin, name, { ...by, seconds });
          return { text: `${name} runs every ${seconds} s.`, data: { worker: name, seconds } };
        }),
    },
  };
}

async function discard(admin: QueueAdmin, args: CommandArguments): Promise<CommandOutput> {
  const name = findWorker(admin.network, args.positionals[0] ?? '');
  const { expected } = args.values;
  if (expected === undefined) {
    const count = await countDiscardable(admin, name);
    const text = `${count} run(s) of ${name} wait. To take them away: queue discard ${name} --expected ${count} --reason TEXT`;
    return { text, data: { worker: name, count, discarded: false } };
  }
  if (!/^\d{1,9}$/.test(expected)) {
    throw new SallyportError('usage', `"${expected}" is no count.`, {
      next: 'Run the command without --expected to see it.',
    });
  }
  const by = { actor: commandLineActor(), reason: reasonOf(args), expected: Number(expected) };
  const count = await discardQueue(admin, name, by);
  return { text: `${count} run(s) are gone.`, data: { worker: name, count, discarded: true } };
}

async function showQueues(admin: QueueAdmin): Promise<CommandOutput> {
  const found = await readQueues(admin);
  const lines = found.queues.map((one) => [
    one.name,
    one.paused ? 'paused' : one.running > 0 ? 'running' : 'idle',
    String(one.waiting),
    one.oldest?.toISOString() ?? '',
    String(one.state?.failures ?? 0),
    ...lastRunOf(one),
  ]);
  const heading = ['WORKER', 'STATE', 'WAITING', 'SINCE', 'FAILED IN A ROW', 'LAST RUN', 'OUTCOME'];
  const processes = found.processes.map(
    ({ name, seen_at: seen, workers }) =>
      `${name} last seen ${seen.toISOString()}: ${workers.length} workers`,
  );
  const alive = processes.length > 0 ? processes : ['No process runs workers.'];
  return { text: [formatTable(heading, lines), ...alive].join('\n'), data: found };
}

async function showSchedules(admin: QueueAdmin): Promise<CommandOutput> {
  const { queues } = await readQueues(admin);
  const lines = queues.map((one) => [
    one.name,
    `${one.cadenceS} s${one.cadenceS === one.defaultS ? '' : ` (${one.defaultS} s)`}`,
    one.state?.schedule_paused ? 'rests' : (one.next?.toISOString() ?? 'not set'),
    ...lastRunOf(one),
    one.state?.succeeded_at?.toISOString() ?? 'never',
  ]);
  const heading = ['WORKER', 'EVERY', 'NEXT', 'LAST RUN', 'OUTCOME', 'LAST SUCCESS'];
  return { text: formatTable(heading, lines), data: queues };
}

function lastRunOf({ state }: QueueView): [at: string, outcome: string] {
  if (!state?.ended_at) return ['never', ''];
  return [state.ended_at.toISOString(), state.error ?? 'ok'];
}
