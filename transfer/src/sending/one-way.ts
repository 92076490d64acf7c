import type { Node } from '../node.js';

const DAY_MS = 86_400_000;

/**
 * When a batch is due for its next publication over a link on which nothing ever comes back: `repeat`
 * publications are spread evenly over the history. Undefined where acknowledgements come.
 */
export function repetition(
  node: Node,
): { times: number; sealedAfter: Date; publishedBefore: Date } | undefined {
  const { oneWay, repeat, historyDays } = node.options;
  if (!oneWay) return undefined;
  const now = node.clock.now().getTime();
  const historyMs = historyDays * DAY_MS;
  return {
    times: repeat,
    sealedAfter: new Date(now - historyMs),
    publishedBefore: new Date(now - historyMs / repeat),
  };
}
