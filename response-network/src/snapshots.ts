import {
  appendAudit,
  listCredentials,
  listDatasets,
  listProfileTypes,
  listStoredSettings,
  listUsers,
  type Clock,
  type Database,
  type Transaction,
} from '@sallyport/shared';
import {
  sendSnapshot,
  type Exported,
  type Node,
  type OutgoingRecord,
  type Snapshots,
} from '@sallyport/transfer';
import { datasetRecord } from './dataset-rules.js';
import { profileTypeRecord } from './profile-type-rules.js';
import { settingRecord } from './setting-rules.js';
import { credentialRecord, userRecords } from './user-accounts.js';

/** The streams whose whole state can be sent at once. */
export const SNAPSHOT_STREAMS = ['identity', 'settings'] as const;
export type SnapshotStream = (typeof SNAPSHOT_STREAMS)[number];

/** Sends all that a request network must know of a stream in one batch, which heals its gaps. */
export async function publishSnapshot(
  db: Database,
  node: Node,
  stream: SnapshotStream,
  actor: string,
): Promise<Exported> {
  return sendSnapshot(db, node, stream, snapshotsBy(node.clock, actor)[stream]);
}

/** How the snapshots are read; each is noted in the audit log as the actor's. */
export function snapshotsBy(
  clock: Clock,
  actor: string,
): Required<Pick<Snapshots, SnapshotStream>> {
  const audited =
    (stream: SnapshotStream, collect: (tx: Transaction) => Promise<OutgoingRecord[]>) =>
    async (tx: Transaction) => {
      const records = await collect(tx);
      await appendAudit(tx, {
        at: clock.now(),
        actor,
        action: 'snapshot.send',
        subject: stream,
        details: { records: records.length },
      });
      return records;
    };
  return {
    identity: audited('identity', collectIdentity),
    settings: audited('settings', collectSettings),
  };
}

async function collectIdentity(tx: Transaction): Promise<OutgoingRecord[]> {
  return [
    ...(await listProfileTypes(tx)).map(profileTypeRecord),
    ...(await listUsers(tx)).flatMap((user) => userRecords(user)),
    ...(await listCredentials(tx)).map(credentialRecord),
  ];
}

async function collectSettings(tx: Transaction): Promise<OutgoingRecord[]> {
  return [
    ...(await listDatasets(tx)).map(datasetRecord),
    ...(await listStoredSettings(tx)).map(settingRecord),
  ];
}
