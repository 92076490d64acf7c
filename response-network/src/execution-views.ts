import { Type, type Static } from 'typebox';
import {
  FINAL_STATUSES,
  FailureSchema,
  LoginName,
  Name,
  SallyportError,
  TIERS,
  Timestamp,
  UserTime,
  Uuid,
  rows,
  type Database,
  type Tier,
} from '@sallyport/shared';
import { readSearchableDatasets } from './dataset-sources.js';
import { judgeRequest } from './judge.js';

const oneOf = <T extends string>(...values: readonly T[]) =>
  Type.Unsafe<T>({ type: 'string', enum: values });
const Moment = Type.Union([Timestamp, Type.Null()]);
const strict = { additionalProperties: false };

const EXECUTION_STATES = ['received', 'running', 'done'] as const;

/** A request that came across, as far as it has been searched; never its query or answer. */
export const ExecutionSchema = Type.Object(
  {
    id: Uuid,
    user: Type.Object({ id: Uuid, login: Type.Union([Type.String(), Type.Null()]) }, strict),
    dataset: Name,
    tier: oneOf(...TIERS),
    priority: oneOf('urgent', 'normal', 'low'),
    state: oneOf(...EXECUTION_STATES),
    /** How it ended. */
    status: Type.Union([oneOf(...FINAL_STATUSES), Type.Null()]),
    failure: Type.Union([FailureSchema, Type.Null()]),
    query_digest: Type.String(),
    attempts: Type.Integer(),
    /** Of what runs or waits, by the policy in force; null where it would be refused. */
    cost: Type.Union([Type.Number(), Type.Null()]),
    /** Since the search began, or since it came, while it is not done. */
    age_ms: Type.Union([Type.Integer(), Type.Null()]),
    cancel_asked_at: Moment,
    not_before: Moment,
    received_at: Timestamp,
    started_at: Moment,
    finished_at: Moment,
    expires_at: Timestamp,
    batch: Type.Object({ id: Uuid, line: Type.Integer() }, strict),
  },
  strict,
);
export type ExecutionView = Static<typeof ExecutionSchema>;

/** What a search over executions may be narrowed to. */
export const ExecutionFilter = {
  state: Type.Optional(oneOf(...EXECUTION_STATES)),
  status: Type.Optional(oneOf(...FINAL_STATUSES)),
  login: Type.Optional(LoginName),
  user_id: Type.Optional(Uuid),
  dataset: Type.Optional(Name),
  tier: Type.Optional(oneOf(...TIERS)),
  digest: Type.Optional(Type.String({ pattern: '^sha256:[0-9a-f]{64}$' })),
  batch: Type.Optional(Uuid),
  failure_code: Type.Optional(Type.String({ pattern: '^[A-Za-z0-9_-]{1,64}$' })),
  received_from: Type.Optional(UserTime),
  received_before: Type.Optional(UserTime),
};
export type ExecutionSearch = {
  [Key in keyof typeof ExecutionFilter]?: Static<(typeof ExecutionFilter)[Key]> | undefined;
};

type ExecutionRow = Omit<ExecutionView, 'user' | 'batch' | 'cost' | 'age_ms' | Times> & {
  user_id: string;
  login: string | null;
  batch_id: string;
  batch_line: number;
  dataset_version: number;
  policy_version: number;
  query: string;
  dataset_allowed: boolean;
  allowed_tier: Tier | null;
  cancel_asked_at: Date | null;
  not_before: Date | number;
  received_at: Date;
  started_at: Date | null;
  finished_at: Date | null;
  expires_at: Date;
};
type Times =
  'cancel_asked_at' | 'not_before' | 'received_at' | 'started_at' | 'finished_at' | 'expires_at';

/** Requests that came across, newest first; `after` is the id of the last one seen. */
export async function searchExecutions(
  db: Database,
  search: { filter: ExecutionSearch; limit: number; after?: string | undefined; now: Date },
): Promise<ExecutionView[]> {
  const { filter, limit, after, now } = search;
  const conditions: [string, unknown][] = [['true', undefined]];
  const add = (sql: string, value: unknown) => {
    if (value !== undefined) conditions.push([sql, value]);
  };
  add('r.id < ?::uuid', after);
  add('r.state = ?', filter.state);
  add('s.status = ?', filter.status);
  add('u.login = ?', filter.login);
  add('r.user_id = ?', filter.user_id);
  add('r.dataset = ?', filter.dataset);
  add('r.tier = ?', filter.tier);
  add('r.query_digest = ?', filter.digest);
  add('r.batch_id = ?', filter.batch);
  add(`s.failure->>'code' = ?`, filter.failure_code);
  add('r.received_at >= ?', filter.received_from);
  add('r.received_at < ?', filter.received_before);
  const found = await rows<ExecutionRow>(
    db,
    `${SELECT} where ${conditions.map(([sql]) => sql).join(' and ')}
     order by r.id desc limit ${limit}`,
    conditions.slice(1).map(([, value]) => value as string),
  );
  return toViews(db, found, now);
}

/**
 * One request that came across.
 * @throws SallyportError `not-found`.
 */
export async function getExecution(db: Database, id: string, now: Date): Promise<ExecutionView> {
  const [found] = await toViews(
    db,
    await rows<ExecutionRow>(db, `${SELECT} where r.id = ?`, [id]),
    now,
  );
  if (found) return found;
  throw noExecution(id);
}

/** What is said of an id that names nothing here. */
export function noExecution(id: string): SallyportError {
  return new SallyportError('not-found', `No request ${id} has come across.`, {
    next: 'Search the executions to see what has.',
  });
}

async function toViews(db: Database, found: ExecutionRow[], now: Date): Promise<ExecutionView[]> {
  const open = found.filter(({ state }) => state !== 'done');
  const names = [...new Set(open.map(({ dataset }) => dataset))];
  const datasets = names.length === 0 ? undefined : await readSearchableDatasets(db, names);
  return found.map((row) => {
    const isOpen = row.state !== 'done';
    const verdict = isOpen ? judgeRequest(row, datasets?.get(row.dataset)) : undefined;
    const since = row.state === 'running' ? row.started_at : row.received_at;
    const { id, dataset, tier, priority, state, status, failure, query_digest, attempts } = row;
    return {
      ...{ id, dataset, tier, priority, state, status, failure, query_digest, attempts },
      user: { id: row.user_id, login: row.login },
      cost: verdict?.ok ? verdict.cost : null,
      age_ms: isOpen && since ? Math.max(0, now.getTime() - since.getTime()) : null,
      cancel_asked_at: timeOf(row.cancel_asked_at),
      not_before: row.not_before instanceof Date ? timeOf(row.not_before) : null,
      received_at: row.received_at.toISOString(),
      started_at: timeOf(row.started_at),
      finished_at: timeOf(row.finished_at),
      expires_at: row.expires_at.toISOString(),
      batch: { id: row.batch_id, line: row.batch_line },
    };
  });
}

function timeOf(at: Date | null): string | null {
  return at?.toISOString() ?? null;
}

const SELECT = `
select r.id, r.user_id, u.login, r.dataset, r.tier,
  case r.priority when 0 then 'urgent' when 1 then 'normal' else 'low' end as priority,
  r.state, s.status, s.failure, r.query_digest, r.query, r.attempts, r.dataset_version,
  r.policy_version, r.cancel_asked_at, nullif(r.not_before, '-infinity') as not_before,
  r.received_at, r.started_at, r.finished_at, r.expires_at, r.batch_id, r.batch_line,
  coalesce(not u.disabled and not p.disabled and r.dataset = any (p.datasets), false)
    as dataset_allowed, p.tier as allowed_tier
from requests r
left join results s on s.request_id = r.id
left join users u on u.id = r.user_id
left join profile_types p on p.id = u.profile_type_id`;
