import { createHash } from 'node:crypto';
import type { Static } from 'typebox';
import {
  containing,
  rows,
  runPrepared,
  type Database,
  type Failure,
  type Priority,
  type StreamName,
  type Tier,
  readPageToken,
  writePageToken,
} from '@sallyport/shared';
import { BATCH_OF_REQUEST } from '@sallyport/transfer';
import type {
  RequestListSchema,
  RequestPage,
  RequestStatus,
  RequestView,
} from './request-schemas.js';
import { notFound } from './requests.js';

/** A request as it is read with its batch and result. */
export type RequestRow = {
  id: string;
  status: RequestStatus;
  own_status: RequestStatus;
  stage: string | null;
  reason_code: string | null;
  failure: Failure | null;
  known_as_of: Date;
  version: number;
  dataset: string;
  dataset_version: number;
  tier: Tier;
  query_digest: string;
  pinned_now: Date;
  policy_version: number;
  cost: number;
  priority: Priority;
  retry_of: string | null;
  custom_id: string | null;
  tags: string[];
  created_at: Date;
  expires_at: Date;
  finished_at: Date | null;
  batch_id: string | null;
  stream: StreamName;
  seq: number;
  batch_line: number;
  complete: boolean | null;
  late: boolean | null;
  bytes: number | null;
  sha256: string | null;
  purged_at: Date | null;
};

// A batch that is still being built is not shown: until it is sealed it may be built again.
const STATUS = `case when r.status <> 'submitted' then r.status
  when b.state in ('sealed', 'ready') then 'batched'
  when b.state in ('handed_over', 'rejected', 'withdrawn') then 'exported'
  when b.state = 'acked' then 'processing'
  else r.status end`;
const VERSION = `r.version + case when b.state <> 'building' then b.version else 0 end`;
const FROM = `from requests r ${BATCH_OF_REQUEST} left join results s on s.request_id = r.id`;
/** Reads requests `r` with their batches `b` and results `s`. */
export const REQUEST_SELECT = `
  select r.id, ${STATUS} as status, r.status as own_status, r.stage, r.reason_code, r.failure,
    greatest(r.known_as_of, b.sealed_at, b.handed_over_at, b.acked_at) as known_as_of,
    coalesce(${VERSION}, r.version) as version, r.dataset, r.dataset_version, r.tier,
    r.query_digest, r.pinned_now, r.policy_version, r.cost, r.priority, r.retry_of, r.custom_id, r.tags,
    r.created_at, r.expires_at, r.finished_at,
    case when b.state <> 'building' then b.id end as batch_id, b.stream, b.seq, o.batch_line,
    s.complete, s.late, s.bytes, s.sha256, s.purged_at
  ${FROM}`;
const GET = { name: 'get_request', text: `${REQUEST_SELECT} where r.id = $1 and r.user_id = $2` };

/**
 * A request of the user.
 * @throws SallyportError `not-found`, for somebody else's too.
 */
export async function getRequest(
  db: Database,
  { id, userId }: { id: string; userId: string },
): Promise<RequestView> {
  const [row] = await runPrepared<RequestRow>(db, GET, [id, userId]);
  if (!row) throw notFound(id);
  return toView(row);
}

/**
 * As much of a request of the user as a poll needs that finds nothing new.
 * @throws SallyportError `not-found`, for somebody else's too.
 */
export async function readState(
  db: Database,
  { id, userId }: { id: string; userId: string },
): Promise<Pick<RequestView, 'status' | 'version'>> {
  const [row] = await runPrepared<Pick<RequestView, 'status' | 'version'>>(db, READ_STATE, [
    id,
    userId,
  ]);
  if (!row) throw notFound(id);
  return row;
}

const READ_STATE = {
  name: 'read_request_state',
  text: `select ${STATUS} as status, coalesce(${VERSION}, r.version) as version
    from requests r ${BATCH_OF_REQUEST} where r.id = $1 and r.user_id = $2`,
};

/** The versions of requests, for those who wait for a change; unknown ids are left out. */
export async function readVersions(db: Database, ids: string[]): Promise<Map<string, number>> {
  const found = await runPrepared<{ id: string; version: number }>(db, READ_VERSIONS, [ids]);
  return new Map(found.map(({ id, version }) => [id, version]));
}

const READ_VERSIONS = {
  name: 'read_request_versions',
  text: `select r.id, coalesce(${VERSION}, r.version) as version
    from requests r ${BATCH_OF_REQUEST} where r.id = any($1::uuid[])`,
};

/** What a list may be narrowed to; the range of creation is half-open. */
export type RequestFilter = Omit<Static<typeof RequestListSchema>, 'page_size' | 'page_token'>;

/**
 * The user's requests, newest first.
 * @throws SallyportError `bad-page-token` for a token of another filter or caller.
 */
export async function listRequests(
  db: Database,
  caller: { userId: string; secret: Buffer },
  options: { filter: RequestFilter; pageSize: number; pageToken?: string | undefined },
): Promise<RequestPage> {
  const { filter, pageSize } = options;
  const binding = `${caller.userId} ${createHash('sha256').update(JSON.stringify(filter)).digest('hex')}`;
  const after = readPageToken(caller.secret, binding, options.pageToken);
  const conditions = conditionsOf(filter);
  conditions.push(['r.user_id = ?', caller.userId]);
  if (after) conditions.push(['r.id < ?::uuid', after]);
  const found = await rows<RequestRow>(
    db,
    `${REQUEST_SELECT} where ${conditions.map(([sql]) => sql).join(' and ')}
     order by r.id desc limit ${pageSize + 1}`,
    conditions.map(([, value]) => value as string),
  );
  const items = found.slice(0, pageSize).map(toView);
  const last = items.at(-1);
  if (found.length <= pageSize || !last) return { items };
  return { items, next_page_token: writePageToken(caller.secret, binding, last.id) };
}

/** The conditions of a filter, each with its value. */
export function conditionsOf(filter: {
  [Key in keyof RequestFilter]?: RequestFilter[Key] | undefined;
}): [sql: string, value: unknown][] {
  const conditions: [string, unknown][] = [];
  if (filter.status) conditions.push([`${STATUS} = any(?)`, filter.status]);
  if (filter.dataset) conditions.push(['r.dataset = ?', filter.dataset]);
  if (filter.custom_id) conditions.push(['r.custom_id = ?', filter.custom_id]);
  if (filter.tag) conditions.push(['? = any(r.tags)', filter.tag]);
  if (filter.created_from) conditions.push(['r.created_at >= ?', filter.created_from]);
  if (filter.created_before) conditions.push(['r.created_at < ?', filter.created_before]);
  if (filter.text) {
    conditions.push([
      `concat_ws(' ', r.custom_id, r.dataset, array_to_string(r.tags, ' '), r.query) ilike ?`,
      containing(filter.text),
    ]);
  }
  return conditions;
}

/** A request as it is answered. */
export function toView(row: RequestRow): RequestView {
  return {
    id: row.id,
    status: row.status,
    stage: row.stage ?? (row.status === 'processing' ? 'queued' : null),
    reason_code: row.reason_code ?? whyWaiting(row.status),
    failure: row.failure,
    known_as_of: row.known_as_of.toISOString(),
    version: row.version,
    dataset: row.dataset,
    dataset_version: row.dataset_version,
    tier: row.tier,
    query_digest: row.query_digest,
    pinned_now: row.pinned_now.toISOString(),
    policy_version: row.policy_version,
    cost: row.cost,
    batch:
      row.batch_id === null
        ? null
        : {
            id: row.batch_id,
            stream: row.stream,
            seq: row.seq,
            line: row.batch_line,
          },
    priority: row.priority,
    created_at: row.created_at.toISOString(),
    expires_at: row.expires_at.toISOString(),
    finished_at: row.finished_at?.toISOString() ?? null,
    eta: null,
    result: {
      available: row.complete === true && row.bytes !== null && row.purged_at === null,
      partial: row.complete === false,
      late: row.late === true,
      bytes: row.bytes,
      digest: row.sha256 && `sha256:${row.sha256}`,
    },
    retry_of: row.retry_of,
    custom_id: row.custom_id,
    tags: row.tags,
    warnings: [],
  };
}

function whyWaiting(status: RequestStatus): string | null {
  switch (status) {
    case 'submitted':
      return 'waiting_seal';
    case 'batched':
      return 'waiting_operator';
    case 'exported':
    case 'cancelling':
      return 'waiting_far_side';
    case 'held':
      return 'in_review';
    default:
      return null;
  }
}
