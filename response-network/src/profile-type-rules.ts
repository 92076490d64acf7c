import {
  appendAudit,
  findProfileTypeByName,
  newId,
  SallyportError,
  storeProfileTypes,
  type Limits,
  type ProfileType,
  type ProfileTypeRecord,
  type Transaction,
} from '@sallyport/shared';
import { sendRecords, type OutgoingRecord } from '@sallyport/transfer';
import type { Change } from './change.js';

/** What of a profile type an admin may set; `limits` only those named. */
export type ProfileTypeChange = Partial<
  Omit<ProfileTypeRecord, 'version' | 'name' | 'limits'> & { limits: Partial<Limits> }
>;

export const DEFAULT_LIMITS: Limits = {
  submit_per_minute: 600,
  submit_per_hour: 10_000,
  submit_per_day: 100_000,
  read_per_minute: 6_000,
  warn_percent: 80,
  ceiling_percent: 110,
  grace_s: 300,
  rearm_minute_s: 3_600,
  rearm_hour_s: 86_400,
  rearm_day_s: 604_800,
  open_requests: 100_000,
  stored_bytes: 10 * 1024 ** 3,
};

/** @throws SallyportError `already-exists`. */
export async function createProfileType(
  tx: Transaction,
  name: string,
  wanted: ProfileTypeChange,
  change: Change,
): Promise<ProfileType> {
  if (await findProfileTypeByName(tx, name)) {
    throw new SallyportError('already-exists', `There is a profile type ${name} already.`);
  }
  const profileType: ProfileType = {
    id: newId(),
    version: 1,
    name,
    description: '',
    datasets: [],
    tier: 'B',
    priorities: ['low', 'normal'],
    retention_days: 30,
    disabled: false,
    ...wanted,
    limits: { ...DEFAULT_LIMITS, ...wanted.limits },
  };
  await publish(tx, profileType, 'profile-type.create', change);
  return profileType;
}

/** @throws SallyportError `not-found`. */
export async function changeProfileType(
  tx: Transaction,
  name: string,
  wanted: ProfileTypeChange,
  change: Change,
): Promise<ProfileType> {
  await tx('profile_types').where({ name }).forUpdate().first('id');
  const found = await findProfileTypeByName(tx, name);
  if (!found) throw new SallyportError('not-found', `There is no profile type "${name}".`);
  const profileType: ProfileType = {
    ...found,
    ...wanted,
    version: found.version + 1,
    limits: { ...found.limits, ...wanted.limits },
  };
  await publish(tx, profileType, 'profile-type.set', change);
  return profileType;
}

/** A profile type as it crosses. */
export function profileTypeRecord({ id, ...data }: ProfileType): OutgoingRecord {
  return { type: 'profile_type', id, data };
}

async function publish(
  tx: Transaction,
  profileType: ProfileType,
  action: string,
  { now, actor }: Change,
): Promise<void> {
  await sendRecords(tx, 'identity', [profileTypeRecord(profileType)], now);
  await storeProfileTypes(tx, [profileType], now);
  const { id: subject, name, version, datasets, tier, disabled } = profileType;
  const details = { name, version, datasets, tier, disabled };
  await appendAudit(tx, { at: now, actor, action, subject, details });
}
