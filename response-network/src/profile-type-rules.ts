import {
  appendAudit,
  auditChanges,
  defaultLimits,
  findProfileType,
  findProfileTypeByName,
  keepRevision,
  listChanges,
  newId,
  notifyChanged,
  readRevision,
  RULES_CHANGED,
  SallyportError,
  storeProfileTypes,
  type Limits,
  type ProfileType,
  type ProfileTypeRecord,
  type Settings,
  type Transaction,
} from '@sallyport/shared';
import { sendRecords, type OutgoingRecord } from '@sallyport/transfer';
import { requireExpected, type Change } from './change.js';
import { lockNames } from './names.js';

/** What of a profile type an admin may set; `limits` only those named. */
export type ProfileTypeChange = Partial<
  Omit<ProfileTypeRecord, 'version' | 'name' | 'limits'> & { limits: Partial<Limits> }
>;

/**
 * Makes a set of rights; limits that are not named are those of the settings.
 * @throws SallyportError `already-exists`.
 */
export async function createProfileType(
  tx: Transaction,
  name: string,
  wanted: ProfileTypeChange,
  { settings, ...change }: Change & { settings: Settings },
): Promise<ProfileType> {
  await lockNames(tx);
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
    limits: { ...defaultLimits(settings), ...wanted.limits },
  };
  await publish(tx, { profileType, action: 'profile-type.create' }, change);
  return profileType;
}

/** Which profile type: by name, or by id. */
export type WhichProfileType = string | { id: string };

/**
 * Changes what is named; a change that changes nothing makes no version.
 * @throws SallyportError `not-found`, `version-conflict`.
 */
export async function changeProfileType(
  tx: Transaction,
  which: WhichProfileType,
  wanted: ProfileTypeChange,
  change: Change,
): Promise<ProfileType> {
  const found = await requireProfileType(tx, which, change);
  const limits = { ...found.limits, ...wanted.limits };
  return replace(tx, found, { ...found, ...wanted, limits }, 'profile-type.set', change);
}

/**
 * Makes what a profile type was in an older version its next one; whether it is disabled stays.
 * @throws SallyportError `not-found`, `version-conflict`.
 */
export async function rollBackProfileType(
  tx: Transaction,
  which: WhichProfileType,
  version: number,
  change: Change,
): Promise<ProfileType> {
  const found = await requireProfileType(tx, which, change);
  const kept = await readRevision(tx, { kind: 'profile-type', id: found.id }, version);
  const old = kept as ProfileTypeRecord;
  const next = { ...found, ...old, version: found.version, disabled: found.disabled };
  return replace(tx, found, next, 'profile-type.roll-back', change);
}

/** A profile type as it crosses. */
export function profileTypeRecord({ id, ...data }: ProfileType): OutgoingRecord {
  return { type: 'profile_type', id, data };
}

async function replace(
  tx: Transaction,
  found: ProfileType,
  wanted: ProfileType,
  action: string,
  change: Change,
): Promise<ProfileType> {
  if (listChanges(found, wanted).length === 0) return found;
  const profileType = { ...wanted, version: found.version + 1 };
  await publish(tx, { before: found, profileType, action }, change);
  return profileType;
}

async function publish(
  tx: Transaction,
  {
    before = {},
    profileType,
    action,
  }: { before?: object; profileType: ProfileType; action: string },
  { now, actor, reason = null }: Change,
): Promise<void> {
  await sendRecords(tx, 'identity', [profileTypeRecord(profileType)], now);
  await storeProfileTypes(tx, [profileType], now);
  const { id, ...data } = profileType;
  const { name, version } = profileType;
  await keepRevision(tx, { kind: 'profile-type', id }, { version, at: now, actor, reason, data });
  const details = { name, version, reason, ...auditChanges(before, profileType) };
  await appendAudit(tx, { at: now, actor, action, subject: id, details });
  await notifyChanged(tx, RULES_CHANGED);
}

async function requireProfileType(
  tx: Transaction,
  which: WhichProfileType,
  change: Change,
): Promise<ProfileType> {
  const [by, name] =
    typeof which === 'string' ? [{ name: which }, which] : [{ id: which.id }, which.id];
  const row = await tx('profile_types')
    .where(by)
    .forUpdate()
    .first<{ id: string } | undefined>('id');
  const found = row && (await findProfileType(tx, row.id));
  if (!found) throw new SallyportError('not-found', `There is no profile type "${name}".`);
  requireExpected(found, change);
  return found;
}
