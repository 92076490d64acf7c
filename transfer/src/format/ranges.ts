/** Numbers from first to last, both included. */
export type Range = [first: number, last: number];

/** Numbers, in ascending order, as ranges. */
export function toRanges(numbers: Iterable<number>): Range[] {
  const ranges: Range[] = [];
  for (const number of numbers) {
    const last = ranges.at(-1);
    if (last && last[1] === number - 1) last[1] = number;
    else ranges.push([number, number]);
  }
  return ranges;
}

/** Ranges as people read them: `7, 9-12`; beyond `most` ranges only how many more there are. */
export function rangesText(ranges: readonly Range[], most = 10): string {
  const shown = ranges
    .slice(0, most)
    .map(([first, last]) => (first === last ? String(first) : `${first}-${last}`));
  const rest = ranges.length - shown.length;
  return [...shown, ...(rest > 0 ? [`${rest} more`] : [])].join(', ');
}

/** Ranges in the notation of an int8multirange. */
export function multirange(ranges: readonly Range[]): string {
  return `{${ranges.map(([first, last]) => `[${first},${last}]`).join(',')}}`;
}
