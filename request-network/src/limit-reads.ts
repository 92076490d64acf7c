import {
  SallyportError,
  containing,
  readPageToken,
  rows,
  writePageToken,
  type Database,
} from '@sallyport/shared';
import {
  maxCostNow,
  viewWindows,
  type Charge,
  type LimitState,
  type LimitWindow,
  type WindowView,
} from './limits.js';

/** What the submits of somebody may still do; nothing is charged for it. */
export type LimitsView = {
  /** That of the fullest window, or that an admin has blocked all submits. */
  state: LimitState | 'admin_block';
  windows: WindowView[];
  max_cost_now: number;
  open_requests: { used: number; limit: number };
  stored_bytes: { used: number; limit: number };
  blocked: { until: string | null; reason: string } | null;
};

export type LimitOverride = {
  limit?: number;
  factor?: number;
  until: string | null;
  reason: string;
  by: string;
  at: string;
};
export type LimitOverrides = Partial<Record<LimitWindow, LimitOverride>>;

/** The limits of one user, or of one key that has limits of its own, as admins see them. */
export type SubjectView = LimitsView & {
  subject: string;
  kind: 'user' | 'key';
  login: string;
  refused: number;
  overrides: LimitOverrides | null;
  /** Episodes of grace within the last seven days. */
  episodes: number;
};
export type Episode = { window: LimitWindow; opened_at: Date; ends_at: Date; rearm_at: Date };

export const LIMIT_FILTERS = ['grace', 'overridden', 'admin_block'] as const;
export type LimitFilter = (typeof LIMIT_FILTERS)[number];

type SubjectRow = {
  subject: string;
  kind: 'user' | 'key';
  login: string;
  refused: number | null;
  overrides: LimitOverrides | null;
  episodes: number;
  charge: Charge;
};

const STATES: LimitState[] = ['normal', 'warning', 'grace', 'blocked'];
const EPISODES_SHOWN = 50;

/** What a caller may still submit; `at` as for a submit. */
export async function readOwnLimits(
  db: Database,
  { userId, keyId }: { userId: string; keyId: string | null },
  at: Date | null,
): Promise<LimitsView> {
  const [found] = await rows<{ charge: Charge }>(
    db,
    `select charge_submit(u.id, p.limits, k.id, k.limits, 0, ?::timestamptz) as charge
     from users u join profile_types p on p.id = u.profile_type_id
     left join api_keys k on k.id = ?::uuid and k.user_id = u.id
     where u.id = ?`,
    [at, keyId, userId],
  );
  if (found) return viewLimits(found.charge);
  throw new SallyportError('dataset-forbidden', 'Your profile type is not known here yet.', {
    next: 'Ask an administrator which rights your account has.',
  });
}

/**
 * The limits of users by login name; `text` is a part of the login.
 * @throws SallyportError `bad-page-token`.
 */
export async function listLimits(
  db: Database,
  { callerId, secret }: { callerId: string; secret: Buffer },
  options: {
    at: Date | null;
    text?: string | undefined;
    filter?: LimitFilter | undefined;
    pageSize: number;
    pageToken?: string | undefined;
  },
): Promise<{ items: SubjectView[]; next_page_token?: string }> {
  const { at, text = '', filter, pageSize } = options;
  const binding = `limits ${callerId} ${filter ?? ''} ${text}`;
  const after = readPageToken(secret, binding, options.pageToken);
  const found = await rows<SubjectRow>(
    db,
    `${SUBJECTS} where u.login > :after and u.login like :text and ${FILTERS[filter ?? 'all']}
     order by u.login limit :most`,
    {
      at,
      after: after ?? '',
      text: containing(text),
      most: pageSize + 1,
    },
  );
  const items = found.slice(0, pageSize).map(viewSubject);
  const last = items.at(-1);
  if (found.length <= pageSize || !last) return { items };
  return { items, next_page_token: writePageToken(secret, binding, last.login) };
}

/**
 * The limits of one subject and its newest episodes of grace.
 * @throws SallyportError `not-found`.
 */
export async function readSubject(
  db: Database,
  subject: string,
  at: Date | null,
): Promise<SubjectView & { history: Episode[] }> {
  const [found] = await rows<SubjectRow>(
    db,
    `${SUBJECTS} where u.id = :subject union all ${KEY_SUBJECTS} where k.id = :subject`,
    { at, subject },
  );
  if (!found) throw unknownSubject(subject);
  const history = await rows<Episode>(
    db,
    `select "window", opened_at, ends_at, rearm_at from limit_episodes
     where subject = ? and class = 'submit' order by opened_at desc limit ${EPISODES_SHOWN}`,
    [subject],
  );
  return { ...viewSubject(found), history };
}

/** The answer where nobody of this id has limits. */
export function unknownSubject(subject: string): SallyportError {
  return new SallyportError('not-found', `Nobody with limits has the id ${subject}.`, {
    next: 'List the limits to see who has; a key is there when it has limits of its own.',
  });
}

function viewSubject({ charge, refused, episodes, ...row }: SubjectRow): SubjectView {
  const { subject, kind, login, overrides } = row;
  const view = viewLimits(charge);
  const windows = view.windows.filter((window) => window.subject === kind);
  return { subject, kind, login, ...view, windows, refused: refused ?? 0, overrides, episodes };
}

function viewLimits(charge: Charge): LimitsView {
  const windows = viewWindows(charge);
  const worst = Math.max(...windows.map(({ state }) => STATES.indexOf(state)));
  const { blocked } = charge;
  return {
    state: blocked ? 'admin_block' : (STATES[worst] ?? 'normal'),
    windows,
    max_cost_now: blocked ? 0 : maxCostNow(charge),
    open_requests: { used: charge.open_used, limit: charge.open_most },
    stored_bytes: { used: charge.bytes_used, limit: charge.bytes_most },
    blocked: blocked && { until: blocked.until, reason: blocked.reason },
  };
}

const COLUMNS = `
  l.refused, l.overrides,
  (select count(*) from limit_episodes e where e.subject = l.subject and e.class = 'submit'
     and e.opened_at > coalesce(:at::timestamptz, clock_timestamp()) - interval '7 days') as episodes`;
const SUBJECTS = `
  select u.id as subject, 'user' as kind, u.login, ${COLUMNS},
    charge_submit(u.id, p.limits, null, null, 0, :at::timestamptz) as charge
  from users u join profile_types p on p.id = u.profile_type_id
  left join rate_limits l on l.subject = u.id and l.class = 'submit'`;
const KEY_SUBJECTS = `
  select k.id, 'key', u.login, ${COLUMNS},
    charge_submit(u.id, p.limits, k.id, k.limits, 0, :at::timestamptz)
  from api_keys k join users u on u.id = k.user_id and k.limits is not null
  join profile_types p on p.id = u.profile_type_id
  left join rate_limits l on l.subject = k.id and l.class = 'submit'`;
const IN_FORCE = `(%->>'until' is null
  or (%->>'until')::timestamptz > coalesce(:at::timestamptz, clock_timestamp()))`;
const FILTERS = {
  all: 'true',
  grace: `exists (select 1 from unnest((l.state).ends_at) as ends_at
    where ends_at > coalesce(:at::timestamptz, clock_timestamp()))`,
  overridden: `exists (select 1 from jsonb_each(l.overrides) as o
    where ${IN_FORCE.replaceAll('%', 'o.value')})`,
  admin_block: `l.blocked is not null and ${IN_FORCE.replaceAll('%', 'l.blocked')}`,
};
