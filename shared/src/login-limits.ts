import { createHash } from 'node:crypto';
import { RateLimiterPostgres, RateLimiterRes } from 'rate-limiter-flexible';
import type { Database } from './database.js';
import { SallyportError } from './errors.js';
import type { Settings } from './settings.js';

/** Who tries to log in, and from where; the account need not exist. */
export type LoginAttempt = { login: string; address: string };

/** What a failed attempt has led to. */
export type LoginFailure = {
  /** From this address, within 15 minutes. */
  failures: number;
  /** From where the account was locked by this very failure. */
  locked: 'address' | 'everywhere' | null;
};

const MINUTE_S = 60;
const LOCK_S = 15 * MINUTE_S;
const FAILURES_HERE = 10;
const FAILURES_EVERYWHERE = 50;

/**
 * Counts an attempt, before anything is looked up: the answer is the same for accounts that exist and
 * for those that do not.
 * @throws SallyportError `rate-limited` when the account or the address tried too often, or is locked.
 */
export async function admitLogin(
  db: Database,
  attempt: LoginAttempt,
  settings: Pick<Settings, 'login.account_per_minute' | 'login.address_per_minute'>,
): Promise<void> {
  const perAddress = limiter(db, 'address', settings['login.address_per_minute'], MINUTE_S);
  const perAccount = limiter(db, 'account', settings['login.account_per_minute'], MINUTE_S);
  const { here, everywhere } = failureLimiters(db);
  // One after the other: an address that is refused makes no rows for names that it invents.
  const waitMs =
    (await consume(perAddress, attempt.address)) ||
    (await consume(perAccount, accountKey(attempt))) ||
    Math.max(
      await lockedMs(here, placeKey(attempt)),
      await lockedMs(everywhere, accountKey(attempt)),
    );
  if (waitMs === 0) return;
  throw new SallyportError('rate-limited', 'Too many attempts to log in.', {
    retryAfterS: Math.ceil(waitMs / 1_000),
    next: 'Wait, then try again; an administrator can set a new password.',
  });
}

/** Counts a failure; the tenth from one address locks the account for it, the fiftieth for all. */
export async function noteLoginFailure(db: Database, attempt: LoginAttempt): Promise<LoginFailure> {
  const { here, everywhere } = failureLimiters(db);
  const [place, account] = [placeKey(attempt), accountKey(attempt)];
  const { consumedPoints: failures } = await here.penalty(place);
  const { consumedPoints: all } = await everywhere.penalty(account);
  if (failures === FAILURES_HERE) await here.block(place, LOCK_S);
  if (all === FAILURES_EVERYWHERE) await everywhere.block(account, LOCK_S);
  const locked =
    all === FAILURES_EVERYWHERE ? 'everywhere' : failures === FAILURES_HERE ? 'address' : null;
  return { failures, locked };
}

/** Forgets the failures from an address where the password was known after all. */
export async function forgetLoginFailures(db: Database, attempt: LoginAttempt): Promise<void> {
  await failureLimiters(db).here.delete(placeKey(attempt));
}

function failureLimiters(db: Database) {
  return {
    here: limiter(db, 'failures', FAILURES_HERE, LOCK_S),
    everywhere: limiter(db, 'failures-everywhere', FAILURES_EVERYWHERE, LOCK_S),
  };
}

function limiter(db: Database, name: string, points: number, duration: number) {
  return new RateLimiterPostgres({
    storeClient: db,
    storeType: 'knex',
    tableName: 'login_attempts',
    tableCreated: true,
    // Housekeeping does it.
    clearExpiredByTimeout: false,
    keyPrefix: name,
    points,
    duration,
  });
}

/** Takes one of the points; how long to wait, 0 when there was one. */
async function consume(limiter: RateLimiterPostgres, key: string): Promise<number> {
  try {
    await limiter.consume(key);
    return 0;
  } catch (refused) {
    if (refused instanceof RateLimiterRes) return Math.max(refused.msBeforeNext, 1);
    throw refused;
  }
}

async function lockedMs(limiter: RateLimiterPostgres, key: string): Promise<number> {
  const found = await limiter.get(key);
  return found && found.consumedPoints >= limiter.points ? Math.max(found.msBeforeNext, 1) : 0;
}

/** Hashed: people type passwords where the name belongs. */
function accountKey({ login }: LoginAttempt): string {
  return createHash('sha256').update(login).digest('base64url');
}

function placeKey(attempt: LoginAttempt): string {
  return `${accountKey(attempt)}:${attempt.address}`;
}
