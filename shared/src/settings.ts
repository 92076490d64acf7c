import { Type, type Static, type TSchema } from 'typebox';
import { SallyportError } from './errors.js';
import { LimitsSchema, STREAMS, STREAM_NAMES, type Limits, type StreamName } from './records.js';
import { compileSchema } from './schema.js';
import { WORKERS, type WorkerName } from './workers.js';

/** What one setting may be; a value is checked where it is set and again where it arrives. */
export type SettingSpec<Schema extends TSchema = TSchema> = {
  schema: Schema;
  default: Static<Schema>;
  /** One sentence for admins, with the unit. */
  description: string;
  /** A request network may override it for itself. */
  local: boolean;
};

const setting = <Schema extends TSchema>(
  schema: Schema,
  value: Static<Schema>,
  description: string,
  { local = false } = {},
): SettingSpec<Schema> => ({ schema, default: value, description, local });
const whole = (minimum: number, maximum: number) => Type.Integer({ minimum, maximum });
const gapHours = (lane: number, hours: number, streams: string) =>
  setting(
    whole(1, 8_760),
    hours,
    `Hours between two publications of a missing batch of lane ${lane} (${streams}).`,
  );
const bounds = (minimum: number, maximum: number) =>
  Type.Object(
    { min: whole(minimum, maximum), max: whole(minimum, maximum) },
    { additionalProperties: false },
  );

/** The parameters of argon2 that a verifier may have; memory in KiB. */
export const Argon2RangeSchema = Type.Object(
  { memory: bounds(1_024, 4_194_304), time: bounds(1, 64), parallelism: bounds(1, 64) },
  { additionalProperties: false },
);
export type Argon2Range = Static<typeof Argon2RangeSchema>;

const MIB = 1024 ** 2;
const GIB = 1024 ** 3;
const HOST = '[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?';

const GENERAL = {
  'transfer.not_after_days': setting(
    whole(1, 3_650),
    30,
    'Days after which a batch of requests or results is too old to import.',
  ),
  'transfer.keep_days': setting(
    whole(1, 3_650),
    30,
    'Days that the bytes of an acknowledged batch are kept.',
  ),
  'transfer.reserve_bytes': setting(
    whole(0, 1_024 * GIB),
    GIB / 4,
    'Bytes of the disk that an import leaves free.',
    { local: true },
  ),
  'transfer.gap_hours.p0': gapHours(0, 4, 'control, identity and accounts'),
  'transfer.gap_hours.p1': gapHours(1, 8, 'requests.urgent and settings'),
  'transfer.gap_hours.p2': gapHours(2, 24, 'requests and results'),
  'transfer.gap_hours.p3': gapHours(3, 72, 'results.bulk'),
  'transfer.one_way': setting(
    Type.Boolean(),
    false,
    'Whether nothing ever comes back from the far side, so that batches are repeated instead.',
    { local: true },
  ),
  'transfer.repeat': setting(
    whole(1, 10),
    3,
    'How often each batch is published over a one-way link.',
  ),
  'transfer.history_days': setting(
    whole(1, 365),
    7,
    'Days over which the publications of a batch over a one-way link are spread.',
  ),
  'requests.late_after_hours': setting(
    whole(1, 8_760),
    72,
    'Hours after its deadline at which a request without news is given up.',
  ),
  'session.minutes': setting(whole(1, 1_440), 15, 'Minutes that an access token is valid.'),
  'session.refresh_days': setting(
    whole(1, 90),
    7,
    'Days after which a session ends that was not used.',
  ),
  'session.most_days': setting(
    whole(1, 365),
    30,
    'Days after which a session ends however much it was used.',
  ),
  'keys.default_days': setting(
    whole(1, 3_650),
    90,
    'Days that an API key lives when whoever makes it names no end.',
  ),
  'keys.max_days': setting(whole(1, 3_650), 365, 'Days that an API key lives, at most.'),
  'login.account_per_minute': setting(
    whole(1, 1_000),
    5,
    'Times a minute that somebody may try to log in to one account.',
  ),
  'login.address_per_minute': setting(
    whole(1, 10_000),
    30,
    'Times a minute that somebody may try to log in from one address.',
    { local: true },
  ),
  'password.min_length': setting(whole(8, 128), 12, 'Fewest characters of a password.'),
  'argon2.range': setting(
    Argon2RangeSchema,
    {
      memory: { min: 19_456, max: 262_144 },
      time: { min: 2, max: 10 },
      parallelism: { min: 1, max: 4 },
    },
    'The argon2id parameters that a password verifier may have; memory in KiB.',
  ),
  'execute.concurrency_max': setting(
    whole(1, 256),
    32,
    'Searches that run against Elasticsearch at the same time, at most.',
  ),
  'backpressure.records': setting(
    whole(100, 100_000_000),
    200_000,
    'Requests on their way from which the status is amber; bulks are refused at twice as many, single submits at four times.',
    { local: true },
  ),
  'backpressure.bytes': setting(
    whole(1_048_576, 1_024 * GIB),
    GIB,
    'Bytes on their way from which the status is amber.',
    { local: true },
  ),
  'backpressure.carry_cycles': setting(
    whole(1, 1_000),
    4,
    'Carry cycles that the oldest request may be on its way before the status is amber.',
    { local: true },
  ),
  'backpressure.cycle_hours': setting(
    whole(1, 8_760),
    24,
    'Hours of one carry cycle: until a batch is there and its receipt is back.',
    { local: true },
  ),
  'retention.results_days': setting(
    whole(1, 3_650),
    30,
    'Days that the response network keeps an answer, and the request network one whose user has no profile type.',
  ),
  'retention.events_days': setting(
    whole(1, 3_650),
    365,
    'Days that the timeline of a request is kept after it ended.',
  ),
  'retention.batches_days': setting(
    whole(1, 3_650),
    90,
    'Days that the file of an imported batch is kept in the archive.',
  ),
  'retention.notices_days': setting(whole(1, 3_650), 90, 'Days that a notice is kept.'),
  'notices.smtp_host': setting(
    Type.Unsafe<string>({ type: 'string', pattern: `^(?:${HOST})?$`, maxLength: 253 }),
    '',
    'Host name of the mail relay; empty: no mail is sent.',
    { local: true },
  ),
  'notices.smtp_port': setting(whole(1, 65_535), 25, 'Port of the mail relay.', { local: true }),
  'notices.smtp_from': setting(
    Type.Unsafe<string>({ type: 'string', pattern: '^(?:[^\\s@<>]{1,64}@[^\\s@<>]{1,189})?$' }),
    '',
    'Address that mail comes from.',
    { local: true },
  ),
  'notices.webhook_hosts': setting(
    Type.Array(Type.String({ pattern: `^${HOST}$`, maxLength: 253 }), {
      maxItems: 100,
      uniqueItems: true,
    }),
    [],
    'Host names that webhooks may be sent to.',
    { local: true },
  ),
  'banner.text': setting(
    Type.String({ maxLength: 500 }),
    '',
    'What everybody reads at the top of the console; empty: nothing.',
    { local: true },
  ),
  'cache.results_bytes': setting(
    whole(0, 64 * GIB),
    128 * MIB,
    'Bytes of results that a process, and Redis if there is one, keep for reading again; 0: none.',
    { local: true },
  ),
  'cache.results_ttl_s': setting(
    whole(1, 604_800),
    3_600,
    'Seconds that a result stays in the cache.',
    { local: true },
  ),
  'cache.entry_max_bytes': setting(
    whole(1_024, 64 * MIB),
    MIB,
    'Bytes above which a result is not cached but streamed from the database.',
    { local: true },
  ),
  'cache.digests_bytes': setting(
    whole(0, 64 * GIB),
    64 * MIB,
    'Bytes of answers that the response network keeps for the same search; 0: none.',
  ),
  'cache.digests_ttl_s': setting(
    whole(0, 86_400),
    0,
    'Seconds in which the same search is answered without asking Elasticsearch again; 0: never.',
  ),
  'retention.samples_days': setting(
    whole(1, 366),
    30,
    'Days that the samples of every minute are kept.',
    { local: true },
  ),
  'retention.hourly_days': setting(
    whole(1, 3_660),
    366,
    'Days that the samples of every hour are kept.',
    { local: true },
  ),
} as const;

type ScheduleKey = `schedule.${WorkerName}`;
type CryptKey = `transfer.crypt.${StreamName}`;
type Crypt = 'age' | 'none';
/** Of `control` nothing is ever held: what must be told first would never be. */
type PauseKey = `pause.${Exclude<StreamName, 'control'>}`;
type LimitKey = `limits.${keyof Limits}`;
type Table = typeof GENERAL &
  Record<LimitKey, SettingSpec<ReturnType<typeof whole>>> &
  Record<ScheduleKey, SettingSpec<ReturnType<typeof whole>>> &
  Record<CryptKey, SettingSpec<ReturnType<typeof Type.Unsafe<Crypt>>>> &
  Record<PauseKey, SettingSpec<ReturnType<typeof Type.Boolean>>>;

export type SettingKey = keyof Table;
/** Every setting with the value that is in force. */
export type Settings = {
  -readonly [Key in SettingKey]: Static<Table[Key]['schema']>;
};

function scheduleSettings(): [ScheduleKey, SettingSpec][] {
  return (Object.keys(WORKERS) as WorkerName[]).map((name) => [
    `schedule.${name}`,
    setting(
      whole(1, 86_400),
      WORKERS[name].cadence / 1_000,
      `Seconds between two runs of the worker ${name}.`,
      { local: true },
    ),
  ]);
}

function cryptSettings(): [CryptKey, SettingSpec][] {
  return STREAM_NAMES.map((name) => [
    `transfer.crypt.${name}`,
    setting(
      Type.Unsafe<Crypt>({
        type: 'string',
        enum: STREAMS[name].alwaysEncrypted ? ['age'] : ['age', 'none'],
      }),
      'age',
      `Whether the batches of the stream ${name} are encrypted (age) or readable (none).`,
    ),
  ]);
}

/** What a profile type gets that is made without limits; what they mean stands in the schema. */
const LIMITS: Readonly<Record<keyof Limits, readonly [value: number, meaning: string]>> = {
  submit_per_minute: [60, 'Submits a minute'],
  submit_per_hour: [1_000, 'Requests an hour'],
  submit_per_day: [10_000, 'Requests a day'],
  read_per_minute: [600, 'Reads a minute'],
  warn_percent: [80, 'Percent of a limit from which a user is warned'],
  ceiling_percent: [110, 'Percent of a limit that a grace period admits'],
  grace_s: [300, 'Seconds of a grace period'],
  rearm_minute_s: [3_600, 'Seconds between two grace periods of the minute limit'],
  rearm_hour_s: [86_400, 'Seconds between two grace periods of the hour limit'],
  rearm_day_s: [604_800, 'Seconds between two grace periods of the day limit'],
  open_requests: [100_000, 'Requests of one user that may be open'],
  stored_bytes: [10 * GIB, 'Bytes of results that are kept for one user'],
};

function limitSettings(): [LimitKey, SettingSpec][] {
  return (Object.keys(LIMITS) as (keyof Limits)[]).map((name) => [
    `limits.${name}`,
    setting(
      LimitsSchema.properties[name],
      LIMITS[name][0],
      `${LIMITS[name][1]}, in profile types that are made without; those there are keep theirs.`,
    ),
  ]);
}

function pauseSettings(): [PauseKey, SettingSpec][] {
  return STREAM_NAMES.filter((name) => name !== 'control').map((name) => [
    `pause.${name}`,
    setting(
      Type.Boolean(),
      false,
      `Whether nothing of the stream ${name} is sealed; what waits stays in the outbox.`,
    ),
  ]);
}

/** Every setting there is. */
export const SETTINGS = Object.freeze({
  ...GENERAL,
  ...Object.fromEntries([
    ...limitSettings(),
    ...scheduleSettings(),
    ...cryptSettings(),
    ...pauseSettings(),
  ]),
}) as Readonly<Table>;

/** Whether there is a setting of this name. */
export function isSetting(key: string): key is SettingKey {
  return Object.hasOwn(SETTINGS, key);
}

/**
 * Checks a value for a setting.
 * @throws SallyportError `not-found` for an unknown key, `bad-field` for a value out of range.
 */
export function checkSetting(key: string, value: unknown): asserts key is SettingKey {
  if (!isSetting(key)) {
    throw new SallyportError('not-found', `There is no setting "${key}".`, {
      next: 'List the settings to see their names.',
    });
  }
  const fault = faultOf(key, value);
  if (!fault) return;
  throw new SallyportError('bad-field', `The value of ${key} ${fault}.`, {
    next: SETTINGS[key].description,
  });
}

/** Every setting at its default. */
export function defaultSettings(): Settings {
  const entries = Object.entries(SETTINGS).map(([key, spec]) => [key, spec.default]);
  return Object.fromEntries(entries) as Settings;
}

/** The limits of a profile type that is made without any. */
export function defaultLimits(settings: Settings): Limits {
  const names = Object.keys(LIMITS) as (keyof Limits)[];
  return Object.fromEntries(names.map((name) => [name, settings[`limits.${name}`]])) as Limits;
}

/** What is wrong with a value for a setting, after its name; undefined when nothing is. */
export function faultOf(key: SettingKey, value: unknown): string | undefined {
  try {
    compileSchema(SETTINGS[key].schema)(value);
  } catch (error) {
    if (!(error instanceof SallyportError)) throw error;
    const [fault] = error.errors;
    return fault ? `${fault.pointer} ${fault.detail}`.trim() : 'is not valid';
  }
  if (key !== 'argon2.range') return undefined;
  const range = Object.entries(value as Argon2Range).find(([, { min, max }]) => min > max);
  return range && `has a ${range[0]} whose min is above its max`;
}
