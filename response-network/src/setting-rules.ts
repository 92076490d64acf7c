import {
  appendAudit,
  notifyChanged,
  RULES_CHANGED,
  settingRecordId,
  storeSetting,
  type StoredSetting,
  type Transaction,
} from '@sallyport/shared';
import { sendRecords, type OutgoingRecord } from '@sallyport/transfer';
import type { Change } from './change.js';

/**
 * Sets one setting for both networks.
 * @throws SallyportError `not-found` for an unknown key, `bad-field` for a value out of range.
 */
export async function changeSetting(
  tx: Transaction,
  wanted: { key: string; value: unknown },
  { now, actor }: Change,
): Promise<StoredSetting> {
  const stored = await storeSetting(tx, wanted, now);
  await sendRecords(tx, 'settings', [settingRecord(stored)], now);
  await notifyChanged(tx, RULES_CHANGED);
  // Running workers take a changed cadence at once.
  await tx.raw(`select pg_notify('sallyport_settings', ?)`, [stored.key]);
  const { key: subject, version, value } = stored;
  const details = { version, value };
  await appendAudit(tx, { at: now, actor, action: 'setting.set', subject, details });
  return stored;
}

/** A setting as it crosses. */
export function settingRecord(setting: StoredSetting): OutgoingRecord {
  return { type: 'setting', id: settingRecordId(setting.key), data: setting };
}
