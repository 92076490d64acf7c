/** HTTP status and title of every code an API answers with (RFC 9457). */
const HTTP_CODES = {
  'malformed-json': [400, 'The body is not valid JSON'],
  'duplicate-key': [400, 'A key appears twice in one object'],
  'bad-header': [400, 'A header is malformed'],
  'bad-page-token': [400, 'The page token is not valid here'],
  'body-incomplete': [400, 'The body ended too early'],
  unauthenticated: [401, 'Log in or send a valid API key'],
  'scope-missing': [403, 'The key lacks the scope for this'],
  'role-missing': [403, 'Your role does not allow this'],
  'dataset-forbidden': [403, 'You have no right to this dataset'],
  'tier-forbidden': [403, 'Your tier does not allow this'],
  'cross-site': [403, 'The call came from another site'],
  'password-change-required': [403, 'Change your password first'],
  'approval-same-person': [403, 'A second person must decide this'],
  'plain-results': [403, 'Readable records are not given out here'],
  blocked: [403, 'An administrator has blocked this'],
  'not-found': [404, 'Not found'],
  'method-not-allowed': [405, 'The method is not allowed here'],
  'not-acceptable': [406, 'No offered media type is acceptable'],
  'body-too-slow': [408, 'The body came too slowly'],
  'already-final': [409, 'It has already ended'],
  'result-not-ready': [409, 'The result is not here yet'],
  'no-result': [409, 'The request ended without a result'],
  'version-conflict': [409, 'Somebody else changed this first'],
  'already-exists': [409, 'It exists already'],
  'last-admin': [409, 'Somebody must stay who can administer this'],
  'own-account': [409, 'You may not do this to yourself'],
  'not-trusted': [409, 'No far side is trusted yet'],
  'store-ahead': [409, 'The database is older than its store'],
  'batch-refused': [409, 'The batch file is refused'],
  'upload-offset': [409, 'The upload goes on from another offset'],
  'in-flight': [409, 'The same key is being processed right now'],
  'result-purged': [410, 'The result has been purged'],
  'store-bytes-missing': [410, 'The bytes of the batch are no longer kept'],
  'quarantine-bytes-missing': [410, 'The bytes of the refused file are not kept'],
  'body-too-large': [413, 'The body is too large'],
  'too-many-lines': [413, 'Too many lines'],
  'unsupported-media-type': [415, 'The media type is not supported'],
  'digest-mismatch': [422, 'The bytes are not those of the digest'],
  'bad-field': [422, 'A field is not valid'],
  'unknown-field': [422, 'A field is not known here'],
  'too-deep': [422, 'The query is nested too deeply'],
  'too-many-keys': [422, 'The query has too many keys'],
  'too-many-clauses': [422, 'The query has too many clauses'],
  'value-too-long': [422, 'A value is too long'],
  'too-many-values': [422, 'A list has too many values'],
  'bad-number': [422, 'A number cannot be carried exactly'],
  'query-invalid': [422, 'The query is not well formed'],
  'query-kind-denied': [422, 'This kind of query is not allowed'],
  'pattern-too-broad': [422, 'The pattern is too broad'],
  'page-too-deep': [422, 'The page lies too deep'],
  'sort-denied': [422, 'This sort is not allowed'],
  'field-denied': [422, 'This field is not allowed'],
  'agg-kind-denied': [422, 'This kind of aggregation is not allowed'],
  'agg-too-large': [422, 'The aggregation is too large'],
  'agg-unbounded': [422, 'The histogram has no bounds'],
  'range-required': [422, 'A time range is required'],
  'query-too-costly': [422, 'The query costs too much'],
  'idempotency-key-reused': [422, 'The idempotency key was used for something else'],
  'cost-exceeds-limit': [422, 'The call costs more than the limit can ever admit'],
  'bulk-line-invalid': [422, 'At least one line is not valid'],
  'if-match-required': [428, 'If-Match is required'],
  'rate-limited': [429, 'Too many requests'],
  'open-requests-limit': [429, 'Too many open requests'],
  'stored-bytes-limit': [429, 'Too many bytes of results are kept'],
  'too-many-streams': [429, 'Too many event streams'],
  'headers-too-large': [431, 'The headers are too large'],
  internal: [500, 'Something broke on our side'],
  maintenance: [503, 'Down for maintenance'],
  'queue-full': [503, 'The queue is full'],
  'batch-waits': [503, 'The batch file has to wait'],
  'outbox-unwritable': [503, 'The outbox cannot be written'],
  'store-unavailable': [503, 'The database cannot be reached'],
} as const satisfies Record<string, readonly [status: number, title: string]>;

/** What can happen to a batch file; the list and its meaning: spec batch-format. */
const WAIT_CODES = [
  'INCOMPLETE',
  'WAIT_DISK',
  'WAIT_GAP',
  'WAIT_KEY',
  'WAIT_CLOCK',
  'WAIT_UPGRADE',
  'WAIT_APPROVAL',
  'WAIT_LOCK',
  'WAIT_DB',
] as const;
const REJECT_CODES = [
  'NOT_A_BATCH',
  'BAD_HEADER',
  'HEADER_TOO_BIG',
  'BAD_JSON',
  'BAD_UTF8',
  'UNSUPPORTED_VERSION',
  'UNKNOWN_KEY',
  'KEY_RETIRED',
  'KEY_WRONG_ROLE',
  'BAD_SIGNATURE',
  'WRONG_DESTINATION',
  'WRONG_LINK',
  'WRONG_DIRECTION',
  'EXPIRED',
  'FROM_FUTURE',
  'TOO_BIG',
  'TRUNCATED',
  'TRAILING_DATA',
  'HASH_MISMATCH',
  'DECRYPT_FAILED',
  'INFLATE_FAILED',
  'INFLATE_LIMIT',
  'LINE_TOO_LONG',
  'TOO_MANY_RECORDS',
  'COUNT_MISMATCH',
  'SCHEMA',
  'DUPLICATE_ID_CONFLICT',
  'NOT_REGULAR_FILE',
  'OLD_EPOCH',
] as const;
const ALARM_CODES = [
  'SEQ_FORK',
  'CHAIN_BREAK',
  'ACK_FORK',
  'KEY_REVOKED',
  'VALIDATOR_DISAGREE',
] as const;
const INFO_CODES = [
  'DUPLICATE',
  'HEALED',
  'WITHDRAWN',
  'NAME_HINT_WRONG',
  'FOREIGN_FILE',
  'ORPHAN',
] as const;

/** What a command line tool or a start can stumble over, outside HTTP and batches. */
const LOCAL_CODES = [
  'config-invalid',
  'usage',
  'migrations-pending',
  'keys-exist',
  'keys-missing',
  'keys-locked',
  'passphrase-wrong',
  'card-invalid',
  'inbox-unwritable',
  'record-invalid',
  'gap-code-wrong',
  'elasticsearch-unavailable',
  'search-failed',
  'services-unavailable',
  'checksum-mismatch',
  'cache-unwritable',
  'medium-gone',
  'medium-full',
  'medium-bad',
  'medium-invalid',
  'medium-unwritable',
  'read-back-differs',
  'index-invalid',
  'index-mismatch',
  'export-invalid',
] as const;

export type HttpCode = keyof typeof HTTP_CODES;
export type WaitCode = (typeof WAIT_CODES)[number];
export type RejectCode = (typeof REJECT_CODES)[number];
export type AlarmCode = (typeof ALARM_CODES)[number];
export type InfoCode = (typeof INFO_CODES)[number];
export type BatchCode = WaitCode | RejectCode | AlarmCode | InfoCode;
export type ErrorCode = HttpCode | BatchCode | (typeof LOCAL_CODES)[number];

/** One thing that is wrong at one place of a body (RFC 9457 extension member `errors`). */
export type ErrorDetail = {
  /** JSON Pointer (RFC 6901) into the body. */
  pointer: string;
  code: string;
  detail: string;
  limit?: number | string;
  actual?: number | string;
  hint?: string;
};

type ErrorOptions = {
  cause?: unknown;
  /** What the reader can do next, one sentence. */
  next?: string;
  errors?: ErrorDetail[];
  retryAfterS?: number;
  /** Further members of the problem document. */
  extra?: Record<string, unknown>;
  /** Further headers of the answer. */
  headers?: Record<string, string>;
};

/** An expected failure: `code` is stable, the message says what was found and what was expected. */
export class SallyportError extends Error {
  override readonly name = 'SallyportError';
  readonly code: ErrorCode;
  readonly next: string | undefined;
  readonly errors: ErrorDetail[];
  readonly retryAfterS: number | undefined;
  readonly extra: Record<string, unknown>;
  readonly headers: Record<string, string>;

  constructor(code: ErrorCode, message: string, options: ErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.next = options.next;
    this.errors = options.errors ?? [];
    this.retryAfterS = options.retryAfterS;
    this.extra = options.extra ?? {};
    this.headers = options.headers ?? {};
  }
}

/** HTTP status and title of a code; codes that are not for HTTP answer as `internal`. */
export function httpProblem(code: ErrorCode): { status: number; title: string } {
  const [status, title] = code in HTTP_CODES ? HTTP_CODES[code as HttpCode] : HTTP_CODES.internal;
  return { status, title };
}

/** Every code an API can answer with, for the problem pages and the OpenAPI document. */
export function listHttpCodes(): HttpCode[] {
  return Object.keys(HTTP_CODES) as HttpCode[];
}

/** How a batch code is treated: wait and retry, quarantine, page a person, or just tell. */
export function batchCodeKind(code: BatchCode): 'wait' | 'reject' | 'alarm' | 'info' {
  if ((WAIT_CODES as readonly string[]).includes(code)) return 'wait';
  if ((ALARM_CODES as readonly string[]).includes(code)) return 'alarm';
  return (REJECT_CODES as readonly string[]).includes(code) ? 'reject' : 'info';
}
