import {
  SallyportError,
  streamsSentBy,
  withAdvisoryLock,
  type Database,
  type StreamName,
} from '@sallyport/shared';
import type { Node } from '../node.js';

const WAIT_MS = 30_000;
const AGAIN_MS = 100;

/** The advisory lock of whoever seals batches of a stream. */
export function exportLock(stream: StreamName): string {
  return `sallyport export ${stream}`;
}

/**
 * Runs the work while nobody else seals anything in any stream; waits half a minute for exporters that
 * are at it.
 * @throws SallyportError WAIT_LOCK when they go on longer.
 */
export async function whileHoldingAll<T>(
  db: Database,
  node: Node,
  work: () => Promise<T>,
): Promise<T> {
  const locks = streamsSentBy(node.role).map(exportLock);
  const deadline = Date.now() + WAIT_MS;
  for (;;) {
    const held = await holdEach(db, locks, work);
    if (held) return held.done;
    if (Date.now() > deadline) break;
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
  throw new SallyportError('WAIT_LOCK', 'An exporter has been at work all the time.', {
    next: 'Run it again, or stop the workers of this network first.',
  });
}

async function holdEach<T>(
  db: Database,
  [lock, ...others]: string[],
  work: () => Promise<T>,
): Promise<{ done: T } | undefined> {
  if (lock === undefined) return { done: await work() };
  const held = await withAdvisoryLock(db, lock, () => holdEach(db, others, work));
  return held?.done;
}
