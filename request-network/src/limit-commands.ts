import {
  LIMITS_CHANGED,
  ReasonText,
  SallyportError,
  UserTime,
  compileSchema,
  findUserByLogin,
  formatTable,
  isId,
  notifyChanged,
  type Command,
  type CommandArguments,
  type CommandOutput,
  type Commands,
} from '@sallyport/shared';
import { commandLineActor, withNetwork, type Installation } from '@sallyport/transfer';
import { usage } from './cli-arguments.js';
import { changeLimits, type LimitAct } from './limit-changes.js';
import {
  LIMIT_FILTERS,
  listLimits,
  readSubject,
  type LimitFilter,
  type SubjectView,
} from './limit-reads.js';
import { windowTable } from './limit-tables.js';
import { WINDOWS, type LimitWindow } from './limits.js';
import type { RequestNetwork } from './network.js';

const LISTED = 500;
const SUBJECT = 'LOGIN|ID';
const MOST_MINUTES = 60;
const MOST_FACTOR = 10;
const MOST_LIMIT = 100_000_000;

type Values = CommandArguments['values'];

/** The commands with which whoever runs a request network looks after limits. */
export function limitCommands(installation: () => Installation<RequestNetwork>): Commands {
  const act = (
    name: LimitAct['act'],
    { usage = '', does, values = [] }: { usage?: string; does: string; values?: string[] },
    toAct: (values: Values) => LimitAct,
  ): Command => ({
    usage: `limits ${name} ${SUBJECT}${usage} --reason TEXT`,
    does,
    positionals: [1, 1],
    values: ['reason', ...values],
    run: ({ positionals: [who = ''], values: given }) =>
      withNetwork(installation(), async (network) => {
        const wanted = toAct(given);
        const reason = reasonOf(given['reason']);
        const subject = await findSubject(network, who);
        const now = network.clock.now();
        const change = { actor: commandLineActor(), reason, now, at: null };
        await network.db.transaction((tx) => changeLimits(tx, subject, wanted, change));
        await notifyChanged(network.db, LIMITS_CHANGED);
        return show(await readSubject(network.db, subject, null));
      }),
  });
  return {
    'limits ls': {
      usage: `limits ls [--login TEXT] [--state ${LIMIT_FILTERS.join('|')}]`,
      does: `Lists who has used how much, by login, at most ${LISTED}.`,
      values: ['login', 'state'],
      run: ({ values }) =>
        withNetwork(installation(), async ({ db, pageSecret }) => {
          const caller = { callerId: commandLineActor(), secret: pageSecret };
          const page = await listLimits(db, caller, {
            at: null,
            text: values['login'],
            filter: chooseOne('--state', LIMIT_FILTERS, values['state']) as LimitFilter | undefined,
            pageSize: LISTED,
          });
          return { text: tableOf(page.items), data: page };
        }),
    },
    'limits show': {
      usage: `limits show ${SUBJECT}`,
      does: 'Shows the windows, overrides and episodes of grace of a user or key.',
      positionals: [1, 1],
      run: ({ positionals: [who = ''] }) =>
        withNetwork(installation(), async (network) =>
          show(await readSubject(network.db, await findSubject(network, who), null)),
        ),
    },
    'limits reset': act('reset', { does: 'Counts nothing, ends grace and re-arms it.' }, () => ({
      act: 'reset',
    })),
    'limits grant-grace': act(
      'grant-grace',
      {
        usage: ` --minutes N [--window ${WINDOWS.join('|')}]`,
        does: `Opens grace now for at most ${MOST_MINUTES} minutes; the ceiling stays.`,
        values: ['minutes', 'window'],
      },
      (given) => ({
        act: 'grant-grace',
        minutes:
          numberOf('--minutes', given['minutes'], { most: MOST_MINUTES }) ?? needs('--minutes'),
        window: windowOf(given),
      }),
    ),
    'limits end-grace': act(
      'end-grace',
      {
        usage: ` [--window ${WINDOWS.join('|')}]`,
        does: 'Ends grace now; it re-arms when it would have.',
        values: ['window'],
      },
      (given) => ({ act: 'end-grace', window: windowOf(given) }),
    ),
    'limits override': act(
      'override',
      {
        usage: ` (--window ${WINDOWS.join('|')} --limit N | [--window …] --factor N) [--until TIME]`,
        does: 'Sets another limit, until a time or without end; --factor 1 takes it away.',
        values: ['window', 'limit', 'factor', 'until'],
      },
      (given) => ({
        act: 'override',
        window: windowOf(given),
        limit: numberOf('--limit', given['limit'], { most: MOST_LIMIT }),
        factor: numberOf('--factor', given['factor'], { most: MOST_FACTOR, whole: false }),
        until: untilOf(given),
      }),
    ),
    'limits block': act(
      'block',
      { usage: ' [--until TIME]', does: 'Refuses every submit.', values: ['until'] },
      (given) => ({ act: 'block', until: untilOf(given) }),
    ),
    'limits unblock': act('unblock', { does: 'Takes submits again.' }, () => ({ act: 'unblock' })),
  };
}

function tableOf(items: readonly SubjectView[]): string {
  const used = (view: SubjectView, window: LimitWindow) => {
    const found = view.windows.find((one) => one.window === window);
    return found ? `${found.used}/${found.limit}` : '';
  };
  return formatTable(
    ['LOGIN', 'STATE', 'MINUTE', 'HOUR', 'DAY', 'REFUSED', 'EPISODES', 'OVERRIDDEN'],
    items.map((view) => [
      view.login,
      view.state,
      ...WINDOWS.map((window) => used(view, window)),
      `${view.refused}`,
      `${view.episodes}`,
      Object.keys(view.overrides ?? {}).join(' '),
    ]),
  );
}

function show(view: Awaited<ReturnType<typeof readSubject>>): CommandOutput {
  const { blocked, overrides } = view;
  const lines = [
    `${view.login} (${view.kind} ${view.subject}): ${view.state}, refused ${view.refused} times`,
    windowTable(view.windows),
    ...(blocked
      ? [`blocked ${blocked.until ? `until ${blocked.until}` : 'without end'}: ${blocked.reason}`]
      : []),
    ...Object.entries(overrides ?? {}).map(
      ([window, { limit, factor, until, reason }]) =>
        `${window}: ${limit ?? `× ${factor}`} ${until ? `until ${until}` : 'without end'}: ${reason}`,
    ),
    ...view.history.map(
      ({ window, opened_at, ends_at }) =>
        `grace of the ${window} from ${opened_at.toISOString()} to ${ends_at.toISOString()}`,
    ),
  ];
  return { text: lines.join('\n'), data: view };
}

async function findSubject({ db }: RequestNetwork, who: string): Promise<string> {
  if (isId(who)) return who;
  const user = await findUserByLogin(db, who);
  if (user) return user.id;
  throw new SallyportError('not-found', `There is no user ${who} here.`, {
    next: 'Users come from the response network; import its identity batches first.',
  });
}

function reasonOf(text: string | undefined): string {
  if (text === undefined) needs('--reason');
  return compileSchema(ReasonText)(text);
}

function windowOf(given: Values): LimitWindow | undefined {
  return chooseOne('--window', WINDOWS, given['window']) as LimitWindow | undefined;
}

function untilOf({ until }: Values): Date | undefined {
  return until === undefined ? undefined : new Date(compileSchema(UserTime)(until));
}

function chooseOne(option: string, known: readonly string[], text: string | undefined) {
  if (text === undefined || known.includes(text)) return text;
  throw usage(`${option} is "${text}".`, `It is one of ${known.join(', ')}.`);
}

function numberOf(
  option: string,
  text: string | undefined,
  { most, whole = true }: { most: number; whole?: boolean },
): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text);
  if (value > 0 && value <= most && (!whole || Number.isInteger(value))) return value;
  throw usage(`${option} is "${text}".`, `It is a number above 0 and at most ${most}.`);
}

function needs(option: string): never {
  throw usage(`${option} is missing.`, `Give it with ${option}.`);
}
