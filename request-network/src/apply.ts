import {
  applyCredentials,
  applyDatasets,
  applyProfileTypes,
  applySettings,
  keepArrived,
  type RecordType,
  type RevisionKind,
} from '@sallyport/shared';
import type { Apply, ApplyTable } from '@sallyport/transfer';
import { auditOlderRights } from './ignored-versions.js';
import { applyUsersKeepingAdmins } from './kept-admins.js';
import type { Replica } from './replica.js';
import { applyProgress, applyResultParts, applyResults } from './results.js';

/** What the request network does with each record type that reaches it. */
export function requestApplies(replica: Replica): ApplyTable {
  return {
    profile_type: keeping('profile_type', 'profile-type', applyProfileTypes),
    user: keeping('user', 'user', applyUsersKeepingAdmins),
    'user.credential': (tx, _batch, now) =>
      applyCredentials(
        tx,
        { type: 'user.credential', range: replica.settings()['argon2.range'] },
        now,
      ),
    dataset: keeping('dataset', 'dataset', applyDatasets),
    setting: keeping('setting', 'setting', applySettings),
    result: applyResults,
    'result.part': applyResultParts,
    'request.progress': applyProgress,
  };
}

/** Keeps the versions that arrive, besides applying them. */
function keeping(type: RecordType, kind: RevisionKind, apply: Apply): Apply {
  return async (tx, batch, now) => {
    if (type === 'profile_type') await auditOlderRights(tx, batch, now);
    await keepArrived(tx, { type, kind, snapshot: batch.kind === 'snapshot' }, now);
    await apply(tx, batch, now);
  };
}
