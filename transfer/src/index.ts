export type { Apply, ApplyTable, ImportedBatch } from './apply.js';
export {
  administrationCommands,
  migrateNetwork,
  prepareNode,
  withNetwork,
  type Installation,
  type OpenNetwork,
} from './administration.js';
export { batchName, parseBatchName } from './batch-file.js';
export { pruneCustody, readCustody, type CustodyEvent } from './custody.js';
export {
  exportControl,
  exportStream,
  exportStreams,
  sendSnapshot,
  type Exported,
} from './export.js';
export { importBatches, type FileReport, type ImportReport } from './import.js';
export { showCard } from './key-commands.js';
export { unlockBy, type Unlock } from './key-files.js';
export * from './keys.js';
export * from './links.js';
export { watchInbox } from './inbox-watch.js';
export { ZERO_DIGEST, readHeader, verifyHeader, type Manifest } from './manifest.js';
export * from './node.js';
export * from './open-node.js';
export * from './outbox.js';
export * from './quarantine.js';
export type { LostBatch, NetworkRules } from './record-rules.js';
export { resendMissing } from './resend.js';
export { judgeBatch, type Question, type Verdict } from './second-validator.js';
export { closeSecondOpinion } from './second-opinion.js';
export { pruneOutbox, pruneStore, publishSealed, tidyOutbox } from './store.js';
export { validateBatch, type ValidatedBatch, type ValidatingNode } from './validate.js';
