import { type ErrorCode, SallyportError } from '../errors.js';
import { pointerToken } from '../json.js';
import { TIERS, type Tier } from '../records.js';
import { shorten } from '../text.js';
import { POLICY_TABLE, type TierLimits } from './table.js';

/** A place in a query; its JSON Pointer is only written out when something is refused there. */
export type Place = { readonly up: Place | null; readonly key: string | number };

/** The place of one member of a place. */
export function below(up: Place, key: string | number): Place {
  return { up, key };
}

/** The JSON Pointer (RFC 6901) of a place; the key of the topmost place is a finished pointer. */
export function pointerOf(place: Place): string {
  let pointer = '';
  let at = place;
  for (; at.up !== null; at = at.up) pointer = `/${pointerToken(String(at.key))}${pointer}`;
  return shorten(`${at.key}${pointer}`, 1_000);
}

type Facts = { limit?: number | string; actual?: number | string; hint?: string | undefined };

/** The refusal of what stands at a place: one sentence, and what the reader needs to change it. */
export function refusal(place: Place, code: ErrorCode, found: string, facts: Facts = {}) {
  const pointer = pointerOf(place);
  const { hint, ...figures } = facts;
  const detail = `${shorten(found, 900)}${found.length > 900 ? '…' : ''}`;
  return new SallyportError(code, `${pointer === '' ? 'The query' : pointer}: ${detail}.`, {
    errors: [{ pointer, code, detail, ...figures, ...(hint === undefined ? {} : { hint }) }],
    ...(hint === undefined ? {} : { next: hint }),
  });
}

/** The limits of a tier that are plain numbers, or null where the tier has no use for them. */
export type LimitName = Exclude<keyof TierLimits, 'freeQueries'>;

/** Which higher tier would let this much pass, as a sentence; undefined when none would. */
export function tierForLimit(tier: Tier, name: LimitName, actual: number): string | undefined {
  const higher = TIERS.slice(TIERS.indexOf(tier) + 1);
  const other = higher.find((one) => actual <= (POLICY_TABLE.tiers[one][name] ?? -1));
  return other && `Tier ${other} allows up to ${POLICY_TABLE.tiers[other][name]}.`;
}

/** Which of the tiers that have something is the nearest, as a sentence. */
export function tierForKind(tiers: readonly Tier[]): string | undefined {
  return tiers[0] && `Tier ${tiers[0]} allows it.`;
}

/** A name that the query uses, as it may stand in a message: cut where it is long. */
export function showName(name: string): string {
  return JSON.stringify(name.length > 80 ? `${shorten(name, 80)}…` : name);
}

/** What sort of value it is; texts themselves are not repeated, they may be personal data. */
export function describeValue(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  if (typeof value === 'string') return `a text of ${value.length} characters`;
  if (Array.isArray(value)) return `a list of ${value.length}`;
  return typeof value === 'object' ? 'an object' : JSON.stringify(value);
}
