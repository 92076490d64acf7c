import {
  appendAudit,
  listCredentials,
  listDatasets,
  listProfileTypes,
  listStoredSettings,
  listUsers,
  type Database,
  type Transaction,
} from '@sallyport/shared';
import { sendSnapshot, type Exported, type Node, type OutgoingRecord } from '@sallyport/transfer';
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
  const collect = stream === 'identity' ? collectIdentity : collectSettings;
  return sendSnapshot(db, node, stream, async (tx) => {
    const records = await collect(tx);
    await appendAudit(tx, {
      at: node.clock.now(),
      actor,
      action: 'snapshot.send',
      subject: stream,
      details: { records: records.length },
    });
    return records;
  });
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
