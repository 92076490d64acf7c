import { SallyportError } from '@sallyport/shared';
import { callElasticsearch } from './elasticsearch-http.js';

/** One insurance claim of the demo's dataset; everything about it is made up. */
export type Claim = {
  claim_id: string;
  submitted_at: string;
  region: string;
  provider: string;
  diagnosis: string;
  status: string;
  amount: number;
  units: number;
  patient_age: number;
  notes: string;
  /** Odd and beyond 2^53, so a double cannot hold it: it shows whether integers stay exact. */
  ledger_no: bigint;
};

/** The Elasticsearch mapping of `Claim`. */
export const CLAIMS_MAPPING = {
  dynamic: 'strict',
  properties: {
    claim_id: { type: 'keyword' },
    submitted_at: { type: 'date' },
    region: { type: 'keyword' },
    provider: { type: 'keyword' },
    diagnosis: { type: 'keyword' },
    status: { type: 'keyword' },
    amount: { type: 'double' },
    units: { type: 'integer' },
    patient_age: { type: 'integer' },
    notes: { type: 'text' },
    ledger_no: { type: 'long' },
  },
} as const;

export const CLAIMS_SEED = 20250101;

const REGIONS =
  'north-coast lakeland midlands capital river-valley south-hills east-port highlands west-plain islands border-march old-forest'.split(
    ' ',
  );
const STATUSES = ['approved', 'submitted', 'denied', 'appealed'];
const WORDS =
  'routine urgent follow-up referral fracture infection therapy surgery outpatient inpatient imaging laboratory review pending document missing duplicate corrected emergency ambulance consultation chronic acute post-operative physiotherapy vaccination screening dental cardiac respiratory diabetic allergy prescription discharge admission transfer second opinion estimate invoice adjusted verified signed by specialist'.split(
    ' ',
  );
const PROVIDERS = 400;
const DIAGNOSES = 200;
const YEAR_START_MS = Date.UTC(2025, 0, 1);
const YEAR_MS = Date.UTC(2026, 0, 1) - YEAR_START_MS;
const FIRST_LEDGER_NO = 9_007_199_254_740_993n;
const CHUNK = 5_000;
const IN_FLIGHT = 2;

/** The first `count` claims of a seed, always the same ones; submitted in 2025 (UTC). */
export function* generateClaims(count: number, seed = CLAIMS_SEED): Generator<Claim> {
  const random = randomNumbers(seed);
  // Small numbers come up far more often, as with real regions, hospitals and illnesses.
  const skewed = (size: number) => Math.floor(size * random() ** 2.2);
  for (let index = 0; index < count; index++) {
    const units = 1 + skewed(12);
    const words = Array.from({ length: 4 + Math.floor(random() * 6) }, () =>
      pick(WORDS, Math.floor(random() * WORDS.length)),
    );
    yield {
      claim_id: `C-2025-${String(index + 1).padStart(7, '0')}`,
      submitted_at: new Date(YEAR_START_MS + Math.floor(random() * YEAR_MS)).toISOString(),
      region: pick(REGIONS, skewed(REGIONS.length)),
      provider: providerName(skewed(PROVIDERS)),
      diagnosis: diagnosisCode(skewed(DIAGNOSES)),
      status: pick(STATUSES, skewed(STATUSES.length)),
      amount: Math.round(units * (20 + 900 * random() ** 3) * 100) / 100,
      units,
      patient_age: Math.floor(100 * (random() + random())) >> 1,
      notes: words.join(' '),
      ledger_no: FIRST_LEDGER_NO + 2n * BigInt(index),
    };
  }
}

/** One claim as a line of JSON, `ledger_no` as an exact integer. */
export function claimToJson(claim: Claim): string {
  const { ledger_no: ledgerNo, ...rest } = claim;
  return `${JSON.stringify(rest).slice(0, -1)},"ledger_no":${ledgerNo}}`;
}

/**
 * Makes the index (one shard) and loads the first `count` claims; an index that holds just these
 * is left alone, one that was loaded half is made again, one that is not ours is refused.
 */
export async function loadClaims(
  elasticsearchUrl: string,
  index: string,
  count: number,
  seed = CLAIMS_SEED,
): Promise<{ loaded: number }> {
  const meta = { sallyport: 'claims', count, seed };
  const found = await readIndex(elasticsearchUrl, index);
  if (found !== undefined) {
    if (found.meta?.sallyport !== meta.sallyport)
      throw new SallyportError('already-exists', `the index ${index} exists and is not ours`, {
        next: 'Choose another index name or another Elasticsearch.',
      });
    if (found.meta.count === count && found.meta.seed === seed && found.count === count)
      return { loaded: 0 };
    await expectOk(elasticsearchUrl, index, { method: 'DELETE' });
  }
  await expectOk(elasticsearchUrl, index, {
    method: 'PUT',
    body: JSON.stringify({
      settings: { number_of_shards: 1, number_of_replicas: 0, refresh_interval: '-1' },
      mappings: { ...CLAIMS_MAPPING, _meta: meta },
    }),
  });
  await bulkLoad(elasticsearchUrl, index, generateClaims(count, seed));
  await expectOk(elasticsearchUrl, `${index}/_settings`, {
    method: 'PUT',
    body: JSON.stringify({ index: { refresh_interval: null } }),
  });
  await expectOk(elasticsearchUrl, `${index}/_refresh`, { method: 'POST' });
  return { loaded: count };
}

/** The name of the provider at a rank; rank 0 has the most claims. */
export function providerName(rank: number): string {
  return `provider-${String(rank + 1).padStart(3, '0')}`;
}

/** The diagnosis code at a rank; rank 0 is the most frequent. */
export function diagnosisCode(rank: number): string {
  return `${'ABCDEFGHIJ'[rank % 10]}${String(10 + Math.floor(rank / 10)).padStart(2, '0')}.${rank % 7}`;
}

/** Sends chunks, at most two at a time: one is indexed while the next one is written. */
async function bulkLoad(url: string, index: string, claims: Generator<Claim>): Promise<void> {
  const next = (): string => {
    let body = '';
    for (let lines = 0; lines < CHUNK; lines++) {
      const { value, done } = claims.next();
      if (done) break;
      body += `{"index":{"_id":"${value.claim_id}"}}\n${claimToJson(value)}\n`;
    }
    return body;
  };
  const send = async () => {
    for (let body = next(); body !== ''; body = next()) {
      const answer = await expectOk(url, `${index}/_bulk?filter_path=errors,items.*.error`, {
        method: 'POST',
        body,
        contentType: 'application/x-ndjson',
      });
      if ((JSON.parse(answer) as { errors: boolean }).errors)
        throw new Error(`Elasticsearch refused claims: ${answer.slice(0, 500)}`);
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, send));
}

/** What an index says about itself; anything may stand there in one that is not ours. */
type Meta = { sallyport?: unknown; count?: unknown; seed?: unknown };

async function readIndex(
  url: string,
  index: string,
): Promise<{ meta: Meta | undefined; count: number } | undefined> {
  const { status, text } = await callElasticsearch(url, `${index}/_mapping`);
  if (status === 404) return undefined;
  if (status !== 200) throw refused(`${index}/_mapping`, status, text);
  const mapping = JSON.parse(text) as Record<string, { mappings: { _meta?: Meta } }>;
  await expectOk(url, `${index}/_refresh`, { method: 'POST' });
  const { count } = JSON.parse(await expectOk(url, `${index}/_count`)) as { count: number };
  return { meta: Object.values(mapping)[0]?.mappings._meta, count };
}

async function expectOk(
  url: string,
  path: string,
  call: Parameters<typeof callElasticsearch>[2] = {},
): Promise<string> {
  const { status, text } = await callElasticsearch(url, path, call);
  if (status < 200 || status > 299) throw refused(path, status, text);
  return text;
}

function refused(path: string, status: number, text: string): SallyportError {
  const detail = `Elasticsearch answers ${status} to ${path}: ${text.slice(0, 500)}`;
  return new SallyportError('search-failed', detail);
}

function pick(list: readonly string[], index: number): string {
  return list[index] as string;
}

/** Numbers in [0, 1) from a 32-bit seed (mulberry32, public domain by Tommy Ettinger). */
function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
