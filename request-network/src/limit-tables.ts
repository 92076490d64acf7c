import { formatTable } from '@sallyport/shared';
import type { WindowView } from './limits.js';

/** Windows as a table for people. */
export function windowTable(windows: readonly WindowView[]): string {
  return formatTable(
    ['WINDOW', 'STATE', 'USED', 'LIMIT', 'CEILING', 'GRACE'],
    windows.map((one) => [
      one.subject === 'key' ? `${one.window} (key)` : one.window,
      one.state,
      `${one.used}`,
      `${one.limit}`,
      `${one.ceiling}`,
      describeGrace(one.grace),
    ]),
  );
}

function describeGrace(grace: WindowView['grace']): string {
  if (grace.ends_in_s !== null) return `ends in ${grace.ends_in_s} s`;
  return grace.rearms_in_s === null ? 'armed' : `used up, again in ${grace.rearms_in_s} s`;
}
