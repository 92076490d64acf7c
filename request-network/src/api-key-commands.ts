import {
  SallyportError,
  findUserByLogin,
  formatTable,
  type Command,
  type CommandOutput,
  type Commands,
} from '@sallyport/shared';
import { commandLineActor, withNetwork, type Installation } from '@sallyport/transfer';
import {
  KEY_STATES,
  SCOPES,
  changeKey,
  withKeyChange,
  listKeys,
  type ApiKey,
  type KeyState,
  type Scope,
} from './api-keys.js';
import type { RequestNetwork } from './network.js';
import { createKey, readKeyRules } from './new-api-keys.js';

const LISTED = 500;
const DAY_MS = 86_400_000;

/** The commands with which whoever runs a request network looks after API keys. */
export function apiKeyCommands(installation: () => Installation<RequestNetwork>): Commands {
  const change = (verb: 'disable' | 'enable' | 'revoke', does: string): Command => ({
    usage: `api-key ${verb} ID --reason TEXT`,
    does,
    positionals: [1, 1],
    values: ['reason'],
    run: ({ positionals: [id = ''], values: { reason } }) =>
      withNetwork(installation(), async (network) => {
        if (!reason?.trim()) throw usage('A reason is needed.', 'Give it with --reason.');
        const act = { ref: { id }, at: network.clock.now(), actor: commandLineActor(), reason };
        return showKeys([await withKeyChange(network, (tx) => changeKey(tx, verb, act))]);
      }),
  });
  return {
    'api-key ls': {
      usage: `api-key ls [--login TEXT] [--prefix TEXT] [--last-four TEXT] [--state ${KEY_STATES.join('|')}]`,
      does: `Lists API keys, newest first, at most ${LISTED}.`,
      values: ['login', 'prefix', 'last-four', 'state'],
      run: ({ values }) =>
        withNetwork(installation(), async ({ db, clock, pageSecret }) => {
          const { login, prefix, 'last-four': lastFour } = values;
          const page = await listKeys(db, {
            caller: commandLineActor(),
            filter: {
              ...(login ? { login } : {}),
              ...(prefix ? { prefix } : {}),
              ...(lastFour ? { lastFour } : {}),
              ...(values['state'] ? { state: stateOf(values['state']) } : {}),
            },
            pageSize: LISTED,
            secret: pageSecret,
            now: clock.now(),
          });
          return showKeys(page.items);
        }),
    },
    'api-key create': {
      usage: 'api-key create LOGIN [--name NAME] [--scopes SCOPE,…] [--days N]',
      does: `Makes an API key for a user and prints it once; scopes are ${SCOPES.join(', ')} (all).`,
      positionals: [1, 1],
      values: ['name', 'scopes', 'days'],
      run: ({ positionals: [login = ''], values }) =>
        withNetwork(installation(), async (network) => {
          const { db, clock } = network;
          const user = await findUserByLogin(db, login);
          if (!user) {
            throw new SallyportError('not-found', `There is no user ${login} here.`, {
              next: 'Users come from the response network; import its identity batches first.',
            });
          }
          const rules = await readKeyRules(network);
          const at = clock.now();
          const wanted = {
            owner: { userId: user.id, login: user.login, profileTypeId: user.profile_type_id },
            name: values['name'] ?? 'made by the operator',
            scopes: scopesOf(values['scopes']),
            expiresAt: endAfter(at, values['days']),
            at,
            actor: commandLineActor(),
          };
          const made = await db.transaction((tx) => createKey(tx, rules, wanted));
          const end = made.expires_at?.toISOString() ?? '';
          const lines = [[made.key, made.id, made.scopes.join(' '), end]];
          const heading = ['KEY (SHOWN ONCE)', 'ID', 'SCOPES', 'ENDS'];
          return { text: formatTable(heading, lines), data: made };
        }),
    },
    'api-key disable': change('disable', 'Refuses an API key until it is enabled.'),
    'api-key enable': change('enable', 'Takes a disabled API key again.'),
    'api-key revoke': change('revoke', 'Ends an API key for good.'),
  };
}

function showKeys(keys: ApiKey[]): CommandOutput {
  const lines = keys.map((key) => [
    key.id,
    `${key.prefix}…${key.last_four}`,
    key.login,
    key.name,
    key.state,
    key.scopes.join(' '),
    key.expires_at?.toISOString() ?? 'no end',
    key.last_used_at?.toISOString() ?? 'never used',
  ]);
  const heading = ['ID', 'KEY', 'LOGIN', 'NAME', 'STATE', 'SCOPES', 'ENDS', 'LAST USED'];
  return { text: formatTable(heading, lines), data: { items: keys } };
}

function scopesOf(text: string | undefined): readonly Scope[] {
  if (text === undefined) return SCOPES;
  const wanted = text.split(',');
  const unknown = wanted.filter((scope) => !(SCOPES as readonly string[]).includes(scope));
  if (unknown.length === 0) return [...new Set(wanted)] as Scope[];
  throw usage(`There is no scope ${unknown.join(', ')}.`, `Scopes are ${SCOPES.join(', ')}.`);
}

function stateOf(text: string): KeyState {
  const found = KEY_STATES.find((state) => state === text);
  if (found) return found;
  throw usage(`There is no state ${text}.`, `States are ${KEY_STATES.join(', ')}.`);
}

function endAfter(at: Date, days: string | undefined): Date | undefined {
  if (days === undefined) return undefined;
  if (/^[1-9][0-9]{0,3}$/.test(days)) return new Date(at.getTime() + Number(days) * DAY_MS);
  throw usage(`"${days}" is not a number of days.`, 'Write it as --days 90.');
}

function usage(message: string, next: string): SallyportError {
  return new SallyportError('usage', message, { next });
}
