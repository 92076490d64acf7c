/** Why the second validator refuses a file: one of the batch codes, and a sentence. */
export class Refusal extends Error {
  readonly code: string;
  constructor(code: string, sentence: string) {
    super(sentence);
    this.code = code;
  }
}

/** @throws Refusal always. */
export function refuse(code: string, sentence: string): never {
  throw new Refusal(code, sentence);
}

/** A member of an object as it is written: its key decoded, its value from `from` to `to`. */
export type Member = { key: string; from: number; to: number };

const FORBIDDEN = new Set(['__proto__', 'constructor', 'prototype']);
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
/** What may follow a backslash, but for the `u`. */
const SHORT = new Set([...'"\\/bfnrt'].map((c) => c.charCodeAt(0)));
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

// What is scanned: recursive descent over one text at a time.
let source = '';
let oneLine = false;
let escaped = false;

/** @throws Refusal BAD_UTF8. */
export function decodeText(bytes: Buffer): string {
  try {
    return utf8.decode(bytes);
  } catch {
    return refuse('BAD_UTF8', 'It is not UTF-8.');
  }
}

/**
 * Scans the JSON objects of a text that has one on each line, by the rules of the format, and hands
 * over the members of each. Nothing is built of what lies deeper.
 * @throws Refusal BAD_JSON, SCHEMA.
 */
export function scanLines(
  text: string,
  each: (members: Member[], from: number, to: number) => void,
): void {
  source = text;
  oneLine = true;
  for (let at = 0; at < text.length;) {
    const start = at;
    const members: Member[] = [];
    at = space(at);
    if (text[at] !== '{') refuse(text[at] === '\n' ? 'SCHEMA' : 'BAD_JSON', 'A line is no object.');
    at = space(object(at + 1, 1, members));
    if (at < text.length && text[at] !== '\n') refuse('BAD_JSON', 'Data follow the object.');
    each(members, start, at);
    at += 1;
  }
}

/**
 * The value of a JSON text that keeps the format's rules.
 * @throws Refusal BAD_JSON, SCHEMA.
 */
export function parseStrictly(text: string): unknown {
  source = text;
  oneLine = false;
  if (space(value(space(0), 0)) < text.length) refuse('BAD_JSON', 'Data follow the value.');
  return JSON.parse(text);
}

/** The text of a string value as it is written, quotes included; undefined for any other value. */
export function stringAt(text: string, { from, to }: Member): string | undefined {
  if (text[from] !== '"') return undefined;
  const raw = text.slice(from + 1, to - 1);
  return raw.includes('\\') ? (JSON.parse(`"${raw}"`) as string) : raw;
}

function value(at: number, depth: number): number {
  const c = source.charCodeAt(at);
  if (c === 0x22) return string(at + 1);
  if (c === 0x7b) return object(at + 1, depth + 1);
  if (c === 0x5b) return array(at + 1, depth + 1);
  if (c === 0x2d || (c >= 0x30 && c <= 0x39)) return number(at);
  const word = ['true', 'false', 'null'].find((name) => source.startsWith(name, at));
  return word === undefined ? refuse('BAD_JSON', 'A value is missing.') : at + word.length;
}

function object(start: number, depth: number, members?: Member[]): number {
  if (depth > 32) refuse('SCHEMA', 'It is over 32 levels deep.');
  let at = space(start);
  if (source.charCodeAt(at) === 0x7d) return at + 1;
  const keys: string[] = [];
  let many: Set<string> | undefined;
  for (;;) {
    if (source.charCodeAt(at) !== 0x22) refuse('BAD_JSON', 'A key is missing.');
    const end = string(at + 1);
    const written = source.slice(at + 1, end - 1);
    const key = escaped ? (JSON.parse(`"${written}"`) as string) : written;
    if (key.length > 8 && FORBIDDEN.has(key)) refuse('BAD_JSON', `The key ${key} is forbidden.`);
    if (many?.has(key) ?? keys.includes(key)) refuse('BAD_JSON', 'A key stands twice.');
    if (keys.push(key) > 256) refuse('SCHEMA', 'An object has over 256 keys.');
    if (many) many.add(key);
    else if (keys.length > 16) many = new Set(keys);
    at = space(end);
    if (source.charCodeAt(at) !== 0x3a) refuse('BAD_JSON', 'A colon is missing.');
    const from = space(at + 1);
    at = value(from, depth);
    members?.push({ key, from, to: at });
    at = space(at);
    const c = source.charCodeAt(at);
    if (c === 0x7d) return at + 1;
    if (c !== 0x2c) refuse('BAD_JSON', 'An object does not end.');
    at = space(at + 1);
  }
}

function array(start: number, depth: number): number {
  if (depth > 32) refuse('SCHEMA', 'It is over 32 levels deep.');
  let at = space(start);
  if (source.charCodeAt(at) === 0x5d) return at + 1;
  for (;;) {
    at = space(value(at, depth));
    const c = source.charCodeAt(at);
    if (c === 0x5d) return at + 1;
    if (c !== 0x2c) refuse('BAD_JSON', 'An array does not end.');
    at = space(at + 1);
  }
}

/** Returns the place after the closing quote. */
function string(start: number): number {
  const text = source;
  escaped = false;
  for (let at = start; ; at++) {
    const c = text.charCodeAt(at);
    if (c > 0x5c || c === 0x20 || c === 0x21) continue;
    if (c === 0x22) return at + 1;
    if (!(c >= 0x20)) refuse('BAD_JSON', 'A string does not end, or has a control character.');
    if (c !== 0x5c) continue;
    escaped = true;
    at += 1;
    const next = source.charCodeAt(at);
    if (SHORT.has(next)) continue;
    const unit = unitAt(at);
    if (Number.isNaN(unit)) refuse('BAD_JSON', 'A string has an unknown escape.');
    if (unit === 0) refuse('BAD_JSON', 'A string has NUL.');
    at += 4;
    const half = unit >> 10;
    if (half !== 0x36 && half !== 0x37) continue;
    const paired = half === 0x36 && source[at + 1] === '\\' && unitAt(at + 2) >> 10 === 0x37;
    if (!paired) refuse('BAD_JSON', 'A string has half a surrogate pair.');
    at += 6;
  }
}

/** The code unit that `uXXXX` stands for; NaN where there is none. */
function unitAt(at: number): number {
  const written = source.slice(at, at + 5);
  return /^u[\dA-Fa-f]{4}$/.test(written) ? Number.parseInt(written.slice(1), 16) : Number.NaN;
}

function number(at: number): number {
  NUMBER.lastIndex = at;
  if (!NUMBER.test(source)) refuse('BAD_JSON', 'A number is not written as JSON has it.');
  const end = NUMBER.lastIndex;
  const written = source.slice(at, end);
  const read = Number(written);
  const exact = Number.isSafeInteger(read) || (Number.isFinite(read) && !Number.isInteger(read));
  const lost = read === 0 && /^[-0.]*[1-9]/.test(written);
  if (exact && !lost && !Object.is(read, -0)) return end;
  return refuse('SCHEMA', 'A number cannot be carried exactly.');
}

function space(start: number): number {
  for (let at = start; ; at++) {
    const c = source.charCodeAt(at);
    if (c === 0x20 || c === 0x09) continue;
    if (c !== 0x0a && c !== 0x0d) return at;
    if (oneLine && c === 0x0d) refuse('SCHEMA', 'A line has a carriage return.');
    if (oneLine) return at;
  }
}
