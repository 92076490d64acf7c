import { Type, type Static, type TSchema } from 'typebox';
import {
  FINAL_STATUSES,
  FailureSchema,
  Name,
  PRIORITIES,
  STREAM_NAMES,
  TIERS,
  Timestamp,
  UserTime,
  Uuid,
} from '@sallyport/shared';

const object = <T extends Record<string, TSchema>>(properties: T) =>
  Type.Object(properties, { additionalProperties: false });
const nullable = <T extends TSchema>(schema: T) => Type.Union([schema, Type.Null()]);
const oneOf = <T extends string>(...values: readonly T[]) =>
  Type.Unsafe<T>({ type: 'string', enum: values });

/** What a request can be said to be, its batch's word included (docs/reference/http.md). */
export const REQUEST_STATUSES = [
  'submitted',
  'batched',
  'exported',
  'processing',
  'held',
  'cancelling',
  ...FINAL_STATUSES,
] as const;
export type RequestStatus = (typeof REQUEST_STATUSES)[number];

const TTL_LEAST_S = 3_600;
const TTL_MOST_S = 1_209_600;
export const TTL_DEFAULT_S = 259_200;

const CustomId = Type.String({ minLength: 1, maxLength: 200 });
const Tag = Type.String({ minLength: 1, maxLength: 64 });

/** The body of a submit, and of each line of a bulk. */
export const SubmissionSchema = Type.Object(
  {
    dataset: Name,
    /** Checked by the policy, not here. */
    query: Type.Unsafe<Record<string, unknown>>({ type: 'object' }),
    custom_id: Type.Optional(CustomId),
    priority: Type.Optional(oneOf(...PRIORITIES)),
    ttl_s: Type.Optional(Type.Integer({ minimum: TTL_LEAST_S, maximum: TTL_MOST_S })),
    tags: Type.Optional(Type.Array(Tag, { maxItems: 20, uniqueItems: true })),
  },
  { additionalProperties: false },
);
export type Submission = Static<typeof SubmissionSchema>;

/** When an answer may be here: by then in half, and in nine of ten, of comparable cases. */
const EtaSchema = object({ p50: Timestamp, p90: Timestamp });
export type Eta = Static<typeof EtaSchema>;

/** A request as its user sees it (docs/reference/http.md). */
export const RequestViewSchema = object({
  id: Uuid,
  status: oneOf(...REQUEST_STATUSES),
  stage: nullable(Type.String()),
  reason_code: nullable(Type.String()),
  failure: nullable(FailureSchema),
  /** When the newest evidence was made. */
  known_as_of: Timestamp,
  version: Type.Integer(),
  dataset: Name,
  dataset_version: Type.Integer(),
  tier: oneOf(...TIERS),
  query_digest: Type.String(),
  pinned_now: Timestamp,
  policy_version: Type.Integer(),
  cost: Type.Number(),
  batch: nullable(
    object({
      id: Uuid,
      stream: oneOf(...STREAM_NAMES),
      seq: Type.Integer(),
      line: Type.Integer(),
    }),
  ),
  priority: oneOf(...PRIORITIES),
  created_at: Timestamp,
  expires_at: Timestamp,
  finished_at: nullable(Timestamp),
  eta: nullable(EtaSchema),
  result: object({
    available: Type.Boolean(),
    /** Some of its records are here, others on their way. */
    partial: Type.Boolean(),
    late: Type.Boolean(),
    bytes: nullable(Type.Integer()),
    digest: nullable(Type.String()),
  }),
  /** The request that this one repeats. */
  retry_of: nullable(Uuid),
  custom_id: nullable(Type.String()),
  tags: Type.Array(Type.String()),
  warnings: Type.Array(Type.String()),
});
export type RequestView = Static<typeof RequestViewSchema>;

export const RequestPageSchema = object({
  items: Type.Array(RequestViewSchema),
  next_page_token: Type.Optional(Type.String()),
});
export type RequestPage = Static<typeof RequestPageSchema>;

/** Query parameters of the list. */
export const RequestListSchema = object({
  status: Type.Optional(Type.Array(oneOf(...REQUEST_STATUSES), { maxItems: 11 })),
  dataset: Type.Optional(Name),
  custom_id: Type.Optional(CustomId),
  tag: Type.Optional(Tag),
  /** Half-open: from this moment on, before that one. */
  created_from: Type.Optional(UserTime),
  created_before: Type.Optional(UserTime),
  text: Type.Optional(Type.String({ minLength: 1, maxLength: 200 })),
  page_size: Type.Integer({ minimum: 1, maximum: 500, default: 50 }),
  page_token: Type.Optional(Type.String({ maxLength: 200 })),
});

export const EventSchema = object({
  at: Timestamp,
  /** On whose clock `at` was read. */
  network: oneOf('request', 'response'),
  event: Type.String(),
  actor: nullable(Type.String()),
  batch: nullable(object({ id: Uuid, seq: nullable(Type.Integer()) })),
  /** Of the batch that carried the news. */
  digest: nullable(Type.String()),
  reason: nullable(Type.String()),
});
export type EventView = Static<typeof EventSchema>;
export const TimelineSchema = object({ events: Type.Array(EventSchema) });

/** What `validate_only` answers: nothing was stored. */
export const ValidationSchema = object({
  allowed: Type.Boolean(),
  dataset: Name,
  tier: oneOf(...TIERS),
  query: Type.Unsafe<Record<string, unknown>>({ type: 'object' }),
  query_digest: Type.String(),
  cost: Type.Number(),
  policy_version: Type.Integer(),
  warnings: Type.Array(Type.String()),
});

/** What became of each line of a bulk. */
export const BulkAnswerSchema = object({
  accepted: Type.Integer(),
  refused: Type.Integer(),
  items: Type.Array(
    object({
      line: Type.Integer(),
      id: nullable(Uuid),
      custom_id: nullable(Type.String()),
      error: nullable(
        object({
          pointer: Type.String(),
          code: Type.String(),
          detail: Type.String(),
          limit: Type.Optional(Type.Union([Type.Number(), Type.String()])),
          actual: Type.Optional(Type.Union([Type.Number(), Type.String()])),
          hint: Type.Optional(Type.String()),
        }),
      ),
    }),
  ),
});
export type BulkAnswer = Static<typeof BulkAnswerSchema>;
