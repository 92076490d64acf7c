import { formatTable, type Commands } from './command-line.js';
import type { Database } from './database.js';
import { SETTINGS } from './settings.js';
import { listSettingStates, readSettingState, type SettingState } from './stored-settings.js';

/** Opens the network for a command and closes it whatever happens. */
type UseDatabase = <T>(work: (db: Database) => Promise<T>) => Promise<T>;

/** The commands that show settings, the same on both networks. */
export function settingReadCommands(use: UseDatabase): Commands {
  return {
    'settings ls': {
      usage: 'settings ls',
      does: 'Lists the settings in force and where each value comes from.',
      run: () =>
        use(async (db) => {
          const states = await listSettingStates(db);
          const lines = states.map((state) => [
            state.key,
            JSON.stringify(state.value),
            state.source,
            SETTINGS[state.key].description,
          ]);
          const heading = ['KEY', 'VALUE', 'FROM', 'MEANING'];
          const data = Object.fromEntries(states.map(({ key, value }) => [key, value]));
          return { text: formatTable(heading, lines), data };
        }),
    },
    'settings get': {
      usage: 'settings get KEY',
      does: 'Shows one setting: its value in force, and what was synced and set here.',
      positionals: [1, 1],
      run: ({ positionals: [key = ''] }) =>
        use(async (db) => {
          const state = await readSettingState(db, key);
          return { text: describeSetting(state), data: state };
        }),
    },
  };
}

/** One setting in lines. */
function describeSetting(state: SettingState): string {
  const { key, value, source, syncedValue, localValue } = state;
  const facts: [string, unknown][] = [
    [key, value],
    ['from', source],
    ['default', SETTINGS[key].default],
    ...(syncedValue === null ? [] : [['synced', syncedValue] as [string, unknown]]),
    ...(localValue === null ? [] : [['local', localValue] as [string, unknown]]),
  ];
  return facts.map(([name, each]) => `${name}  ${JSON.stringify(each)}`).join('\n');
}

/** What somebody typed as the value of a setting: JSON, or else the text itself. */
export function settingValueOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
