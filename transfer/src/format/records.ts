import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { Type } from 'typebox';
import {
  compileSchema,
  type ErrorCode,
  RECORD_TYPES,
  type RecordType,
  SallyportError,
  scanJson,
  type StreamName,
  STREAMS,
  Timestamp,
  Uuid,
} from '@sallyport/shared';
import { BATCH_LIMITS, isRealTime } from './manifest.js';
import { checkRecordData, LINE_LIMITS } from './record-checks.js';

/** One record of a batch that has been read and checked. */
export type IncomingRecord = {
  /** Counted from 1. */
  line: number;
  t: RecordType;
  id: string;
  v: number;
  at: string;
  /** As sent, but `text` of results and their parts is null here and stands in `text`. */
  d: Record<string, unknown>;
  text: string | null;
  /** Set where the stream's rule is that a bad `d` refuses only its record. */
  bad: { code: 'SCHEMA'; detail: string } | null;
};

/** What the manifest states of the records; a manifest is one. */
export type StatedRecords = {
  stream: StreamName;
  records: number;
  types: Readonly<Record<string, number>>;
};

const GROUP = 1_000;
/** Groups are cut by size too, so that a thousand large results are never held at once. */
const GROUP_BYTES = 8 * 1024 * 1024;
const MAX_DETAIL = 500;
const LF = 0x0a;
const READ_BYTES = 1024 * 1024;

const checkEnvelope = compileSchema(
  Type.Object(
    {
      t: Type.String({ pattern: '^[a-z][a-z_.]{0,63}$' }),
      id: Uuid,
      v: Type.Integer({ minimum: 1, maximum: 1_000_000 }),
      at: Timestamp,
      d: Type.Record(Type.String(), Type.Unknown()),
    },
    { additionalProperties: false },
  ),
);
/** An opened body: the path of its file, or its bytes where they are few. */
export type PlainBody = string | Buffer;

/**
 * The records of an opened body in groups of about a thousand, every line checked: bytes, JSON,
 * envelope, type, version, schema; at the end also the counts. Apply nothing before the end.
 * @throws SallyportError LINE_TOO_LONG, BAD_UTF8, BAD_JSON, SCHEMA, WAIT_UPGRADE,
 * TOO_MANY_RECORDS, COUNT_MISMATCH; `extra.line` tells where, `extra.part` is `d` when only the
 * data of the record is at fault.
 */
export async function* readRecords(
  body: PlainBody,
  stated: StatedRecords,
): AsyncGenerator<IncomingRecord[], void, void> {
  const counts: Partial<Record<RecordType, number>> = {};
  let group: IncomingRecord[] = [];
  let groupBytes = 0;
  let number = 0;
  for await (const lines of readLines(body)) {
    for (const bytes of lines) {
      number++;
      if (number > Math.min(stated.records, BATCH_LIMITS.records)) throw tooMany(stated.records);
      const record = readRecord(bytes, number, stated.stream);
      counts[record.t] = (counts[record.t] ?? 0) + 1;
      group.push(record);
      groupBytes += bytes.length;
      if (group.length < GROUP && groupBytes < GROUP_BYTES) continue;
      yield group;
      group = [];
      groupBytes = 0;
    }
  }
  checkCounts(number, counts, stated);
  if (group.length > 0) yield group;
}

/** Reads and checks one line, without its newline. */
function readRecord(bytes: Buffer, line: number, stream: StreamName): IncomingRecord {
  try {
    if (bytes.length === 0) throw refuse('SCHEMA', 'The line is empty.');
    // JSON takes it for white space; here it means that a tool has converted the line ends.
    if (bytes.includes(0x0d)) throw refuse('SCHEMA', 'The line has a carriage return.');
    scanJson(bytes, LINE_LIMITS);
    const { t, id, v, at, d } = checkEnvelope(JSON.parse(bytes.toString()));
    if (!isRealTime(at)) throw refuse('SCHEMA', `"at" is not a time: ${at}.`);
    const type = knownType(t, v, stream);
    const bad = findFault(type, d, stream);
    return { line, t: type, id, v, at, d, text: bad === null ? takeText(type, d) : null, bad };
  } catch (error) {
    throw atLine(error, line);
  }
}

function knownType(t: string, v: number, stream: StreamName): RecordType {
  const known = Object.hasOwn(RECORD_TYPES, t) ? (t as RecordType) : undefined;
  if (known === undefined || v > RECORD_TYPES[known].v) {
    throw refuse('WAIT_UPGRADE', `It has a record of type ${t}, version ${v}, unknown here.`, {
      next: 'Upgrade this software; the file stays and is tried again.',
    });
  }
  if (STREAMS[stream].types.includes(known)) return known;
  throw refuse('SCHEMA', `A record of type ${t} does not belong in the stream ${stream}.`);
}

function findFault(
  type: RecordType,
  data: Record<string, unknown>,
  stream: StreamName,
): IncomingRecord['bad'] {
  try {
    checkRecordData(type, data);
    return null;
  } catch (error) {
    if (!(error instanceof SallyportError)) throw error;
    if (STREAMS[stream].badRecord === 'refuses-batch') {
      const { message, errors } = error;
      throw new SallyportError('SCHEMA', message, { cause: error, errors, extra: { part: 'd' } });
    }
    return { code: 'SCHEMA', detail: error.message.slice(0, MAX_DETAIL) };
  }
}

/** Result text never enters jsonb: it is moved out of the data before that is written. */
function takeText(type: RecordType, data: Record<string, unknown>): string | null {
  if (type !== 'result' && type !== 'result.part') return null;
  const { text } = data;
  data['text'] = null;
  return typeof text === 'string' ? text : null;
}

function checkCounts(
  found: number,
  counts: Partial<Record<string, number>>,
  stated: StatedRecords,
): void {
  if (found !== stated.records) {
    throw refuse('COUNT_MISMATCH', `It has ${found} records, line 1 states ${stated.records}.`);
  }
  for (const type of new Set([...Object.keys(counts), ...Object.keys(stated.types)])) {
    const [is, says] = [counts[type] ?? 0, stated.types[type] ?? 0];
    if (is !== says) {
      throw refuse('COUNT_MISMATCH', `It has ${is} records of type ${type}, line 1 says ${says}.`);
    }
  }
}

/**
 * The lines of a body, by pieces of its file, without their newlines. One buffer serves all pieces,
 * so a line is valid only until the next piece is asked for.
 */
async function* readLines(body: PlainBody): AsyncGenerator<Iterable<Buffer>, void, void> {
  if (typeof body !== 'string') {
    const end = body.lastIndexOf(LF) + 1;
    yield splitLines(body.subarray(0, end));
    requireLastLine(body.length - end);
    return;
  }
  const file = await open(body, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    const { size } = await file.stat();
    const readBytes = Math.min(READ_BYTES, size + 1);
    const buffer = Buffer.allocUnsafe(Math.min(BATCH_LIMITS.lineBytes, size) + readBytes);
    let held = 0;
    for (;;) {
      const { bytesRead } = await file.read(buffer, held, readBytes);
      if (bytesRead === 0) break;
      const filled = buffer.subarray(0, held + bytesRead);
      const end = filled.lastIndexOf(LF) + 1;
      yield splitLines(filled.subarray(0, end));
      held = filled.length - end;
      checkLineLength(held);
      filled.copyWithin(0, end);
    }
    requireLastLine(held);
  } finally {
    await file.close();
  }
}

function requireLastLine(rest: number): void {
  checkLineLength(rest);
  if (rest > 0) throw refuse('SCHEMA', 'The last line of the body has no newline.');
}

/** Splits at the byte 0x0A only; `bytes` ends with it. */
function* splitLines(bytes: Buffer): Generator<Buffer, void, void> {
  let start = 0;
  while (start < bytes.length) {
    const end = bytes.indexOf(LF, start);
    checkLineLength(end - start);
    yield bytes.subarray(start, end);
    start = end + 1;
  }
}

function checkLineLength(length: number): void {
  if (length > BATCH_LIMITS.lineBytes) {
    throw refuse('LINE_TOO_LONG', 'A line of the body is longer than 1 MiB.');
  }
}

function tooMany(stated: number): SallyportError {
  return stated > BATCH_LIMITS.records
    ? refuse('TOO_MANY_RECORDS', `It has ${stated} records, at most 1,000,000 may be.`)
    : refuse('COUNT_MISMATCH', `It has more records than the ${stated} that line 1 states.`);
}

/** Batch codes stay; what the schema says becomes SCHEMA. */
function atLine(error: unknown, line: number): unknown {
  if (!(error instanceof SallyportError)) return error;
  const code = error.code === error.code.toUpperCase() ? error.code : 'SCHEMA';
  return new SallyportError(code, `Line ${line} of the body: ${error.message}`, {
    cause: error,
    next: error.next ?? 'Tell the sender: the batch was signed as it is.',
    errors: error.errors,
    extra: { ...error.extra, line },
  });
}

function refuse(code: ErrorCode, message: string, options: { next?: string } = {}): SallyportError {
  return new SallyportError(code, message, {
    next: 'Tell the sender: the batch was signed as it is.',
    ...options,
  });
}
