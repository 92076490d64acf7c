import {
  appendAudit,
  checkSetting,
  keepRevision,
  notifyChanged,
  readRevision,
  readSettingState,
  rows,
  RULES_CHANGED,
  settingRecordId,
  SETTINGS,
  storeSetting,
  type StoredSetting,
  type Transaction,
} from '@sallyport/shared';
import { sendRecords, type OutgoingRecord } from '@sallyport/transfer';
import type { Change } from './change.js';

/**
 * Sets one setting for both networks.
 * @throws SallyportError `not-found` for an unknown key, `bad-field` for a value out of range,
 * `version-conflict`.
 */
export async function changeSetting(
  tx: Transaction,
  wanted: { key: string; value: unknown },
  change: Change,
): Promise<StoredSetting> {
  return publish(tx, { ...wanted, action: 'setting.set' }, change);
}

/** Sets one setting to its default, on both networks. @throws SallyportError `not-found`. */
export async function unsetSetting(
  tx: Transaction,
  key: string,
  change: Change,
): Promise<StoredSetting> {
  const { key: known } = await readSettingState(tx, key);
  const wanted = { key, value: SETTINGS[known].default, action: 'setting.unset' };
  return publish(tx, wanted, change);
}

/**
 * Gives a setting the value of an older version.
 * @throws SallyportError `not-found`, `bad-field` when it is out of range by now, `version-conflict`.
 */
export async function rollBackSetting(
  tx: Transaction,
  key: string,
  version: number,
  change: Change,
): Promise<StoredSetting> {
  const { value } = await readRevision(tx, { kind: 'setting', id: key }, version);
  return publish(tx, { key, value, action: 'setting.roll-back' }, change);
}

/** A setting as it crosses. */
export function settingRecord(setting: StoredSetting): OutgoingRecord {
  return { type: 'setting', id: settingRecordId(setting.key), data: setting };
}

async function publish(
  tx: Transaction,
  { key, value, action }: { key: string; value: unknown; action: string },
  { now, actor, reason = null, expected }: Change,
): Promise<StoredSetting> {
  checkSetting(key, value);
  await rows(tx, 'select 1 from settings where key = ? for update', [key]);
  const before = await readSettingState(tx, key);
  const stored = await storeSetting(tx, { key, value, expected }, now);
  const { version } = stored;
  await sendRecords(tx, 'settings', [settingRecord(stored)], now);
  const revision = { version, at: now, actor, reason, data: { value } };
  await keepRevision(tx, { kind: 'setting', id: key }, revision);
  const details = { version, reason, before: before.value, after: value };
  await appendAudit(tx, { at: now, actor, action, subject: key, details });
  await notifyChanged(tx, RULES_CHANGED);
  // Running workers take a changed cadence at once.
  await tx.raw(`select pg_notify('sallyport_settings', ?)`, [key]);
  return stored;
}
