import { SallyportError } from '@sallyport/shared';

const ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const UNITS_MS: Record<string, number> = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/**
 * The id as it was given.
 * @throws SallyportError `usage` for what cannot be one.
 */
export function requireId(id: string | undefined): string {
  if (id !== undefined && ID.test(id)) return id;
  throw usage(`"${id}" is not an id.`, 'Ids look like 0197c6a5-….');
}

/**
 * Milliseconds of a length of time such as `72h`.
 * @throws SallyportError `usage`.
 */
export function parseDuration(text: string): number {
  const match = /^([0-9]{1,6})(s|m|h|d)$/.exec(text);
  if (match) return Number(match[1]) * (UNITS_MS[match[2] ?? ''] ?? 0);
  throw usage(`"${text}" is not a length of time.`, 'Write it as 30s, 10m, 72h or 3d.');
}

/** The refusal of arguments that are not right, with what to write instead. */
export function usage(message: string, next: string): SallyportError {
  return new SallyportError('usage', message, { next });
}
