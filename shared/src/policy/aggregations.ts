import { type Check, checkField, pinValue } from './check.js';
import { kindRefusal } from './clauses.js';
import { dateMs, DAY_MS, intervalMs } from './dates.js';
import { below, type Place, refusal, showName, describeValue, tierForLimit } from './refusal.js';
import { checkShape, isObject, neverRefusal, type PlainObject } from './shape.js';
import { type AggRow, POLICY_TABLE } from './table.js';

/** `product`: how many buckets the aggregations around it can make. */
type Task = { aggs: unknown; place: Place; depth: number; product: number };
type Agg = { kind: string; row: AggRow; options: PlainObject; place: Place; below: unknown };

// Names that may stand in the path of an order; brackets and ">" are Elasticsearch's own.
const AGG_NAME = /^[^[\]>]{1,128}$/;

/**
 * Checks a tree of aggregations against the table, pins `now`, and counts the buckets that they can
 * make: of each innermost one the product of those around it, summed up. Writes `aggs` for its alias
 * `aggregations`. Needs the bounds that the query's own check noted.
 * @returns the number of buckets.
 * @throws SallyportError at the first aggregation that is refused.
 */
export function checkAggregations(check: Check, aggs: unknown, place: Place): number {
  const stack: Task[] = [{ aggs, place, depth: 1, product: 1 }];
  let count = 0;
  let buckets = 0;
  for (let task = stack.pop(); task; task = stack.pop()) {
    refuseOver(check, { name: 'aggDepth', actual: task.depth, unit: 'levels', place: task.place });
    const subtasks: Task[] = [];
    for (const [name, agg] of listAggs(check, task)) {
      refuseOver(check, {
        name: 'aggCount',
        actual: ++count,
        unit: 'aggregations',
        place: agg.place,
      });
      checkField(check, agg.options['field'] as string, {
        place: below(agg.place, 'field'),
        what: agg.kind,
        on: agg.row.on,
      });
      pinAgg(check, agg);
      checkOrder(agg);
      const size = countBuckets(check, agg);
      if (size === undefined) continue;
      const product = task.product * size;
      const at = below(below(task.place, name), 'aggs');
      if (agg.below !== undefined) {
        subtasks.push({ aggs: agg.below, place: at, depth: task.depth + 1, product });
      }
      if (!hasBuckets(agg.below)) buckets += product;
    }
    stack.push(...subtasks.reverse());
  }
  refuseOver(check, { name: 'buckets', actual: buckets, unit: 'buckets', place });
  return buckets;
}

/** Writes `aggs` for its alias `aggregations`, in place. */
export function normaliseAlias(holder: PlainObject, place: Place): void {
  if (!('aggregations' in holder)) return;
  if ('aggs' in holder) {
    const found = 'it has both aggs and aggregations, which mean the same';
    throw refusal(place, 'query-invalid', found);
  }
  holder['aggs'] = holder['aggregations'];
  delete holder['aggregations'];
}

function refuseOver(
  check: Check,
  {
    name,
    actual,
    unit,
    place,
  }: {
    name: 'aggDepth' | 'aggCount' | 'buckets';
    actual: number;
    unit: string;
    place: Place;
  },
): void {
  const limit = check.limits[name];
  if (actual <= limit) return;
  throw refusal(place, 'agg-too-large', `it makes ${actual} ${unit}, at most ${limit} may be`, {
    limit,
    actual,
    hint: tierForLimit(check.tier, name, actual),
  });
}

function listAggs(check: Check, { aggs, place }: Task): [string, Agg][] {
  if (!isObject(aggs)) {
    const found = `aggregations must be an object of names, found ${describeValue(aggs)}`;
    throw refusal(place, 'query-invalid', found);
  }
  return Object.entries(aggs).map(([name, agg]) => {
    const at = below(place, name);
    if (!AGG_NAME.test(name)) {
      const found = 'a name has 1 to 128 characters, none of them [, ] or >';
      throw refusal(at, 'query-invalid', found);
    }
    return [name, readAgg(check, agg, at)];
  });
}

function readAgg(check: Check, agg: unknown, place: Place): Agg {
  if (!isObject(agg)) {
    const found = `an aggregation must be an object, found ${describeValue(agg)}`;
    throw refusal(place, 'query-invalid', found);
  }
  normaliseAlias(agg, place);
  const kinds = Object.keys(agg).filter((key) => key !== 'aggs');
  for (const kind of kinds) {
    const never = neverRefusal(kind, below(place, kind));
    if (never) throw never;
  }
  const [kind] = kinds;
  if (kind === undefined || kinds.length > 1) {
    const found = `an aggregation must have exactly one kind, found ${kinds.length}`;
    throw refusal(place, 'query-invalid', found, { limit: 1, actual: kinds.length });
  }
  const at = below(place, kind);
  const row = rowOf(kind);
  if (!row?.tiers.includes(check.tier)) {
    const later = POLICY_TABLE.laterAggregations;
    throw kindRefusal(check, kind, { place: at, row, later, of: 'aggregation' });
  }
  if (agg['aggs'] !== undefined && !row.buckets) {
    throw refusal(below(place, 'aggs'), 'query-invalid', `${kind} has no buckets to aggregate in`);
  }
  checkShape(row.options, agg[kind], at);
  return { kind, row, options: agg[kind] as PlainObject, place: at, below: agg['aggs'] };
}

function rowOf(kind: string): AggRow | undefined {
  const { aggregations } = POLICY_TABLE;
  return Object.hasOwn(aggregations, kind) ? aggregations[kind] : undefined;
}

/** The kinds of the aggregations in an object of names that nobody has checked yet. */
function listKinds(aggs: unknown): [string, AggRow | undefined][] {
  if (!isObject(aggs)) return [];
  return Object.entries(aggs).flatMap(([name, agg]) =>
    isObject(agg) ? Object.keys(agg).map((kind) => [name, rowOf(kind)] as [string, AggRow]) : [],
  );
}

function hasBuckets(aggs: unknown): boolean {
  return listKinds(aggs).some(([, row]) => row?.buckets);
}

function pinAgg(check: Check, { row, options, place }: Agg): void {
  if (check.fields.get(options['field'] as string) !== 'date') return;
  for (const key of row.values ?? []) pinValue(check, options, key, place);
  for (const key of BOUND_KEYS) {
    const limits = options[key];
    if (!isObject(limits)) continue;
    for (const end of Object.keys(limits)) pinValue(check, limits, end, below(place, key));
  }
}

const BOUND_KEYS = ['hard_bounds', 'extended_bounds'] as const;

/** An order is by count, by key, or by a metric right below. */
function checkOrder(agg: Agg): void {
  const { order } = agg.options;
  if (order === undefined) return;
  const place = below(agg.place, 'order');
  const metrics = listKinds(agg.below).flatMap(([name, row]) =>
    row && !row.buckets ? [name] : [],
  );
  const allowed = ['_count', '_key', ...metrics];
  for (const one of Array.isArray(order) ? (order as unknown[]) : [order]) {
    const [entry, ...others] = isObject(one) ? Object.entries(one) : [];
    const [by = '', direction] = entry ?? [];
    if (others.length > 0 || (direction !== 'asc' && direction !== 'desc')) {
      const found = `an order is {"…": "asc"} or {"…": "desc"}, found ${describeValue(one)}`;
      throw refusal(place, 'query-invalid', found);
    }
    if (!allowed.includes(by)) {
      const found = `an order is by ${allowed.join(', ')}, found ${showName(by)}`;
      throw refusal(place, 'query-invalid', found);
    }
  }
}

/** How many buckets it can make; undefined for a metric. */
function countBuckets(check: Check, agg: Agg): number | undefined {
  const { row, options } = agg;
  if (!row.buckets) return undefined;
  if (row.buckets.by === 'size') return Number(options['size'] ?? row.buckets.default);
  const interval = options[row.buckets.calendar] ?? options[row.buckets.fixed];
  const spanMs = histogramSpanMs(check, agg);
  return Math.ceil(spanMs / intervalMs(interval as string)) + 1;
}

function histogramSpanMs(check: Check, { options, place }: Agg): number {
  const field = options['field'] as string;
  const bounds = check.bounds.get(field);
  refuseFormattedBounds(options, place);
  const [hard, wide] = BOUND_KEYS.map((key) =>
    readLimits(options[key], { zone: options['time_zone'], place: below(place, key) }),
  );
  const from = Math.max(bounds?.from ?? -Infinity, hard?.from ?? -Infinity);
  const to = Math.min(bounds?.to ?? Infinity, hard?.to ?? Infinity);
  if (to - from === Infinity) {
    const found = `nothing bounds ${field} on both sides, so its buckets cannot be counted`;
    throw refusal(place, 'agg-unbounded', found, {
      limit: `${check.limits.buckets} buckets`,
      actual: 'unbounded',
      hint: `Add a range on ${field} to the query's filter, or hard_bounds here.`,
    });
  }
  // An empty range makes no bucket; its bounds are crossed.
  const span = Math.max(to, wide?.to ?? to) - Math.min(from, wide?.from ?? from);
  return Math.min(Math.max(span, 0), MAX_SPAN_MS);
}

const MAX_SPAN_MS = 1e8 * DAY_MS;

/** Elasticsearch reads the bounds by the format, where 20250101 is a day and not a number of ms. */
function refuseFormattedBounds(options: PlainObject, place: Place): void {
  const key = BOUND_KEYS.find((bound) => options[bound] !== undefined);
  if (key === undefined || options['format'] === undefined) return;
  const found = `format and ${key} may not stand together, because format changes what ${key} means`;
  throw refusal(below(place, 'format'), 'query-invalid', found, {
    hint: `Leave out format, or bound the histogram by a range in the query's filter.`,
  });
}

/** The bounds as Elasticsearch reads them: a text without an offset is in the time zone. */
function readLimits(
  limits: unknown,
  { zone, place }: { zone: unknown; place: Place },
): { from: number; to: number } | undefined {
  if (!isObject(limits)) return undefined;
  const named = typeof zone === 'string' && !FIXED_ZONE.test(zone);
  const options = { zone: typeof zone === 'string' ? zone : 'Z' };
  const from = dateMs(limits['min'] as string | number, options);
  const to = dateMs(limits['max'] as string | number, options);
  if (from === undefined || to === undefined) {
    const found = 'min and max are no dates whose distance can be told';
    throw refusal(place, 'agg-unbounded', found);
  }
  // No zone is further than this from UTC; both networks count alike, whatever zones they know.
  return named ? { from: from - DAY_MS, to: to + DAY_MS } : { from, to };
}

const FIXED_ZONE = /^(?:Z|UTC|[+-]\d\d:\d\d)$/;
