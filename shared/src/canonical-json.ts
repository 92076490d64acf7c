/**
 * The canonical text of a JSON value (RFC 8785): no spaces, keys in order of their UTF-16 code
 * units, numbers and strings as ECMAScript writes them. As deep as the stack: give it what passed
 * `scanJson`. The package `canonicalize` is not used because it drops undefined values and takes
 * lone surrogates and dates in silence.
 * @throws TypeError for what JSON cannot hold (undefined, NaN, bigint, lone surrogates, a Date…).
 */
export function canonicalJson(value: unknown): string {
  if (typeof value === 'string') return quote(value);
  if (value === null || typeof value === 'boolean') return String(value);
  if (typeof value === 'number') {
    if (!Number.isFinite(value)) throw new TypeError(`${value} has no canonical JSON`);
    return String(value);
  }
  if (Array.isArray(value)) {
    let items = '';
    for (const item of value) items += `${items === '' ? '' : ','}${canonicalJson(item)}`;
    return `[${items}]`;
  }
  if (!isPlainObject(value)) throw new TypeError(`${typeof value} has no canonical JSON`);
  let members = '';
  const keys = Object.keys(value);
  if (keys.length > 1) keys.sort();
  for (const key of keys) {
    members += `${members === '' ? '' : ','}${quote(key)}:${canonicalJson(value[key])}`;
  }
  return `{${members}}`;
}

// Longer strings are looked through faster by JSON.stringify than by a loop.
const SHORT = 48;
const LONE_SURROGATE = /\p{Surrogate}/u;

function quote(text: string): string {
  if (text.length <= SHORT && isPlainText(text)) return `"${text}"`;
  if (LONE_SURROGATE.test(text)) throw new TypeError('a lone surrogate has no canonical JSON');
  return JSON.stringify(text);
}

/** Whether the text is printable ASCII that needs no escape. */
function isPlainText(text: string): boolean {
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c < 0x20 || c > 0x7e || c === 0x22 || c === 0x5c) return false;
  }
  return true;
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}
