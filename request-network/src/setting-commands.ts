import {
  changeLocalSetting,
  SallyportError,
  settingReadCommands,
  settingValueOf,
  type CommandArguments,
  type CommandOutput,
  type Commands,
  type SettingState,
} from '@sallyport/shared';
import { commandLineActor, withNetwork, type Installation } from '@sallyport/transfer';
import type { RequestNetwork } from './network.js';

/** The commands that show settings, and override those marked local for this network alone. */
export function settingCommands(installation: () => Installation<RequestNetwork>): Commands {
  const change = (args: CommandArguments, value: unknown) =>
    withNetwork(installation(), async ({ db, clock }): Promise<CommandOutput> => {
      const [key = ''] = args.positionals;
      requireLocal(args);
      const wanted = { key, value, reason: args.values['reason'] ?? null };
      const by = { actor: commandLineActor(), now: clock.now() };
      const state = await db.transaction((tx) => changeLocalSetting(tx, wanted, by));
      return show(state);
    });
  return {
    ...settingReadCommands((work) => withNetwork(installation(), ({ db }) => work(db))),
    'settings set': {
      usage: 'settings set KEY VALUE --local [--reason TEXT]',
      does: 'Overrides a setting for this network alone; a value is JSON, or else taken as text.',
      positionals: [2, 2],
      values: ['reason'],
      switches: ['local'],
      run: (args) => change(args, settingValueOf(args.positionals[1] ?? '')),
    },
    'settings unset': {
      usage: 'settings unset KEY --local [--reason TEXT]',
      does: 'Ends the override: what was synced counts again.',
      positionals: [1, 1],
      values: ['reason'],
      switches: ['local'],
      run: (args) => change(args, undefined),
    },
  };
}

function requireLocal({ switches }: CommandArguments): void {
  if (switches.has('local')) return;
  throw new SallyportError('usage', 'Settings of both networks are set on the response network.', {
    next: 'Give --local to override one for this network alone.',
  });
}

function show(state: SettingState): CommandOutput {
  const { key, value, source } = state;
  return { text: `${key} is ${JSON.stringify(value)} (${source}).`, data: { setting: state } };
}
