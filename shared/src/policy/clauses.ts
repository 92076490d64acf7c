import type { SallyportError } from '../errors.js';
import { type Bounds, type Check, checkField, pinValue } from './check.js';
import { dateMs } from './dates.js';
import {
  below,
  type Place,
  refusal,
  showName,
  describeValue,
  tierForKind,
  tierForLimit,
} from './refusal.js';
import { checkShape, isObject, neverRefusal, type PlainObject } from './shape.js';
import { POLICY_TABLE, type QueryRow } from './table.js';

type Task = { clause: unknown; place: Place; conjunctive: boolean; bools: number };

/**
 * Checks a query clause and all clauses in it against the table, pins `now`, and notes costs and the
 * bounds of date fields. Walks by an explicit stack, in the order of the text.
 * @throws SallyportError at the first clause that is refused.
 */
export function checkClauses(check: Check, query: unknown, place: Place): void {
  const stack: Task[] = [{ clause: query, place, conjunctive: true, bools: 0 }];
  let leaves = 0;
  for (let task = stack.pop(); task; task = stack.pop()) {
    const children = checkClause(check, task);
    if (children) stack.push(...children.reverse());
    else if (++leaves > (check.limits.leaves ?? 0)) {
      const limit = check.limits.leaves ?? 0;
      const found = `it is clause number ${leaves}, at most ${limit} may be`;
      throw refusal(task.place, 'too-many-clauses', found, {
        limit,
        actual: leaves,
        hint: tierForLimit(check.tier, 'leaves', leaves),
      });
    }
  }
}

/** Checks one clause; returns the clauses in it, or undefined if its kind has none. */
function checkClause(check: Check, task: Task): Task[] | undefined {
  const [kind, body] = onlyMember(task.clause, task.place, 'a query clause');
  const place = below(task.place, kind);
  const row = admittedRow(check, kind, place);
  const { options, at, short } =
    row.form === 'field'
      ? checkFieldForm(check, { kind, row, body, place })
      : checkOptionsForm(check, { kind, row, body, place });
  if (row.bounds && task.conjunctive && isDateField(check, at)) noteBounds(check, options, at);
  const listed = row.perValue && (short ?? options[row.perValue.key]);
  const values = Array.isArray(listed) ? listed.length * (row.perValue?.weight ?? 0) : 0;
  if (row.weight + values > 0) check.costs.push({ place, what: kind, cost: row.weight + values });
  if (!row.children) return undefined;
  return listChildren(check, { task, row, options, place });
}

function admittedRow(check: Check, kind: string, place: Place): QueryRow {
  const row = Object.hasOwn(POLICY_TABLE.queries, kind) ? POLICY_TABLE.queries[kind] : undefined;
  if (row?.tiers.includes(check.tier)) return row;
  throw kindRefusal(check, kind, { place, row, later: POLICY_TABLE.laterQueries, of: 'query' });
}

/** The refusal of a kind that is not admitted: never, in another tier, later, or unknown. */
export function kindRefusal(
  check: Check,
  kind: string,
  where: {
    place: Place;
    row: { readonly tiers: readonly ('A' | 'B' | 'C')[] } | undefined;
    later: Readonly<Record<string, readonly string[]>>;
    of: 'query' | 'aggregation';
  },
): SallyportError {
  const { place, row, of } = where;
  const code = of === 'query' ? 'query-kind-denied' : 'agg-kind-denied';
  const never = neverRefusal(kind, place);
  if (never) return never;
  if (row) {
    const found = `the ${of} ${kind} is not allowed in tier ${check.tier}`;
    return refusal(place, code, found, { actual: check.tier, hint: tierForKind(row.tiers) });
  }
  const later = Object.hasOwn(where.later, kind) ? where.later[kind] : undefined;
  if (later) {
    const found = `the ${of} ${kind} is not allowed by version ${POLICY_TABLE.version} of the policy`;
    return refusal(place, code, found, {
      hint: `A later version will allow it in tier ${later.join(' and ')}.`,
    });
  }
  const known = Object.keys(of === 'query' ? POLICY_TABLE.queries : POLICY_TABLE.aggregations);
  return refusal(place, code, `there is no ${of} ${showName(kind)} in the policy`, {
    hint: `These are allowed: ${known.join(', ')}.`,
  });
}

type Form = { kind: string; row: QueryRow; body: unknown; place: Place };
/** `short` is the short value, if it was used; `options` then is empty. */
type Checked = { options: PlainObject; at: Place; short?: unknown };

function checkOptionsForm(check: Check, { kind, row, body, place }: Form): Checked {
  checkShape(row.options ?? {}, body, place);
  const options = body as PlainObject;
  if (row.fieldKey !== undefined) {
    const name = options[row.fieldKey] as string;
    checkField(check, name, { place: below(place, row.fieldKey), what: kind, on: row.on });
  }
  return { options, at: place };
}

function checkFieldForm(check: Check, { kind, row, body, place }: Form): Checked {
  const [field, value] = onlyMember(body, place, kind);
  const at = below(place, field);
  const asObject = isObject(value);
  if (asObject && row.objectMeans !== undefined) {
    throw refusal(at, 'query-kind-denied', `${row.objectMeans} is never allowed, in any tier`);
  }
  const schema = (asObject ? row.options : row.short?.schema) ?? row.options ?? {};
  checkShape(schema, value, at);
  const type = checkField(check, field, { place: at, what: kind, on: row.on });
  if (asObject) {
    if (type === 'date') for (const key of row.values ?? []) pinValue(check, value, key, at);
    return { options: value, at };
  }
  if (type === 'date' && row.values?.includes(row.short?.key ?? '')) {
    pinValue(check, body as PlainObject, field, place);
  }
  return { options: {}, at, short: value };
}

function isDateField(check: Check, at: Place): boolean {
  return check.fields.get(String(at.key)) === 'date';
}

/** Narrows the bounds of a date field by a range that every hit must match. */
function noteBounds(check: Check, options: PlainObject, at: Place): void {
  const field = String(at.key);
  const zone = typeof options['time_zone'] === 'string' ? options['time_zone'] : 'Z';
  const read = (key: string, roundUp: boolean) => {
    const value = options[key];
    if (typeof value !== 'string' && typeof value !== 'number') return undefined;
    const ms = dateMs(value, { roundUp, zone });
    if (ms === undefined && field === check.dataset.timeField) {
      const found = `${showName(String(value))} is no date whose distance can be told`;
      throw refusal(below(at, key), 'range-required', found, {
        hint: 'Write ISO 8601 dates, milliseconds since 1970, or date math such as now-7d/d.',
      });
    }
    return ms;
  };
  const known: Bounds = check.bounds.get(field) ?? { from: undefined, to: undefined };
  const from = read('gte', false) ?? read('gt', true);
  const to = read('lt', false) ?? read('lte', true);
  check.bounds.set(field, {
    from: Math.max(from ?? -Infinity, known.from ?? -Infinity),
    to: Math.min(to ?? Infinity, known.to ?? Infinity),
  });
}

function listChildren(
  check: Check,
  { task, row, options, place }: { task: Task; row: QueryRow; options: PlainObject; place: Place },
): Task[] {
  const bools = task.bools + (row.deepens ? 1 : 0);
  const limit = check.limits.boolDepth ?? 0;
  if (bools > limit) {
    throw refusal(place, 'too-deep', `it is bool in bool ${bools} deep, at most ${limit} may be`, {
      limit,
      actual: bools,
      hint: tierForLimit(check.tier, 'boolDepth', bools),
    });
  }
  const children: Task[] = [];
  for (const { key, conjunctive: must } of row.children ?? []) {
    const value = options[key];
    const at = below(place, key);
    const conjunctive = must && task.conjunctive;
    if (Array.isArray(value)) {
      value.forEach((clause, i) =>
        children.push({ clause, place: below(at, i), conjunctive, bools }),
      );
    } else if (value !== undefined) children.push({ clause: value, place: at, conjunctive, bools });
  }
  return children;
}

/** The only member of an object that must have exactly one. */
function onlyMember(value: unknown, place: Place, what: string): [string, unknown] {
  if (!isObject(value)) {
    const found = `${what} must be an object, found ${describeValue(value)}`;
    throw refusal(place, 'query-invalid', found);
  }
  const keys = Object.keys(value);
  const [key] = keys;
  if (key !== undefined && keys.length === 1) return [key, value[key]];
  for (const one of keys) {
    const never = neverRefusal(one, below(place, one));
    if (never) throw never;
  }
  const found = `${what} must have exactly one key, found ${keys.length}`;
  throw refusal(place, 'query-invalid', found, { limit: 1, actual: keys.length });
}
