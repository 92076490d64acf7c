import { hash } from 'node:crypto';
import { canonicalJson } from '../canonical-json.js';
import { SallyportError } from '../errors.js';
import { HTTP_JSON_CODES, parseJson } from '../json.js';
import { TIERS, type Tier } from '../records.js';
import { checkAggregations, normaliseAlias } from './aggregations.js';
import { type Bounds, type Check, checkField, type PolicyDataset } from './check.js';
import { checkClauses } from './clauses.js';
import { dateAnchor, DAY_MS } from './dates.js';
import {
  below,
  type LimitName,
  type Place,
  pointerOf,
  refusal,
  showName,
  describeValue,
  tierForKind,
  tierForLimit,
} from './refusal.js';
import { checkShape, isObject, neverRefusal, type PlainObject } from './shape.js';
import { type FieldType, POLICY_TABLE } from './table.js';

export type { PolicyDataset } from './check.js';
export { POLICY_TABLE, type PolicyTable, type TierLimits } from './table.js';

export type QueryDigest = `sha256:${string}`;

/** A query that the policy admits. */
export type CheckedQuery = {
  /** RFC 8785 text with `now` pinned; only this form is stored and crosses. */
  canonical: string;
  digest: QueryDigest;
  /** The same as a value; its owner may change it. */
  query: PlainObject;
  /** Cost score, rounded to hundredths. */
  cost: number;
  /** What `now` means in it, a whole second. */
  pinnedNow: Date;
  policyVersion: number;
  tier: Tier;
  warnings: string[];
};

/**
 * Checks a query as submitted and brings it into the form that crosses.
 * @param input.queryBytes the text of the query, which then decides; else `query` is the parsed
 *   value, whose own text must have passed `scanJson` for its repeated keys to be known.
 * @param input.at JSON Pointer of the query inside the user's body, put before each pointer.
 * @throws SallyportError with one entry in `errors`: pointer, code, limit, actual, and as `hint` the
 *   tier that would allow it, if any.
 */
export function checkQuery(input: {
  dataset: PolicyDataset;
  tier: Tier;
  query?: unknown;
  queryBytes?: Uint8Array;
  now: Date;
  at?: string;
}): CheckedQuery {
  const { dataset, tier, now, at = '' } = input;
  const pinnedNow = new Date(Math.floor(now.getTime() / 1_000) * 1_000);
  const root = { up: null, key: at };
  const query = parseQuery(input.queryBytes ?? writeQuery(input.query, root), tier, at);
  const { cost, warnings } = checkParsed({ dataset, tier, now: pinnedNow, query, root });
  const canonical = canonicalJson(query);
  const digest = queryDigest({ dataset: dataset.name, version: dataset.version, canonical });
  const policyVersion = POLICY_TABLE.version;
  return { canonical, digest, query, cost, pinnedNow, policyVersion, tier, warnings };
}

/**
 * Checks again, on the far side, a canonical query that came across: the digest over the dataset
 * version it was written for, all rules of the dataset and the policy here, and that nothing in it
 * still depends on the moment of the search.
 * @throws SallyportError as {@link checkQuery}; `query-invalid` for a wrong digest or text that is
 *   not canonical.
 */
export function recheckQuery(input: {
  dataset: PolicyDataset;
  tier: Tier;
  canonical: string;
  digest: string;
  /** The version that the request names; the dataset may have moved on. */
  datasetVersion: number;
}): Omit<CheckedQuery, 'pinnedNow'> {
  const { dataset, tier, canonical, datasetVersion: version } = input;
  const root = { up: null, key: '' };
  const digest = queryDigest({ dataset: dataset.name, version, canonical });
  if (digest !== input.digest) {
    const found = `its digest is ${digest}, and ${showName(input.digest)} was stated`;
    throw refusal(root, 'query-invalid', found, {
      limit: input.digest.slice(0, 100),
      actual: digest,
    });
  }
  const query = parseQuery(Buffer.from(canonical), tier, '');
  const { cost, warnings } = checkParsed({ dataset, tier, now: null, query, root });
  if (canonicalJson(query) !== canonical) {
    throw refusal(root, 'query-invalid', 'its text is not in canonical form (RFC 8785)');
  }
  return { canonical, digest, query, cost, policyVersion: POLICY_TABLE.version, tier, warnings };
}

/** SHA-256 over the RFC 8785 text of `{dataset, dataset_version, query}`. */
export function queryDigest(input: {
  dataset: string;
  version: number;
  canonical: string;
}): QueryDigest {
  const { dataset, version, canonical } = input;
  const text = `{"dataset":${canonicalJson(dataset)},"dataset_version":${version},"query":${canonical}}`;
  return `sha256:${hash('sha256', text, 'hex')}`;
}

/** A parsed value as text again, so that one scan knows the limits of both. */
function writeQuery(query: unknown, root: Place): Uint8Array {
  let text: string | undefined;
  try {
    text = JSON.stringify(query);
  } catch (cause) {
    if (cause instanceof RangeError)
      throw refusal(root, 'too-deep', 'it is too deep to be written');
    if (!(cause instanceof TypeError)) throw cause;
  }
  if (text === undefined) throw refusal(root, 'query-invalid', 'it cannot be written as JSON');
  return Buffer.from(text);
}

/** Which limit of a tier stands behind a code of the scan. */
const SCAN_LIMITS: Readonly<Record<string, LimitName>> = {
  'too-deep': 'depth',
  'too-many-keys': 'keys',
  'value-too-long': 'stringLength',
  'too-many-values': 'arrayLength',
};

function parseQuery(bytes: Uint8Array, tier: Tier, at: string): PlainObject {
  const limits = POLICY_TABLE.tiers[tier];
  const root = { up: null, key: at };
  if (bytes.length > limits.bodyBytes) {
    const found = `it has ${bytes.length} bytes, at most ${limits.bodyBytes} may be`;
    throw refusal(root, 'body-too-large', found, {
      limit: limits.bodyBytes,
      actual: bytes.length,
      hint: tierForLimit(tier, 'bodyBytes', bytes.length),
    });
  }
  try {
    const value = parseJson(bytes, {
      depth: limits.depth,
      keys: limits.keys,
      keysPerObject: limits.keys,
      stringLength: limits.stringLength,
      arrayLength: limits.arrayLength,
      safeNumbers: true,
      negativeZero: true,
      nul: false,
      codes: HTTP_JSON_CODES,
      at,
    });
    if (!isObject(value)) {
      throw refusal(root, 'query-invalid', `it must be an object, found ${describeValue(value)}`);
    }
    return value;
  } catch (error) {
    // The scan knows no tiers: the fact that is added is which one would take it.
    const [detail] = error instanceof SallyportError ? error.errors : [];
    const name = detail && SCAN_LIMITS[detail.code];
    const hint = name && tierForLimit(tier, name, Number(detail.actual));
    if (detail && hint) detail.hint = hint;
    throw error;
  }
}

type Parsed = {
  dataset: PolicyDataset;
  tier: Tier;
  now: Date | null;
  query: PlainObject;
  root: Place;
};

/** Applies every rule to a parsed query and normalises it in place. */
function checkParsed({ dataset, tier, now, query, root }: Parsed) {
  const limits = POLICY_TABLE.tiers[tier];
  const fields: Map<string, FieldType> = new Map();
  for (const { name, type } of dataset.fields) fields.set(name, type);
  const bounds = new Map<string, Bounds>();
  const check: Check = {
    dataset,
    tier,
    limits,
    fields,
    anchor: now && dateAnchor(now),
    bounds,
    costs: [],
    warnings: [],
  };
  for (const key of Object.keys(query)) {
    const never = neverRefusal(key, below(root, key));
    if (never) throw never;
  }
  if (!limits.freeQueries) {
    const found = `tier ${tier} takes templates only, no query of one's own`;
    throw refusal(root, 'query-kind-denied', found, {
      actual: tier,
      hint: tierForKind(TIERS.filter((one) => POLICY_TABLE.tiers[one].freeQueries)),
    });
  }
  normaliseAlias(query, root);
  checkShape(POLICY_TABLE.body, query, root);
  if (query['query'] !== undefined) checkClauses(check, query['query'], below(root, 'query'));
  checkPage(check, query, root);
  checkSort(check, query, below(root, 'sort'));
  checkSource(check, query['_source'], below(root, '_source'));
  const aggs = below(root, 'aggs');
  const buckets = query['aggs'] === undefined ? 0 : checkAggregations(check, query['aggs'], aggs);
  checkTimeRange(check, below(root, 'query'));
  const cost = checkCost(check, { buckets, query, root });
  return { cost, warnings: check.warnings };
}

function checkPage(check: Check, query: PlainObject, root: Place): void {
  const size = Number(query['size'] ?? POLICY_TABLE.defaultSize);
  const from = Number(query['from'] ?? 0);
  for (const [key, actual] of [
    ['size', size],
    ['from', from],
  ] as const) {
    const limit = check.limits[key];
    if (actual <= limit) continue;
    const found = `it is ${actual}, at most ${limit} may be`;
    const hint = tierForLimit(check.tier, key, actual);
    throw refusal(below(root, key), 'page-too-deep', found, { limit, actual, hint });
  }
  const limit = POLICY_TABLE.window;
  if (from + size > limit) {
    const found = `from + size is ${from + size}, at most ${limit} may be`;
    throw refusal(below(root, 'from'), 'page-too-deep', found, { limit, actual: from + size });
  }
  const total = query['track_total_hits'];
  if (typeof total === 'number' && total > POLICY_TABLE.trackTotalHits) {
    query['track_total_hits'] = POLICY_TABLE.trackTotalHits;
    check.warnings.push(`track_total_hits was lowered to ${POLICY_TABLE.trackTotalHits}.`);
  }
}

/** Checks the sort and writes it as a list. */
function checkSort(check: Check, query: PlainObject, place: Place): void {
  if (query['sort'] === undefined) return;
  const sorts: unknown[] = Array.isArray(query['sort']) ? query['sort'] : [query['sort']];
  query['sort'] = sorts;
  const limit = check.limits.sortFields ?? 0;
  if (sorts.length > limit) {
    const actual = sorts.length;
    const hint = tierForLimit(check.tier, 'sortFields', actual);
    const found = `it has ${actual} fields, at most ${limit} may be`;
    throw refusal(place, 'sort-denied', found, { limit, actual, hint });
  }
  sorts.forEach((sort, i) => checkSortField(check, sort, below(place, i)));
}

function checkSortField(check: Check, sort: unknown, place: Place): void {
  const entries = isObject(sort) ? Object.entries(sort) : [[sort, {}] as const];
  const [name, options] = entries[0] ?? [];
  if (entries.length !== 1 || typeof name !== 'string') {
    const found = `a sort is a field name or an object with one, found ${describeValue(sort)}`;
    throw refusal(place, 'query-invalid', found);
  }
  const at = isObject(sort) ? below(place, name) : place;
  const never = neverRefusal(name, at);
  if (never) throw never;
  const form = typeof options === 'string' ? { order: options } : options;
  checkShape(POLICY_TABLE.sortOptions, form, at);
  if (name === '_score') return;
  if (name.startsWith('_') && !check.fields.has(name)) {
    throw refusal(
      at,
      'sort-denied',
      `${showName(name)} cannot be sorted by, only _score and fields`,
    );
  }
  const type = checkField(check, name, { place: at, what: 'sort' });
  if (!POLICY_TABLE.sortOn.includes(type)) {
    const found = `sort takes fields of type ${POLICY_TABLE.sortOn.join(', ')}, and ${showName(name)} is ${type}`;
    throw refusal(at, 'sort-denied', found, { actual: type });
  }
}

function checkSource(check: Check, source: unknown, place: Place): void {
  if (!Array.isArray(source)) return;
  const limit = check.limits.sourceFields ?? 0;
  const actual = source.length;
  if (actual > limit) {
    const hint = tierForLimit(check.tier, 'sourceFields', actual);
    const found = `it has ${actual} fields, at most ${limit} may be`;
    throw refusal(place, 'field-denied', found, { limit, actual, hint });
  }
  source.forEach((name: string, i) => {
    checkField(check, name, { place: below(place, i), what: '_source' });
  });
}

/** A dataset with a time field is only asked about a bounded stretch of it. */
function checkTimeRange(check: Check, place: Place): void {
  const { timeField } = check.dataset;
  const limit = check.limits.rangeDays;
  if (timeField === null || limit === null) return;
  const { from = -Infinity, to = Infinity } = check.bounds.get(timeField) ?? {};
  const days = (to - from) / DAY_MS;
  if (days <= limit) return;
  const open = days === Infinity;
  const actual = open ? 'unbounded' : Math.ceil(days * 100) / 100;
  const sides = from === -Infinity ? (to === Infinity ? '' : ' lower') : ' upper';
  const found = open
    ? `every hit must lie in a range of ${timeField} of at most ${limit} days; it has no${sides} bound`
    : `its range of ${timeField} is ${actual} days long, at most ${limit} days may be`;
  const hint = open
    ? `Add {"range": {"${timeField}": {"gte": …, "lt": …}}} to bool.filter.`
    : tierForLimit(check.tier, 'rangeDays', days);
  throw refusal(place, 'range-required', found, { limit, actual, hint });
}

/** The cost score, version 1: clause weights, buckets, hits and skipped hits. */
function checkCost(
  check: Check,
  { buckets, query, root }: { buckets: number; query: PlainObject; root: Place },
): number {
  const { perBucket, perHit, perSkipped } = POLICY_TABLE.cost;
  const size = Number(query['size'] ?? POLICY_TABLE.defaultSize);
  const from = Number(query['from'] ?? 0);
  const page = [
    { place: below(root, 'aggs'), what: `${buckets} buckets`, cost: buckets * perBucket },
    { place: below(root, 'size'), what: `${size} hits`, cost: size * perHit },
    { place: below(root, 'from'), what: `${from} skipped`, cost: from * perSkipped },
  ];
  const costs = check.costs.concat(page);
  const cost = Math.round(costs.reduce((sum, one) => sum + one.cost, 0) * 100) / 100;
  const limit = check.limits.cost;
  if (cost <= limit) return cost;
  const top = costs.toSorted((a, b) => b.cost - a.cost).slice(0, 3);
  const shown = top.map(
    (one) => `${one.what} at ${pointerOf(one.place).slice(0, 200)}: ${one.cost.toFixed(2)}`,
  );
  const found = `its cost score is ${cost}, at most ${limit} may be; most of it is ${shown.join('; ')}`;
  throw refusal(root, 'query-too-costly', found, {
    limit,
    actual: cost,
    hint: tierForLimit(check.tier, 'cost', cost),
  });
}
