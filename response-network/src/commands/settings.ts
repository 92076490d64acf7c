import {
  SallyportError,
  settingReadCommands,
  settingValueOf,
  type Commands,
  type StoredSetting,
} from '@sallyport/shared';
import { changeSetting, unsetSetting } from '../setting-rules.js';
import { publishSnapshot, SNAPSHOT_STREAMS } from '../snapshots.js';
import { commandLineActor } from '@sallyport/transfer';
import type { CommandContext } from './context.js';
import { oneOf } from './options.js';

/** The commands that change settings, and the one that sends the whole state of a stream. */
export function settingCommands(context: CommandContext): Commands {
  return {
    'settings set': {
      usage: 'settings set KEY VALUE [KEY VALUE …]',
      does: 'Sets settings for both networks, all or none; a value is JSON, or else taken as text.',
      positionals: [2, 100],
      run: ({ positionals }) =>
        context.change(async (tx, by) => {
          const stored: StoredSetting[] = [];
          for (const [key, value] of pairsOf(positionals)) {
            stored.push(await changeSetting(tx, { key, value: settingValueOf(value) }, by));
          }
          const lines = stored.map(({ key, value }) => `${key} is ${JSON.stringify(value)}.`);
          return { text: lines.join('\n'), data: { settings: stored } };
        }),
    },
    'settings unset': {
      usage: 'settings unset KEY [--reason TEXT]',
      does: 'Sets a setting to its default, on both networks.',
      positionals: [1, 1],
      values: ['reason'],
      run: ({ positionals: [key = ''], values }) =>
        context.change(async (tx, by) => {
          const stored = await unsetSetting(tx, key, { ...by, reason: values['reason'] });
          return { text: `${key} is ${JSON.stringify(stored.value)}.`, data: { setting: stored } };
        }),
    },
    ...settingReadCommands((work) => context.use(({ db }) => work(db))),
    snapshot: {
      usage: 'snapshot identity|settings',
      does: 'Seals all that the request network must know of a stream, which heals its gaps.',
      positionals: [1, 1],
      run: ({ positionals: [name = ''] }) =>
        context.use(async ({ db, node }) => {
          const stream = oneOf(SNAPSHOT_STREAMS, name, 'stream with snapshots');
          const sent = await publishSnapshot(db, node, stream, commandLineActor());
          return {
            text: `Sealed ${sent.records} records of ${stream}.`,
            data: { stream, ...sent },
          };
        }),
    },
  };
}

function pairsOf(words: string[]): [key: string, value: string][] {
  if (words.length % 2 !== 0) {
    throw new SallyportError('usage', `The key "${words.at(-1)}" has no value.`, {
      next: 'Give keys and values in turn: settings set KEY VALUE KEY VALUE.',
    });
  }
  return words.flatMap((key, index) => (index % 2 === 0 ? [[key, words[index + 1] ?? '']] : []));
}
