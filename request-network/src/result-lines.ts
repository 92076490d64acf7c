/**
 * Cuts the stored text of a search response into lines without parsing it, so that every number
 * arrives as it was written: one line per element of `hits.hits`, then the `aggregations` object as
 * one line. The text comes in pieces cut anywhere; what is not cut out is dropped. It must be JSON.
 */
export async function* cutLines(pieces: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const cutter = newCutter();
  for await (const piece of pieces) {
    const cut = feed(cutter, piece);
    if (cut.length > 0) yield cut;
  }
}

type Cutter = {
  depth: number;
  inString: boolean;
  escaped: boolean;
  /** The bytes of the last string at a depth where keys matter. */
  key: number[];
  keyDone: string;
  /** Whether the object `hits`, and in it the list `hits`, is open. */
  inHits: boolean;
  inList: boolean;
  /** The depth at which the value that is being cut out opened; 0: none is. */
  cutDepth: number;
};

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const SPACE = 0x20;
const LF = 0x0a;
const LONGEST_KEY = 'aggregations'.length;

function newCutter(): Cutter {
  return {
    depth: 0,
    inString: false,
    escaped: false,
    key: [],
    keyDone: '',
    inHits: false,
    inList: false,
    cutDepth: 0,
  };
}

function feed(cutter: Cutter, piece: Buffer): Buffer {
  // What is cut out is never longer than the piece and one line feed per closing bracket.
  const out = Buffer.allocUnsafe(piece.length * 2);
  let length = 0;
  for (let at = 0; at < piece.length; at += 1) {
    const byte = piece[at] as number;
    if (cutter.inString) {
      if (cutter.cutDepth > 0) out[length++] = byte;
      passString(cutter, byte);
      continue;
    }
    if (byte <= SPACE) continue;
    if (byte === OPEN_OBJECT || byte === OPEN_LIST) open(cutter, byte);
    if (cutter.cutDepth > 0) out[length++] = byte;
    if (byte === QUOTE) {
      cutter.inString = true;
      cutter.key.length = 0;
    } else if (byte === CLOSE_OBJECT || byte === CLOSE_LIST) {
      if (close(cutter)) out[length++] = LF;
    }
  }
  return out.subarray(0, length);
}

function passString(cutter: Cutter, byte: number): void {
  if (cutter.escaped) cutter.escaped = false;
  else if (byte === BACKSLASH) cutter.escaped = true;
  else if (byte === QUOTE) {
    cutter.inString = false;
    cutter.keyDone = String.fromCharCode(...cutter.key);
    return;
  }
  // One more than the longest key we look for, so that a longer one cannot look like it.
  if (cutter.cutDepth === 0 && cutter.key.length <= LONGEST_KEY) cutter.key.push(byte);
}

function open(cutter: Cutter, byte: number): void {
  cutter.depth += 1;
  if (cutter.cutDepth > 0) return;
  const { depth, keyDone } = cutter;
  const isObject = byte === OPEN_OBJECT;
  if (depth === 2 && isObject && keyDone === 'hits') cutter.inHits = true;
  else if (depth === 2 && isObject && keyDone === 'aggregations') cutter.cutDepth = depth;
  else if (depth === 3 && !isObject && cutter.inHits && keyDone === 'hits') cutter.inList = true;
  else if (depth === 4 && cutter.inList) cutter.cutDepth = depth;
}

/** Whether the bracket ends a value that was cut out. */
function close(cutter: Cutter): boolean {
  const ends = cutter.cutDepth === cutter.depth;
  cutter.depth -= 1;
  if (ends) cutter.cutDepth = 0;
  else if (cutter.cutDepth === 0) {
    if (cutter.depth < 3) cutter.inList = false;
    if (cutter.depth < 2) cutter.inHits = false;
  }
  return ends;
}
