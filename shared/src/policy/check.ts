import type { Tier } from '../records.js';
import { isRelative, pinDate } from './dates.js';
import { below, type Place, refusal, showName } from './refusal.js';
import type { PlainObject } from './shape.js';
import type { FieldType, TierLimits } from './table.js';

/** What a query may ask: the parts of a dataset that the policy looks at. */
export type PolicyDataset = {
  id: string;
  name: string;
  version: number;
  /** The field whose range every query must bound; null: none. */
  timeField: string | null;
  fields: readonly { readonly name: string; readonly type: FieldType }[];
};

/** Between which moments (epoch milliseconds) every hit's value of a date field lies. */
export type Bounds = { from: number | undefined; to: number | undefined };

/** What one check knows and has found so far. */
export type Check = {
  readonly dataset: PolicyDataset;
  readonly tier: Tier;
  readonly limits: TierLimits;
  readonly fields: ReadonlyMap<string, FieldType>;
  /** What `now` is pinned to (see dates.ts); null: it must be pinned already. */
  readonly anchor: string | null;
  readonly bounds: Map<string, Bounds>;
  readonly costs: { readonly place: Place; readonly what: string; readonly cost: number }[];
  readonly warnings: string[];
};

/**
 * The type of a field that the query names.
 * @throws SallyportError `field-denied` when the dataset lacks it, or its type is not among `on`.
 */
export function checkField(
  check: Check,
  name: string,
  { place, what, on }: { place: Place; what: string; on?: readonly FieldType[] | undefined },
): FieldType {
  const type = check.fields.get(name);
  if (type === undefined) {
    const hint = name.includes('*') ? 'Name each field; patterns are not taken.' : undefined;
    const found = `the dataset ${check.dataset.name} has no field ${showName(name)} to query`;
    throw refusal(place, 'field-denied', found, { hint });
  }
  if (on && !on.includes(type)) {
    const found = `${what} takes fields of type ${on.join(', ')}, and ${showName(name)} is ${type}`;
    throw refusal(place, 'field-denied', found, { actual: type });
  }
  return type;
}

/**
 * Pins `now` in a value, or a list of values, of a date field, in place.
 * @throws SallyportError `query-invalid` for broken date math, or for `now` on the far side.
 */
export function pinValue(
  check: Check,
  holder: PlainObject | unknown[],
  key: string | number,
  up: Place,
): void {
  const slots = holder as Record<string | number, unknown>;
  const value = slots[key];
  const place = below(up, key);
  if (Array.isArray(value)) {
    for (let i = 0; i < value.length; i++)
      if (isRelative(value[i])) pinValue(check, value, i, place);
  } else if (isRelative(value)) {
    if (check.anchor === null) {
      throw refusal(place, 'query-invalid', `${showName(value)} was to be pinned at submission`);
    }
    const pinned = pinDate(value, check.anchor);
    if (pinned === undefined) {
      throw refusal(
        place,
        'query-invalid',
        `${showName(value)} is no date math that is known here`,
      );
    }
    slots[key] = pinned;
  }
}
