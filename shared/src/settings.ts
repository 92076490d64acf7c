import { Type, type Static, type TSchema } from 'typebox';
import { rows, type Database, type Transaction } from './database.js';
import { SallyportError } from './errors.js';
import type { Log } from './log.js';
import { STREAMS, STREAM_NAMES, type StreamName } from './records.js';
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

const GIB = 1024 ** 3;

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
} as const;

type ScheduleKey = `schedule.${WorkerName}`;
type CryptKey = `transfer.crypt.${StreamName}`;
type Crypt = 'age' | 'none';
type Table = typeof GENERAL &
  Record<ScheduleKey, SettingSpec<ReturnType<typeof whole>>> &
  Record<CryptKey, SettingSpec<ReturnType<typeof Type.Unsafe<Crypt>>>>;

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

/** Every setting there is. */
export const SETTINGS = Object.freeze({
  ...GENERAL,
  ...Object.fromEntries([...scheduleSettings(), ...cryptSettings()]),
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

/**
 * The settings in force: default, then the synced value, then, for local settings, the local one.
 * Unknown keys and values out of range are ignored with a warning.
 */
export async function readSettings(db: Database, log: Log): Promise<Settings> {
  const stored = await db<{ key: string; value: unknown; local_value: unknown }>('settings').select(
    'key',
    'value',
    'local_value',
  );
  const settings: Record<string, unknown> = defaultSettings();
  for (const { key, value, local_value: localValue } of stored) {
    const local = isSetting(key) && SETTINGS[key].local && localValue !== null;
    const fault = isSetting(key) ? faultOf(key, local ? localValue : value) : 'is not known here';
    if (fault) log.warn({ setting: key, fault }, 'ignored a setting');
    else settings[key] = local ? localValue : value;
  }
  return settings as Settings;
}

export type StoredSetting = { key: string; version: number; value: unknown };

/** Every setting that was ever set, as it crosses. */
export async function listStoredSettings(db: Database): Promise<StoredSetting[]> {
  return db<StoredSetting>('settings').select('key', 'version', 'value').orderBy('key');
}

/**
 * Gives a setting its next version with this value and returns it.
 * @throws SallyportError `not-found`, `bad-field` as {@link checkSetting}.
 */
export async function storeSetting(
  tx: Transaction,
  { key, value }: { key: string; value: unknown },
  now: Date,
): Promise<StoredSetting> {
  checkSetting(key, value);
  const [stored] = await rows<StoredSetting>(
    tx,
    `insert into settings (key, version, value, updated_at) values (?, 1, ?::jsonb, ?)
     on conflict (key) do update set
       version = settings.version + 1, value = excluded.value, updated_at = excluded.updated_at
     returning key, version, value`,
    [key, JSON.stringify(value), now],
  );
  return stored as StoredSetting;
}

/**
 * Applies the `setting` records in `incoming`: the greatest version of each key wins; a snapshot is
 * the whole truth, because a key that a restore forgot starts again at version 1.
 */
export async function applySettings(
  tx: Transaction,
  batch: { kind: string },
  now: Date,
): Promise<void> {
  await rows(
    tx,
    `insert into settings (key, version, value, updated_at)
     select distinct on (d->>'key') d->>'key', (d->>'version')::integer, d->'value', ?
     from incoming where t = 'setting'
     order by d->>'key', (d->>'version')::integer desc
     on conflict (key) do update set
       version = excluded.version, value = excluded.value, updated_at = excluded.updated_at
     where excluded.version > settings.version or ?`,
    [now, batch.kind === 'snapshot'],
  );
  if (batch.kind !== 'snapshot') return;
  await rows(
    tx,
    `delete from settings s where s.local_value is null and not exists (
       select 1 from incoming i where i.t = 'setting' and i.d->>'key' = s.key)`,
  );
}

function faultOf(key: SettingKey, value: unknown): string | undefined {
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
