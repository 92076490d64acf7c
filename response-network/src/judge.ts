import {
  POLICY_TABLE,
  recheckQuery,
  SallyportError,
  shorten,
  TIERS,
  type Failure,
} from '@sallyport/shared';
import type { SearchableDataset } from './dataset-sources.js';
import type { ClaimedRequest } from './executions.js';
import { wrapQuery } from './wrap-query.js';

/** What of a request a judgement looks at. */
export type JudgedRequest = Pick<
  ClaimedRequest,
  | 'dataset'
  | 'dataset_version'
  | 'policy_version'
  | 'tier'
  | 'query'
  | 'query_digest'
  | 'dataset_allowed'
  | 'allowed_tier'
>;

/** What this network says to a request that came across: the body to search with, or a refusal. */
export type Verdict =
  | { ok: true; indexName: string; body: string; cost: number }
  | { ok: false; status: 'rejected'; failure: Failure };

const MAX_TEXT = 1_000;

/**
 * Checks a request against the rights, the dataset and the policy that are in force here and now; what
 * the other network found counts for nothing.
 */
export function judgeRequest(
  request: JudgedRequest,
  searchable: SearchableDataset | undefined,
): Verdict {
  if (!searchable || !request.dataset_allowed) {
    return refuse('dataset-forbidden', `The user has no right to ${request.dataset} here.`);
  }
  const { dataset, indexName } = searchable;
  if (TIERS.indexOf(request.tier) > TIERS.indexOf(request.allowed_tier ?? 'A')) {
    const detail = `The user's tier here is ${request.allowed_tier}, the request's ${request.tier}.`;
    return refuse('tier-forbidden', detail);
  }
  try {
    const { query, cost } = recheckQuery({
      dataset: {
        id: dataset.id,
        name: dataset.name,
        version: dataset.version,
        timeField: dataset.time_field,
        fields: dataset.fields,
      },
      tier: request.tier,
      canonical: request.query,
      digest: request.query_digest,
      datasetVersion: request.dataset_version,
    });
    return { ok: true, indexName, body: wrapQuery(query, searchable, request.tier), cost };
  } catch (error) {
    if (!(error instanceof SallyportError)) throw error;
    return refuseQuery(error, request, dataset.version);
  }
}

function refuse(code: string, detail: string, errors?: Failure['errors']): Verdict {
  const failure = { class: null, code, detail, ...(errors ? { errors } : {}) };
  return { ok: false, status: 'rejected', failure };
}

function refuseQuery(error: SallyportError, request: JudgedRequest, version: number): Verdict {
  const versions =
    `The request was written for version ${request.dataset_version} of ${request.dataset} and ` +
    `version ${request.policy_version} of the policy; in force are ${version} and ` +
    `${POLICY_TABLE.version}.`;
  const errors = error.errors.slice(0, 20).map((one) => ({
    pointer: shorten(one.pointer, MAX_TEXT),
    code: one.code,
    detail: shorten(one.detail, MAX_TEXT),
    ...(one.limit === undefined ? {} : { limit: short(one.limit) }),
    ...(one.actual === undefined ? {} : { actual: short(one.actual) }),
    ...(one.hint === undefined ? {} : { hint: shorten(one.hint, 500) }),
  }));
  return refuse(error.code, `${shorten(error.message, MAX_TEXT)} ${versions}`, errors);
}

function short(value: number | string): number | string {
  return typeof value === 'string' ? shorten(value, 200) : value;
}
