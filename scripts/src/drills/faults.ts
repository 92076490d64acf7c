import { syncBuiltinESMExports } from 'node:module';
import { isMainThread } from 'node:worker_threads';
import { patchFiles } from './file-faults.js';
import { patchQueries } from './query-faults.js';

// Loaded by `node --import` before anything else: every file operation below the roots of a life, and
// every SQL statement made in it, becomes a numbered and named point at which the process can be
// killed or the operation can fail. Outside a life nothing changes.
if (isMainThread) {
  await patchFiles();
  patchQueries();
  syncBuiltinESMExports();
}
