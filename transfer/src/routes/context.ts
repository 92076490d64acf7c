import type { Database, QueueAccess, Role } from '@sallyport/shared';
import type { Node } from '../node.js';

/** What the routes of the crossing work with, the same on both networks. */
export type OperationsContext = {
  db: Database;
  node: Node;
  pageSecret: Buffer;
  /** Where workers are woken once there is something to do. */
  queues: Pick<QueueAccess, 'wake'>;
};

/** Who may act. */
export const ACTORS: readonly Role[] = ['operator', 'admin'];
