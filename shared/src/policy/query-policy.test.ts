import { expect } from 'chai';
import fc from 'fast-check';
import { canonicalJson } from '../canonical-json.js';
import { SallyportError } from '../errors.js';
import type { Tier } from '../records.js';
import {
  checkQuery,
  type PolicyDataset,
  POLICY_TABLE,
  queryDigest,
  recheckQuery,
} from './query-policy.js';
import type { FieldType } from './table.js';

const FIELDS: [string, FieldType][] = [
  ['at', 'date'],
  ['paid_at', 'date'],
  ['region', 'keyword'],
  ['note', 'text'],
  ['amount', 'double'],
  ['count', 'long'],
  ['open', 'boolean'],
  ['place', 'geo_point'],
  ['parts', 'nested'],
  ['script', 'keyword'],
];
const PLAIN: PolicyDataset = {
  id: '0197a3b0-0000-7000-8000-000000000001',
  name: 'claims',
  version: 3,
  timeField: null,
  fields: FIELDS.map(([name, type]) => ({ name, type })),
};
const TIMED: PolicyDataset = { ...PLAIN, timeField: 'at' };
const NOW = new Date('2026-09-01T10:00:02.987Z');

type Given = { dataset?: PolicyDataset; tier?: Tier };
const check = (query: unknown, { dataset = PLAIN, tier = 'B' }: Given = {}) =>
  checkQuery({ dataset, tier, query, now: NOW });

function refused(query: unknown, given: Given = {}): SallyportError {
  try {
    check(query, given);
  } catch (error) {
    if (error instanceof SallyportError) return error;
    throw error;
  }
  throw new Error(`passed: ${JSON.stringify(query).slice(0, 200)}`);
}

const expectRefusal = (query: unknown, expected: Record<string, unknown>, given: Given = {}) => {
  const error = refused(query, given);
  expect(error.errors).to.have.length(1);
  expect({ ...error.errors[0] }).to.include(expected);
  expect(error.code).to.equal(error.errors[0]?.code);
};

const q = (query: unknown) => ({ query });
const agg = (kind: string, options: unknown, aggs?: unknown) => ({
  aggs: { x: { [kind]: options, ...(aggs === undefined ? {} : { aggs }) } },
});
const day = { range: { at: { gte: '2026-08-01', lt: '2026-09-01' } } };
const times = <T>(count: number, make: (i: number) => T) =>
  Array.from({ length: count }, (_, i) => make(i));
const bools = (levels: number): unknown =>
  levels === 0 ? { match_all: {} } : { bool: { must: bools(levels - 1) } };

describe('checkQuery', () => {
  const allowed: [string, unknown][] = [
    ['an empty body', {}],
    ['match_all', q({ match_all: { boost: 2 } })],
    [
      'bool',
      q({
        bool: {
          must: { match_all: {} },
          should: [{ term: { region: 'n' } }],
          minimum_should_match: '75%',
        },
      }),
    ],
    ['an empty bool', q({ bool: {} })],
    [
      'must_not',
      q({
        bool: { must_not: [{ exists: { field: 'place' } }], minimum_should_match: 0, boost: 1 },
      }),
    ],
    ['term', q({ term: { region: 'north' } })],
    ['term with options', q({ term: { open: { value: true, boost: 2 } } })],
    ['a field whose name is a refused key', q({ term: { script: 'x' } })],
    ['terms', q({ terms: { count: [1, 2, 3] } })],
    ['no terms', q({ terms: { region: [] } })],
    ['range', q({ range: { amount: { gt: 1, lte: 2.5, boost: 1 } } })],
    ['range of dates', q({ range: { at: { gte: 'now-1y', lt: '2026', time_zone: '+02:00' } } })],
    ['match', q({ match: { note: 'water damage' } })],
    [
      'match with options',
      q({
        match: {
          note: { query: 'a b', operator: 'and', minimum_should_match: 2, zero_terms_query: 'all' },
        },
      }),
    ],
    ['exists', q({ exists: { field: 'parts' } })],
    ['ids', q({ ids: { values: ['a', 'b'] } })],
    ['constant_score', q({ constant_score: { filter: { term: { region: 'n' } }, boost: 1 } })],
    ['size and from', { size: 1_000, from: 9_000 }],
    [
      'sorts',
      {
        sort: [
          'region',
          { amount: 'desc' },
          { at: { order: 'asc', missing: '_last', mode: 'min' } },
        ],
      },
    ],
    ['one sort', { sort: '_score' }],
    ['_source as a switch', { _source: false }],
    ['_source as a list', { _source: ['note', 'parts'] }],
    ['track_total_hits', { track_total_hits: true }],
    ['a number for track_total_hits', { track_total_hits: 100 }],
    [
      'terms aggregation',
      agg(
        'terms',
        {
          field: 'region',
          size: 5,
          min_doc_count: 1,
          missing: 'none',
          order: [{ _count: 'desc' }, { y: 'asc' }],
        },
        { y: { avg: { field: 'amount' } } },
      ),
    ],
    [
      'date_histogram',
      {
        ...q(day),
        ...agg('date_histogram', {
          field: 'at',
          calendar_interval: 'day',
          min_doc_count: 0,
          time_zone: 'Europe/Berlin',
          offset: '+6h',
          order: { _key: 'desc' },
          keyed: true,
          format: 'yyyy',
        }),
      },
    ],
    [
      'hard_bounds',
      agg('date_histogram', {
        field: 'at',
        fixed_interval: '12h',
        hard_bounds: { min: 'now-7d', max: 'now' },
      }),
    ],
    [
      'extended_bounds',
      {
        ...q(day),
        ...agg('date_histogram', {
          field: 'at',
          fixed_interval: '1d',
          extended_bounds: { min: '2026-01-01', max: 1_790_000_000_000 },
        }),
      },
    ],
    [
      'metrics',
      {
        aggs: {
          a: { min: { field: 'at' } },
          b: { max: { field: 'amount', missing: 0 } },
          c: { avg: { field: 'count', format: '0.0' } },
          d: { sum: { field: 'count' } },
          e: { value_count: { field: 'region' } },
        },
      },
    ],
  ];
  for (const [what, query] of allowed) {
    it(`lets ${what} pass in tiers B and C, not in A, and its canonical form again`, () => {
      for (const tier of ['B', 'C'] as const) {
        const { canonical, digest, cost, query: value } = check(query, { tier });
        const again = recheckQuery({ dataset: PLAIN, tier, canonical, digest, datasetVersion: 3 });
        expect(again).to.include({ canonical, digest, cost, tier });
        expect(again.query).to.deep.equal(value);
      }
      const denied = { code: 'query-kind-denied', actual: 'A', hint: 'Tier B allows it.' };
      expectRefusal(query, denied, { tier: 'A' });
    });
  }

  it('covers every row of the table with these', () => {
    const text = JSON.stringify(allowed);
    for (const kind of [
      ...Object.keys(POLICY_TABLE.queries),
      ...Object.keys(POLICY_TABLE.aggregations),
    ]) {
      expect(text).to.contain(`"${kind}":`);
    }
  });

  const positions: [string, (kind: string) => unknown][] = [
    ['at the top', (kind) => ({ [kind]: {} })],
    ['as the query', (kind) => q({ [kind]: {} })],
    ['in bool.filter', (kind) => q({ bool: { filter: [{ match_all: {} }, { [kind]: {} }] } })],
    ['in constant_score', (kind) => q({ constant_score: { filter: { [kind]: {} } } })],
    ['beside another query', (kind) => q({ match_all: {}, [kind]: {} })],
    ['in the options of a query', (kind) => q({ term: { region: { value: 'n', [kind]: {} } } })],
    ['in bool itself', (kind) => q({ bool: { [kind]: {} } })],
    ['as an aggregation', (kind) => agg(kind, {})],
    ['in an aggregation', (kind) => agg('avg', { field: 'amount', [kind]: {} })],
    [
      'beside an aggregation',
      (kind) => ({ aggs: { x: { avg: { field: 'amount' }, [kind]: {} } } }),
    ],
    ['in a nested aggregation', (kind) => agg('terms', { field: 'region' }, { y: { [kind]: {} } })],
    ['in the options of a sort', (kind) => ({ sort: [{ region: { [kind]: {} } }] })],
  ];
  for (const [where, at] of positions) {
    it(`never lets any of the "never" rows pass ${where}`, () => {
      for (const kind of POLICY_TABLE.never) {
        for (const tier of ['B', 'C'] as const)
          expectRefusal(at(kind), { code: 'query-kind-denied' }, { tier });
        expect(refused(at(kind)).message).to.contain('never');
      }
    });
  }

  it('refuses a terms lookup and a sort by script', () => {
    const lookup = { terms: { region: { index: 'other', id: '1', path: 'region' } } };
    expectRefusal(q(lookup), { code: 'query-kind-denied', pointer: '/query/terms/region' });
    expectRefusal(
      { sort: { _script: { type: 'number' } } },
      { code: 'query-kind-denied', pointer: '/sort/0/_script' },
    );
  });

  it('refuses kinds of later versions and kinds that nobody knows', () => {
    for (const kind of Object.keys(POLICY_TABLE.laterQueries)) {
      expectRefusal(q({ bool: { should: { [kind]: {} } } }), {
        code: 'query-kind-denied',
        pointer: `/query/bool/should/${kind}`,
      });
    }
    for (const kind of Object.keys(POLICY_TABLE.laterAggregations)) {
      expectRefusal(agg(kind, {}), { code: 'agg-kind-denied', pointer: `/aggs/x/${kind}` });
    }
    expectRefusal(q({ toString: {} }), { code: 'query-kind-denied', pointer: '/query/toString' });
    expectRefusal(agg('valueOf', {}), { code: 'agg-kind-denied', pointer: '/aggs/x/valueOf' });
  });

  const wrong: [unknown, string, string][] = [
    [[], 'query-invalid', ''],
    [null, 'query-invalid', ''],
    [undefined, 'query-invalid', ''],
    [() => 1, 'query-invalid', ''],
    [{ size: 1n }, 'query-invalid', ''],
    [{ nonsense: 1 }, 'unknown-field', '/nonsense'],
    [{ search_after: [1] }, 'unknown-field', '/search_after'],
    [{ 'a/b~c': 1 }, 'unknown-field', '/a~1b~0c'],
    [{ size: '5' }, 'query-invalid', '/size'],
    [{ size: -1 }, 'query-invalid', '/size'],
    [{ from: 1.5 }, 'query-invalid', '/from'],
    [{ track_total_hits: -1 }, 'query-invalid', '/track_total_hits'],
    [{ _source: 'note' }, 'query-invalid', '/_source'],
    [{ _source: { excludes: [] } }, 'query-invalid', '/_source'],
    [{ _source: ['no*'] }, 'field-denied', '/_source/0'],
    [{ aggs: {}, aggregations: {} }, 'query-invalid', ''],
    [
      { aggs: { x: { terms: { field: 'region' }, aggs: {}, aggregations: {} } } },
      'query-invalid',
      '/aggs/x',
    ],
    [q({}), 'query-invalid', '/query'],
    [q([]), 'query-invalid', '/query'],
    [q({ match_all: {}, term: { region: 'n' } }), 'query-invalid', '/query'],
    [q({ match_all: 1 }), 'query-invalid', '/query/match_all'],
    [q({ bool: { must: 1 } }), 'query-invalid', '/query/bool/must'],
    [q({ bool: { must: [1] } }), 'query-invalid', '/query/bool/must/0'],
    [q({ bool: { musst: [] } }), 'unknown-field', '/query/bool/musst'],
    [
      q({ bool: { minimum_should_match: 'all' } }),
      'query-invalid',
      '/query/bool/minimum_should_match',
    ],
    [q({ term: { region: 'n', note: 'm' } }), 'query-invalid', '/query/term'],
    [q({ term: { region: null } }), 'query-invalid', '/query/term/region'],
    [q({ term: { region: ['n'] } }), 'query-invalid', '/query/term/region'],
    [q({ term: 'region' }), 'query-invalid', '/query/term'],
    [q({ term: { other: 'n' } }), 'field-denied', '/query/term/other'],
    [q({ term: { place: 'n' } }), 'field-denied', '/query/term/place'],
    [q({ terms: { region: 'n' } }), 'query-invalid', '/query/terms/region'],
    [q({ terms: { region: [['n']] } }), 'query-invalid', '/query/terms/region/0'],
    [q({ range: { amount: 5 } }), 'query-invalid', '/query/range/amount'],
    [q({ range: { amount: { gte: 1, gt: 1 } } }), 'query-invalid', '/query/range/amount'],
    [q({ range: { note: { gte: 'a' } } }), 'field-denied', '/query/range/note'],
    [q({ range: { at: { gte: 'nowish' } } }), 'query-invalid', '/query/range/at/gte'],
    [q({ range: { at: { gte: '1', format: 'dd' } } }), 'unknown-field', '/query/range/at/format'],
    [
      q({ range: { at: { gte: '1', time_zone: 'Europe/Berlin' } } }),
      'query-invalid',
      '/query/range/at/time_zone',
    ],
    [
      q({ match: { note: { query: 'a', fuzziness: 2 } } }),
      'unknown-field',
      '/query/match/note/fuzziness',
    ],
    [
      q({ match: { note: { query: 'a', operator: 'xor' } } }),
      'query-invalid',
      '/query/match/note/operator',
    ],
    [q({ exists: { field: 'other' } }), 'field-denied', '/query/exists/field'],
    [q({ exists: {} }), 'query-invalid', '/query/exists'],
    [q({ ids: { values: [1] } }), 'query-invalid', '/query/ids/values/0'],
    [q({ constant_score: {} }), 'query-invalid', '/query/constant_score'],
    [{ sort: ['other'] }, 'field-denied', '/sort/0'],
    [{ sort: ['note'] }, 'sort-denied', '/sort/0'],
    [{ sort: [{ _id: 'asc' }] }, 'sort-denied', '/sort/0/_id'],
    [{ sort: [{ region: 'up' }] }, 'query-invalid', '/sort/0/region/order'],
    [{ sort: [{}] }, 'query-invalid', '/sort/0'],
    [{ sort: [1] }, 'query-invalid', '/sort/0'],
    [{ aggs: [] }, 'query-invalid', '/aggs'],
    [{ aggs: { x: 1 } }, 'query-invalid', '/aggs/x'],
    [{ aggs: { x: {} } }, 'query-invalid', '/aggs/x'],
    [{ aggs: { 'x>y': { avg: { field: 'amount' } } } }, 'query-invalid', '/aggs/x>y'],
    [agg('terms', { field: 'region' }, 1), 'query-invalid', '/aggs/x/aggs'],
    [agg('avg', { field: 'amount' }, {}), 'query-invalid', '/aggs/x/aggs'],
    [agg('avg', { field: 'region' }), 'field-denied', '/aggs/x/avg/field'],
    [agg('sum', { field: 'other' }), 'field-denied', '/aggs/x/sum/field'],
    [agg('terms', { field: 'note' }), 'field-denied', '/aggs/x/terms/field'],
    [agg('terms', { field: 'region', include: 'a.*' }), 'unknown-field', '/aggs/x/terms/include'],
    [
      agg('terms', { field: 'region', min_doc_count: 0 }),
      'query-invalid',
      '/aggs/x/terms/min_doc_count',
    ],
    [
      agg('terms', { field: 'region', order: { y: 'asc' } }),
      'query-invalid',
      '/aggs/x/terms/order',
    ],
    [
      agg('terms', { field: 'region', order: [{ _key: 'up' }] }),
      'query-invalid',
      '/aggs/x/terms/order',
    ],
    [agg('terms', { field: 'region', order: [1] }), 'query-invalid', '/aggs/x/terms/order'],
    [agg('terms', { field: 'region', size: 0 }), 'query-invalid', '/aggs/x/terms/size'],
    [
      agg('date_histogram', { field: 'region', fixed_interval: '1d' }),
      'field-denied',
      '/aggs/x/date_histogram/field',
    ],
    [agg('date_histogram', { field: 'at' }), 'query-invalid', '/aggs/x/date_histogram'],
    [
      agg('date_histogram', { field: 'at', fixed_interval: '1d', calendar_interval: 'day' }),
      'query-invalid',
      '/aggs/x/date_histogram',
    ],
    [
      agg('date_histogram', { field: 'at', fixed_interval: '0d' }),
      'query-invalid',
      '/aggs/x/date_histogram/fixed_interval',
    ],
    [
      agg('date_histogram', { field: 'at', fixed_interval: '1d' }),
      'agg-unbounded',
      '/aggs/x/date_histogram',
    ],
    [
      agg('date_histogram', {
        field: 'at',
        fixed_interval: '1d',
        hard_bounds: { min: 'x', max: 'now' },
      }),
      'agg-unbounded',
      '/aggs/x/date_histogram/hard_bounds',
    ],
    [
      agg('date_histogram', {
        field: 'at',
        fixed_interval: '20m',
        format: 'yyyyMMdd',
        hard_bounds: { min: '20250101', max: '20260101' },
      }),
      'query-invalid',
      '/aggs/x/date_histogram/format',
    ],
    [
      {
        ...q(day),
        ...agg('date_histogram', {
          field: 'at',
          fixed_interval: '1d',
          format: 'yyyyMMdd',
          extended_bounds: { min: '20250101', max: '20260101' },
        }),
      },
      'query-invalid',
      '/aggs/x/date_histogram/format',
    ],
    [
      {
        ...q({ bool: { should: [day] } }),
        ...agg('date_histogram', { field: 'at', fixed_interval: '1d' }),
      },
      'agg-unbounded',
      '/aggs/x/date_histogram',
    ],
  ];
  for (const [query, code, pointer] of wrong) {
    const shown =
      typeof query === 'object' && !(query && 'size' in query && typeof query.size === 'bigint');
    it(`answers ${code} to ${shown ? JSON.stringify(query) : String(typeof query)}`, () => {
      expectRefusal(query, { code, pointer });
    });
  }

  const limits = POLICY_TABLE.tiers;
  const edges: [string, string, Tier, (n: number) => unknown, number][] = (
    ['B', 'C'] as const
  ).flatMap((tier) => {
    const one = limits[tier];
    const term = { term: { region: 'n' } };
    const rows: [string, string, Tier, (n: number) => unknown, number][] = [
      ['bool depth', 'too-deep', tier, (n) => q(bools(n)), one.boolDepth ?? 0],
      [
        'leaves',
        'too-many-clauses',
        tier,
        (n) => q({ bool: { should: times(n, () => term) } }),
        one.leaves ?? 0,
      ],
      [
        'string length',
        'value-too-long',
        tier,
        (n) => q({ term: { region: 'é'.repeat(n) } }),
        one.stringLength,
      ],
      [
        'array length',
        'too-many-values',
        tier,
        (n) => q({ terms: { count: times(n, (i) => i) } }),
        one.arrayLength,
      ],
      ['ids', 'too-many-values', tier, (n) => q({ ids: { values: times(n, String) } }), 100],
      ['size', 'page-too-deep', tier, (n) => ({ size: n }), one.size],
      ['from', 'page-too-deep', tier, (n) => ({ size: 0, from: n }), one.from],
      [
        'sort fields',
        'sort-denied',
        tier,
        (n) => ({ sort: times(n, () => 'region') }),
        one.sortFields ?? 0,
      ],
      [
        'source fields',
        'field-denied',
        tier,
        (n) => ({ _source: times(n, () => 'note') }),
        one.sourceFields ?? 0,
      ],
      [
        'aggregation count',
        'agg-too-large',
        tier,
        (n) => ({
          aggs: Object.fromEntries(times(n, (i) => [`a${i}`, { avg: { field: 'amount' } }])),
        }),
        one.aggCount,
      ],
      [
        'bucket product',
        'agg-too-large',
        tier,
        (n) => ({ ...agg('terms', { field: 'region', size: n }), size: 0 }),
        one.buckets,
      ],
    ];
    return rows;
  });
  for (const [what, code, tier, make, limit] of edges) {
    it(`takes ${limit} and refuses ${limit + 1} in ${what} of tier ${tier}`, () => {
      check(make(limit), { tier });
      expectRefusal(make(limit + 1), { code, limit, actual: limit + 1 }, { tier });
    });
  }

  it('limits the depth of aggregations', () => {
    const nest = (n: number): unknown => ({
      x: { terms: { field: 'region', size: 2 }, ...(n === 1 ? {} : { aggs: nest(n - 1) }) },
    });
    for (const [tier, limit] of [
      ['B', 3],
      ['C', 4],
    ] as const) {
      check({ aggs: nest(limit) }, { tier });
      expectRefusal(
        { aggs: nest(limit + 1) },
        { code: 'agg-too-large', limit, actual: limit + 1 },
        { tier },
      );
    }
    expect(refused({ aggs: nest(4) }).next).to.equal('Tier C allows up to 4.');
  });

  it('limits depth, keys and bytes of the text, in tier A too', () => {
    for (const tier of ['A', 'B', 'C'] as const) {
      const { depth, keys, bodyBytes } = limits[tier];
      const deep = (n: number) => ({
        x: JSON.parse(`${'['.repeat(n - 1)}${']'.repeat(n - 1)}`) as unknown,
      });
      expectRefusal(
        deep(depth + 1),
        { code: 'too-deep', limit: depth, actual: depth + 1 },
        { tier },
      );
      expect(refused(deep(depth), { tier }).code).not.to.equal('too-deep');
      const wide = (n: number) => Object.fromEntries(times(n, (i) => [`k${i}`, 1]));
      expectRefusal(
        wide(keys + 1),
        { code: 'too-many-keys', limit: keys, actual: keys + 1 },
        { tier },
      );
      expect(refused(wide(keys), { tier }).code).not.to.equal('too-many-keys');
      const queryBytes = Buffer.from(`{}${' '.repeat(bodyBytes - 2)}`);
      const submit = (bytes: Uint8Array) =>
        checkQuery({ dataset: PLAIN, tier, queryBytes: bytes, now: NOW });
      if (tier !== 'A') submit(queryBytes);
      expect(() => submit(Buffer.concat([queryBytes, Buffer.from(' ')]))).to.throw(
        SallyportError,
        `${bodyBytes}`,
      );
    }
    expect(refused({ x: [[[[[[[[]]]]]]]] }, { tier: 'A' }).errors[0]?.hint).to.equal(
      'Tier B allows up to 20.',
    );
  });

  it('limits from + size together', () => {
    check({ from: 9_000, size: 1_000 });
    const table = POLICY_TABLE.window;
    expect(table).to.equal(limits.B.from + limits.B.size);
  });

  it('refuses 10,000 levels, given as text or as a value', () => {
    for (const deep of [
      `${'{"bool":{"must":['.repeat(10_000)}`,
      '['.repeat(10_000) + ']'.repeat(10_000),
    ]) {
      const submit = () =>
        checkQuery({ dataset: PLAIN, tier: 'C', queryBytes: Buffer.from(deep), now: NOW });
      expect(submit).to.throw(SallyportError, /too-deep|levels/);
    }
    let value: unknown = {};
    for (let i = 0; i < 10_000; i++) value = [value];
    expect(refused({ x: value }, { tier: 'C' }).code).to.equal('too-deep');
    for (let i = 0; i < 200_000; i++) value = [value];
    expect(refused({ x: value }).code).to.be.oneOf(['too-deep', 'body-too-large']);
  });

  it('finds repeated keys and unsafe numbers in the text', () => {
    const submit = (text: string) => () =>
      checkQuery({
        dataset: PLAIN,
        tier: 'B',
        queryBytes: Buffer.from(text),
        now: NOW,
        at: '/query',
      });
    expect(submit('{"size":1,"size":2}'))
      .to.throw(SallyportError)
      .with.property('code', 'duplicate-key');
    const error = expect(submit('{"query":{"term":{"count":9007199254740993}}}')).to.throw(
      SallyportError,
    );
    error.with.property('code', 'bad-number');
    error.with.nested.property('errors[0].pointer', '/query/query/term/count');
  });

  it('pins now to the whole second, in every value of a date field and nowhere else', () => {
    const checked = check({
      query: {
        bool: {
          filter: [
            { range: { at: { gte: 'now-7d/d', lt: 'now' } } },
            { terms: { paid_at: ['now/d', '2026-01-01'] } },
            { term: { at: { value: 'now' } } },
            { match: { at: 'now/M' } },
            { terms: { region: ['now', 'now-1d'] } },
            { match: { note: 'now' } },
          ],
        },
      },
      aggregations: { x: { terms: { field: 'at', missing: 'now' } } },
    });
    const anchor = '2026-09-01T10:00:02Z||';
    expect(checked.pinnedNow.toISOString()).to.equal('2026-09-01T10:00:02.000Z');
    expect(checked.query).to.deep.equal({
      query: {
        bool: {
          filter: [
            { range: { at: { gte: `${anchor}-7d/d`, lt: anchor } } },
            { terms: { paid_at: [`${anchor}/d`, '2026-01-01'] } },
            { term: { at: { value: anchor } } },
            { match: { at: `${anchor}/M` } },
            { terms: { region: ['now', 'now-1d'] } },
            { match: { note: 'now' } },
          ],
        },
      },
      aggs: { x: { terms: { field: 'at', missing: anchor } } },
    });
  });

  it('leaves the given value alone', () => {
    const query = { query: { range: { at: { gte: 'now' } } }, aggregations: {}, sort: 'region' };
    const before = structuredClone(query);
    check(query);
    expect(query).to.deep.equal(before);
  });

  it('lowers track_total_hits to what Elasticsearch takes, with a warning', () => {
    const checked = check({ track_total_hits: 3e9 });
    expect(checked.query).to.deep.equal({ track_total_hits: 2_147_483_647 });
    expect(checked.warnings).to.have.length(1);
  });

  it('adds up the cost and names the greatest parts when it is too much', () => {
    const query = {
      query: {
        bool: {
          must: [
            { term: { region: 'n' } },
            { terms: { count: times(100, (i) => i) } },
            { range: { amount: { gt: 0 } } },
            { match: { note: 'a' } },
          ],
        },
      },
      aggs: {
        x: {
          terms: { field: 'region', size: 20 },
          aggs: {
            y: { terms: { field: 'open', size: 3 } },
            z: { terms: { field: 'count', size: 2 } },
          },
        },
      },
      size: 30,
      from: 50,
    };
    expect(check(query).cost).to.equal(1 + 3 + 2 + 3 + 100 / 10 + 3 + 1);
    const error = refused(agg('terms', { field: 'region', size: 10_000 }));
    expect(error.errors[0]).to.include({
      code: 'query-too-costly',
      limit: 1_000,
      actual: 1_001,
      hint: 'Tier C allows up to 10000.',
    });
    expect(error.message).to.contain('10000 buckets at /aggs: 1000.00');
  });

  it('multiplies nested buckets and adds those side by side', () => {
    const terms = (size: number, aggs?: unknown) => ({
      terms: { field: 'region', size },
      ...(aggs ? { aggs } : {}),
    });
    const size = 0;
    check({ size, aggs: { a: terms(99, { b: terms(100), m: { avg: { field: 'amount' } } }) } });
    expectRefusal(
      { size, aggs: { a: terms(101, { b: terms(100) }) } },
      { code: 'agg-too-large', actual: 10_100 },
    );
    expectRefusal(
      { size, aggs: { a: terms(6_000), b: terms(5_000) } },
      { code: 'agg-too-large', actual: 11_000 },
    );
  });

  it('counts the buckets of a histogram from its bounds', () => {
    const histogram = (options: object) => ({
      size: 0,
      ...q(day),
      ...agg('date_histogram', { field: 'at', ...options }),
    });
    expect(check(histogram({ fixed_interval: '1d' })).cost).to.equal(2 + 3.2);
    expect(
      check(histogram({ fixed_interval: '1d', hard_bounds: { min: '2026-08-11', max: '2027' } }))
        .cost,
    ).to.equal(2 + 2.2);
    expect(
      check(
        histogram({
          fixed_interval: '1d',
          extended_bounds: { min: '2026-07-31', max: '2026-09-01' },
        }),
      ).cost,
    ).to.equal(2 + 3.3);
    expectRefusal(histogram({ fixed_interval: '1s' }), {
      code: 'agg-too-large',
      actual: 2_678_401,
    });
    expectRefusal(
      histogram({ fixed_interval: '1d', extended_bounds: { min: '1000', max: '9999' } }),
      { code: 'agg-too-large' },
    );
    expectRefusal(
      histogram({ fixed_interval: '1d', extended_bounds: { min: '2026-08-01', max: '2300' } }),
      { code: 'agg-too-large' },
    );
    const crossed = q({ range: { at: { gte: '2027', lt: '2026' } } });
    check({ ...crossed, ...agg('date_histogram', { field: 'at', fixed_interval: '1ms' }) });
  });

  it('reads the bounds of a histogram in its time zone', () => {
    const histogram = (time_zone: string, bounds: object) => ({
      size: 0,
      ...q({ range: { at: { gte: '2026-08-01T00:00:00Z', lt: '2026-08-01T00:01:00Z' } } }),
      ...agg('date_histogram', { field: 'at', fixed_interval: '1s', time_zone, ...bounds }),
    });
    const minute = { min: '2026-08-01T00:00:00', max: '2026-08-01T00:01:00' };
    check(histogram('UTC', { extended_bounds: minute }));
    const inZone = { min: '2026-08-01T00:00:00Z', max: '2026-08-01T00:01:00Z' };
    check(histogram('-14:00', { extended_bounds: inZone }));
    for (const zone of ['+14:00', 'Pacific/Kiritimati']) {
      expectRefusal(histogram(zone, { extended_bounds: minute }), { code: 'agg-too-large' });
    }
  });

  describe('on a dataset with a time field', () => {
    const range = (gte: unknown, lt: unknown) => ({ range: { at: { gte, lt } } });
    const fine: [string, unknown][] = [
      ['the query itself', range('2025-09-01', '2026-09-01')],
      ['bool.must', { bool: { must: range('now-30d', 'now') } }],
      ['nested bools', { bool: { filter: [{ bool: { must: [range('now-1d', 'now')] } }] } }],
      ['constant_score', { constant_score: { filter: range('now-1d', 'now') } }],
      [
        'two ranges',
        {
          bool: {
            filter: [
              { range: { at: { gte: '2026-01-01' } } },
              { range: { at: { lte: '2026-02-01' } } },
            ],
          },
        },
      ],
      [
        'a narrow one among wide ones',
        { bool: { filter: [range('1970', '2030'), range('now-1d', 'now')] } },
      ],
      ['exactly 366 days', range('2025-01-01', '2026-01-02')],
    ];
    for (const [where, query] of fine) {
      it(`takes a range in ${where}`, () => check({ query }, { dataset: TIMED }));
    }

    const missing: [string, unknown][] = [
      ['no query', undefined],
      ['match_all', { match_all: {} }],
      ['a range in should', { bool: { should: [range('now-1d', 'now')] } }],
      ['a range in must_not', { bool: { must_not: [range('now-1d', 'now')] } }],
      ['a range below should', { bool: { should: { bool: { must: range('now-1d', 'now') } } } }],
      ['no lower bound', { range: { at: { lt: 'now' } } }],
      ['no upper bound', { range: { at: { gt: 'now-1d' } } }],
      ['a range of another field', { range: { paid_at: { gte: 'now-1d', lt: 'now' } } }],
    ];
    for (const [what, query] of missing) {
      it(`refuses ${what}`, () => {
        const expected = { code: 'range-required', limit: 366, actual: 'unbounded' };
        expectRefusal(query === undefined ? {} : { query }, expected, { dataset: TIMED });
      });
    }

    it('refuses a range that is too long and names the tier that takes it', () => {
      const hint = 'Tier C allows up to 3660.';
      expectRefusal(
        q(range('2025-01-01', '2026-01-02T00:00:00.001Z')),
        { code: 'range-required', limit: 366, actual: 366.01, hint },
        { dataset: TIMED },
      );
      expectRefusal(q(range('now-366d-1s', 'now')), { code: 'range-required' }, { dataset: TIMED });
      check(q(range('now-3660d', 'now')), { dataset: TIMED, tier: 'C' });
      const error = refused(q(range('now-3661d', 'now')), { dataset: TIMED, tier: 'C' });
      expect(error.errors[0])
        .to.include({ limit: 3_660, actual: 3_661 })
        .and.not.have.property('hint');
    });

    it('refuses a date whose distance cannot be told', () => {
      expectRefusal(
        q(range('01.09.2026', 'now')),
        { code: 'range-required', pointer: '/query/range/at/gte' },
        { dataset: TIMED },
      );
      check(q({ range: { paid_at: { gte: '01.09.2026', lt: 'now' } } }));
    });
  });

  it('throws nothing but SallyportError, whatever it is given', () => {
    const kinds = [
      ...Object.keys(POLICY_TABLE.queries),
      ...Object.keys(POLICY_TABLE.aggregations),
      ...POLICY_TABLE.never,
    ];
    const words = fc.constantFrom(
      ...kinds,
      ...FIELDS.map(([name]) => name),
      'query',
      'aggs',
      'sort',
      '_source',
      'size',
      'field',
      'must',
      'filter',
      'gte',
      'lt',
      'value',
      'now',
      'now-1d/d',
      'hard_bounds',
      'order',
      'fixed_interval',
      '1d',
    );
    const { tree } = fc.letrec((tie) => ({
      tree: fc.oneof(
        { depthSize: 'medium' },
        words,
        fc.double(),
        fc.boolean(),
        fc.constant(null),
        fc.array(tie('tree'), { maxLength: 4 }),
        fc.dictionary(words, tie('tree'), { maxKeys: 4 }),
      ),
    }));
    const body = fc.record(
      { query: tree, aggs: tree, sort: tree, _source: tree, size: tree, extra: fc.anything() },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(
        fc.oneof(
          body,
          tree,
          fc.anything({ withBigInt: true, withDate: true, withNullPrototype: true }),
        ),
        fc.constantFrom('A', 'B', 'C'),
        (query, tier) => {
          try {
            check(query, { tier });
          } catch (error) {
            expect(error).to.be.instanceOf(SallyportError);
          }
        },
      ),
      { numRuns: 3_000 },
    );
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 50 }), (queryBytes) => {
        try {
          checkQuery({ dataset: PLAIN, tier: 'B', queryBytes, now: NOW });
        } catch (error) {
          expect(error).to.be.instanceOf(SallyportError);
        }
      }),
    );
  });

  it('gives one canonical form and digest, which stays when checked again', () => {
    const value = fc.oneof(
      fc.string({ unit: 'grapheme', maxLength: 20 }),
      fc.integer(),
      fc.boolean(),
    );
    const date = fc.constantFrom('now', 'now-1d/d', '2026-01-01', 'now-3M');
    const leaf = fc.oneof(
      fc.record({ term: fc.record({ region: value }) }),
      fc.record({ terms: fc.record({ count: fc.array(value, { maxLength: 5 }) }) }),
      fc.record({ range: fc.record({ at: fc.record({ gte: date, lt: date }) }) }),
      fc.record({ match: fc.record({ note: value }) }),
      fc.record({ exists: fc.constant({ field: 'note' }) }),
    );
    const clause = fc.oneof(
      leaf,
      fc.record({
        bool: fc.record(
          { must: fc.array(leaf, { maxLength: 4 }), filter: leaf, should: leaf },
          { requiredKeys: [] },
        ),
      }),
    );
    const body = fc.record(
      {
        query: clause,
        size: fc.nat(100),
        sort: fc.constantFrom('region', { at: 'asc' }),
        aggregations: fc.constant({ a: { terms: { field: 'region' } } }),
      },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(body, fc.constantFrom('B', 'C'), (query, tier) => {
        const first = check(query, { tier });
        const { canonical, digest } = first;
        const entries = Object.entries(query).reverse();
        expect(check(Object.fromEntries(entries), { tier })).to.include({ canonical, digest });
        const again = recheckQuery({ dataset: PLAIN, tier, canonical, digest, datasetVersion: 3 });
        expect(again).to.include({ canonical, digest, cost: first.cost });
        expect(check(JSON.parse(canonical), { tier })).to.include({ canonical, digest });
      }),
      { numRuns: 500 },
    );
  });
});

describe('recheckQuery', () => {
  const { canonical, digest } = check(q(day));
  const again = (change: Partial<Parameters<typeof recheckQuery>[0]> = {}) =>
    recheckQuery({ dataset: PLAIN, tier: 'B', canonical, digest, datasetVersion: 3, ...change });
  const sealed = (text: string) => ({
    canonical: text,
    digest: queryDigest({ dataset: 'claims', version: 3, canonical: text }),
  });

  it('refuses another digest, dataset or version', () => {
    for (const change of [
      { digest: `sha256:${'0'.repeat(64)}` },
      { digest: '' },
      { datasetVersion: 4 },
      { dataset: { ...PLAIN, name: 'other' } },
    ]) {
      expect(() => again(change))
        .to.throw(SallyportError, 'digest')
        .with.property('code', 'query-invalid');
    }
  });

  it('takes a dataset that has moved on since, and judges by it', () => {
    expect(again({ dataset: { ...PLAIN, version: 9 } }).digest).to.equal(digest);
    const fields = PLAIN.fields.filter(({ name }) => name !== 'at');
    expect(() => again({ dataset: { ...PLAIN, fields } }))
      .to.throw(SallyportError)
      .with.property('code', 'field-denied');
  });

  it('refuses text that is not canonical', () => {
    for (const text of [
      '{"size":1,"from":0}',
      '{ }',
      '{"size":1.0}',
      '{"aggregations":{}}',
      '{"sort":"region"}',
    ]) {
      expect(() => again(sealed(text)))
        .to.throw(SallyportError, 'canonical')
        .with.property('code', 'query-invalid');
    }
    expect(() => again(sealed('{')))
      .to.throw(SallyportError)
      .with.property('code', 'malformed-json');
  });

  it('refuses a now that is not pinned', () => {
    const text = '{"query":{"range":{"at":{"gte":"now-1d"}}}}';
    expect(() => again(sealed(text)))
      .to.throw(SallyportError, 'pinned')
      .with.property('code', 'query-invalid');
  });

  it('applies the tier of the far side', () => {
    expect(() => again({ tier: 'A' }))
      .to.throw(SallyportError)
      .with.property('code', 'query-kind-denied');
  });
});

describe('queryDigest', () => {
  it('is the SHA-256 of the canonical {dataset, dataset_version, query}', async () => {
    const { canonical, digest, query } = check(q(day));
    const text = canonicalJson({ query, dataset_version: 3, dataset: 'claims' });
    const bytes = await crypto.subtle.digest('SHA-256', Buffer.from(text));
    expect(digest).to.equal(`sha256:${Buffer.from(bytes).toString('hex')}`);
    expect(queryDigest({ dataset: 'claims', version: 3, canonical })).to.equal(digest);
  });
});

describe('POLICY_TABLE', () => {
  it('is plain data that can travel', () => {
    expect(JSON.parse(JSON.stringify(POLICY_TABLE))).to.deep.equal(POLICY_TABLE);
  });

  it('never both allows and refuses a kind', () => {
    const { queries, aggregations, laterQueries, laterAggregations, never } = POLICY_TABLE;
    const kinds = [queries, aggregations, laterQueries, laterAggregations].flatMap((rows) =>
      Object.keys(rows),
    );
    expect(kinds.filter((kind) => never.includes(kind))).to.deep.equal([]);
    expect(Object.keys(queries).filter((kind) => kind in laterQueries)).to.deep.equal([]);
    expect(Object.keys(aggregations).filter((kind) => kind in laterAggregations)).to.deep.equal([]);
  });
});
