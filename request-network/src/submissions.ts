import {
  SallyportError,
  checkQuery,
  newId,
  type CheckedQuery,
  type Dataset,
  type Priority,
  type ProfileType,
  type Principal,
} from '@sallyport/shared';
import type { Rules } from './replica.js';
import { TTL_DEFAULT_S, type RequestView, type Submission } from './request-schemas.js';
import type { NewRequest } from './requests.js';

/** A submission that passed every check, and what the check said. */
export type Admitted = { request: NewRequest; checked: CheckedQuery };

/**
 * Judges a submission by the rules and makes the request that may be stored.
 * @throws SallyportError `dataset-forbidden`, `role-missing` for a priority, and all refusals of the
 * policy, with pointers into the body.
 */
export function admitSubmission(
  rules: Rules,
  principal: Principal,
  {
    submission,
    now,
    traceparent,
  }: { submission: Submission; now: Date; traceparent: string | null },
): Admitted {
  const profileType = findRights(rules, principal);
  const dataset = findAllowed(rules, profileType, submission.dataset);
  const priority = choosePriority(profileType, submission.priority);
  const { id, name, version, time_field: timeField, fields } = dataset;
  const checked = checkQuery({
    dataset: { id, name, version, timeField, fields },
    tier: profileType.tier,
    query: submission.query,
    now,
    at: '/query',
  });
  const request: NewRequest = {
    id: newId(),
    dataset: name,
    datasetVersion: version,
    policyVersion: checked.policyVersion,
    tier: checked.tier,
    query: checked.canonical,
    queryDigest: checked.digest,
    cost: checked.cost,
    pinnedNow: checked.pinnedNow,
    priority,
    customId: submission.custom_id ?? null,
    tags: submission.tags ?? [],
    traceparent,
    createdAt: now,
    expiresAt: new Date(now.getTime() + (submission.ttl_s ?? TTL_DEFAULT_S) * 1_000),
  };
  return { request, checked };
}

/** The profile type of the caller; without one there is no right to anything. */
export function findRights(rules: Rules, principal: Principal): ProfileType {
  const found = rules.profileTypes.get(principal.profileTypeId);
  if (found && !found.disabled) return found;
  throw new SallyportError('dataset-forbidden', 'Your profile type is not known here yet.', {
    next: 'Ask an administrator which rights your account has.',
  });
}

/** The datasets the caller may query, by name. */
export function listAllowed(rules: Rules, profileType: ProfileType): Dataset[] {
  return profileType.datasets
    .flatMap((name) => rules.datasets.get(name) ?? [])
    .filter((dataset) => !dataset.disabled)
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** A stored request as its user sees it before anything else happened to it. */
export function viewSubmitted(request: NewRequest, warnings: string[]): RequestView {
  const createdAt = request.createdAt.toISOString();
  return {
    id: request.id,
    status: 'submitted',
    stage: null,
    reason_code: 'waiting_seal',
    failure: null,
    known_as_of: createdAt,
    version: 1,
    dataset: request.dataset,
    dataset_version: request.datasetVersion,
    tier: request.tier,
    query_digest: request.queryDigest,
    pinned_now: request.pinnedNow.toISOString(),
    policy_version: request.policyVersion,
    cost: request.cost,
    batch: null,
    priority: request.priority,
    created_at: createdAt,
    expires_at: request.expiresAt.toISOString(),
    finished_at: null,
    eta: null,
    result: { available: false, partial: false, late: false, bytes: null, digest: null },
    retry_of: null,
    custom_id: request.customId,
    tags: request.tags,
    warnings,
  };
}

// A dataset that does not exist and one that is somebody else's get the same answer.
function findAllowed(rules: Rules, profileType: ProfileType, name: string): Dataset {
  const dataset = profileType.datasets.includes(name) ? rules.datasets.get(name) : undefined;
  if (dataset && !dataset.disabled) return dataset;
  const detail = `is "${name}", and you have no right to a dataset of this name`;
  throw new SallyportError('dataset-forbidden', `There is no dataset "${name}" for you.`, {
    next: 'GET /v1/datasets lists what you may query.',
    errors: [{ pointer: '/dataset', code: 'dataset-forbidden', detail }],
  });
}

function choosePriority(profileType: ProfileType, wanted: Priority | undefined): Priority {
  const { priorities } = profileType;
  if (wanted === undefined) {
    const usual = priorities.includes('normal') ? 'normal' : priorities[0];
    if (usual) return usual;
  } else if (priorities.includes(wanted)) return wanted;
  const limit = priorities.join(', ') || 'none';
  throw new SallyportError(
    'role-missing',
    `You may not submit with priority ${wanted ?? 'normal'}.`,
    {
      next: `Allowed to you: ${limit}.`,
      errors: [
        {
          pointer: '/priority',
          code: 'role-missing',
          detail: 'is not among your priorities',
          limit,
          ...(wanted === undefined ? {} : { actual: wanted }),
        },
      ],
    },
  );
}
