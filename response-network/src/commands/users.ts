import {
  findUserByLogin,
  formatTable,
  listProfileTypes,
  listUsers,
  NETWORKS,
  ROLES,
  SallyportError,
  type CommandArguments,
  type CommandOutput,
  type Commands,
  type RoleGrant,
  type User,
} from '@sallyport/shared';
import { DEFAULT_PROFILE_TYPE } from '../init.js';
import {
  accountRulesOf,
  createUser,
  disableUser,
  enableUser,
  resetPassword,
  updateUser,
  type Account,
} from '../user-accounts.js';
import { importUsers } from '../user-import.js';
import type { CommandContext } from './context.js';
import { firstInputLine, listOf, oneOf, textIn } from './options.js';

/** The commands that make and change accounts. */
export function userCommands(context: CommandContext): Commands {
  return {
    'user create': {
      usage:
        'user create LOGIN [--name TEXT] [--email TEXT] [--profile-type NAME] [--roles NETWORK:ROLE,…] [--password-stdin]',
      does: 'Makes an account; without --password-stdin with a password to be changed at first use.',
      positionals: [1, 1],
      values: ['name', 'email', 'profile-type', 'roles'],
      switches: ['password-stdin'],
      async run(args) {
        const wanted = {
          login: args.positionals[0] ?? '',
          displayName: args.values['name'],
          email: args.values['email'],
          profileType: args.values['profile-type'] ?? DEFAULT_PROFILE_TYPE,
          roles: (listOf(args.values['roles']) ?? ['request:user']).map(grantOf),
          password: await passwordOf(args),
        };
        return context.change(async (tx, by, network) => {
          return showAccount(await createUser(tx, wanted, { ...by, ...accountRulesOf(network) }));
        });
      },
    },
    'user disable': {
      usage: 'user disable LOGIN',
      does: 'Shuts a user out of both networks.',
      positionals: [1, 1],
      run: ({ positionals: [login = ''] }) =>
        context.change(async (tx, by) => showUser(await disableUser(tx, login, by), 'is disabled')),
    },
    'user enable': {
      usage: 'user enable LOGIN',
      does: 'Lets a disabled user in again.',
      positionals: [1, 1],
      run: ({ positionals: [login = ''] }) =>
        context.change(async (tx, by) => showUser(await enableUser(tx, login, by), 'is enabled')),
    },
    'user reset-password': {
      usage: 'user reset-password LOGIN [--password-stdin]',
      does: 'Gives a user a new password and ends every session.',
      positionals: [1, 1],
      switches: ['password-stdin'],
      async run(args) {
        const wanted = { login: args.positionals[0] ?? '', password: await passwordOf(args) };
        return context.change(async (tx, by, network) => {
          return showAccount(
            await resetPassword(tx, wanted, { ...by, ...accountRulesOf(network) }),
          );
        });
      },
    },
    'user import': {
      usage: 'user import FILE [--dry-run] [--reason TEXT]',
      does: 'Makes accounts from JSON lines with argon2id or bcrypt verifiers, all or none.',
      positionals: [1, 1],
      values: ['reason'],
      switches: ['dry-run'],
      async run({ positionals: [file = ''], values: { reason }, switches }) {
        const text = await textIn(file);
        const dryRun = switches.has('dry-run');
        return context.change(async (tx, by, network) => {
          const wanted = { ...by, reason, settings: network.settings(), dryRun };
          const done = await importUsers(tx, text, wanted);
          const what = dryRun ? 'can be imported' : 'imported';
          return { text: `${done.lines} accounts ${what}.`, data: done };
        });
      },
    },
    'user show': {
      usage: 'user show LOGIN',
      does: 'Shows an account.',
      positionals: [1, 1],
      run: ({ positionals: [login = ''] }) =>
        context.use(async ({ db }) => {
          const user = await findUserByLogin(db, login);
          if (!user) throw new SallyportError('not-found', `There is no user "${login}".`);
          const lines = Object.entries(user).map(([name, value]) => [
            name,
            typeof value === 'string' ? value : JSON.stringify(value),
          ]);
          return { text: formatTable(['MEMBER', 'VALUE'], lines), data: user };
        }),
    },
    'user roles': {
      usage: 'user roles LOGIN NETWORK:ROLE,… --reason TEXT',
      does: 'Gives a user these roles and no others.',
      positionals: [2, 2],
      values: ['reason'],
      run: ({ positionals: [login = '', roles], values: { reason } }) =>
        context.change(async (tx, by) => {
          const wanted = { roles: (listOf(roles) ?? []).map(grantOf) };
          const user = await updateUser(tx, login, wanted, { ...by, reason });
          return showUser(user, `is ${roles}`);
        }),
    },
    'user ls': {
      usage: 'user ls',
      does: 'Lists the accounts.',
      run: () =>
        context.use(async ({ db }) => {
          const names = new Map((await listProfileTypes(db)).map(({ id, name }) => [id, name]));
          const users = await listUsers(db);
          const lines = users.map((user) => [
            user.login,
            names.get(user.profile_type_id) ?? user.profile_type_id,
            user.roles.map(({ network, role }) => `${network}:${role}`).join(','),
            user.disabled ? 'disabled' : 'enabled',
          ]);
          return {
            text: formatTable(['LOGIN', 'PROFILE TYPE', 'ROLES', 'STATE'], lines),
            data: users,
          };
        }),
    },
  };
}

function grantOf(text: string): RoleGrant {
  const [network = '', role = '', more] = text.split(':');
  if (more !== undefined) throw new SallyportError('usage', `"${text}" is no NETWORK:ROLE.`);
  return { network: oneOf(NETWORKS, network, 'network'), role: oneOf(ROLES, role, 'role') };
}

async function passwordOf({ switches }: CommandArguments): Promise<string | undefined> {
  return switches.has('password-stdin') ? firstInputLine() : undefined;
}

function showAccount({ user, oneTimePassword }: Account): CommandOutput {
  const lines = [`${user.login} ${user.id}`];
  if (oneTimePassword !== null) {
    lines.push(`password, shown only now and to be changed: ${oneTimePassword}`);
  }
  return { text: lines.join('\n'), data: { user, password: oneTimePassword } };
}

function showUser(user: User, what: string): CommandOutput {
  return { text: `${user.login} ${what}.`, data: { user } };
}
