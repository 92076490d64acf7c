import { createHash, createPublicKey, verify } from 'node:crypto';
import { closeSync, constants, fstatSync, lstatSync, openSync } from 'node:fs';
import { inflate, openAge, readAt, readBytes } from './body.js';
import {
  decodeText,
  type Member,
  parseStrictly,
  Refusal,
  refuse,
  scanLines,
  stringAt,
} from './text.js';

// Written from docs/reference/batch-format.md alone. It shares no code with the importer, nor the
// libraries that the importer works with: a mistake in one of them must not be made twice.

/** A key that is trusted to sign: members of its card. */
export type Sender = { sign: string; node: string; role: string };

/** What the second validator is told besides the file; it knows no database. */
export type Question = {
  path: string;
  /** The name of this node, and the link it belongs to. */
  node: string;
  link: string;
  senders: Sender[];
  /** X25519 identities, `AGE-SECRET-KEY-1…`. */
  identities: string[];
  /** Milliseconds since 1970; without it `createdAt` and `notAfter` are not compared with a clock. */
  now?: number;
};

/** `code` is one of the batch codes; the schema of each `d` is not judged. */
export type Verdict =
  { ok: true; digest: string; records: number } | { ok: false; code: string; sentence: string };

type Fields = Record<string, unknown>;
type Check = (value: unknown) => boolean;
type Manifest = Fields & {
  stream: string;
  records: number;
  types: Record<string, number>;
  body: { bytes: number; sha256: string; enc: string; rawBytes: number; crypt: string };
};

const HEADER = 65_536;
const FILE = Math.floor(3.9 * 2 ** 30);
const RAW = 2 ** 31;
const LINE = 2 ** 20;
const RECORDS = 1_000_000;
const DAY = 86_400_000;

/** Who sends a stream, what may be in it, and whether it must be encrypted. */
export const STREAMS = new Map<string, { from: string; types: string; secret?: true }>([
  [
    'control',
    { from: 'request response', types: 'request.progress batch.withdrawn key.change custody' },
  ],
  ['accounts', { from: 'request', types: 'account.credential account.profile', secret: true }],
  ['identity', { from: 'response', types: 'profile_type user user.credential', secret: true }],
  ['settings', { from: 'response', types: 'dataset template policy setting' }],
  ['requests.urgent', { from: 'request', types: 'request request.cancel' }],
  ['requests', { from: 'request', types: 'request request.cancel' }],
  ['results', { from: 'response', types: 'result result.part' }],
  ['results.bulk', { from: 'response', types: 'result.part' }],
]);
const TYPES = new Set([...STREAMS.values()].flatMap(({ types }) => types.split(' ')));

const whole =
  (least: number, most = Number.MAX_SAFE_INTEGER): Check =>
  (value) =>
    Number.isInteger(value) && (value as number) >= least && (value as number) <= most;
const like =
  (form: RegExp): Check =>
  (value) =>
    typeof value === 'string' && form.test(value);
const among =
  (...values: unknown[]): Check =>
  (value) =>
    values.includes(value);
const text =
  (most: number): Check =>
  (value) =>
    typeof value === 'string' && value !== '' && [...value].length <= most;
const list =
  (most: number, check: Check, least = 0): Check =>
  (value) =>
    Array.isArray(value) && value.length >= least && value.length <= most && value.every(check);
const object =
  (required: Record<string, Check>, optional: Record<string, Check> = {}): Check =>
  (value) =>
    isObject(value) &&
    Object.keys(required).every((name) => Object.hasOwn(value, name)) &&
    Object.entries(value).every(([name, member]) => {
      const checks = Object.hasOwn(required, name) ? required : optional;
      return Object.hasOwn(checks, name) && checks[name]?.(member);
    });
const perStream = (check: Check) =>
  object({}, Object.fromEntries([...STREAMS.keys()].map((name) => [name, check])));

const digest = like(/^[0-9a-f]{64}$/);
const isUuid = like(/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/);
const name = like(/^[a-z0-9-]{1,16}$/);
const epoch = whole(1, 9_999);
const TYPE = /^[a-z][a-z_.]{0,63}$/;
const COUNTER = 10 ** 12;
/** First and last number of each, none twice, upwards. */
const ranges: Check = (value) => {
  let end = 0;
  return list(200, (range) => {
    if (!list(2, whole(1), 2)(range)) return false;
    const [first, last] = range as [number, number];
    const upwards = first > end && last >= first;
    end = last;
    return upwards;
  })(value);
};
const isVersion = whole(1, 1_000_000);
const MANIFEST: Record<string, Check> = {
  fmt: among('sallyport-batch'),
  v: among(1),
  link: like(/^[a-z2-7]{16}$/),
  from: name,
  to: name,
  stream: (value) => STREAMS.has(value as string),
  epoch,
  seq: whole(1),
  prev: digest,
  kind: among('delta', 'snapshot', 'heartbeat'),
  createdAt: isTime,
  records: whole(0),
  types: (value) =>
    isObject(value) && Object.entries(value).every(([type, n]) => TYPE.test(type) && whole(0)(n)),
  body: object({
    bytes: whole(0),
    sha256: digest,
    enc: among('none', 'gzip'),
    rawBytes: whole(0),
    crypt: among('none', 'age'),
  }),
  ack: object({
    no: whole(1, COUNTER),
    incarnation: isUuid,
    streams: perStream(
      object({
        epoch,
        contiguous: whole(0),
        digest,
        extra: ranges,
        missing: ranges,
        rejected: list(50, object({ seq: whole(1), digest, code: text(40) })),
        more: among(true, false),
      }),
    ),
  }),
  tail: perStream(object({ epoch, seq: whole(1, COUNTER), digest })),
  auditHead: digest,
  by: text(200),
  build: text(100),
};
const isManifest = object(MANIFEST, { notAfter: isTime });

/**
 * Judges a whole batch file by the documented format alone. Memory stays flat whatever the size.
 * Failures of the disk are thrown, everything the file can be blamed for is a verdict.
 */
export async function judgeBatch(question: Question): Promise<Verdict> {
  let file: number | undefined;
  try {
    const { path } = question;
    if (!lstatSync(path).isFile()) refuse('NOT_REGULAR_FILE', 'It is no regular file.');
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const line = readLine1(file);
    const { manifest, digest } = readManifest(line, question);
    const { body } = manifest;
    const start = line.length + 1;
    const end = start + body.bytes;
    checkBytes(file, start, end, body.sha256);
    const source =
      body.crypt === 'age'
        ? openAge(file, start, end, question.identities)
        : readBytes(file, start, end);
    const reader = makeReader(manifest);
    if (body.enc === 'gzip') await inflate(source, body.rawBytes, reader.take);
    else for (const piece of source.pieces) reader.take(piece);
    return { ok: true, digest, records: reader.end() };
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return { ok: false, code: error.code, sentence: error.message };
  } finally {
    if (file !== undefined) closeSync(file);
  }
}

function readLine1(file: number): string {
  const head = readAt(file, 0, HEADER + 1);
  if (head.length > 0 && head[0] !== 0x7b) refuse('NOT_A_BATCH', 'It does not start with {.');
  const end = head.indexOf(10);
  if (end === -1 && head.length > HEADER) refuse('HEADER_TOO_BIG', 'Line 1 has over 64 KiB.');
  if (end === -1) refuse('INCOMPLETE', 'Line 1 does not end.');
  return head.toString('latin1', 0, end);
}

function readManifest(line: string, question: Question): { manifest: Manifest; digest: string } {
  const [, payload = '', head = '', signature = ''] =
    /^\{"payload":"([\w-]+)","protected":"([\w-]+)","signature":"([\w-]+)"\}$/.exec(line) ??
    refuse('BAD_HEADER', 'Line 1 is not a flattened JWS as the format writes it.');
  const [bytes, header, signed] = [payload, head, signature].map((value) => {
    const decoded = Buffer.from(value, 'base64url');
    if (decoded.toString('base64url') === value) return decoded;
    return refuse('BAD_HEADER', 'A part of line 1 is not base64url.');
  }) as [Buffer, Buffer, Buffer];
  const [, kid] =
    /^\{"alg":"Ed25519","kid":"([\w-]{43})","typ":"sallyport-batch\+jws"\}$/.exec(
      header.toString('latin1'),
    ) ?? refuse('BAD_SIGNATURE', 'The protected header is not exactly alg, kid and typ.');
  const sender =
    question.senders.find(({ sign }) => thumbprint(sign) === kid) ??
    refuse('UNKNOWN_KEY', 'Its key is not trusted.');
  const key = createPublicKey({
    key: { kty: 'OKP', crv: 'Ed25519', x: sender.sign },
    format: 'jwk',
  });
  if (signed.length !== 64 || !verify(null, Buffer.from(`${head}.${payload}`), key, signed)) {
    refuse('BAD_SIGNATURE', 'The signature is wrong.');
  }
  const manifest = parseStrictly(decodeText(bytes));
  checkManifest(manifest, line.length + 1);
  checkPlace(manifest, sender, question);
  return { manifest, digest: createHash('sha256').update(bytes).digest('hex') };
}

function checkManifest(value: unknown, start: number): asserts value is Manifest {
  if (!isObject(value) || value['fmt'] !== 'sallyport-batch') refuse('NOT_A_BATCH', 'No manifest.');
  if (whole(2)(value['v'])) refuse('UNSUPPORTED_VERSION', 'Its version is unknown.');
  if (!isManifest(value)) {
    const bad = Object.keys(MANIFEST).find((member) => !MANIFEST[member]?.(value[member]));
    refuse(
      'SCHEMA',
      `The manifest is not well formed: ${bad ?? 'notAfter, or a member too many'}.`,
    );
  }
  const { stream, records, types, body, kind } = value as Manifest;
  const rule = STREAMS.get(stream);
  if (rule?.secret && body.crypt === 'none') refuse('SCHEMA', `${stream} must be encrypted.`);
  if (start + body.bytes > FILE) refuse('TOO_BIG', 'It would be larger than 3.9 GiB.');
  const grows = body.enc === 'gzip' && body.rawBytes > 200 * body.bytes;
  if (grows || body.rawBytes > RAW) refuse('INFLATE_LIMIT', 'It would unpack to too much.');
  if (records > RECORDS) refuse('TOO_MANY_RECORDS', 'It has over 1,000,000 records.');
  for (const type of Object.keys(types)) checkType(type, stream);
  const sum = Object.values(types).reduce((total, count) => total + count, 0);
  if (sum !== records) refuse('COUNT_MISMATCH', 'Its types do not add up to its records.');
  if (kind === 'heartbeat' && records > 0) refuse('COUNT_MISMATCH', 'A heartbeat has records.');
}

function checkPlace(manifest: Manifest, sender: Sender, { node, link, now }: Question): void {
  const { from, to, stream } = manifest;
  if (from === node) refuse('WRONG_DIRECTION', 'It was made here.');
  const speaks = from === sender.node && STREAMS.get(stream)?.from.split(' ').includes(sender.role);
  if (!speaks) refuse('KEY_WRONG_ROLE', `Its key may not sign ${stream} of ${from}.`);
  if (to !== node) refuse('WRONG_DESTINATION', `It is addressed to ${to}.`);
  if (manifest['link'] !== link) refuse('WRONG_LINK', 'It belongs to another link.');
  if (now === undefined) return;
  const { createdAt, notAfter } = manifest;
  if (Date.parse(createdAt as string) > now + DAY) refuse('FROM_FUTURE', 'It is from the future.');
  if (Date.parse(notAfter as string) < now) refuse('EXPIRED', 'Its deadline has passed.');
}

function checkType(type: string, stream: string): void {
  if (!TYPES.has(type)) refuse('WAIT_UPGRADE', `The record type ${type} is unknown.`);
  if (STREAMS.get(stream)?.types.split(' ').includes(type)) return;
  refuse('SCHEMA', `${type} does not belong in ${stream}.`);
}

function checkBytes(file: number, start: number, end: number, sha256: string): void {
  const { size } = fstatSync(file);
  if (size < end) refuse('TRUNCATED', `It has ${size} of ${end} bytes.`);
  if (size > end) refuse('TRAILING_DATA', `It has ${size} bytes, ${end} are stated.`);
  const hash = createHash('sha256');
  for (const piece of readBytes(file, start, end).pieces) hash.update(piece);
  if (hash.digest('hex') !== sha256) refuse('HASH_MISMATCH', 'The body is not what was signed.');
}

/** Takes the unpacked bytes in pieces of any size; `end` returns how many records there were. */
function makeReader({ stream, records, types, body }: Manifest): {
  take: (piece: Buffer) => void;
  end: () => number;
} {
  const counts = new Map<string, number>();
  let raw = 0;
  let lines = 0;
  let rest = Buffer.alloc(0);
  const readBlock = (text: string) =>
    scanLines(text, (members, from, to) => {
      if (++lines > records) refuse('COUNT_MISMATCH', `It has more than ${records} records.`);
      if (to - from > LINE / 3 && Buffer.byteLength(text.slice(from, to)) > LINE) tooLong();
      const { t, v } = readEnvelope(text, members);
      if (v > 1) refuse('WAIT_UPGRADE', `Line ${lines} has version ${v} of ${t}.`);
      const seen = counts.get(t);
      if (seen === undefined) checkType(t, stream);
      counts.set(t, (seen ?? 0) + 1);
    });
  return {
    take(piece) {
      raw += piece.length;
      if (raw > body.rawBytes) refuse('INFLATE_LIMIT', `It has over ${body.rawBytes} bytes.`);
      const block = rest.length === 0 ? piece : Buffer.concat([rest, piece]);
      const end = block.lastIndexOf(10) + 1;
      rest = Buffer.from(block.subarray(end));
      if (rest.length > LINE) tooLong();
      if (end > 0) readBlock(decodeText(block.subarray(0, end)));
    },
    end() {
      if (raw < body.rawBytes) refuse('COUNT_MISMATCH', `It has ${raw} unpacked bytes.`);
      if (rest.length > 0) refuse('SCHEMA', 'The last line does not end.');
      if (lines < records) refuse('COUNT_MISMATCH', `It has ${lines} records.`);
      for (const type of [...counts.keys(), ...Object.keys(types)]) {
        const same = (counts.get(type) ?? 0) === (types[type] ?? 0);
        if (!same) refuse('COUNT_MISMATCH', `It has another number of ${type} than stated.`);
      }
      return lines;
    },
  };
}

/** Type and version of a record; its members must be exactly t, id, v, at and d. */
function readEnvelope(text: string, members: Member[]): { t: string; v: number } {
  let t: string | undefined;
  let v = 0;
  let good = members.length === 5;
  for (const member of members) {
    const { key, from, to } = member;
    if (key === 't') t = stringAt(text, member);
    else if (key === 'v') v = Number(text.slice(from, to));
    else if (key === 'id') good &&= isUuid(stringAt(text, member));
    else if (key === 'at') good &&= isTime(stringAt(text, member));
    else good &&= key === 'd' && text[from] === '{';
  }
  if (good && t !== undefined && isVersion(v) && TYPE.test(t)) return { t, v };
  return refuse('SCHEMA', 'A line is not exactly t, id, v, at and d as they must be.');
}

const TIME = /^(\d{4}-(?:0\d|1[0-2])-[0-3]\d)T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}Z$/;
let knownDay = '';

/** UTC with milliseconds, from 1970 on, on a day that the calendar has. */
function isTime(value: unknown): boolean {
  const [, day] = typeof value === 'string' ? (TIME.exec(value) ?? []) : [];
  if (day === undefined || day === knownDay) return day !== undefined;
  const moment = new Date(`${day}T00:00:00.000Z`);
  const real = moment.getTime() >= 0 && moment.toISOString().startsWith(day);
  if (real) knownDay = day;
  return real;
}

function isObject(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** RFC 7638. */
function thumbprint(x: string): string {
  return createHash('sha256')
    .update(`{"crv":"Ed25519","kty":"OKP","x":"${x}"}`)
    .digest('base64url');
}

function tooLong(): never {
  return refuse('LINE_TOO_LONG', 'A line is longer than 1 MiB.');
}
