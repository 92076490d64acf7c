import type { Principal, Routes } from '@sallyport/shared';
import { addApprovalRoutes } from './approvals.routes.js';
import { addBatchRoutes } from './batches.routes.js';
import type { OperationsContext } from './context.js';
import { addImportRoutes } from './imports.routes.js';
import { addLinkRoutes } from './link.routes.js';
import { addQuarantineRoutes } from './quarantine.routes.js';

/** What operators do and see: batches, imports, quarantine, approvals, the link. */
export function addOperationRoutes(routes: Routes<Principal>, context: OperationsContext): void {
  addBatchRoutes(routes, context);
  addImportRoutes(routes, context);
  addQuarantineRoutes(routes, context);
  addApprovalRoutes(routes, context);
  addLinkRoutes(routes, context);
}
