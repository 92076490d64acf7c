import type { FIELD_TYPES, Tier } from '../records.js';

export type FieldType = (typeof FIELD_TYPES)[number];
/** A JSON Schema as plain data. */
export type PlainSchema = { readonly [keyword: string]: unknown };

/** The largest values that pass in a tier; null: the tier has no use for it. */
export type TierLimits = {
  /** Whether its members may write queries themselves; otherwise they fill in templates. */
  readonly freeQueries: boolean;
  readonly bodyBytes: number;
  readonly depth: number;
  readonly keys: number;
  readonly stringLength: number;
  readonly arrayLength: number;
  readonly boolDepth: number | null;
  readonly leaves: number | null;
  readonly size: number;
  readonly from: number;
  readonly sortFields: number | null;
  readonly sourceFields: number | null;
  readonly aggDepth: number;
  readonly aggCount: number;
  readonly buckets: number;
  readonly rangeDays: number | null;
  readonly cost: number;
  readonly exportRows: number | null;
  readonly searchTimeoutMs: number;
  readonly socketTimeoutMs: number;
  readonly cancelTimeoutMs: number;
  readonly resultBytes: number;
};

/** One kind of query: who may use it, its shape, its cost. */
export type QueryRow = {
  readonly tiers: readonly Tier[];
  /** `options`: `{kind: options}`; `field`: `{kind: {field: options or short value}}`. */
  readonly form: 'options' | 'field';
  /** What the options must look like; absent: only the short value may be written. */
  readonly options?: PlainSchema;
  /** A value that may stand for the options, and the option it means. */
  readonly short?: { readonly key: string; readonly schema: PlainSchema };
  /** What an object in place of the short value would be; it is never allowed. */
  readonly objectMeans?: string;
  /** In the form `options`: the option that names a field. */
  readonly fieldKey?: string;
  /** The types of field it is for; absent: all. */
  readonly on?: readonly FieldType[];
  /** Options that hold values of the field; `now` in them is pinned. */
  readonly values?: readonly string[];
  /** Where its own clauses stand; conjunctive: a document must match them. */
  readonly children?: readonly { readonly key: string; readonly conjunctive: boolean }[];
  /** Counts as a level of `boolDepth`. */
  readonly deepens?: true;
  /** Its options gte, gt, lte, lt bound the field. */
  readonly bounds?: true;
  readonly weight: number;
  /** Cost of each value in the list of this option, on top of the weight. */
  readonly perValue?: { readonly key: string; readonly weight: number };
};

/** One kind of aggregation. */
export type AggRow = {
  readonly tiers: readonly Tier[];
  readonly options: PlainSchema;
  readonly on?: readonly FieldType[];
  /** How many buckets it can make; absent: it is a metric and has no aggregations below. */
  readonly buckets?:
    | { readonly by: 'size'; readonly default: number }
    | { readonly by: 'interval'; readonly calendar: string; readonly fixed: string };
  /** Options that hold values of the field; `now` in them is pinned. */
  readonly values?: readonly string[];
};

/** The allow-list and its limits; plain data, so that it can travel. */
export type PolicyTable = {
  readonly version: number;
  readonly tiers: Readonly<Record<Tier, TierLimits>>;
  /** `from` + `size`. */
  readonly window: number;
  readonly trackTotalHits: number;
  readonly defaultSize: number;
  readonly cost: {
    readonly perBucket: number;
    readonly perHit: number;
    readonly perSkipped: number;
  };
  readonly body: PlainSchema;
  readonly sortOptions: PlainSchema;
  readonly sortOn: readonly FieldType[];
  readonly queries: Readonly<Record<string, QueryRow>>;
  readonly aggregations: Readonly<Record<string, AggRow>>;
  /** Kinds that a later version will take, with the tiers that will have them. */
  readonly laterQueries: Readonly<Record<string, readonly Tier[]>>;
  readonly laterAggregations: Readonly<Record<string, readonly Tier[]>>;
  /** Keys that no tier may use at any place. */
  readonly never: readonly string[];
};

const NUMBERS = ['long', 'integer', 'double'] as const;
const EXACT = ['keyword', 'date', 'boolean', ...NUMBERS] as const;
const BC = ['B', 'C'] as const;
const C = ['C'] as const;

const SCALAR = { type: ['string', 'number', 'boolean'] };
const BOUND = { type: ['string', 'number'] };
const FIELD = { type: 'string', minLength: 1 };
const BOOST = { type: 'number', minimum: 0, maximum: 1_000 };
const CLAUSES = { type: ['object', 'array'] };
const MINIMUM_MATCH = {
  anyOf: [
    { type: 'integer', minimum: -1_024, maximum: 1_024 },
    { type: 'string', pattern: '^-?[0-9]{1,4}%?$' },
  ],
  description: 'must be a whole number or a percentage like "75%"',
};
const OFFSET = '(?:Z|UTC|[+-][0-9]{2}:[0-9]{2})';
const DIRECTION = { enum: ['asc', 'desc'] };
const FORMAT = { type: 'string', minLength: 1, maxLength: 64 };
const DATE_LIMITS = {
  type: 'object',
  additionalProperties: false,
  required: ['min', 'max'],
  properties: { min: BOUND, max: BOUND },
};

const object = (properties: PlainSchema, required: readonly string[] = []): PlainSchema => ({
  type: 'object',
  additionalProperties: false,
  required,
  properties,
});

const metric = (on?: readonly FieldType[]): AggRow => ({
  tiers: BC,
  options: object({ field: FIELD, missing: { type: 'number' }, format: FORMAT }, ['field']),
  ...(on ? { on } : {}),
});

/** The policy in force; change it by adding rows and raising the version. */
export const POLICY_TABLE: PolicyTable = {
  version: 1,
  tiers: {
    A: {
      freeQueries: false,
      bodyBytes: 8 * 1024,
      depth: 8,
      keys: 500,
      stringLength: 512,
      arrayLength: 200,
      boolDepth: null,
      leaves: null,
      size: 100,
      from: 0,
      sortFields: null,
      sourceFields: null,
      aggDepth: 2,
      aggCount: 5,
      buckets: 2_000,
      rangeDays: null,
      cost: 100,
      exportRows: null,
      searchTimeoutMs: 5_000,
      socketTimeoutMs: 8_000,
      cancelTimeoutMs: 10_000,
      resultBytes: 1024 * 1024,
    },
    B: {
      freeQueries: true,
      bodyBytes: 64 * 1024,
      depth: 20,
      keys: 2_000,
      stringLength: 1_024,
      arrayLength: 1_024,
      boolDepth: 5,
      leaves: 256,
      size: 1_000,
      from: 9_000,
      sortFields: 3,
      sourceFields: 50,
      aggDepth: 3,
      aggCount: 20,
      buckets: 10_000,
      rangeDays: 366,
      cost: 1_000,
      exportRows: 10_000,
      searchTimeoutMs: 20_000,
      socketTimeoutMs: 25_000,
      cancelTimeoutMs: 30_000,
      resultBytes: 10 * 1024 * 1024,
    },
    C: {
      freeQueries: true,
      bodyBytes: 256 * 1024,
      depth: 30,
      keys: 10_000,
      stringLength: 1_024,
      arrayLength: 10_000,
      boolDepth: 8,
      leaves: 1_024,
      size: 1_000,
      from: 9_000,
      sortFields: 5,
      sourceFields: 200,
      aggDepth: 4,
      aggCount: 50,
      buckets: 20_000,
      rangeDays: 3_660,
      cost: 10_000,
      exportRows: 100_000,
      searchTimeoutMs: 60_000,
      socketTimeoutMs: 70_000,
      cancelTimeoutMs: 80_000,
      resultBytes: 100 * 1024 * 1024,
    },
  },
  window: 10_000,
  trackTotalHits: 2_147_483_647,
  defaultSize: 10,
  cost: { perBucket: 1 / 10, perHit: 1 / 10, perSkipped: 1 / 50 },
  body: object({
    query: { type: 'object' },
    aggs: { type: 'object' },
    size: { type: 'integer', minimum: 0 },
    from: { type: 'integer', minimum: 0 },
    sort: { type: ['string', 'object', 'array'] },
    _source: {
      anyOf: [{ type: 'boolean' }, { type: 'array', items: { type: 'string' } }],
      description: 'must be true, false or a list of field names',
    },
    track_total_hits: { type: ['boolean', 'integer'], minimum: 0 },
  }),
  sortOptions: object({
    order: DIRECTION,
    missing: { enum: ['_first', '_last'] },
    mode: { enum: ['min', 'max', 'avg', 'sum', 'median'] },
  }),
  sortOn: EXACT,
  queries: {
    match_all: { tiers: BC, form: 'options', options: object({ boost: BOOST }), weight: 0 },
    bool: {
      tiers: BC,
      form: 'options',
      options: object({
        must: CLAUSES,
        filter: CLAUSES,
        should: CLAUSES,
        must_not: CLAUSES,
        minimum_should_match: MINIMUM_MATCH,
        boost: BOOST,
      }),
      children: [
        { key: 'must', conjunctive: true },
        { key: 'filter', conjunctive: true },
        { key: 'should', conjunctive: false },
        { key: 'must_not', conjunctive: false },
      ],
      deepens: true,
      weight: 0,
    },
    term: {
      tiers: BC,
      form: 'field',
      short: { key: 'value', schema: SCALAR },
      options: object({ value: SCALAR, boost: BOOST }, ['value']),
      on: [...EXACT, 'text'],
      values: ['value'],
      weight: 1,
    },
    terms: {
      tiers: BC,
      form: 'field',
      short: { key: 'values', schema: { type: 'array', items: SCALAR } },
      objectMeans: 'terms lookup',
      on: [...EXACT, 'text'],
      values: ['values'],
      weight: 1,
      perValue: { key: 'values', weight: 1 / 50 },
    },
    range: {
      tiers: BC,
      form: 'field',
      options: {
        ...object({
          gte: BOUND,
          gt: BOUND,
          lte: BOUND,
          lt: BOUND,
          time_zone: { type: 'string', pattern: `^${OFFSET}$` },
          boost: BOOST,
        }),
        not: { anyOf: [{ required: ['gte', 'gt'] }, { required: ['lte', 'lt'] }] },
        description: 'must not have both gte and gt, nor both lte and lt',
      },
      on: ['keyword', 'date', ...NUMBERS],
      values: ['gte', 'gt', 'lte', 'lt'],
      bounds: true,
      weight: 2,
    },
    match: {
      tiers: BC,
      form: 'field',
      short: { key: 'query', schema: SCALAR },
      options: object(
        {
          query: SCALAR,
          operator: { enum: ['and', 'or', 'AND', 'OR'] },
          minimum_should_match: MINIMUM_MATCH,
          zero_terms_query: { enum: ['none', 'all'] },
          boost: BOOST,
        },
        ['query'],
      ),
      on: [...EXACT, 'text'],
      values: ['query'],
      weight: 3,
    },
    exists: {
      tiers: BC,
      form: 'options',
      options: object({ field: FIELD, boost: BOOST }, ['field']),
      fieldKey: 'field',
      weight: 1,
    },
    ids: {
      tiers: BC,
      form: 'options',
      options: object(
        {
          values: { type: 'array', items: { type: 'string', minLength: 1 }, maxItems: 100 },
          boost: BOOST,
        },
        ['values'],
      ),
      weight: 1,
      perValue: { key: 'values', weight: 1 / 50 },
    },
    constant_score: {
      tiers: BC,
      form: 'options',
      options: object({ filter: { type: 'object' }, boost: BOOST }, ['filter']),
      children: [{ key: 'filter', conjunctive: true }],
      weight: 0,
    },
  },
  aggregations: {
    terms: {
      tiers: BC,
      options: object(
        {
          field: FIELD,
          size: { type: 'integer', minimum: 1 },
          min_doc_count: { type: 'integer', minimum: 1 },
          order: { type: ['object', 'array'] },
          missing: SCALAR,
          format: FORMAT,
        },
        ['field'],
      ),
      on: EXACT,
      buckets: { by: 'size', default: 10 },
      values: ['missing'],
    },
    date_histogram: {
      tiers: BC,
      options: {
        ...object(
          {
            field: FIELD,
            calendar_interval: {
              enum: ['minute', 'hour', 'day', 'week', 'month', 'quarter', 'year'].concat([
                '1m',
                '1h',
                '1d',
                '1w',
                '1M',
                '1q',
                '1y',
              ]),
            },
            fixed_interval: { type: 'string', pattern: '^[1-9][0-9]{0,8}(?:ms|s|m|h|d)$' },
            min_doc_count: { type: 'integer', minimum: 0 },
            order: { type: ['object', 'array'] },
            time_zone: {
              type: 'string',
              maxLength: 64,
              pattern: `^(?:${OFFSET}|[A-Z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2})$`,
            },
            offset: { type: 'string', pattern: '^[+-]?[0-9]{1,6}(?:ms|s|m|h|d)$' },
            hard_bounds: DATE_LIMITS,
            extended_bounds: DATE_LIMITS,
            keyed: { type: 'boolean' },
            format: FORMAT,
          },
          ['field'],
        ),
        oneOf: [{ required: ['calendar_interval'] }, { required: ['fixed_interval'] }],
        description: 'must have either calendar_interval or fixed_interval',
      },
      on: ['date'],
      buckets: { by: 'interval', calendar: 'calendar_interval', fixed: 'fixed_interval' },
    },
    min: metric(['date', ...NUMBERS]),
    max: metric(['date', ...NUMBERS]),
    avg: metric(['date', ...NUMBERS]),
    sum: metric(['date', ...NUMBERS]),
    value_count: metric(EXACT),
  },
  laterQueries: {
    match_phrase: BC,
    nested: BC,
    simple_query_string: BC,
    geo_distance: BC,
    geo_bounding_box: BC,
    prefix: C,
    wildcard: C,
    fuzzy: C,
    multi_match: C,
    dis_max: C,
    geo_shape: C,
  },
  laterAggregations: {
    histogram: BC,
    range: BC,
    date_range: BC,
    filter: BC,
    filters: BC,
    missing: BC,
    stats: BC,
    cardinality: BC,
    percentiles: BC,
    composite: C,
    top_hits: C,
    significant_terms: C,
    rare_terms: C,
  },
  never: [
    'script',
    '_script',
    'script_score',
    'script_fields',
    'scripted_metric',
    'bucket_script',
    'bucket_selector',
    'function_score',
    'regexp',
    'query_string',
    'wrapper',
    'percolate',
    'more_like_this',
    'has_child',
    'has_parent',
    'indexed_shape',
    'runtime_mappings',
    'suggest',
    'rescore',
    'retriever',
    'ext',
    'profile',
    'explain',
    'pit',
    'slice',
    'scroll',
  ],
};
