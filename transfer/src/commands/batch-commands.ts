import { formatTable, printable, type CommandOutput, type Commands } from '@sallyport/shared';
import {
  handOver,
  listBatches,
  readBatch,
  type BatchDetails,
  type BatchRow,
} from '../custody/batches.js';
import { readNumber, type UseNode } from './decision-commands.js';
import { identifyPerson } from '../custody/people.js';
import { formatBytes } from '../carrying/progress.js';

/** The commands that show batches on their way, and note who took them. */
export function batchCommands(use: UseNode): Commands {
  return {
    'batch ls': {
      usage: 'batch ls [STREAM] [--received] [--open]',
      does: 'Lists the newest batches that were sent, or received, and how they stand.',
      positionals: [0, 1],
      switches: ['received', 'open'],
      run: ({ positionals, switches }) =>
        use(async ({ db }) => {
          const [received, open] = [switches.has('received'), switches.has('open')];
          return showList(await listBatches(db, { received, open, stream: positionals[0] }));
        }),
    },
    'batch show': {
      usage: 'batch show STREAM NUMBER [--received] [--epoch N]',
      does: 'Shows one batch: its state, how far it has come, and who had it in hands.',
      positionals: [2, 2],
      values: ['epoch'],
      switches: ['received'],
      run: ({ positionals: [stream = '', seq], values, switches }) =>
        use(async ({ db }) => {
          const epoch = values['epoch'];
          const details = await readBatch(db, {
            received: switches.has('received'),
            stream,
            seq: readNumber(seq),
            ...(epoch !== undefined && { epoch: readNumber(epoch) }),
          });
          return { text: describeBatch(details), data: details };
        }),
    },
    'hand-over': {
      usage: 'hand-over FILE|STREAM/NUMBER… [--medium ID] [--as LOGIN]',
      does: 'Notes that batches were taken away, for carriers that leave no slip.',
      positionals: [1, 1_000],
      values: ['medium', 'as'],
      run: ({ positionals, values }) =>
        use(async ({ db, node }) => {
          const by = await identifyPerson(db, { as: values['as'], network: node.role });
          const medium = values['medium'] ?? null;
          const done = await handOver(db, node, { names: positionals, by, medium });
          const again = done.before > 0 ? `; ${done.before} had left before` : '';
          return { text: `${done.handedOver.length} handed over${again}.`, data: done };
        }),
    },
  };
}

function showList(found: BatchRow[]): CommandOutput {
  const lines = found.map((one) => [
    one.stream,
    `${one.epoch}`,
    `${one.seq}`,
    one.kind,
    one.state,
    one.code ?? '',
    `${one.records}`,
    one.file_bytes === null ? '' : formatBytes(one.file_bytes),
    one.created_at.toISOString(),
    one.digest?.slice(0, 12) ?? '',
  ]);
  const heading = ['STREAM', 'EPOCH', 'NUMBER', 'KIND', 'STATE', 'CODE', 'RECORDS', 'SIZE'];
  return { text: formatTable([...heading, 'MADE', 'DIGEST'], lines), data: found };
}

/** What became of a number that was written off and whose bytes came all the same. */
function describeLate({ state, levels, duplicates }: BatchDetails): string[] {
  if (state !== 'withdrawn') return [];
  const applied = levels.find(({ level }) => level === 'APPLIED')?.at;
  if (applied) {
    return [
      'It was written off, and its bytes came after all: they were applied, and its records count once.',
    ];
  }
  return duplicates
    ? [
        `It was written off; its bytes came ${duplicates} time(s) afterwards and were dropped, because its number is closed.`,
      ]
    : ['It was written off.'];
}

function describeBatch(batch: BatchDetails): string {
  const types = Object.entries(batch.types ?? {}).map(([type, count]) => `${count} ${type}`);
  const facts = [
    `${batch.stream} number ${batch.seq}, epoch ${batch.epoch}: ${batch.kind}, ${batch.state}${batch.code ? ` (${batch.code})` : ''}`,
    `records ${types.join(', ') || 'none'}`,
    `digest  ${batch.digest ?? 'not sealed yet'}`,
    `file    ${printable(batch.file_name === null ? 'not written yet' : batch.file_name || 'never came')}`,
    ...describeLate(batch),
  ];
  const levels = batch.levels.map(({ level, at }) => [level, at?.toISOString() ?? 'not yet']);
  const custody = batch.custody.map((event) => [
    event.step,
    event.at.toISOString(),
    event.who,
    event.medium ?? '',
    { own: 'this network', far: 'the far network', carrier: "a carrier's slip" }[event.source],
  ]);
  return [
    facts.join('\n'),
    formatTable(['LEVEL', 'SINCE'], levels),
    custody.length > 0
      ? formatTable(['STEP', 'WHEN', 'WHO', 'MEDIUM', 'TOLD BY'], custody)
      : 'Nothing is known of its custody.',
  ].join('\n\n');
}
