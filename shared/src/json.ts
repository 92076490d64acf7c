import { isUtf8 } from 'node:buffer';
import { type ErrorCode, SallyportError } from './errors.js';

/** The code that each kind of fault is reported with: {@link HTTP_JSON_CODES}. */
export type JsonCodes = Readonly<
  Record<
    | 'utf8'
    | 'syntax'
    | 'duplicateKey'
    | 'forbiddenKey'
    | 'depth'
    | 'keys'
    | 'stringLength'
    | 'arrayLength'
    | 'number',
    ErrorCode
  >
>;

/** What an API answers when a body is refused by {@link scanJson}. */
export const HTTP_JSON_CODES: JsonCodes = {
  utf8: 'malformed-json',
  syntax: 'malformed-json',
  duplicateKey: 'duplicate-key',
  forbiddenKey: 'unknown-field',
  depth: 'too-deep',
  keys: 'too-many-keys',
  stringLength: 'value-too-long',
  arrayLength: 'too-many-values',
  number: 'bad-number',
};

/** What a batch is refused with when a line of it is refused by {@link scanJson}. */
export const BATCH_JSON_CODES: JsonCodes = {
  utf8: 'BAD_UTF8',
  syntax: 'BAD_JSON',
  duplicateKey: 'BAD_JSON',
  forbiddenKey: 'BAD_JSON',
  depth: 'SCHEMA',
  keys: 'SCHEMA',
  stringLength: 'SCHEMA',
  arrayLength: 'SCHEMA',
  number: 'SCHEMA',
};

/** How large and how strange a JSON text may be; every limit is the largest value that passes. */
export type JsonLimits = {
  /** Objects and arrays inside each other; `{}` is 1 deep. */
  depth: number;
  /** Keys of all objects together. */
  keys: number;
  keysPerObject: number;
  /** UTF-16 code units of one string or key after decoding: what `length` says. */
  stringLength: number;
  arrayLength: number;
  /** Refuse whole numbers beyond ±(2^53 - 1); all others must be finite in any case. */
  safeNumbers: boolean;
  /** Let `-0` pass, which RFC 8785 would turn into `0`. */
  negativeZero: boolean;
  /** Let `\u0000` pass, which PostgreSQL cannot store as text. */
  nul: boolean;
  codes: JsonCodes;
  /** JSON Pointer of this text inside the body that the user sent; '' unless set. */
  at?: string;
};

/**
 * Checks that the bytes are one strict JSON text (RFC 8259, I-JSON's rules on duplicates and
 * surrogates) within the limits, before anything is built from them. Not recursive; it allocates
 * nothing unless an object has many keys or an escaped one.
 * @throws SallyportError with a code of `limits.codes` and one entry in `errors`.
 */
export function scanJson(bytes: Uint8Array, limits: JsonLimits): void {
  const end = bytes.length;
  let at = 0;
  let keys = 0;
  let expect = VALUE;
  reset(bytes, limits);
  for (;;) {
    at = skipSpace(bytes, at, end);
    if (at === end) break;
    const c = bytes[at] as number;
    if (expect === NEXT) {
      if (depth === 0) throw syntax(at, 'there is data after the end of the value');
      const inObject = kinds[depth] === OBJECT;
      if (c === COMMA) expect = inObject ? KEY : VALUE;
      else if (c === (inObject ? CLOSE_OBJECT : CLOSE_ARRAY)) leave();
      else throw syntax(at, `found ${show(c)}, expected a comma or the end of the ${kindName()}`);
      at++;
    } else if (expect === KEY || expect === FIRST_KEY) {
      if (c === CLOSE_OBJECT && expect === FIRST_KEY) {
        leave();
        at++;
        expect = NEXT;
        continue;
      }
      if (c !== QUOTE) throw syntax(at, `found ${show(c)}, expected a key in double quotes`);
      const close = scanString(at + 1, end);
      addKey(at + 1, close);
      if (++keys > limits.keys) throw tooMany('keys', at, 'keys', limits.keys, keys);
      at = skipSpace(bytes, close + 1, end);
      if (bytes[at] !== COLON) throw syntax(at, 'expected a colon after the key');
      at++;
      expect = VALUE;
    } else if (c === CLOSE_ARRAY && expect === FIRST_VALUE) {
      leave();
      at++;
      expect = NEXT;
    } else {
      if (kinds[depth] === ARRAY) countValue(at);
      if (c === OPEN_OBJECT || c === OPEN_ARRAY) {
        expect = c === OPEN_OBJECT ? FIRST_KEY : FIRST_VALUE;
        enter(c === OPEN_OBJECT ? OBJECT : ARRAY, at++);
      } else {
        at = c === QUOTE ? scanString(at + 1, end) + 1 : scanScalar(c, at, end);
        expect = NEXT;
      }
    }
  }
  if (expect !== NEXT || depth > 0) throw syntax(at, 'it ends too early');
}

/**
 * The value of a JSON text that passed {@link scanJson}.
 * @throws SallyportError as {@link scanJson} does.
 */
export function parseJson(bytes: Uint8Array, limits: JsonLimits): unknown {
  scanJson(bytes, limits);
  const { buffer, byteOffset, byteLength } = bytes;
  return JSON.parse(Buffer.from(buffer, byteOffset, byteLength).toString());
}

const VALUE = 0;
const FIRST_VALUE = 1;
const KEY = 2;
const FIRST_KEY = 3;
const NEXT = 4;

const OBJECT = 1;
const ARRAY = 2;

const QUOTE = 0x22;
const COMMA = 0x2c;
const MINUS = 0x2d;
const DOT = 0x2e;
const ZERO = 0x30;
const NINE = 0x39;
const COLON = 0x3a;
const OPEN_ARRAY = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_ARRAY = 0x5d;
const LOWER_E = 0x65;
const LOWER_U = 0x75;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

/** Up to this many keys an object's keys are compared in place; beyond, by a set of strings. */
const SLOTS = 16;
/** Up to this many digits a whole number is certainly within 2^53 - 1. */
const SAFE_DIGITS = 15;
const FORBIDDEN = new Set(['__proto__', 'constructor', 'prototype']);
const MAX_SHOWN = 64;
/** 1 for each byte that a string may have as it is, but for the quote and the backslash. */
const PLAIN = new Uint8Array(256).fill(1, 0x20);
PLAIN[QUOTE] = PLAIN[BACKSLASH] = 0;
/** 1 for each byte that may follow a backslash, but for the `u`. */
const SHORT_ESCAPES = new Uint8Array(256);
for (const c of Buffer.from('"\\/bfnrt')) SHORT_ESCAPES[c] = 1;
const LITERALS = ['true', 'false', 'null'].map((name) => Buffer.from(name));
const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

// One scan runs at a time (it never awaits), so its state is reused instead of allocated. Index 0 of
// each list is the top level, where there is neither object nor array.
let input: Uint8Array;
let rules: JsonLimits;
let depth = 0;
let kinds = new Uint8Array(0);
let counts = new Int32Array(0);
let slotStarts = new Int32Array(0);
let slotEnds = new Int32Array(0);
let slotMarks = new Int32Array(0);
let keyStarts = new Int32Array(0);
let keyEnds = new Int32Array(0);
let keySets: (Set<string> | undefined)[] = [];

function reset(bytes: Uint8Array, limits: JsonLimits): void {
  const levels = limits.depth + 1;
  if (kinds.length < levels) {
    kinds = new Uint8Array(levels);
    counts = new Int32Array(levels);
    keyStarts = new Int32Array(levels);
    keyEnds = new Int32Array(levels);
    slotStarts = new Int32Array(levels * SLOTS);
    slotEnds = new Int32Array(levels * SLOTS);
    slotMarks = new Int32Array(levels * SLOTS);
  }
  if (keySets.length > 0) keySets = [];
  input = bytes;
  rules = limits;
  depth = 0;
  if (!isUtf8(bytes)) throw fault('utf8', firstBadByte(bytes), 'it is not valid UTF-8');
  if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) {
    throw syntax(0, 'it starts with a byte order mark');
  }
}

function skipSpace(bytes: Uint8Array, from: number, end: number): number {
  let at = from;
  while (at < end) {
    const c = bytes[at] as number;
    if (c > 0x20 || (c !== 0x20 && c !== 0x0a && c !== 0x0d && c !== 0x09)) break;
    at++;
  }
  return at;
}

function enter(kind: number, at: number): void {
  if (depth === rules.depth) throw tooMany('depth', at, 'levels', rules.depth, depth + 1);
  depth++;
  kinds[depth] = kind;
  counts[depth] = 0;
  keyStarts[depth] = -1;
}

function leave(): void {
  if (keySets.length > depth) keySets[depth] = undefined;
  depth--;
}

function countValue(at: number): void {
  const count = (counts[depth] as number) + 1;
  counts[depth] = count;
  if (count > rules.arrayLength)
    throw tooMany('arrayLength', at, 'values', rules.arrayLength, count);
}

/** Passes over a string; returns the index of its closing quote. */
function scanString(start: number, end: number): number {
  const bytes = input;
  let at = start;
  escaped = false;
  for (;;) {
    while (at < end && PLAIN[bytes[at] as number] === 1) at++;
    if (at >= end) throw syntax(at, 'a string does not end');
    const c = bytes[at] as number;
    if (c === QUOTE) break;
    if (c < 0x20) throw syntax(at, `a string has the bare control character ${show(c)}`);
    escaped = true;
    at = at + 1 < end && SHORT_ESCAPES[bytes[at + 1] as number] === 1 ? at + 2 : scanUnit(at, end);
  }
  // Bytes are never fewer than code units, so the exact count is rarely needed.
  if (at - start > rules.stringLength) checkLength(start, at);
  return at;
}

/** Whether the last string that was passed over had a backslash. */
let escaped = false;

/** Passes over a `\\u` escape; a pair of surrogates counts as one. */
function scanUnit(at: number, end: number): number {
  if (input[at + 1] !== LOWER_U) throw syntax(at, 'a string has an unknown escape');
  const unit = hexUnit(at, end);
  if (unit === 0 && !rules.nul) throw syntax(at, 'a string has the character NUL (\\u0000)');
  if (unit < 0xd800 || unit > 0xdfff) return at + 6;
  const paired = unit < 0xdc00 && input[at + 6] === BACKSLASH && input[at + 7] === LOWER_U;
  const low = paired ? hexUnit(at + 6, end) : 0;
  if (low < 0xdc00 || low > 0xdfff) throw syntax(at, 'a string has a lone surrogate escape');
  return at + 12;
}

function hexUnit(at: number, end: number): number {
  let unit = 0;
  for (let i = at + 2; i < at + 6; i++) {
    const c = i < end ? (input[i] as number) : 0;
    const lower = c | 0x20;
    const digit =
      c >= ZERO && c <= NINE ? c - ZERO : lower >= 0x61 && lower <= 0x66 ? lower - 87 : -1;
    if (digit < 0) throw syntax(at, 'a string has an unfinished \\u escape');
    unit = unit * 16 + digit;
  }
  return unit;
}

function checkLength(start: number, close: number): void {
  let length = 0;
  for (let at = start; at < close; at++) {
    const c = input[at] as number;
    if (c === BACKSLASH) at += input[at + 1] === LOWER_U ? 5 : 1;
    // Continuation bytes add nothing; a lead byte of four stands for two code units.
    if ((c & 0xc0) !== 0x80) length += c >= 0xf0 ? 2 : 1;
  }
  if (length > rules.stringLength) {
    throw tooMany(
      'stringLength',
      start - 1,
      'characters in one string',
      rules.stringLength,
      length,
    );
  }
}

/** Takes note of a key of the current object, unless it is there already or forbidden. */
function addKey(start: number, close: number): void {
  keyStarts[depth] = start;
  keyEnds[depth] = close;
  const count = counts[depth] as number;
  counts[depth] = count + 1;
  if (count >= rules.keysPerObject) {
    throw tooMany('keys', start - 1, 'keys in one object', rules.keysPerObject, count + 1);
  }
  if ((escaped || mayBeForbidden(start, close - start)) && FORBIDDEN.has(keyText(start, close))) {
    throw fault('forbiddenKey', start - 1, `the key "${keyText(start, close)}" is forbidden`);
  }
  let set = keySets[depth];
  if (set === undefined && !escaped && count < SLOTS) return addSlot(start, close, count);
  if (set === undefined) {
    set = new Set();
    for (let slot = depth * SLOTS; slot < depth * SLOTS + count; slot++) {
      set.add(keyText(slotStarts[slot] as number, slotEnds[slot] as number));
    }
    keySets[depth] = set;
  }
  const key = keyText(start, close);
  if (set.has(key)) throw duplicate(start, close);
  set.add(key);
}

/** Whether length and first bytes are those of a forbidden key. */
function mayBeForbidden(start: number, length: number): boolean {
  if (length !== 9 && length !== 11) return false;
  const head = ((input[start] as number) << 8) | (input[start + 1] as number);
  return head === 0x5f5f || head === 0x7072 || head === 0x636f;
}

function addSlot(start: number, close: number, count: number): void {
  const bytes = input;
  const length = close - start;
  // Keys that differ in length, first, middle or last byte need no comparison.
  const mark =
    length === 0
      ? 0
      : (length << 24) ^
        ((bytes[start] as number) << 16) ^
        ((bytes[start + (length >> 1)] as number) << 8) ^
        (bytes[close - 1] as number);
  const first = depth * SLOTS;
  const free = first + count;
  for (let slot = first; slot < free; slot++) {
    if (slotMarks[slot] === mark && sameBytes(slot, start, close)) throw duplicate(start, close);
  }
  slotStarts[free] = start;
  slotEnds[free] = close;
  slotMarks[free] = mark;
}

function sameBytes(slot: number, start: number, close: number): boolean {
  const other = slotStarts[slot] as number;
  if ((slotEnds[slot] as number) - other !== close - start) return false;
  for (let i = close - start - 1; i >= 0; i--) {
    if (input[other + i] !== input[start + i]) return false;
  }
  return true;
}

function keyText(start: number, close: number): string {
  const raw = text.decode(input.subarray(start, close));
  return raw.includes('\\') ? (JSON.parse(`"${raw}"`) as string) : raw;
}

/** Passes over a number or literal; returns the index after it. */
function scanScalar(c: number, at: number, end: number): number {
  if (c === MINUS || (c >= ZERO && c <= NINE)) return scanNumber(at, end);
  for (const name of LITERALS) {
    if (c === name[0]) {
      for (let i = 1; i < name.length; i++) {
        if (input[at + i] !== name[i]) throw syntax(at, 'found an unknown word');
      }
      return at + name.length;
    }
  }
  throw syntax(at, `found ${show(c)}, expected a value`);
}

function scanNumber(start: number, end: number): number {
  const negative = input[start] === MINUS;
  const digits = negative ? start + 1 : start;
  const leadingZero = input[digits] === ZERO;
  let at = leadingZero ? digits + 1 : skipDigits(digits, end);
  let plain = at - digits <= SAFE_DIGITS;
  if (input[at] === DOT) at = skipDigits(at + 1, end);
  if (((input[at] ?? 0) | 0x20) === LOWER_E) {
    const sign = input[at + 1];
    at = skipDigits(sign === MINUS || sign === 0x2b ? at + 2 : at + 1, end);
    plain = false;
  }
  if (!plain || (negative && leadingZero)) checkNumber(start, at);
  return at;
}

function skipDigits(start: number, end: number): number {
  let at = start;
  while (at < end) {
    const c = input[at] as number;
    if (c < ZERO || c > NINE) break;
    at++;
  }
  if (at === start) throw syntax(at, 'a number lacks a digit');
  return at;
}

function checkNumber(start: number, close: number): void {
  const written = text.decode(input.subarray(start, close));
  const value = Number(written);
  const shown = shorten(written);
  if (!Number.isFinite(value)) throw fault('number', start, `the number ${shown} is too large`);
  if (value === 0 && /^-?[0.]*[1-9]/.test(written)) {
    throw fault('number', start, `the number ${shown} is too small`);
  }
  if (Object.is(value, -0) && !rules.negativeZero) {
    throw fault('number', start, 'minus zero has no canonical form');
  }
  if (rules.safeNumbers && Number.isInteger(value) && !Number.isSafeInteger(value)) {
    throw fault('number', start, `the number ${shown} is beyond 2^53 - 1 and would lose digits`, {
      limit: Number.MAX_SAFE_INTEGER,
      actual: shown,
    });
  }
}

function tooMany(
  kind: keyof JsonCodes,
  at: number,
  unit: string,
  limit: number,
  actual: number,
): SallyportError {
  return fault(kind, at, `it has ${actual} ${unit} or more, at most ${limit} may be`, {
    limit,
    actual,
  });
}

function duplicate(start: number, close: number): SallyportError {
  const key = JSON.stringify(shorten(keyText(start, close)));
  return fault('duplicateKey', start - 1, `the key ${key} appears twice in one object`);
}

function syntax(at: number, found: string): SallyportError {
  return fault('syntax', at, found);
}

function fault(
  kind: keyof JsonCodes,
  at: number,
  found: string,
  figures: { limit?: number; actual?: number | string } = {},
): SallyportError {
  const code = rules.codes[kind];
  const detail = `At byte ${at}: ${found}.`;
  const pointer = currentPointer();
  return new SallyportError(code, `The JSON was refused at byte ${at}: ${found}.`, {
    errors: [{ pointer, code, detail, ...figures }],
  });
}

const MAX_POINTER = 1_000;

function currentPointer(): string {
  let pointer = rules.at ?? '';
  for (let level = 1; level <= depth && pointer.length < MAX_POINTER; level++) {
    const start = keyStarts[level] as number;
    if (kinds[level] === ARRAY) pointer += `/${Math.max(0, (counts[level] as number) - 1)}`;
    else if (start >= 0) pointer += `/${pointerToken(keyText(start, keyEnds[level] as number))}`;
  }
  return pointer.slice(0, MAX_POINTER);
}

/** One step of a JSON Pointer (RFC 6901), escaped. */
export function pointerToken(key: string): string {
  return key.replaceAll('~', '~0').replaceAll('/', '~1');
}

function kindName(): string {
  return kinds[depth] === OBJECT ? 'object' : 'array';
}

function shorten(written: string): string {
  return written.length > MAX_SHOWN ? `${written.slice(0, MAX_SHOWN)}…` : written;
}

function show(c: number): string {
  return c > 0x20 && c < 0x7f ? `"${String.fromCharCode(c)}"` : `byte 0x${c.toString(16)}`;
}

/** Where the first byte stands that cannot be UTF-8, found by halving. */
function firstBadByte(bytes: Uint8Array): number {
  let good = 0;
  let bad = bytes.length;
  while (bad - good > 1) {
    const middle = (good + bad) >> 1;
    if (isUtf8Start(bytes.subarray(0, middle))) good = middle;
    else bad = middle;
  }
  return good;
}

function isUtf8Start(bytes: Uint8Array): boolean {
  try {
    // As a stream it may end inside a character.
    new TextDecoder('utf-8', { fatal: true }).decode(bytes, { stream: true });
    return true;
  } catch (error) {
    if (error instanceof TypeError) return false;
    throw error;
  }
}
