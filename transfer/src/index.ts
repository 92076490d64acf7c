export type { Apply, ApplyTable, ImportedBatch } from './receiving/apply.js';
export {
  administrationCommands,
  migrateNetwork,
  prepareNode,
  withNetwork,
  type Installation,
  type OpenNetwork,
} from './commands/administration.js';
export { watchAuditLog } from './custody/audit-heads.js';
export { addAuditRoutes } from './routes/audit.routes.js';
export { batchName, parseBatchName } from './format/batch-file.js';
export { sampleBatches } from './custody/batch-samples.js';
export { cacheCommands } from './commands/cache-commands.js';
export { pruneCustody, readCustody, type CustodyEvent } from './custody/custody.js';
export {
  exportControl,
  exportStream,
  exportStreams,
  sendSnapshot,
  type Exported,
} from './sending/export.js';
export { pruneArchive } from './receiving/archive.js';
export { requireLetIn } from './receiving/held.js';
export { importBatches, type FileReport, type ImportReport } from './receiving/import.js';
export { showCard } from './commands/key-commands.js';
export { unlockBy, type Unlock } from './keys/key-files.js';
export * from './keys/keys.js';
export * from './keys/links.js';
export { pruneUploads } from './receiving/uploads.js';
export { watchInbox } from './receiving/inbox-watch.js';
export { ZERO_DIGEST, readHeader, verifyHeader, type Manifest } from './format/manifest.js';
export * from './node.js';
export * from './open-node.js';
export * from './sending/outbox.js';
export * from './receiving/quarantine.js';
export type { LostBatch, NetworkRules } from './sending/network-rules.js';
export { resendMissing } from './sending/resend.js';
export { ACTORS, type OperationsContext } from './routes/context.js';
export { addHealthRoutes } from './routes/health.routes.js';
export { addOperationRoutes } from './routes/operations.routes.js';
export { judgeBatch, type Question, type Verdict } from './second-validator/judge.js';
export { closeSecondOpinion } from './receiving/second-opinion.js';
export { pruneOutbox, pruneStore, publishSealed, tidyOutbox } from './sending/store.js';
export { validateBatch, type ValidatedBatch, type ValidatingNode } from './receiving/validate.js';
