/** Random choices that a seed repeats (mulberry32); not for secrets. */
export type Random = {
  /** A whole number, at least `from`, at most `to`. */
  between(from: number, to: number): number;
  /** True with this probability. */
  chance(probability: number): boolean;
  pick<T>(values: readonly [T, ...T[]]): T;
  bytes(length: number): Buffer;
  uuid(): string;
};

/** The choices of a seed, always the same. */
export function randomFrom(seed: number): Random {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
  const between = (from: number, to: number) => from + Math.floor(next() * (to - from + 1));
  const bytes = (length: number) => Buffer.from(Array.from({ length }, () => between(0, 255)));
  return {
    between,
    chance: (probability) => next() < probability,
    pick: (values) => values[between(0, values.length - 1)] ?? values[0],
    bytes,
    uuid() {
      const raw = bytes(16);
      raw[6] = ((raw[6] ?? 0) & 0x0f) | 0x70;
      raw[8] = ((raw[8] ?? 0) & 0x3f) | 0x80;
      const hex = raw.toString('hex');
      return [8, 12, 16, 20, 32]
        .map((end, at, ends) => hex.slice(ends[at - 1] ?? 0, end))
        .join('-');
    },
  };
}
