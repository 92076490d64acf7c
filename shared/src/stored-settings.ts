import { appendAudit } from './audit.js';
import { rows, type Database, type Transaction } from './database.js';
import { requireVersion } from './etags.js';
import { SallyportError } from './errors.js';
import type { Log } from './log.js';
import { addNotices } from './notices.js';
import { notifyChanged, RULES_CHANGED } from './network-events.js';
import {
  checkSetting,
  defaultSettings,
  faultOf,
  isSetting,
  SETTINGS,
  type SettingKey,
  type Settings,
} from './settings.js';

const NOTICE_PERIOD_MS = 30 * 86_400_000;

/** A setting as it crosses. */
export type StoredSetting = { key: string; version: number; value: unknown };

/** Where the value in force comes from. */
export type SettingSource = 'default' | 'synced' | 'local';

/** Everything that is known of one setting here. */
export type SettingState = {
  key: SettingKey;
  /** In force. */
  value: unknown;
  source: SettingSource;
  /** What the response network set; null when it never did. */
  syncedValue: unknown;
  /** What this network set for itself; null when it did not. */
  localValue: unknown;
  /** Raised by each change of either. */
  revision: number;
  updatedAt: Date | null;
};

type SettingRow = {
  key: string;
  version: number;
  value: unknown;
  local_version: number;
  local_value: unknown;
  updated_at: Date;
};

/**
 * The settings in force: default, then the synced value, then, for local settings, the local one.
 * Unknown keys and values out of range are ignored with a warning.
 */
export async function readSettings(db: Database, log: Log): Promise<Settings> {
  const settings: Record<string, unknown> = defaultSettings();
  for (const row of await readRows(db)) {
    if (!isSetting(row.key)) {
      log.warn({ setting: row.key, fault: 'is not known here' }, 'ignored a setting');
      continue;
    }
    for (const value of valuesOf(row)) {
      const fault = faultOf(row.key, value);
      if (fault) log.warn({ setting: row.key, fault }, 'ignored a setting');
      else settings[row.key] = value;
    }
  }
  return settings as Settings;
}

/** Every setting there is, by key; `keys` narrows them. */
export async function listSettingStates(
  db: Database,
  keys: readonly string[] = Object.keys(SETTINGS),
): Promise<SettingState[]> {
  const stored = new Map((await readRows(db)).map((row) => [row.key, row]));
  return keys
    .filter(isSetting)
    .sort()
    .map((key) => stateOf(key, stored.get(key)));
}

/**
 * One setting.
 * @throws SallyportError `not-found`.
 */
export async function readSettingState(db: Database, key: string): Promise<SettingState> {
  const [state] = await listSettingStates(db, [key]);
  if (state) return state;
  throw unknownSetting(key);
}

/** Every setting that the response network ever set, as it crosses. */
export async function listStoredSettings(db: Database): Promise<StoredSetting[]> {
  return db<StoredSetting>('settings')
    .select('key', 'version', 'value')
    .whereNotNull('value')
    .orderBy('key');
}

/**
 * Gives a setting its next version with this value and returns it.
 * @throws SallyportError `not-found`, `bad-field` as {@link checkSetting}; `version-conflict` unless
 * it has the version that `expected` names (0: never set), where one is given.
 */
export async function storeSetting(
  tx: Transaction,
  { key, value, expected }: { key: string; value: unknown; expected?: number | undefined },
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
  if (!stored) throw new Error('an upsert without a condition always gives a row');
  // The row is locked by now: whoever was first has raised the version.
  if (expected !== undefined) requireVersion(stored.version - 1, expected);
  return stored;
}

/** A change of a local value, and on whose behalf. */
export type LocalChange = {
  key: string;
  /** Undefined takes the override away. */
  value: unknown;
  /** The revision that the change was made from. */
  expected?: number | undefined;
  reason: string | null;
};

/**
 * Overrides a setting for this network alone, or ends that; audited, and told to every process.
 * @throws SallyportError `not-found`, `bad-field` for a value out of range or a setting that is not
 * local, `version-conflict`.
 */
export async function changeLocalSetting(
  tx: Transaction,
  { key, value, expected, reason }: LocalChange,
  { actor, now }: { actor: string; now: Date },
): Promise<SettingState> {
  if (value === undefined) {
    if (!isSetting(key)) throw unknownSetting(key);
  } else checkSetting(key, value);
  if (!SETTINGS[key].local) {
    throw new SallyportError('bad-field', `${key} cannot be overridden by one network alone.`, {
      next: 'Have it changed on the response network; from there it is synced.',
    });
  }
  await rows(
    tx,
    `insert into settings (key, version, value, updated_at) values (?, 0, null, ?)
     on conflict (key) do nothing`,
    [key, now],
  );
  await rows(tx, 'select 1 from settings where key = ? for update', [key]);
  const before = await readSettingState(tx, key);
  if (expected !== undefined) requireVersion(before.revision, expected);
  await rows(
    tx,
    `update settings set local_value = ?::jsonb, local_version = local_version + 1, updated_at = ?
     where key = ?`,
    [value === undefined ? null : JSON.stringify(value), now, key],
  );
  await appendAudit(tx, {
    at: now,
    actor,
    action: value === undefined ? 'setting.local-unset' : 'setting.local-set',
    subject: key,
    details: { reason, before: before.localValue, after: value ?? null },
  });
  await notifyChanged(tx, RULES_CHANGED);
  return readSettingState(tx, key);
}

/**
 * Applies the `setting` records in `incoming`: the greatest version of each key wins; a snapshot is
 * the whole truth, because a key that a restore forgot starts again at version 1. What is unknown or
 * out of range here, or older than what is stored, is kept out of force and noted in the audit log.
 */
export async function applySettings(
  tx: Transaction,
  batch: { kind: string },
  now: Date,
): Promise<void> {
  const snapshot = batch.kind === 'snapshot';
  await auditIgnored(tx, { snapshot, now });
  await rows(
    tx,
    `insert into settings (key, version, value, updated_at)
     select distinct on (d->>'key') d->>'key', (d->>'version')::integer, d->'value', ?
     from incoming where t = 'setting'
     order by d->>'key', (d->>'version')::integer desc
     on conflict (key) do update set
       version = excluded.version, value = excluded.value, updated_at = excluded.updated_at
     where excluded.version > settings.version or ?`,
    [now, snapshot],
  );
  if (!snapshot) return;
  const gone = `not exists (select 1 from incoming i where i.t = 'setting' and i.d->>'key' = s.key)`;
  await rows(tx, `delete from settings s where s.local_value is null and ${gone}`);
  await rows(tx, `update settings s set value = null, version = 0 where ${gone}`);
}

async function auditIgnored(
  tx: Transaction,
  { snapshot, now }: { snapshot: boolean; now: Date },
): Promise<void> {
  const incoming = await rows<StoredSetting & { stored: number | null }>(
    tx,
    `select i.d->>'key' as key, (i.d->>'version')::integer as version, i.d->'value' as value,
       s.version as stored
     from incoming i left join settings s on s.key = i.d->>'key' where i.t = 'setting'
     order by i.line`,
  );
  for (const { key, version, value, stored } of incoming) {
    const old = !snapshot && stored !== null && version < stored;
    const why = old ? `is older than version ${stored}` : faultHere(key, value);
    if (why === undefined) continue;
    await appendAudit(tx, {
      at: now,
      actor: 'worker:import-batches',
      action: 'setting.ignore',
      subject: key,
      details: { version, why },
    });
    if (old) continue;
    await addNotices(tx, [
      {
        userId: null,
        kind: 'setting.ignored',
        severity: 'warning',
        title: `The setting ${key} is not in force here`,
        detail: `Version ${version} of it arrived, and ${why}. The value of before stays, or the default.`,
        subject: key,
        at: now,
        dedupe: { key: `${key} ${version}`, withinMs: NOTICE_PERIOD_MS },
      },
    ]);
  }
}

function faultHere(key: string, value: unknown): string | undefined {
  return isSetting(key) ? faultOf(key, value) : 'is not known here';
}

function readRows(db: Database): Promise<SettingRow[]> {
  return db<SettingRow>('settings').select(
    ...(['key', 'version', 'value', 'local_version', 'local_value', 'updated_at'] as const),
  );
}

/** What was set, the one that wins last. */
function valuesOf({ key, value, local_value: localValue }: SettingRow): unknown[] {
  const local = isSetting(key) && SETTINGS[key].local ? [localValue] : [];
  return [value, ...local].filter((each) => each !== null);
}

function stateOf(key: SettingKey, row: SettingRow | undefined): SettingState {
  const fallback = SETTINGS[key].default;
  const localValue = SETTINGS[key].local ? (row?.local_value ?? null) : null;
  const syncedValue = row?.value ?? null;
  const holds = (value: unknown) => value !== null && faultOf(key, value) === undefined;
  const source = holds(localValue) ? 'local' : holds(syncedValue) ? 'synced' : 'default';
  const value = { local: localValue, synced: syncedValue, default: fallback }[source];
  return {
    ...{ key, value, source, syncedValue, localValue },
    revision: (row?.version ?? 0) + (row?.local_version ?? 0),
    updatedAt: row?.updated_at ?? null,
  };
}

function unknownSetting(key: string): SallyportError {
  return new SallyportError('not-found', `There is no setting "${key}".`, {
    next: 'List the settings to see their names.',
  });
}
