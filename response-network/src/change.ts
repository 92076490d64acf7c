import {
  actorOf,
  requireVersion,
  SallyportError,
  type Clock,
  type Principal,
} from '@sallyport/shared';

/** Who changes something, and when: every write takes one and leaves it in the audit log. */
export type Change = {
  actor: string;
  now: Date;
  /** The id of whoever acts over HTTP; it is asked again where an administrator would be lost. */
  actorId?: string;
  reason?: string | null | undefined;
  /** The version that the change was made from; without one it is made from whatever there is. */
  expected?: number | undefined;
};

/** The change that somebody makes over HTTP. */
export function changeBy(
  { login, userId }: Principal,
  clock: Clock,
  why: Pick<Change, 'reason' | 'expected'> = {},
): Change {
  return { actor: actorOf({ login }), actorId: userId, now: clock.now(), ...why };
}

/** @throws SallyportError `version-conflict`. */
export function requireExpected(found: { version: number }, { expected }: Change): void {
  if (expected !== undefined) requireVersion(found.version, expected);
}

/** @throws SallyportError `bad-field` unless the change says why it is made. */
export function requireReason({ reason }: Change, what: string): void {
  if (typeof reason === 'string') return;
  const detail = `is missing: ${what} needs one`;
  throw new SallyportError('bad-field', `/reason ${detail}.`, {
    next: 'Say why, in 1 to 500 characters.',
    errors: [{ pointer: '/reason', code: 'bad-field', detail }],
  });
}
