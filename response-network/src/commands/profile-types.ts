import {
  formatTable,
  listProfileTypes,
  PRIORITIES,
  SallyportError,
  TIERS,
  type CommandArguments,
  type CommandOutput,
  type Commands,
  type Limits,
  type ProfileType,
} from '@sallyport/shared';
import {
  changeProfileType,
  createProfileType,
  type ProfileTypeChange,
} from '../profile-type-rules.js';
import type { CommandContext } from './context.js';
import { disabledBy, given, jsonOf, listOf, oneOf } from './options.js';

const OPTIONS = {
  positionals: [1, 1],
  values: ['description', 'datasets', 'tier', 'priorities', 'limits', 'retention-days'],
  switches: ['enable', 'disable'],
} as const;
const OPTIONS_USAGE =
  'NAME [--datasets NAME,…] [--tier A|B|C] [--priorities low,normal,urgent] [--limits JSON] [--retention-days N] [--description TEXT] [--enable|--disable]';

/** The commands that make and change sets of rights. */
export function profileTypeCommands(context: CommandContext): Commands {
  return {
    'profile-type create': {
      usage: `profile-type create ${OPTIONS_USAGE}`,
      does: 'Makes a set of rights.',
      ...OPTIONS,
      run: (args) =>
        context.change(async (tx, by, network) => {
          const change = { ...by, settings: network.settings() };
          return show(
            await createProfileType(tx, args.positionals[0] ?? '', wantedBy(args), change),
          );
        }),
    },
    'profile-type set': {
      usage: `profile-type set ${OPTIONS_USAGE}`,
      does: 'Changes a set of rights; what is not named stays.',
      ...OPTIONS,
      run: (args) =>
        context.change(async (tx, by) =>
          show(await changeProfileType(tx, args.positionals[0] ?? '', wantedBy(args), by)),
        ),
    },
    'profile-type ls': {
      usage: 'profile-type ls',
      does: 'Lists the sets of rights.',
      run: () =>
        context.use(async ({ db }) => {
          const found = await listProfileTypes(db);
          const lines = found.map((one) => [
            one.name,
            one.tier,
            one.datasets.join(','),
            one.priorities.join(','),
            one.disabled ? 'disabled' : 'enabled',
          ]);
          const heading = ['NAME', 'TIER', 'DATASETS', 'PRIORITIES', 'STATE'];
          return { text: formatTable(heading, lines), data: found };
        }),
    },
  };
}

function wantedBy(args: CommandArguments): ProfileTypeChange {
  const { values } = args;
  const limits = values['limits'];
  const days = values['retention-days'];
  const retention = days === undefined ? undefined : Number(days);
  if (Number.isNaN(retention)) throw new SallyportError('usage', `"${days}" is no number of days.`);
  return given({
    description: values['description'],
    datasets: listOf(values['datasets']),
    tier: values['tier'] === undefined ? undefined : oneOf(TIERS, values['tier'], 'tier'),
    priorities: listOf(values['priorities'])?.map((one) => oneOf(PRIORITIES, one, 'priority')),
    limits: limits === undefined ? undefined : (jsonOf(limits, '--limits') as Partial<Limits>),
    retention_days: retention,
    disabled: disabledBy(args),
  });
}

function show(profileType: ProfileType): CommandOutput {
  const { name, version } = profileType;
  return { text: `${name} is at version ${version}.`, data: { profile_type: profileType } };
}
