import {
  SallyportError,
  rows,
  type Clock,
  type Counters,
  type Database,
  type Log,
  type Principal,
} from '@sallyport/shared';
import type { BackPressure } from './back-pressure.js';
import {
  limitHeaders,
  refuseCharge,
  viewWindows,
  withJitter,
  type Charge,
  type WindowView,
} from './limits.js';
import { submitMany, submitRequest, type NewRequest } from './requests.js';

/** Submits within the limits, and what one process remembers of those who do not keep to them. */
export type Limiter = {
  /**
   * Stores the requests, all or none, and charges them in the same statement; answers the headers
   * that tell what is left.
   * @throws SallyportError `unauthenticated`, `blocked`, `cost-exceeds-limit`, `rate-limited`,
   * `open-requests-limit`, `stored-bytes-limit`; `queue-full` while too much is on its way.
   */
  submit(
    db: Database,
    principal: Principal,
    requests: NewRequest[],
  ): Promise<Record<string, string>>;
  /** The time that limits are read at: null is the clock of the database. */
  at(): Date | null;
  /** Lets everybody try again: limits may have changed. */
  drop(): void;
  /** Writes down how often users were refused; also runs by itself now and then. */
  flush(): Promise<void>;
  close(): Promise<void>;
};

export type LimiterOptions = {
  db: Database;
  clock: Clock;
  log: Log;
  counters: Counters;
  backPressure: BackPressure;
  /** For tests: what the limits take for the clock of the database. */
  limiterClock?: Clock | undefined;
};

const MINUTE_MS = 60_000;
const HOLD_MS = 60_000;
/** A user who is refused so many times the limit of a minute is held back without being judged. */
const REFUSALS_PER_LIMIT = 10;
const FLUSH_MS = 10_000;
const MAX_REMEMBERED = 10_000;

/** Opens the limiter of one process. */
export function openLimiter(options: LimiterOptions): Limiter {
  const { db, clock, log, backPressure, limiterClock, counters } = options;
  const held = new Map<string, number>();
  const refusals = new Map<string, number>();
  const unwritten = new Map<string, number>();
  let minute = 0;

  const requireFree = (userId: string) => {
    const until = held.get(userId);
    if (until === undefined) return;
    const leftMs = until - clock.now().getTime();
    // What the clock of this machine does must hold nobody back for longer.
    if (leftMs <= 0 || leftMs > HOLD_MS) {
      held.delete(userId);
      return;
    }
    count(unwritten, userId);
    const waitS = withJitter(Math.ceil(leftMs / 1_000));
    throw new SallyportError('rate-limited', 'You went on and on while you were refused.', {
      next: `Stop for ${waitS} s, and wait as long as Retry-After says from then on.`,
      retryAfterS: waitS,
      extra: { state: 'blocked', reason: 'abnormal', max_cost_now: 0 },
    });
  };

  const noteRefusal = (userId: string, windows: readonly WindowView[]) => {
    count(unwritten, userId);
    const now = clock.now().getTime();
    const current = Math.floor(now / MINUTE_MS);
    if (current !== minute || refusals.size > MAX_REMEMBERED) {
      refusals.clear();
      minute = current;
    }
    const limit = windows.find(({ subject, window }) => subject === 'user' && window === 'minute');
    if (limit && count(refusals, userId) > REFUSALS_PER_LIMIT * limit.limit) {
      if (held.size > MAX_REMEMBERED) held.clear();
      held.set(userId, now + HOLD_MS);
    }
  };

  const flush = async () => {
    const counted = [...unwritten];
    unwritten.clear();
    if (counted.length === 0) return;
    await rows(
      db,
      `update rate_limits l set refused = l.refused + n.refused
       from (select * from unnest(?::uuid[], ?::bigint[]) as n (subject, refused) order by subject) n
       where l.subject = n.subject and l.class = 'submit'`,
      [counted.map(([userId]) => userId), counted.map(([, refused]) => refused)],
    );
  };
  const flushQuietly = () =>
    flush().catch((err: unknown) => log.warn({ err }, 'could not note who was refused'));
  const timer = setInterval(() => void flushQuietly(), FLUSH_MS);
  timer.unref();

  const at = () => limiterClock?.now() ?? null;

  return {
    at,
    flush,
    async submit(handle, principal, requests) {
      requireFree(principal.userId);
      await backPressure.requireRoom(requests.length === 1 ? 'single' : 'bulk');
      const [only] = requests;
      const charge =
        requests.length === 1 && only
          ? await submitRequest(handle, principal, only, { at: at() })
          : await submitMany(handle, principal, requests, { at: at() });
      const windows = viewWindows(charge);
      counters.count('limiter', isRefused(charge) ? 'refused' : worstOf(windows));
      if (!isRefused(charge)) return limitHeaders(windows);
      noteRefusal(principal.userId, windows);
      throw refuseCharge(charge);
    },
    drop() {
      held.clear();
      refusals.clear();
    },
    async close() {
      clearInterval(timer);
      await flushQuietly();
    },
  };
}

/** The state that says most of an admitted submit: grace before warning before normal. */
function worstOf(windows: readonly WindowView[]): WindowView['state'] {
  const states = windows.map(({ state }) => state);
  return (['grace', 'warning'] as const).find((state) => states.includes(state)) ?? 'normal';
}

function isRefused(charge: Charge): charge is Charge & { refusal: NonNullable<Charge['refusal']> } {
  return charge.refusal !== null;
}

function count(counts: Map<string, number>, userId: string): number {
  const next = (counts.get(userId) ?? 0) + 1;
  counts.set(userId, next);
  return next;
}
