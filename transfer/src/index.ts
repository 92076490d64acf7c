export type { Apply, ApplyTable, ImportedBatch } from './apply.js';
export {
  administrationCommands,
  migrateNetwork,
  prepareNode,
  showCard,
  withNetwork,
  type Installation,
  type OpenNetwork,
} from './administration.js';
export { batchName, parseBatchName } from './batch-file.js';
export {
  exportControl,
  exportStream,
  exportStreams,
  sendSnapshot,
  type Exported,
} from './export.js';
export { importBatches, type FileReport, type ImportReport } from './import.js';
export * from './keys.js';
export * from './links.js';
export { watchInbox } from './inbox-watch.js';
export { ZERO_DIGEST, readHeader, verifyHeader, type Manifest } from './manifest.js';
export * from './node.js';
export * from './open-node.js';
export * from './outbox.js';
export * from './quarantine.js';
export { pruneOutbox, pruneStore, publishSealed, tidyOutbox } from './store.js';
