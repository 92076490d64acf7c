import { SallyportError, appendAudit, rows, type Transaction } from '@sallyport/shared';
import { unknownSubject, type LimitOverrides } from './limit-reads.js';
import { WINDOWS, type LimitWindow } from './limits.js';

/** What an admin does to the limits of a user or key. */
export type LimitAct =
  /** Counts nothing, ends and re-arms grace. */
  | { act: 'reset' }
  /** Opens grace now, or makes it last so long from now; the ceiling stays. */
  | { act: 'grant-grace'; minutes: number; window?: LimitWindow | undefined }
  | { act: 'end-grace'; window?: LimitWindow | undefined }
  /** A limit for one window, or a factor for one or all; factor 1 takes an override away. */
  | {
      act: 'override';
      window?: LimitWindow | undefined;
      limit?: number | undefined;
      factor?: number | undefined;
      until?: Date | undefined;
    }
  | { act: 'block'; until?: Date | undefined }
  | { act: 'unblock' };

/** Who does it and why; `at` as for a submit: null is the database's clock. */
export type LimitChange = { actor: string; reason: string; now: Date; at: Date | null };

type State = {
  current: (number | null)[];
  ends_at: (string | null)[];
  rearm_at: (string | null)[];
} & Record<string, unknown>;
type Block = { until: string | null; reason: string; by: string; at: string };
type Row = {
  at: Date;
  state: State | null;
  overrides: LimitOverrides | null;
  blocked: Block | null;
  limits: Record<string, number>;
};
type Stored = Pick<Row, 'state' | 'overrides' | 'blocked'>;

const MINUTE_MS = 60_000;

/**
 * Does one thing to the limits of a subject, with what was before and after in the audit log. It
 * holds from the next submit on and never touches what was accepted.
 * @throws SallyportError `not-found`; `bad-field` for an override that says too little or too much,
 * or an end in the past.
 */
export async function changeLimits(
  tx: Transaction,
  subject: string,
  act: LimitAct,
  change: LimitChange,
): Promise<void> {
  const row = await lockRow(tx, subject, change.at);
  const { act: name, ...given } = act;
  const before: Stored = { state: row.state, overrides: row.overrides, blocked: row.blocked };
  const after = applyAct(row, act, change);
  await rows(
    tx,
    `update rate_limits set changes = changes + 1, seen_at = :at, open_bound = null,
       state = jsonb_populate_record(null::limit_state, :state::jsonb),
       overrides = :overrides::jsonb, blocked = :blocked::jsonb
     where subject = :subject and class = 'submit'`,
    {
      subject,
      at: row.at,
      state: after.state && JSON.stringify(after.state),
      overrides: after.overrides && JSON.stringify(after.overrides),
      blocked: after.blocked && JSON.stringify(after.blocked),
    },
  );
  if (act.act === 'grant-grace') await noteEpisodes(tx, subject, { row, act, after });
  await appendAudit(tx, {
    at: change.now,
    actor: change.actor,
    action: `limit.${name}`,
    subject,
    details: {
      ...given,
      reason: change.reason,
      before: describeStored(before),
      after: describeStored(after),
    },
  });
}

async function lockRow(tx: Transaction, subject: string, at: Date | null): Promise<Row> {
  const [found] = await rows<{ limits: Row['limits'] }>(
    tx,
    `select p.limits from users u join profile_types p on p.id = u.profile_type_id
     where u.id = :subject
       or u.id = (select user_id from api_keys where id = :subject and limits is not null)`,
    { subject },
  );
  if (!found) throw unknownSubject(subject);
  await rows(
    tx,
    `insert into rate_limits (subject, class, seen_at)
     values (?, 'submit', coalesce(?::timestamptz, clock_timestamp())) on conflict do nothing`,
    [subject, at],
  );
  const [row] = await rows<Omit<Row, 'limits'>>(
    tx,
    `select coalesce(?::timestamptz, clock_timestamp()) as at, to_jsonb(state) as state, overrides,
       blocked
     from rate_limits where subject = ? and class = 'submit' for update`,
    [at, subject],
  );
  return { ...(row as Omit<Row, 'limits'>), ...found };
}

function applyAct(row: Row, act: LimitAct, change: LimitChange): Stored {
  const { state, overrides, blocked } = row;
  switch (act.act) {
    case 'reset':
      return { state: null, overrides, blocked };
    case 'grant-grace': {
      const ends = new Date(row.at.getTime() + act.minutes * MINUTE_MS);
      const rearms = (n: number) => {
        const rearmS = row.limits[`rearm_${WINDOWS[n]}_s`] ?? 0;
        return new Date(Math.max(row.at.getTime() + rearmS * 1_000, ends.getTime()));
      };
      const granted = emptyState(state);
      for (const n of chosen(act.window)) {
        granted.ends_at[n] = ends.toISOString();
        granted.rearm_at[n] = rearms(n).toISOString();
      }
      return { state: granted, overrides, blocked };
    }
    case 'end-grace': {
      const ended = emptyState(state);
      for (const n of chosen(act.window)) {
        const endsAt = ended.ends_at[n];
        if (endsAt && new Date(endsAt) > row.at) ended.ends_at[n] = row.at.toISOString();
      }
      return { state: ended, overrides, blocked };
    }
    case 'override':
      return { state, overrides: override(row, act, change), blocked };
    case 'block':
      requireFuture(act.until, row.at);
      return { state, overrides, blocked: { ...signed(row, act.until, change) } };
    case 'unblock':
      return { state, overrides, blocked: null };
  }
}

function override(
  row: Row,
  act: Extract<LimitAct, { act: 'override' }>,
  change: LimitChange,
): LimitOverrides | null {
  const { window, limit, factor, until } = act;
  if ((limit === undefined) === (factor === undefined)) {
    throw badField('/limit', 'or /factor must be given, and not both');
  }
  if (limit !== undefined && window === undefined) {
    throw badField('/window', 'must say which window the limit is for');
  }
  requireFuture(until, row.at);
  const next: LimitOverrides = { ...row.overrides };
  for (const n of chosen(window)) {
    const name = WINDOWS[n] as LimitWindow;
    if (factor === 1) delete next[name];
    else {
      next[name] = {
        ...(limit === undefined ? { factor: factor as number } : { limit }),
        ...signed(row, until, change),
      };
    }
  }
  return Object.keys(next).length > 0 ? next : null;
}

function signed({ at }: Row, until: Date | undefined, { actor, reason }: LimitChange): Block {
  return { until: until?.toISOString() ?? null, reason, by: actor, at: at.toISOString() };
}

async function noteEpisodes(
  tx: Transaction,
  subject: string,
  given: { row: Row; act: { window?: LimitWindow | undefined }; after: Stored },
): Promise<void> {
  for (const n of chosen(given.act.window)) {
    await rows(
      tx,
      `insert into limit_episodes (subject, class, "window", opened_at, ends_at, rearm_at)
       values (?, 'submit', ?, ?, ?, ?) on conflict do nothing`,
      [
        subject,
        WINDOWS[n] as string,
        given.row.at,
        given.after.state?.ends_at[n] as string,
        given.after.state?.rearm_at[n] as string,
      ],
    );
  }
}

/** What the audit log keeps of a row: the numbers that an act can change. */
function describeStored({ state, overrides, blocked }: Stored) {
  const { current, ends_at, rearm_at } = emptyState(state);
  return { current, ends_at, rearm_at, overrides, blocked };
}

function emptyState(state: State | null): State {
  const nothing = () => WINDOWS.map(() => null);
  return {
    ...state,
    current: [...(state?.current ?? nothing())],
    ends_at: [...(state?.ends_at ?? nothing())],
    rearm_at: [...(state?.rearm_at ?? nothing())],
  };
}

function chosen(window: LimitWindow | undefined): number[] {
  return window === undefined ? [0, 1, 2] : [WINDOWS.indexOf(window)];
}

function requireFuture(until: Date | undefined, at: Date): void {
  if (until && until <= at) throw badField('/until', 'must lie in the future');
}

function badField(pointer: string, detail: string): SallyportError {
  return new SallyportError('bad-field', `${pointer} ${detail}.`, {
    errors: [{ pointer, code: 'bad-field', detail }],
  });
}
