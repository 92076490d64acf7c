import { createHash } from 'node:crypto';
import { SallyportError, rows, type Database, type Transaction } from '@sallyport/shared';

/** An answer as it is kept and replayed. */
export type Reply = {
  status: number;
  headers: Record<string, string>;
  body: string;
  /** Headers that tell what was charged: not kept, since a replay is free. */
  charged?: Record<string, string>;
};

export type IdempotentCall = {
  userId: string;
  /** The Idempotency-Key header, at most {@link MAX_KEY_LENGTH} characters. */
  key: string;
  /** Of method, path and body: {@link fingerprintOf}. */
  fingerprint: string;
  at: Date;
};

export const MAX_KEY_LENGTH = 255;
/** How long a key is remembered. */
export const KEPT_MS = 7 * 86_400_000;

/** What two calls must have in common to count as the same; of JSON the canonical text. */
export function fingerprintOf(method: string, path: string, body: Uint8Array | string): string {
  return createHash('sha256').update(`${method} ${path}\n`).update(body).digest('hex');
}

/**
 * Runs the call once per user and key: its reply is stored in the transaction that does its work, and
 * replayed to a repetition. A refusal is not stored, so it may be corrected and tried again.
 * @throws SallyportError `in-flight`, `idempotency-key-reused`.
 */
export async function runOnce(
  db: Database,
  call: IdempotentCall,
  run: (tx: Transaction) => Promise<Reply>,
): Promise<{ reply: Reply; replayed: boolean }> {
  const { userId, key, fingerprint, at } = call;
  return db.transaction(async (tx) => {
    const [lock] = await rows<{ free: boolean }>(
      tx,
      'select pg_try_advisory_xact_lock(hashtextextended(?, 7215003)) as free',
      [`${userId} ${key}`],
    );
    if (!lock?.free) {
      throw new SallyportError('in-flight', 'A call with this Idempotency-Key is in progress.', {
        next: 'Send it again in a moment; its answer will be replayed.',
        retryAfterS: 1,
      });
    }
    const [known] = await rows<Reply & { fingerprint: string }>(
      tx,
      'select fingerprint, status, headers, body from idempotency_keys where principal = ? and key = ?',
      [userId, key],
    );
    if (known) {
      if (known.fingerprint !== fingerprint) {
        throw new SallyportError(
          'idempotency-key-reused',
          'This Idempotency-Key was used for a call with another method, path or body.',
          { next: 'Use a new key for a new call.' },
        );
      }
      const { status, headers, body } = known;
      return { reply: { status, headers, body }, replayed: true };
    }
    const reply = await run(tx);
    await tx('idempotency_keys').insert({
      principal: userId,
      key,
      fingerprint,
      status: reply.status,
      headers: JSON.stringify(reply.headers),
      body: reply.body,
      created_at: at,
    });
    return { reply, replayed: false };
  });
}
