import {
  formatTable,
  isSetting,
  readSettings,
  SallyportError,
  SETTINGS,
  type Commands,
  type StoredSetting,
} from '@sallyport/shared';
import { changeSetting } from '../setting-rules.js';
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
            stored.push(await changeSetting(tx, { key, value: valueOf(value) }, by));
          }
          const lines = stored.map(({ key, value }) => `${key} is ${JSON.stringify(value)}.`);
          return { text: lines.join('\n'), data: { settings: stored } };
        }),
    },
    'settings ls': {
      usage: 'settings ls',
      does: 'Lists the settings in force.',
      run: () =>
        context.use(async ({ db, log }) => {
          const settings = await readSettings(db, log);
          const lines = Object.entries(settings).map(([key, value]) => [
            key,
            JSON.stringify(value),
            isSetting(key) ? SETTINGS[key].description : '',
          ]);
          return { text: formatTable(['KEY', 'VALUE', 'MEANING'], lines), data: settings };
        }),
    },
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

function valueOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function pairsOf(words: string[]): [key: string, value: string][] {
  if (words.length % 2 !== 0) {
    throw new SallyportError('usage', `The key "${words.at(-1)}" has no value.`, {
      next: 'Give keys and values in turn: settings set KEY VALUE KEY VALUE.',
    });
  }
  return words.flatMap((key, index) => (index % 2 === 0 ? [[key, words[index + 1] ?? '']] : []));
}
