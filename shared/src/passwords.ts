import { verify as verifyBcrypt } from '@node-rs/bcrypt';
import { hash, verify, argon2id } from 'argon2';
import { SallyportError } from './errors.js';

/** Which argon2id parameters a verifier may have: both ends are allowed. */
export type VerifierRange = {
  memoryKiB: readonly [min: number, max: number];
  passes: readonly [min: number, max: number];
  lanes: readonly [min: number, max: number];
};

/** OWASP Password Storage Cheat Sheet: argon2id with 19 MiB, 2 passes, 1 lane. */
const COST = { type: argon2id, memoryCost: 19_456, timeCost: 2, parallelism: 1 } as const;

/** What is taken from elsewhere unless settings say otherwise: never weaker than our own. */
export const VERIFIER_RANGE: VerifierRange = {
  memoryKiB: [COST.memoryCost, 262_144],
  passes: [COST.timeCost, 10],
  lanes: [COST.parallelism, 4],
};

// Longer ones only cost work; far beyond anything a person types.
export const MAX_PASSWORD_BYTES = 1_024;
// Each takes 19 MiB and a thread for about 30 ms: a burst must not take the machine.
const MAX_RUNNING = 2;
const MAX_WAITING = 64;
const BUSY_RETRY_S = 2;
// libargon2 writes m, t, p; node's argon2 writes m, p, t.
const PHC =
  /^\$argon2id\$v=19\$m=(?<m>\d{1,8}),(?:t=(?<t>\d{1,4}),p=(?<p>\d{1,3})|p=(?<p2>\d{1,3}),t=(?<t2>\d{1,4}))\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,86}$/;
// What older systems keep; imported, and replaced when its owner logs in.
const BCRYPT = /^\$2[aby]\$(?<cost>0[89]|1[0-5])\$[./A-Za-z0-9]{53}$/;
/** The verifier of a password that nobody knows, with the cost of ours. */
const NOBODY =
  '$argon2id$v=19$m=19456,t=2,p=1$OxHNmMA7bVsKZLhQRg8lOQ$4Ja2Tt3Zl7CHzGd0Gk4pVwLAqYk0CxzHf3VIsq0Q0Eo';

let running = 0;
const waiting: (() => void)[] = [];

/**
 * The verifier of a password: a PHC string, argon2id, parameters in the order m, t, p.
 * @throws SallyportError `bad-field` over 1,024 bytes, `queue-full` when too many wait already.
 */
export async function hashPassword(password: string): Promise<string> {
  if (Buffer.byteLength(password) > MAX_PASSWORD_BYTES) {
    throw new SallyportError('bad-field', `The password is over ${MAX_PASSWORD_BYTES} bytes long.`);
  }
  const verifier = await inTurn(() => hash(password, COST));
  return verifier.replace(/m=(\d+),p=(\d+),t=(\d+)/, 'm=$1,t=$3,p=$2');
}

/**
 * Whether the password is the verifier's. A verifier that cannot be read fits no password, after
 * the same work.
 * @throws SallyportError `queue-full` when too many wait already.
 */
export async function verifyPassword(verifier: string, password: string): Promise<boolean> {
  if (Buffer.byteLength(password) <= MAX_PASSWORD_BYTES) {
    if (PHC.test(verifier)) return inTurn(() => verify(verifier, password));
    if (BCRYPT.test(verifier)) return inTurn(() => verifyBcrypt(password, verifier));
  }
  await burnPassword(password);
  return false;
}

/** Does the work of checking a password, for names that do not exist: the answer takes as long. */
export async function burnPassword(password: string): Promise<void> {
  const cut = password.slice(0, MAX_PASSWORD_BYTES);
  await inTurn(() => verify(NOBODY, cut));
}

/** Whether a verifier is weaker than those we make, so that the next login should replace it. */
export function isVerifierWeak(verifier: string): boolean {
  const parts = PHC.exec(verifier)?.groups;
  if (!parts) return true;
  return Number(parts['m']) < COST.memoryCost || Number(parts['t'] ?? parts['t2']) < COST.timeCost;
}

/** Whether a verifier made elsewhere is bcrypt with a cost of 8 to 15. */
export function isBcryptAllowed(verifier: string): boolean {
  return BCRYPT.test(verifier);
}

/** Whether a verifier made elsewhere is argon2id (v19, PHC string) with parameters in the range. */
export function isVerifierAllowed(
  verifier: string,
  range: VerifierRange = VERIFIER_RANGE,
): boolean {
  const parts = PHC.exec(verifier)?.groups;
  if (!parts) return false;
  const within = (text: string | undefined, [min, max]: readonly [number, number]) =>
    Number(text) >= min && Number(text) <= max;
  return (
    within(parts['m'], range.memoryKiB) &&
    within(parts['t'] ?? parts['t2'], range.passes) &&
    within(parts['p'] ?? parts['p2'], range.lanes)
  );
}

async function inTurn<T>(work: () => Promise<T>): Promise<T> {
  if (running >= MAX_RUNNING) {
    if (waiting.length >= MAX_WAITING) {
      throw new SallyportError('queue-full', 'Too many passwords are being checked right now.', {
        retryAfterS: BUSY_RETRY_S,
      });
    }
    await new Promise<void>((resolve) => waiting.push(resolve));
  } else {
    running += 1;
  }
  try {
    return await work();
  } finally {
    // The place passes to the next in line; it only becomes free when nobody waits.
    const next = waiting.shift();
    if (next) next();
    else running -= 1;
  }
}
