import { createHash } from 'node:crypto';
import {
  STREAM_NAMES,
  SallyportError,
  STREAMS,
  type NetworkName,
  type StreamName,
} from '@sallyport/shared';
import type { Range } from './ranges.js';

/** Missing numbers of one stream, as a person reads them to the sender. */
export type GapList = { stream: StreamName; epoch: number; ranges: Range[] };

// Crockford's base 32, and the five further symbols of its check digit modulo 37.
const DIGITS = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
const CHECK_DIGITS = `${DIGITS}*~$=U`;
const TAG_DIGITS = 3;
/** Bits of a digit that count; the fifth says that the number goes on. */
const VALUE_BITS = 4;
const MAX_RANGES = 20;
const MAX_DIGITS = 400;

/**
 * A short code for at most the 20 lowest missing ranges of a stream: digits of Crockford's base 32 in
 * groups of 4, the last one a check digit that finds any single wrong digit and any two swapped
 * neighbours. The three digits before it bind the code to the link and to the network that sends.
 */
export function writeGapCode(link: string, sender: NetworkName, gaps: GapList): string {
  const numbers = [STREAM_NAMES.indexOf(gaps.stream), gaps.epoch];
  let last = 0;
  for (const [from, to] of gaps.ranges.slice(0, MAX_RANGES)) {
    numbers.push(from - last - 1, to - from);
    last = to;
  }
  const content = numbers.flatMap(writeNumber);
  const digits = [...content, ...tagOf(link, sender, content)];
  const text = digits.map((digit) => DIGITS[digit]).join('') + CHECK_DIGITS[remainder(digits)];
  return (text.match(/.{1,4}/g) ?? []).join('-');
}

/**
 * Reads a code; case, spaces and hyphens do not matter, and O is read as 0, I and L as 1.
 * @throws SallyportError `gap-code-wrong` when it is mistyped, or made for another pair of networks.
 */
export function readGapCode(link: string, sender: NetworkName, code: string): GapList {
  const digits = readDigits(code);
  const content = digits.slice(0, -TAG_DIGITS);
  if (tagOf(link, sender, content).join() !== digits.slice(-TAG_DIGITS).join()) {
    throw wrong(
      'It was made for another pair of networks, or for the other direction.',
      'Compare the link id that link shows on both sides, and type the code where the batches were made.',
    );
  }
  const gaps = readContent(content);
  if (gaps && STREAMS[gaps.stream].from.includes(sender)) return gaps;
  throw wrong(
    'It says nothing that makes sense here.',
    'Have link gaps run again on the far side.',
  );
}

function readDigits(code: string): number[] {
  const text = code.toUpperCase().replace(/[\s-]/g, '').replace(/O/g, '0').replace(/[IL]/g, '1');
  const digits = Array.from(text.slice(0, -1), (character) => DIGITS.indexOf(character));
  const check = CHECK_DIGITS.indexOf(text.slice(-1));
  const inOrder =
    digits.length > TAG_DIGITS &&
    digits.length <= MAX_DIGITS &&
    !digits.includes(-1) &&
    text.length > 0 &&
    check === remainder(digits);
  if (inOrder) return digits;
  throw wrong(
    'Its check digit does not fit: at least one character is wrong.',
    'Compare it group by group with what link gaps shows on the far side.',
  );
}

function readContent(content: number[]): GapList | undefined {
  const numbers: number[] = [];
  let value = 0;
  let scale = 1;
  for (const digit of content) {
    value += (digit % (1 << VALUE_BITS)) * scale;
    if (!Number.isSafeInteger(value)) return undefined;
    scale *= 1 << VALUE_BITS;
    if (digit >= 1 << VALUE_BITS) continue;
    numbers.push(value);
    value = 0;
    scale = 1;
  }
  const [index = -1, epoch = 0, ...steps] = numbers;
  const stream = STREAM_NAMES[index];
  if (scale !== 1 || !stream || epoch < 1 || steps.length === 0 || steps.length % 2 > 0) {
    return undefined;
  }
  const ranges: Range[] = [];
  let last = 0;
  for (let at = 0; at < steps.length; at += 2) {
    const from = last + 1 + (steps[at] ?? 0);
    last = from + (steps[at + 1] ?? 0);
    ranges.push([from, last]);
  }
  return Number.isSafeInteger(last) ? { stream, epoch, ranges } : undefined;
}

function writeNumber(value: number): number[] {
  const base = 1 << VALUE_BITS;
  const digits: number[] = [];
  let left = value;
  while (left >= base) {
    digits.push((left % base) + base);
    left = Math.floor(left / base);
  }
  return [...digits, left];
}

function tagOf(link: string, sender: NetworkName, content: number[]): number[] {
  const hash = createHash('sha256')
    .update(`${link} ${sender} ${content.join(' ')}`)
    .digest();
  return Array.from({ length: TAG_DIGITS }, (_, at) => (hash[at] ?? 0) % DIGITS.length);
}

// 37 is a prime and divides neither a difference of two digits nor 31, the difference of two places.
function remainder(digits: number[]): number {
  return digits.reduce((rest, digit) => (rest * DIGITS.length + digit) % CHECK_DIGITS.length, 0);
}

function wrong(message: string, next: string): SallyportError {
  return new SallyportError('gap-code-wrong', `This is no code for us. ${message}`, { next });
}
