import { diagnosisCode, providerName, type Claim } from './dataset.js';

/** Rows of an answer, in a fixed order; exact integers beyond 2^53 are text. */
export type Answer = (string | number)[][];

/** A question about the claims, with two ways to its answer that share no code. */
export type Question = {
  title: string;
  /** The body of an Elasticsearch search, within tier B. */
  query: Record<string, unknown>;
  /** Computed from the documents, without Elasticsearch. */
  expected(claims: Iterable<Claim>): Answer;
  /** Read from the text of a search response, whose numbers need not fit a double. */
  read(resultText: string): Answer;
};

const RELATIVE_TOLERANCE = 1e-9;
const REGION = 'lakeland';
const DIAGNOSIS = diagnosisCode(3);
const PROVIDER = providerName(0);
const WORD = 'fracture';

/** What the demo asks; every question is limited to a time range within one year. */
export const QUESTIONS: readonly Question[] = [
  {
    title: 'How many claims of the second quarter are in which status?',
    query: {
      size: 0,
      query: { bool: { filter: [timeRange('2025-04-01', '2025-07-01')] } },
      aggs: { by_status: { terms: { field: 'status', size: 10 } } },
    },
    expected(claims) {
      const counts = new Map<string, number>();
      for (const claim of within(claims, '2025-04-01', '2025-07-01'))
        counts.set(claim.status, (counts.get(claim.status) ?? 0) + 1);
      return sortRows([...counts]);
    },
    read: (text) =>
      sortRows(bucketsOf(text, 'by_status').map((bucket) => [bucket.key, bucket.doc_count])),
  },
  {
    title: `What did the claims of ${REGION} amount to in the first half-year?`,
    query: {
      size: 0,
      query: {
        bool: { filter: [timeRange('2025-01-01', '2025-07-01'), { term: { region: REGION } }] },
      },
      aggs: {
        claims: { value_count: { field: 'claim_id' } },
        total: { sum: { field: 'amount' } },
        mean: { avg: { field: 'amount' } },
        least: { min: { field: 'amount' } },
        most: { max: { field: 'amount' } },
      },
    },
    expected(claims) {
      const amounts = [...within(claims, '2025-01-01', '2025-07-01')]
        .filter((claim) => claim.region === REGION)
        .map((claim) => claim.amount);
      const total = amounts.reduce((sum, amount) => sum + amount, 0);
      const extremes = amounts.reduce<[number, number]>(
        ([least, most], amount) => [Math.min(least, amount), Math.max(most, amount)],
        [Infinity, -Infinity],
      );
      return [[amounts.length, total, total / amounts.length, ...extremes]];
    },
    read(text) {
      const names = ['claims', 'total', 'mean', 'least', 'most'];
      return [names.map((name) => aggregationOf(text, name).value ?? NaN)];
    },
  },
  {
    title: `How many claims with diagnosis ${DIAGNOSIS} came in each month?`,
    query: {
      size: 0,
      query: {
        bool: {
          filter: [timeRange('2025-01-01', '2026-01-01'), { term: { diagnosis: DIAGNOSIS } }],
        },
      },
      aggs: {
        monthly: { date_histogram: { field: 'submitted_at', calendar_interval: 'month' } },
      },
    },
    expected(claims) {
      const counts = new Map<string, number>();
      for (const claim of claims) {
        if (claim.diagnosis !== DIAGNOSIS) continue;
        const month = claim.submitted_at.slice(0, 7);
        counts.set(month, (counts.get(month) ?? 0) + 1);
      }
      return sortRows([...counts]);
    },
    read: (text) =>
      bucketsOf(text, 'monthly')
        .filter((bucket) => bucket.doc_count > 0)
        .map((bucket) => [
          new Date(Number(bucket.key)).toISOString().slice(0, 7),
          bucket.doc_count,
        ]),
  },
  {
    title: `Which are the five newest claims of ${PROVIDER}?`,
    query: {
      size: 5,
      _source: ['claim_id', 'submitted_at', 'amount', 'ledger_no'],
      query: {
        bool: { filter: [timeRange('2025-01-01', '2026-01-01'), { term: { provider: PROVIDER } }] },
      },
      sort: [{ submitted_at: 'desc' }, { claim_id: 'asc' }],
    },
    expected: (claims) =>
      [...claims]
        .filter((claim) => claim.provider === PROVIDER)
        .sort((a, b) => compare(b.submitted_at, a.submitted_at) || compare(a.claim_id, b.claim_id))
        .slice(0, 5)
        .map((claim) => [
          claim.claim_id,
          claim.submitted_at,
          claim.amount,
          String(claim.ledger_no),
        ]),
    read: (text) =>
      parseResult(text).hits.hits.map(({ _source: claim }) => [
        claim.claim_id,
        claim.submitted_at,
        claim.amount,
        claim.ledger_no,
      ]),
  },
  {
    title: `How many claims of autumn speak of a ${WORD}?`,
    query: {
      size: 0,
      query: {
        bool: {
          must: [{ match: { notes: WORD } }],
          filter: [timeRange('2025-09-01', '2025-12-01')],
        },
      },
      aggs: { claims: { value_count: { field: 'claim_id' } } },
    },
    expected(claims) {
      const found = [...within(claims, '2025-09-01', '2025-12-01')].filter((claim) =>
        claim.notes.split(' ').includes(WORD),
      );
      return [[found.length]];
    },
    read: (text) => [[aggregationOf(text, 'claims').value ?? NaN]],
  },
];

/** Whether two answers are the same; fractions may differ by rounding, everything else may not. */
export function answersAgree(one: Answer, other: Answer): boolean {
  return (
    one.length === other.length &&
    one.every((row, index) => {
      const pair = other[index] ?? [];
      return row.length === pair.length && row.every((value, at) => valuesAgree(value, pair[at]));
    })
  );
}

function valuesAgree(one: string | number, other: string | number | undefined): boolean {
  if (typeof one !== 'number' || typeof other !== 'number') return one === other;
  if (Number.isInteger(one) && Number.isInteger(other)) return one === other;
  return Math.abs(one - other) <= RELATIVE_TOLERANCE * Math.max(Math.abs(one), Math.abs(other));
}

type Bucket = { key: string | number; doc_count: number };
type Aggregation = { value?: number | null; buckets?: Bucket[] };
type SearchResult = {
  hits: {
    hits: {
      _source: { claim_id: string; submitted_at: string; amount: number; ledger_no: string };
    }[];
  };
  aggregations?: Record<string, Aggregation>;
};

/** Parses a response; `ledger_no` stays text, for JSON.parse would round it. */
function parseResult(text: string): SearchResult {
  return JSON.parse(text.replace(/("ledger_no"\s*:\s*)(-?\d+)/g, '$1"$2"')) as SearchResult;
}

function aggregationOf(text: string, name: string): Aggregation {
  return parseResult(text).aggregations?.[name] ?? {};
}

function bucketsOf(text: string, name: string): Bucket[] {
  return aggregationOf(text, name).buckets ?? [];
}

function timeRange(from: string, to: string): Record<string, unknown> {
  return { range: { submitted_at: { gte: `${from}T00:00:00.000Z`, lt: `${to}T00:00:00.000Z` } } };
}

function* within(claims: Iterable<Claim>, from: string, to: string): Generator<Claim> {
  for (const claim of claims)
    if (claim.submitted_at >= from && claim.submitted_at < to) yield claim;
}

function sortRows(rows: Answer): Answer {
  return rows.sort(([a], [b]) => compare(String(a), String(b)));
}

function compare(a: string, b: string): number {
  return a < b ? -1 : Number(a > b);
}
