import {
  SallyportError,
  appendAudit,
  streamsSentBy,
  type Database,
  type StreamName,
} from '@sallyport/shared';
import { findLink, hasValidFarKey } from '../keys/links.js';
import type { Node } from '../node.js';
import { exportControl, exportStream, type Exported } from './export.js';
import { requireOwnStream } from './resend.js';

/** What was sealed of one stream. */
export type SealedStream = Exported & { stream: StreamName };

/**
 * Seals what waits in one stream, or in all that this network sends, at once; notes who wanted it.
 * @throws SallyportError `not-trusted` while nobody could read it, and as `exportStream`.
 */
export async function sealNow(
  db: Database,
  node: Node,
  { only, by }: { only?: string | undefined; by: string },
): Promise<SealedStream[]> {
  if (!(await findLink(db))) {
    throw new SallyportError('not-trusted', 'No far side is trusted yet, so nothing can leave.', {
      next: 'Run keys trust with the card of the other network.',
    });
  }
  if (!(await hasValidFarKey(db))) {
    throw new SallyportError('not-trusted', 'No valid key of the far side is known here.', {
      next: 'Run keys trust with its new card.',
    });
  }
  const streams = only === undefined ? streamsSentBy(node.role) : [requireOwnStream(node, only)];
  const sealed: SealedStream[] = [];
  for (const stream of streams.filter((name) => name !== 'control')) {
    sealed.push({ stream, ...(await exportStream(db, node, stream)) });
  }
  // Last, so that it is left out where another batch has just carried the receipts.
  if (streams.includes('control')) {
    // Asked for by name, custody records need no company.
    const custody = only === 'control';
    sealed.push({ stream: 'control', ...(await exportControl(db, node, { custody })) });
  }
  const left = sealed.filter((one) => one.sealed > 0);
  const entry = { at: node.clock.now(), actor: by, action: 'batch.seal' };
  await db.transaction((tx) =>
    appendAudit(tx, {
      ...entry,
      subject: only ?? 'all streams',
      details: { sealed: left },
    }),
  );
  return sealed;
}
