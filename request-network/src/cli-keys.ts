import { formatTable, type CommandArguments, type Commands } from '@sallyport/shared';
import { parseDuration, requireId, usage } from './cli-arguments.js';
import { callApi, callJson } from './cli-client.js';
import { currentSession } from './cli-config.js';

type KeyView = {
  id: string;
  name: string;
  prefix: string;
  last_four: string;
  scopes: string[];
  state: string;
  expires_at: string | null;
  last_used_at: string | null;
  replaced_by: string | null;
};
type NewKeyView = KeyView & { key: string };

const KEYS = '/v1/me/keys';
const LIMIT_OPTIONS = { minute: 'per-minute', hour: 'per-hour', day: 'per-day' } as const;
const LISTED = 500;

/** The commands of users for their API keys. */
export const keyCommands: Commands = {
  'keys create': {
    usage:
      'keys create NAME [--scopes requests:read,requests:write,results:read] [--expires 90d] [--per-minute N] [--per-hour N] [--per-day N]',
    does: 'Makes an API key and prints it this once; limits are for submits by this key.',
    positionals: [1, 1],
    values: ['scopes', 'expires', ...Object.values(LIMIT_OPTIONS)],
    async run({ positionals, values }) {
      const limits = limitsOf(values);
      const body = {
        name: positionals[0],
        ...(values['scopes'] ? { scopes: values['scopes'].split(',') } : {}),
        ...endOf(values['expires']),
        ...(limits ? { limits } : {}),
      };
      const options = { method: 'POST', body } as const;
      const made = await callJson<NewKeyView>(await currentSession(), KEYS, options);
      return { text: made.key, data: made };
    },
  },
  'keys ls': {
    usage: 'keys ls',
    does: `Lists your API keys, newest first, at most ${LISTED}.`,
    async run() {
      const path = `${KEYS}?page_size=${LISTED}`;
      const found = await callJson<{ items: KeyView[] }>(await currentSession(), path);
      const lines = found.items.map((one) => [
        one.id,
        `${one.prefix}…${one.last_four}`,
        one.name,
        one.scopes.join(' '),
        one.state === 'active' && one.replaced_by ? 'rotated' : one.state,
        one.expires_at ?? 'no end',
        one.last_used_at ?? 'never used',
      ]);
      const heading = ['ID', 'KEY', 'NAME', 'SCOPES', 'STATE', 'ENDS', 'LAST USED'];
      return { text: formatTable(heading, lines), data: found };
    },
  },
  'keys rotate': {
    usage: 'keys rotate ID [--overlap 1d] [--expires 90d]',
    does: 'Prints a key that takes the place of another, which works until the overlap after its first use.',
    positionals: [1, 1],
    values: ['overlap', 'expires'],
    async run({ positionals, values }) {
      const path = `${KEYS}/${requireId(positionals[0])}:rotate`;
      const overlapS = Math.round(parseDuration(values['overlap'] ?? '1d') / 1_000);
      const body = { overlap_s: overlapS, ...endOf(values['expires']) };
      const options = { method: 'POST', body } as const;
      const made = await callJson<NewKeyView>(await currentSession(), path, options);
      return { text: made.key, data: made };
    },
  },
  'keys revoke': {
    usage: 'keys revoke ID',
    does: 'Ends an API key at once; may be repeated.',
    positionals: [1, 1],
    async run({ positionals }) {
      const id = requireId(positionals[0]);
      await callApi(await currentSession(), `${KEYS}/${id}`, { method: 'DELETE' });
      return { text: `Revoked ${id}.`, data: { id, revoked: true } };
    },
  },
};

function endOf(duration: string | undefined): { expires_at?: string } {
  if (duration === undefined) return {};
  return { expires_at: new Date(Date.now() + parseDuration(duration)).toISOString() };
}

function limitsOf(values: CommandArguments['values']): Record<string, number> | undefined {
  const given = Object.entries(LIMIT_OPTIONS).flatMap(([window, option]) => {
    const text = values[option];
    if (text === undefined) return [];
    if (!/^[1-9][0-9]{0,8}$/.test(text)) {
      throw usage(`--${option} must be a whole number.`, 'Write it as --per-minute 60.');
    }
    return [[`submit_per_${window}`, Number(text)] as const];
  });
  return given.length > 0 ? Object.fromEntries(given) : undefined;
}
