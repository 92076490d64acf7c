import {
  applyCredentials,
  applyDatasets,
  applyProfileTypes,
  applySettings,
  applyUsers,
} from '@sallyport/shared';
import type { ApplyTable } from '@sallyport/transfer';
import type { Replica } from './replica.js';
import { applyProgress, applyResultParts, applyResults } from './results.js';

/** What the request network does with each record type that reaches it. */
export function requestApplies(replica: Replica): ApplyTable {
  return {
    profile_type: applyProfileTypes,
    user: applyUsers,
    'user.credential': (tx, _batch, now) =>
      applyCredentials(
        tx,
        { type: 'user.credential', range: replica.settings()['argon2.range'] },
        now,
      ),
    dataset: applyDatasets,
    setting: applySettings,
    result: applyResults,
    'result.part': applyResultParts,
    'request.progress': applyProgress,
  };
}
