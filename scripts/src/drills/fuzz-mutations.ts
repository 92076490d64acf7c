import { deflateRawSync, deflateSync, gzipSync } from 'node:zlib';
import {
  base64,
  oneOf,
  pack,
  protectedHeader,
  recordLine,
  SAMPLES,
  sealAge,
  signFile,
  state,
  type AgeTricks,
  type Parts,
} from './fuzz-batches.js';
import type { RecordType } from '@sallyport/shared';
import type { Random } from './random.js';

/** A changed batch; `signed` when its sender signed the change, so that it may be valid. */
export type Mutant = { name: string; bytes: Buffer; signed: boolean };

const KINDS: readonly (readonly [share: number, name: string, mutate: Mutation])[] = [
  [22, 'bytes', mutateFile],
  [8, 'line 1', mutateLine1],
  [6, 'header', mutateHeader],
  [14, 'manifest', mutateManifest],
  [12, 'payload', mutatePayload],
  [29, 'lines', mutateLines],
  [6, 'packed', mutatePacked],
  [3, 'age', mutateAge],
];
type Mutation = (parts: Parts, random: Random, other: Parts) => Omit<Mutant, 'name'>;

/** One change of a batch; `other` is what it may be joined with. */
export function mutate(parts: Parts, random: Random, other: Parts): Mutant {
  let left = random.between(1, 100);
  for (const [share, name, mutation] of KINDS) {
    left -= share;
    if (left <= 0) return { name, ...mutation(parts, random, other) };
  }
  throw new Error('the shares of the mutations do not add up to 100');
}

/** The batch as its sender would write it. */
export function whole(parts: Parts, random: Random): Buffer {
  const body = pack(parts, random);
  return signFile(parts, JSON.stringify(state(parts, body)), body);
}

/** Scalars that somebody may handle in another way than somebody else. */
const ODD: readonly string[] = [
  ...['0', '-0', '-1', '1', '2', '1.0', '1e0', '1E+0', '10e-1', '1.5', '-0.0', '-0e9', '0.1e1'],
  ...['9007199254740991', '9007199254740992', '9007199254740991.5', '-9007199254740993', '1e21'],
  ...['1e400', '-1e400', '1e-400', '0.00e-999', '2147483648', '1000001', '01', '+1', '.5', '1.'],
  ...['NaN', 'Infinity', '0x1', 'nul', 'True', "'a'", '""', '"a"', '" "', '"\\u0000"', '"\\x00"'],
  ...[
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\ud83d\\ude00"',
    '"\\uD83D\\uDE00"',
    '"\\ud83dx"',
    '"\\/"',
  ],
  ...['"\\u00e9"', '"e\u0301"', '"\u2028"', '"\u007f"', '"\u0085"', '"\ufeff"', '"\t"', '"\\t"'],
  ...['null', 'true', 'false', '[]', '{}', '[[]]', '[0,0]', '{"a":1}', '{"a":1,"a":1}', '[1,]'],
  ...['{"__proto__":1}', '{"constructor":1}', '{"\\u005f_proto__":1}', '{"prototype":{}}', '{,}'],
  ...['{"a":1,"\\u0061":2}', '{"":1}', '{"":1,"":2}', '{"1":1,"0":2}', '{"a\\nb":1}', '[null,{}]'],
  ...['"2026-02-29T00:00:00.000Z"', '"2024-02-29T23:59:59.999Z"', '"2026-03-01T24:00:00.000Z"'],
  ...['"1969-12-31T23:59:59.999Z"', '"1970-01-01T00:00:00.000Z"', '"2026-03-01T10:00:60.000Z"'],
  ...['"2026-03-01T10:00:00Z"', '"2026-03-01T10:00:00.000+00:00"', '"2026-13-01T10:00:00.000Z"'],
  ...['"2026-03-00T10:00:00.000Z"', '"9999-12-31T23:59:59.999Z"', '"2026-03-01t10:00:00.000z"'],
  ...['"2016-12-31T23:59:60.000Z"', '"0000-01-01T00:00:00.000Z"', '"2026-03-01T10:00:00.000Z "'],
  ...['"0197B2A0-0000-7000-8000-000000000001"', '"0197b2a0000070008000000000000001"', '"x\\n"'],
  ...['"control"', '"requests"', '"results"', '"identity"', '"gzip"', '"age"', '"none"', '"delta"'],
  ...['"snapshot"', '"heartbeat"', '"asker"', '"answerer"', '"request"', '"result.part"', '"user"'],
  ...['"toString"', '"constructor"', '"hasOwnProperty"', '"a".', '"unknown.type"'],
];
const TOKEN = /"(?:[^"\\]|\\.)*"|-?[\d.]+(?:[eE][+-]?\d+)?|[a-z]+|[{}[\],:]|\s+/g;
const SPACES = [' ', '\t', '\r', '\r\n', '\n', '\u00a0', '\u000b', '\ufeff', '\u0000', ','];

function mutateFile(parts: Parts, random: Random, other: Parts): Omit<Mutant, 'name'> {
  const file = whole(parts, random);
  const second = whole(other, random);
  const joins = random.chance(0.1);
  const bytes = joins ? splice(file, second, random) : changeBytes(file, random);
  return { bytes, signed: bytes.equals(file) || bytes.equals(second) };
}

/** The head of one batch with the body of another, or cut anywhere. */
function splice(first: Buffer, second: Buffer, random: Random): Buffer {
  const cut = (bytes: Buffer) =>
    random.chance(0.5) ? bytes.indexOf(10) + 1 : random.between(0, bytes.length);
  return Buffer.concat([first.subarray(0, cut(first)), second.subarray(cut(second))]);
}

function mutateLine1(parts: Parts, random: Random): Omit<Mutant, 'name'> {
  const file = whole(parts, random);
  const end = file.indexOf(10);
  const line = file.toString('latin1', 0, end);
  const members = JSON.parse(line) as Record<string, string>;
  const { payload = '', protected: head = '', signature = '' } = members;
  const write = (value: unknown) => JSON.stringify(value);
  const changed = oneOf<() => string>(random, [
    () => changeJson(line, random),
    () => ` ${line}`,
    () => `${line}\r`,
    () => `\u00ef\u00bb\u00bf${line}`,
    () => write({ protected: head, payload, signature }),
    () => write({ payload: `${payload}=`, protected: head, signature }),
    () => write({ payload, protected: head, signature: `${signature}==` }),
    () => write({ payload, protected: head, signature: stray(signature, random) }),
    () => write({ payload: stray(payload, random), protected: head, signature }),
    () => write({ payload, protected: head, signature: signature.slice(0, -1) }),
    () => write({ payload, protected: head, signature: '' }),
    () => write({ payload, protected: head, signature, header: {} }),
    () => write({ payload, signatures: [{ protected: head, signature }] }),
    () => `${head}.${payload}.${signature}`,
    () => line.replaceAll('-', '+').replaceAll('_', '/'),
    () => line.replace('payload', 'p\\u0061yload'),
    () => `{"payload":"${'A'.repeat(random.between(65_300, 65_700))}",${line.slice(1)}`,
    () => '{'.repeat(random.between(1, 100)) + line,
  ])();
  const bytes = Buffer.concat([Buffer.from(changed, 'latin1'), file.subarray(end)]);
  return { bytes, signed: bytes.equals(file) };
}

/** Another last character, that decodes to the same bytes where the length leaves spare bits. */
function stray(text: string, random: Random): string {
  const digits = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
  const last = digits.indexOf(text.at(-1) ?? 'A');
  return text.slice(0, -1) + digits[last ^ random.between(1, 3)];
}

function mutateHeader(parts: Parts, random: Random, other: Parts): Omit<Mutant, 'name'> {
  const body = pack(parts, random);
  const head = protectedHeader(parts.sender);
  const members = JSON.parse(head) as Record<string, unknown>;
  const changed = oneOf<() => string>(random, [
    () => changeJson(head, random),
    () => changeJson(head, random),
    () => JSON.stringify({ typ: members['typ'], ...members, kid: members['kid'] }),
    () => ` ${head}`,
    () => JSON.stringify({ ...members, alg: oneOf(random, ['EdDSA', 'none', 'HS256', 'ed25519']) }),
    () => JSON.stringify({ ...members, jwk: { kty: 'OKP' } }),
    () => JSON.stringify({ ...members, crit: ['b64'], b64: false }),
    () => protectedHeader(other.sender),
    () => protectedHeader(parts.receiver),
    () => '',
  ])();
  return {
    bytes: signFile(parts, JSON.stringify(state(parts, body)), body, changed),
    signed: true,
  };
}

/** Members set to other values that make sense somewhere. */
function mutateManifest(parts: Parts, random: Random, other: Parts): Omit<Mutant, 'name'> {
  const body = pack(parts, random);
  const manifest = state(parts, body);
  const stated = manifest['body'] as Record<string, unknown>;
  const near = (value: unknown) => (value as number) + oneOf(random, [-1, 1, 1, 1000, 1e12]);
  const types = manifest['types'] as Record<string, number>;
  const changes: (() => unknown)[] = [
    () => (manifest['stream'] = other.manifest['stream']),
    () => Object.assign(manifest, { from: manifest['to'], to: manifest['from'] }),
    () => (manifest['to'] = 'elsewhere'),
    () => (manifest['from'] = 'a-name-of-17-char'),
    () => (manifest['link'] = 'abcdefghijklmnop'),
    () => (manifest['epoch'] = oneOf(random, [0, 2, 9_999, 10_000])),
    () => (manifest['seq'] = oneOf(random, [0, 1, 2 ** 53 - 1, 2 ** 53])),
    () => (manifest['kind'] = oneOf(random, ['delta', 'snapshot', 'heartbeat', 'other'])),
    () => (manifest['v'] = oneOf(random, [0, 2, '1', 1.5])),
    () => (manifest['records'] = near(manifest['records'])),
    () => (manifest['types'] = structuredClone(other.manifest['types'])),
    () =>
      (types[oneOf(random, [...Object.keys(SAMPLES), 'unknown', 'X', 'a b'])] = random.between(
        0,
        3,
      )),
    () => (stated['bytes'] = near(stated['bytes'])),
    () => (stated['rawBytes'] = near(stated['rawBytes'])),
    () => (stated['sha256'] = oneOf(random, ['0'.repeat(64), 'A'.repeat(64), ''])),
    () => (stated['enc'] = oneOf(random, ['none', 'gzip', 'zstd'])),
    () => (stated['crypt'] = oneOf(random, ['none', 'age', 'gpg'])),
    () =>
      (manifest['createdAt'] = oneOf(random, [
        '2026-03-02T12:00:00.000Z',
        '2026-03-02T12:00:00.001Z',
      ])),
    () =>
      (manifest['notAfter'] = oneOf(random, [
        '2026-03-01T12:00:00.000Z',
        '2026-03-01T11:59:59.999Z',
      ])),
    () => (manifest['by'] = '😀'.repeat(oneOf(random, [100, 200, 201]))),
    () => (manifest['build'] = 'x'.repeat(oneOf(random, [0, 100, 101]))),
    () => (manifest['extra'] = 1),
    () => delete manifest[oneOf(random, Object.keys(manifest))],
    () => delete stated[oneOf(random, Object.keys(stated))],
    () => (manifest['tail'] = { [oneOf(random, ['requests', 'control', 'x'])]: tail(random) }),
    () => (manifest['ack'] = ack(random)),
  ];
  for (let i = random.between(1, 2); i > 0; i--) oneOf(random, changes)();
  return { bytes: signFile(parts, JSON.stringify(manifest), body), signed: true };
}

function tail(random: Random): unknown {
  const seq = oneOf(random, [0, 1, 2 ** 53 - 1, 2 ** 53]);
  return { epoch: oneOf(random, [1, 0]), seq, digest: oneOf(random, ['0'.repeat(64), '0']) };
}

function ack(random: Random): unknown {
  const list = (length: number, value: unknown) => Array.from({ length }, () => value);
  const range = oneOf(random, [[1, 2], [2, 1], [1], [1, 2, 3], [0, 1], 5]);
  const rejected = {
    seq: 1,
    digest: '0'.repeat(64),
    code: oneOf(random, ['SCHEMA', '', 'x'.repeat(41)]),
  };
  const stream = {
    epoch: 1,
    contiguous: oneOf(random, [0, -1, 1]),
    digest: '0'.repeat(64),
    extra: list(oneOf(random, [0, 1, 200, 201]), range),
    missing: [],
    rejected: list(oneOf(random, [0, 1, 50, 51]), rejected),
    more: oneOf<unknown>(random, [true, false, 0]),
  };
  const incarnation = '0197b2a0-0000-7000-8000-000000000001';
  return { no: 1, incarnation, streams: { [oneOf(random, ['control', 'x'])]: stream } };
}

/** The text of the manifest, signed as it is. */
function mutatePayload(parts: Parts, random: Random): Omit<Mutant, 'name'> {
  const body = pack(parts, random);
  const text = JSON.stringify(state(parts, body));
  const payload = random.chance(0.2)
    ? changeBytes(Buffer.from(text), random)
    : Buffer.from(changeJson(text, random));
  return { bytes: signFile(parts, payload, body), signed: true };
}

/** The records, with line 1 made anew; counts are those that are found, mostly. */
function mutateLines(parts: Parts, random: Random): Omit<Mutant, 'name'> {
  const filled = fill(parts, random);
  const plain = random.chance(0.15)
    ? changeBytes(filled.plain, random)
    : changeLines(filled.plain, random);
  const types: Record<string, number> = {};
  for (const [, type = ''] of plain.toString('latin1').matchAll(/^\s*\{"t":"([a-z_.]+)"/gm)) {
    types[type] = (types[type] ?? 0) + 1;
  }
  const records = Object.values(types).reduce((sum, count) => sum + count, 0);
  const counted = random.chance(0.9)
    ? { ...filled.manifest, kind: 'delta', records, types }
    : filled.manifest;
  const changed = { ...filled, plain, manifest: counted };
  const body = pack(changed, random);
  return { bytes: signFile(changed, JSON.stringify(state(changed, body)), body), signed: true };
}

function fill(parts: Parts, random: Random): Parts {
  if (parts.plain.length > 0) return parts;
  return { ...parts, plain: Buffer.from(`${recordLine('request', random)}\n`) };
}

function changeLines(plain: Buffer, random: Random): Buffer {
  const lines = plain.toString().split('\n').slice(0, -1);
  const at = random.between(0, lines.length - 1);
  const line = lines[at] ?? '';
  const put = (...values: string[]) => lines.splice(at, 1, ...values);
  const nested = (depth: number) => '['.repeat(depth) + ']'.repeat(depth);
  const member = (value: string) => line.replace(/"d":\{/, `"d":{"zz":${value},`);
  const keys = (count: number) => Array.from({ length: count }, (_, i) => `"k${i}":0`).join();
  const json = () => void put(changeJson(line, random));
  const changes: (() => unknown)[] = [
    ...[json, json, json, json, json, json],
    () => put(line, line),
    () => put(),
    () => put(line, ''),
    () => put(`${line}\r`),
    () => put(` ${line}\t`),
    () => put(`\ufeff${line}`),
    () => put(`${line} ${line}`),
    () => put(`${line},`),
    () => put(`[${line}]`),
    () => put(line.replace('"d"', '\n"d"')),
    () => put(recordLine(oneOf(random, Object.keys(SAMPLES) as RecordType[]), random)),
    () => put(member(nested(oneOf(random, [29, 30, 31, 32, 5_000])))),
    () => put(member(`{${keys(oneOf(random, [255, 256, 257]))}}`)),
    () => put(member(`{${keys(oneOf(random, [15, 16, 17, 30]))},"k3":1}`)),
    () => put(member(oneOf(random, ODD))),
    () => put(line.replace('"v":1', `"v":${oneOf(random, ODD)}`)),
    () => put(line.replace(/"at":"[^"]*"/, `"at":${oneOf(random, ODD)}`)),
    () => put(line.replace(/"id":"[^"]*"/, `"id":${oneOf(random, ODD)}`)),
    () => put(line.replace(/"t":"[^"]*"/, `"t":${oneOf(random, ODD)}`)),
    () => put(line.replace(/"d":\{.*\}\}$/, `"d":${oneOf(random, ODD)}}`)),
  ];
  oneOf(random, changes)();
  const bytes = Buffer.from(lines.map((each) => `${each}\n`).join(''));
  if (random.chance(0.002)) return lengthen(bytes, random);
  if (random.chance(0.05)) return bytes.subarray(0, -1);
  if (random.chance(0.1)) return insert(bytes, oneOf(random, BAD_BYTES), random);
  return bytes;
}

const BAD_BYTES = [
  'ff',
  'c080',
  'eda080',
  'edb080',
  'f4908080',
  'e282',
  'f09f98',
  '00',
  'efbbbf',
  'c3a9',
];

/** A line near or beyond 1 MiB. */
function lengthen(bytes: Buffer, random: Random): Buffer {
  const first = bytes.indexOf(10) + 1;
  const line = bytes.toString('utf8', 0, first);
  const wanted = 1_048_576 + oneOf(random, [-1, 0, 1, 200_000]);
  const padded = line.replace('"d":{', `"d":{"zz":"${'é'.repeat(10)}",`);
  const missing = Math.max(0, wanted - Buffer.byteLength(padded) + 1);
  const long = padded.replace('éé', `éé${'x'.repeat(missing)}`);
  return Buffer.concat([Buffer.from(long), bytes.subarray(first)]);
}

function insert(bytes: Buffer, hex: string, random: Random): Buffer {
  const at = random.between(0, bytes.length);
  return Buffer.concat([bytes.subarray(0, at), Buffer.from(hex, 'hex'), bytes.subarray(at)]);
}

/** The compressed or encrypted bytes, with line 1 made anew. */
function mutatePacked(parts: Parts, random: Random): Omit<Mutant, 'name'> {
  const { plain, receiver, crypt } = parts;
  const gzip = gzipSync(plain, { level: oneOf(random, [0, 1, 9]) });
  const empty = gzipSync('');
  const set = (offset: number, value: number) => {
    const copy = Buffer.from(gzip);
    copy[offset < 0 ? copy.length + offset : offset] = value;
    return copy;
  };
  const half = plain.length >> 1;
  const packed = oneOf<() => Buffer>(random, [
    () => gzip,
    () => changeBytes(gzip, random),
    () => changeBytes(gzip, random),
    () => Buffer.concat([gzip, empty]),
    () => Buffer.concat([empty, gzip]),
    () => Buffer.concat([gzipSync(plain.subarray(0, half)), gzipSync(plain.subarray(half))]),
    () => Buffer.concat([gzip, Buffer.alloc(random.between(1, 20))]),
    () => Buffer.concat([gzip, gzip.subarray(-8)]),
    () => Buffer.concat([gzip.subarray(0, -8), Buffer.alloc(3), gzip.subarray(-8)]),
    () => gzip.subarray(0, -random.between(1, 12)),
    () => set(3, oneOf(random, [1, 2, 4, 8, 16])),
    () => set(oneOf(random, [4, 8, 9]), 7),
    () => set(-random.between(1, 8), 99),
    () => deflateRawSync(plain),
    () => deflateSync(plain),
    () => plain,
    () => Buffer.concat([gzip.subarray(0, 10), gzip.subarray(-8)]),
  ])();
  const body = crypt === 'age' ? sealAge(packed, receiver, random) : packed;
  const manifest = JSON.stringify(state({ ...parts, enc: 'gzip' }, body));
  return { bytes: signFile(parts, manifest, body), signed: true };
}

function mutateAge(parts: Parts, random: Random, other: Parts): Omit<Mutant, 'name'> {
  const sealed = { ...parts, crypt: 'age' as const };
  const packed = parts.enc === 'gzip' ? gzipSync(parts.plain) : parts.plain;
  const line = (length: number) => base64(random.bytes(length));
  const tricks = oneOf<() => AgeTricks>(random, [
    () => ({}),
    () => ({ before: `-> grease a b\n${line(random.between(0, 47))}\n` }),
    () => ({ after: `-> x ${'y'.repeat(random.between(1, 200))}\n${line(48)}\n\n` }),
    () => ({ before: `-> X25519 ${line(32)}\n${line(32)}\n` }),
    () => ({ before: `-> X25519 ${line(31)}\n${line(32)}\n` }),
    () => ({ before: `-> X25519 ${line(32)} x\n${line(32)}\n` }),
    () => ({ after: `-> X25519 ${line(32)}\n${line(31)}\n` }),
    () => ({ after: `-> X25519\n${line(32)}\n` }),
    () => ({ before: `-> X25519 ${base64(Buffer.alloc(32))}\n${line(32)}\n` }),
    () => ({ before: `-> x  y\n\n` }),
    () => ({ before: `->  x\n\n` }),
    () => ({ before: `-> \u00e9\n\n` }),
    () => ({ before: `-> x\t\u0001y\n\n` }),
    () => ({ before: `-> x\n${line(48)}\n${line(48)}\n${line(3)}\n` }),
    () => ({ before: `-> x\n${line(60)}\n` }),
    () => ({ before: `-> x\nAB\n` }),
    () => ({ before: `-> x\n${'-> y\n\n'.repeat(oneOf(random, [1, 12_000]))}` }),
    () => ({ header: (text) => text.replace('v1\n', 'v2\n') }),
    () => ({ header: (text) => text.replaceAll('\n', '\r\n') }),
    () => ({
      header: (text) => changeBytes(Buffer.from(text, 'latin1'), random).toString('latin1'),
    }),
    () => ({ chunk: (index, _last, plain) => [{ index, last: false, plain }] }),
    () => ({ chunk: (index, last, plain) => [{ index: index + 1, last, plain }] }),
    () => ({ chunk: (index, last, plain) => [{ index, last, plain: plain.subarray(0, -1) }] }),
    () => ({ chunk: (index, last, plain) => [0, 1].map(() => ({ index, last, plain })) }),
    () => ({
      chunk: (index, _last, plain) => [
        { index, last: false, plain },
        { index: index + 1, last: true, plain: Buffer.alloc(0) },
      ],
    }),
    () => ({ chunk: () => [] }),
  ])();
  const receiver = random.chance(0.05) ? other.receiver : parts.receiver;
  const age = sealAge(packed, receiver, random, tricks);
  const body = random.chance(0.2) ? changeBytes(age, random) : age;
  return { bytes: signFile(sealed, JSON.stringify(state(sealed, body)), body), signed: true };
}

/** One to three changes of bytes anywhere. */
export function changeBytes(bytes: Buffer, random: Random): Buffer {
  let changed = Buffer.from(bytes);
  for (let i = oneOf(random, [1, 1, 1, 2, 3]); i > 0; i--) changed = changeOnce(changed, random);
  return changed;
}

function changeOnce(bytes: Buffer, random: Random): Buffer<ArrayBuffer> {
  const at = random.between(0, bytes.length);
  const to = Math.min(bytes.length, at + oneOf(random, [1, 1, 2, 8, 64, 1_000]));
  const [before, part, after] = [bytes.subarray(0, at), bytes.subarray(at, to), bytes.subarray(to)];
  return oneOf<() => Buffer<ArrayBuffer>>(random, [
    () => {
      const copy = Buffer.from(bytes);
      if (at < copy.length) copy[at] = (copy[at] ?? 0) ^ (1 << random.between(0, 7));
      return copy;
    },
    () => Buffer.concat([before, random.bytes(part.length), after]),
    () => Buffer.concat([before, after]),
    () => Buffer.concat([before, part, part, after]),
    () => Buffer.concat([before, random.bytes(random.between(1, 16)), part, after]),
    () => Buffer.concat([before, after, part]),
    () => Buffer.from(before),
    () => Buffer.concat([bytes, random.bytes(random.between(1, 8))]),
    () => Buffer.concat([before, Buffer.alloc(part.length), after]),
    () => Buffer.concat([before, Buffer.from(part).reverse(), after]),
  ])();
}

/** One to three changes of a JSON text, token by token. */
export function changeJson(text: string, random: Random): string {
  const tokens = text.match(TOKEN) ?? [];
  for (let i = oneOf(random, [1, 1, 1, 2, 3]); i > 0; i--) changeTokens(tokens, random);
  return tokens.join('');
}

function changeTokens(tokens: string[], random: Random): void {
  const at = random.between(0, tokens.length - 1);
  const other = random.between(0, tokens.length - 1);
  const token = tokens[at] ?? '';
  const scalars = tokens.flatMap((each, i) => (/^["\d-]|^[a-z]/.test(each) ? [i] : []));
  const scalar = scalars.length > 0 ? oneOf(random, scalars) : at;
  oneOf<() => unknown>(random, [
    () => (tokens[scalar] = oneOf(random, ODD)),
    () => (tokens[scalar] = oneOf(random, ODD)),
    () => (tokens[scalar] = escape(tokens[scalar] ?? '', random)),
    () => tokens.splice(at, 1),
    () => tokens.splice(at, 0, token),
    () => ([tokens[at], tokens[other]] = [tokens[other] ?? '', token]),
    () => tokens.splice(at, 0, oneOf(random, SPACES)),
    () => tokens.splice(at, 0, oneOf(random, [...'{}[]:,'])),
    () => repeatMember(tokens, random),
    () => repeatMember(tokens, random),
  ])();
}

/** One character of a string as an escape: another way to write the same. */
function escape(token: string, random: Random): string {
  if (!token.startsWith('"') || token.length < 3) return token;
  const at = random.between(1, token.length - 2);
  const code = token.charCodeAt(at).toString(16).padStart(4, '0');
  return `${token.slice(0, at)}\\u${code}${token.slice(at + 1)}`;
}

/** A member with a plain value once more somewhere in an object, or under a key that is there. */
function repeatMember(tokens: string[], random: Random): void {
  const members = tokens.flatMap((each, i) => (each === ':' ? [i - 1] : []));
  if (members.length === 0) return;
  const key = tokens[oneOf(random, members)] ?? '';
  const before = oneOf(random, members);
  const written = random.chance(0.3) ? escape(key, random) : key;
  tokens.splice(before, 0, written, ':', oneOf(random, ODD), ',');
}
