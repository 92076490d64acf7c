import { Type, type Static, type TObject, type TSchema } from 'typebox';
import { v5 } from 'uuid';

/**
 * The shape of everything that crosses the gap. One schema per record type, checked when a record is
 * sent and again when it is read. A change here is a change of the format: raise the type's `v`, and upgrade readers before writers.
 */

const object = <T extends Record<string, TSchema>>(properties: T) =>
  Type.Object(properties, { additionalProperties: false });
const nullable = <T extends TSchema>(schema: T) => Type.Union([schema, Type.Null()]);
const text = (maxLength: number, minLength = 0) => Type.String({ minLength, maxLength });
const oneOf = <T extends string>(...values: T[]) =>
  Type.Unsafe<T>({ type: 'string', enum: values });

/** Lower-case hexadecimal SHA-256. */
export const Sha256 = Type.String({ pattern: '^[0-9a-f]{64}$' });
export const Uuid = Type.String({
  pattern: '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$',
});
/** RFC 3339, UTC, milliseconds: what `Date.prototype.toISOString` writes, from 1970 on. */
export const Timestamp = Type.String({
  format: 'date-time',
  pattern:
    '^(?:19[7-9]|[2-9][0-9]{2})[0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9][.][0-9]{3}Z$',
});
const Version = Type.Integer({ minimum: 1, maximum: 2_147_483_647 });
const Counter = Type.Integer({ minimum: 0, maximum: 2_147_483_647 });
/** Names of datasets, templates, profile types, settings: safe in paths, logs, and index names. */
export const Name = Type.String({ pattern: '^[a-z0-9][a-z0-9._-]{0,62}$' });
/** Login names are case-folded before they are stored or sent. */
export const LoginName = Type.String({ pattern: '^[a-z0-9][a-z0-9._@-]{0,63}$' });
export const DisplayName = Type.String({ minLength: 1, maxLength: 200 });
export const Email = Type.String({
  minLength: 3,
  maxLength: 254,
  pattern: '^[^\\s@]+@[^\\s@]+$',
  description: 'an e-mail address',
});
export const Language = Type.String({
  pattern: '^[A-Za-z0-9-]{2,35}$',
  description: 'a language tag such as de or en-GB',
});
const Reason = nullable(text(64, 1));

export const NETWORKS = ['request', 'response'] as const;
export type NetworkName = (typeof NETWORKS)[number];
export const ROLES = ['user', 'operator', 'admin', 'reviewer', 'auditor'] as const;
export type Role = (typeof ROLES)[number];
export const TIERS = ['A', 'B', 'C'] as const;
export type Tier = (typeof TIERS)[number];
export const PRIORITIES = ['low', 'normal', 'urgent'] as const;
export type Priority = (typeof PRIORITIES)[number];
export const FINAL_STATUSES = ['delivered', 'failed', 'rejected', 'cancelled', 'expired'] as const;
export type FinalStatus = (typeof FINAL_STATUSES)[number];
export const FAILURE_CLASSES = ['timeout', 'capacity', 'integrity', 'query', 'internal'] as const;

const TierSchema = oneOf(...TIERS);
const PrioritySchema = oneOf(...PRIORITIES);

/** Largest `text` of one record, in UTF-8 bytes; a longer result is cut into parts. */
export const RESULT_TEXT_BYTES = 768 * 1024;

/** Why a request ended without an answer; the members of a problem document that make sense here. */
export const FailureSchema = object({
  class: nullable(oneOf(...FAILURE_CLASSES)),
  code: text(64, 1),
  detail: text(2_000),
  errors: Type.Optional(
    Type.Array(
      object({
        pointer: text(1_000),
        code: text(64),
        detail: text(1_000),
        limit: Type.Optional(Type.Union([Type.Number(), text(200)])),
        actual: Type.Optional(Type.Union([Type.Number(), text(200)])),
        hint: Type.Optional(text(500)),
      }),
      { maxItems: 20 },
    ),
  ),
});
export type Failure = Static<typeof FailureSchema>;

const RequestSchema = object({
  user_id: Uuid,
  dataset: Name,
  dataset_version: Version,
  policy_version: Version,
  tier: TierSchema,
  pinned_now: Timestamp,
  expires_at: Timestamp,
  priority: PrioritySchema,
  /** The canonical query as text (RFC 8785); never re-serialised on the way. */
  query: text(256 * 1024, 2),
  query_digest: Type.String({ pattern: '^sha256:[0-9a-f]{64}$' }),
  traceparent: nullable(text(55, 55)),
});

const CancelSchema = object({ user_id: Uuid, expires_at: Timestamp });

const ProgressSchema = object({
  version: Version,
  status: oneOf('processing', 'held'),
  stage: oneOf('queued', 'executing', 'disclosure', 'packing', 'review'),
  reason_code: Reason,
  times: object({
    received_at: Timestamp,
    started_at: nullable(Timestamp),
  }),
});

const ResultSchema = object({
  status: oneOf(...FINAL_STATUSES),
  failure: nullable(FailureSchema),
  media_type: nullable(text(100)),
  /** Of the whole text, however many parts carry it; null when there is none. */
  bytes: nullable(Type.Integer({ minimum: 0, maximum: 4_294_967_296 })),
  sha256: nullable(Sha256),
  /** How many `result.part` records carry the text; 0: it is here, or there is none. */
  parts: Type.Integer({ minimum: 0, maximum: 100_000 }),
  text: nullable(text(RESULT_TEXT_BYTES)),
  disclosure: nullable(
    object({
      policy: Name,
      version: Version,
      rules: Type.Array(text(64), { maxItems: 32 }),
      cells_suppressed: Counter,
      rounded_to: nullable(Counter),
      reviewer: nullable(Uuid),
    }),
  ),
  dataset_version: nullable(Version),
  policy_version: nullable(Version),
  times: object({
    received_at: Timestamp,
    started_at: nullable(Timestamp),
    finished_at: Timestamp,
    took_ms: nullable(Counter),
  }),
});

const ResultPartSchema = object({
  index: Type.Integer({ minimum: 0, maximum: 99_999 }),
  text: text(RESULT_TEXT_BYTES),
});

const Percent = (minimum: number, maximum: number) => Type.Integer({ minimum, maximum });
export const LimitsSchema = object({
  submit_per_minute: Type.Integer({ minimum: 1, maximum: 1_000_000 }),
  submit_per_hour: Type.Integer({ minimum: 1, maximum: 10_000_000 }),
  submit_per_day: Type.Integer({ minimum: 1, maximum: 100_000_000 }),
  read_per_minute: Type.Integer({ minimum: 1, maximum: 1_000_000 }),
  warn_percent: Percent(50, 99),
  ceiling_percent: Percent(100, 200),
  grace_s: Type.Integer({ minimum: 0, maximum: 3_600 }),
  rearm_minute_s: Type.Integer({ minimum: 60, maximum: 31_536_000 }),
  rearm_hour_s: Type.Integer({ minimum: 60, maximum: 31_536_000 }),
  rearm_day_s: Type.Integer({ minimum: 60, maximum: 31_536_000 }),
  open_requests: Type.Integer({ minimum: 1, maximum: 1_000_000 }),
  stored_bytes: Type.Integer({ minimum: 1, maximum: 1_099_511_627_776 }),
});
export type Limits = Static<typeof LimitsSchema>;

export const ProfileTypeSchema = object({
  version: Version,
  name: Name,
  description: text(500),
  /** Names of the datasets its members may query; none means none. */
  datasets: Type.Array(Name, { maxItems: 1_000, uniqueItems: true }),
  tier: TierSchema,
  priorities: Type.Array(PrioritySchema, { maxItems: 3, uniqueItems: true }),
  limits: LimitsSchema,
  retention_days: Type.Integer({ minimum: 1, maximum: 3_650 }),
  disabled: Type.Boolean(),
});
export type ProfileTypeRecord = Static<typeof ProfileTypeSchema>;

export const NoticesSchema = Type.Record(
  Type.String({ pattern: '^[a-z0-9_-]{1,40}$' }),
  Type.Array(oneOf('app', 'email', 'webhook'), { maxItems: 3, uniqueItems: true }),
  { maxProperties: 50 },
);

const profileProperties = {
  profile_version: Counter,
  display_name: text(200),
  email: nullable(text(254, 3)),
  language: nullable(Language),
  notices: NoticesSchema,
};

export const RoleGrantSchema = object({ network: oneOf(...NETWORKS), role: oneOf(...ROLES) });
export type RoleGrant = Static<typeof RoleGrantSchema>;

export const UserSchema = object({
  version: Version,
  login: LoginName,
  profile_type_id: Uuid,
  roles: Type.Array(RoleGrantSchema, { maxItems: NETWORKS.length * ROLES.length }),
  disabled: Type.Boolean(),
  must_change_password: Type.Boolean(),
  ...profileProperties,
});
export type UserRecord = Static<typeof UserSchema>;

const AccountProfileSchema = object(profileProperties);

/** The lexicographically greater (generation, counter) wins on both networks. */
const CredentialSchema = object({
  generation: Version,
  counter: Counter,
  /** A PHC string; its parameters must lie in the policy's range. */
  verifier: text(512, 20),
});

export const FIELD_TYPES = [
  'keyword',
  'text',
  'date',
  'long',
  'integer',
  'double',
  'boolean',
  'geo_point',
  'nested',
] as const;
export const DatasetFieldSchema = object({
  name: Type.String({ pattern: '^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,254}$' }),
  type: oneOf(...FIELD_TYPES),
  title: Type.Optional(text(200)),
});
export const DatasetSchema = object({
  /** Raised with every change of its rules. */
  version: Version,
  /** Raised with every reload of its data. */
  epoch: Version,
  name: Name,
  title: text(200),
  description: text(2_000),
  time_field: nullable(text(255, 1)),
  fields: Type.Array(DatasetFieldSchema, { maxItems: 1_000 }),
  disabled: Type.Boolean(),
});
export type DatasetRecord = Static<typeof DatasetSchema>;

const FreeObject = Type.Record(Type.String(), Type.Unknown());
const TemplateSchema = object({
  version: Version,
  name: Name,
  title: text(200),
  description: text(2_000),
  dataset: Name,
  params: FreeObject,
  body: FreeObject,
  disabled: Type.Boolean(),
});
const PolicySchema = object({ version: Version, table: FreeObject });
export const SettingSchema = object({ key: Name, version: Version, value: Type.Unknown() });

export const STREAM_NAMES = [
  'control',
  'accounts',
  'identity',
  'requests.urgent',
  'settings',
  'requests',
  'results',
  'results.bulk',
] as const;
export type StreamName = (typeof STREAM_NAMES)[number];

const SequenceSchema = {
  stream: oneOf(...STREAM_NAMES),
  epoch: Type.Integer({ minimum: 1, maximum: 9_999 }),
  seq: Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER }),
  digest: Sha256,
};
const WithdrawnSchema = object({
  ...SequenceSchema,
  reason: text(500, 1),
  /** Two different people. */
  by: Type.Array(text(100, 1), { minItems: 2, maxItems: 2, uniqueItems: true }),
});
const KeyChangeSchema = object({
  /** `restore`: the key stays, the epoch rises because a database was restored. */
  change: oneOf('rotate', 'revoke', 'restore'),
  kid: text(64, 1),
  /** The public card that replaces the key; null when the key stays. */
  card: nullable(FreeObject),
  /** Per stream the last number the old key may sign. */
  retire: Type.Record(Type.String(), Type.Integer({ minimum: 0 })),
  epoch: Type.Integer({ minimum: 1, maximum: 9_999 }),
});
const CustodySchema = object({
  ...SequenceSchema,
  step: oneOf(
    'sealed',
    'written',
    'read_back',
    'handed_over',
    'received',
    'verified',
    'applied',
    'receipt',
  ),
  who: text(200),
  at: Timestamp,
  medium: nullable(text(200)),
});

type RecordTypeEntry<Schema extends TSchema> = { v: number; schema: Schema };
const type = <Schema extends TObject>(schema: Schema): RecordTypeEntry<Schema> => ({
  v: 1,
  schema,
});

/** Every record type that may cross, with the version of its shape. */
export const RECORD_TYPES = {
  request: type(RequestSchema),
  'request.cancel': type(CancelSchema),
  'request.progress': type(ProgressSchema),
  result: type(ResultSchema),
  'result.part': type(ResultPartSchema),
  profile_type: type(ProfileTypeSchema),
  user: type(UserSchema),
  'user.credential': type(CredentialSchema),
  dataset: type(DatasetSchema),
  template: type(TemplateSchema),
  policy: type(PolicySchema),
  setting: type(SettingSchema),
  'account.credential': type(CredentialSchema),
  'account.profile': type(AccountProfileSchema),
  'batch.withdrawn': type(WithdrawnSchema),
  'key.change': type(KeyChangeSchema),
  custody: type(CustodySchema),
} as const;
export type RecordType = keyof typeof RECORD_TYPES;
/** The `d` of a record of type T. */
export type RecordData<T extends RecordType> = Static<(typeof RECORD_TYPES)[T]['schema']>;

/** What the fields of a stream mean: {@link STREAMS}. */
export type StreamRule = {
  /** The roles that may send it. */
  from: readonly NetworkName[];
  /** `ordered`: strictly in sequence, healed by snapshots; `independent`: on arrival. */
  order: 'ordered' | 'independent';
  /** 0 is carried first. */
  lane: 0 | 1 | 2 | 3;
  /** Whether a batch of it may become too old to import (`notAfter`). */
  expires: boolean;
  /** Whether `crypt: none` is refused for it, whatever the settings say. */
  alwaysEncrypted: boolean;
  /** What a record with a bad `d` does: refuse the batch, or only that record. */
  badRecord: 'refuses-batch' | 'refuses-record';
  types: readonly RecordType[];
};

const stream = (rule: StreamRule): StreamRule => rule;
const ACCOUNT = { expires: false, alwaysEncrypted: true, badRecord: 'refuses-batch' } as const;
const WORK = { order: 'independent', expires: true, alwaysEncrypted: false } as const;

/** Every stream, who sends it, and how it is applied. */
export const STREAMS: Readonly<Record<StreamName, StreamRule>> = {
  control: stream({
    from: NETWORKS,
    order: 'independent',
    lane: 0,
    expires: false,
    alwaysEncrypted: false,
    badRecord: 'refuses-batch',
    types: ['request.progress', 'batch.withdrawn', 'key.change', 'custody'],
  }),
  accounts: stream({
    ...ACCOUNT,
    from: ['request'],
    order: 'independent',
    lane: 0,
    types: ['account.credential', 'account.profile'],
  }),
  identity: stream({
    ...ACCOUNT,
    from: ['response'],
    order: 'ordered',
    lane: 0,
    types: ['profile_type', 'user', 'user.credential'],
  }),
  'requests.urgent': stream({
    ...WORK,
    from: ['request'],
    lane: 1,
    badRecord: 'refuses-record',
    types: ['request', 'request.cancel'],
  }),
  settings: stream({
    from: ['response'],
    order: 'ordered',
    lane: 1,
    expires: false,
    alwaysEncrypted: false,
    badRecord: 'refuses-batch',
    types: ['dataset', 'template', 'policy', 'setting'],
  }),
  requests: stream({
    ...WORK,
    from: ['request'],
    lane: 2,
    badRecord: 'refuses-record',
    types: ['request', 'request.cancel'],
  }),
  results: stream({
    ...WORK,
    from: ['response'],
    lane: 2,
    badRecord: 'refuses-batch',
    types: ['result', 'result.part'],
  }),
  'results.bulk': stream({
    ...WORK,
    from: ['response'],
    lane: 3,
    badRecord: 'refuses-batch',
    types: ['result.part'],
  }),
};

/** The streams a network of this role sends, in the order in which lanes leave. */
export function streamsSentBy(role: NetworkName): StreamName[] {
  return STREAM_NAMES.filter((name) => STREAMS[name].from.includes(role)).sort(
    (a, b) => STREAMS[a].lane - STREAMS[b].lane,
  );
}

const SETTING_NAMESPACE = '6f1d0f0e-7a0f-5d56-9d29-2f1b7c3f9a11';

/** The record id of a setting: settings are known by key, records by uuid (RFC 9562, version 5). */
export function settingRecordId(key: string): string {
  return v5(key, SETTING_NAMESPACE);
}
