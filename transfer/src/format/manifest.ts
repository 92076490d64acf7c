import { createHash, createPublicKey, type KeyObject } from 'node:crypto';
import { flattenedVerify, FlattenedSign } from 'jose';
import { Type, type Static, type TSchema } from 'typebox';
import {
  BATCH_JSON_CODES,
  compileSchema,
  type ErrorCode,
  type JsonLimits,
  parseJson,
  RECORD_TYPES,
  type RecordType,
  SallyportError,
  Sha256,
  STREAM_NAMES,
  type StreamName,
  STREAMS,
  Timestamp,
  Uuid,
} from '@sallyport/shared';
import { type Card, type NodeKeys, NodeName } from '../keys/keys.js';

/** The largest values that pass (docs/reference/batch-format.md). */
export const BATCH_LIMITS = {
  headerBytes: 64 * 1024,
  fileBytes: Math.floor(3.9 * 1024 ** 3),
  rawBytes: 2 * 1024 ** 3,
  /** Raw bytes for each byte of a compressed body. */
  inflateRatio: 200,
  lineBytes: 1024 * 1024,
  records: 1_000_000,
  /** The highest `no` of an acknowledgement, and the highest number in a tail. */
  counter: 10 ** 12,
} as const;

/** `prev` of the first batch of a stream, and `digest` of a stream of which nothing has come. */
export const ZERO_DIGEST = '0'.repeat(64);

const object = <T extends Record<string, TSchema>>(properties: T) =>
  Type.Object(properties, { additionalProperties: false });
const perStream = <T extends TSchema>(schema: T) =>
  Type.Partial(
    object(Object.fromEntries(STREAM_NAMES.map((name) => [name, schema])) as Record<StreamName, T>),
    // Not taken over from the object.
    { additionalProperties: false },
  );
const oneOf = <T extends string>(...values: readonly T[]) =>
  Type.Unsafe<T>({ type: 'string', enum: values });
const text = (maxLength: number) => Type.String({ minLength: 1, maxLength });
const Count = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const Seq = Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER });
const Counter = Type.Integer({ minimum: 1, maximum: BATCH_LIMITS.counter });
const Epoch = Type.Integer({ minimum: 1, maximum: 9_999 });
const Ranges = Type.Array(
  Type.Unsafe<[first: number, last: number]>(Type.Array(Seq, { minItems: 2, maxItems: 2 })),
  { maxItems: 200 },
);

/** What a node has of the far side's streams. */
export const AckSchema = object({
  /** Rises with every manifest that the node signs. */
  no: Counter,
  incarnation: Uuid,
  streams: perStream(
    object({
      epoch: Epoch,
      contiguous: Count,
      /** Manifest digest of batch `contiguous`. */
      digest: Sha256,
      extra: Ranges,
      missing: Ranges,
      rejected: Type.Array(object({ seq: Seq, digest: Sha256, code: text(40) }), {
        maxItems: 50,
      }),
      more: Type.Boolean(),
    }),
  ),
});
export type Ack = Static<typeof AckSchema>;

/** The newest sealed batch of every stream that a node sends. */
export const TailSchema = perStream(object({ epoch: Epoch, seq: Counter, digest: Sha256 }));
export type Tail = Static<typeof TailSchema>;

/** What line 1 of a batch says and signs (docs/reference/batch-format.md). */
export const ManifestSchema = object({
  fmt: Type.Literal('sallyport-batch'),
  v: Type.Literal(1),
  link: Type.String({ pattern: '^[a-z2-7]{16}$' }),
  from: NodeName,
  to: NodeName,
  stream: oneOf(...STREAM_NAMES),
  epoch: Epoch,
  seq: Seq,
  prev: Sha256,
  kind: oneOf('delta', 'snapshot', 'heartbeat'),
  createdAt: Timestamp,
  notAfter: Type.Optional(Timestamp),
  records: Count,
  types: Type.Record(Type.String({ pattern: '^[a-z][a-z_.]{0,63}$' }), Count),
  body: object({
    bytes: Count,
    sha256: Sha256,
    enc: oneOf('none', 'gzip'),
    rawBytes: Count,
    crypt: oneOf('none', 'age'),
  }),
  ack: AckSchema,
  tail: TailSchema,
  auditHead: Sha256,
  by: text(200),
  build: text(100),
});
export type Manifest = Static<typeof ManifestSchema>;

/** A signed line 1, and SHA-256 of the manifest's bytes, by which a batch is known. */
export type SignedManifest = { line: Buffer; digest: string };
/** What line 1 says. Trust it only after {@link verifyHeader}. */
export type Header = { manifest: Manifest; digest: string; kid: string };

const ALGORITHM = 'Ed25519';
const TYPE = 'sallyport-batch+jws';
const JSON_LIMITS: JsonLimits = {
  depth: 32,
  keys: 10_000,
  keysPerObject: 256,
  stringLength: BATCH_LIMITS.headerBytes,
  arrayLength: 10_000,
  safeNumbers: true,
  negativeZero: false,
  nul: false,
  codes: BATCH_JSON_CODES,
};
const checkManifest = compileSchema(ManifestSchema);
const MEMBERS = ['payload', 'protected', 'signature'];

/**
 * Signs a manifest; `line` is line 1 of the batch file without its newline.
 * @throws SallyportError when the manifest is not one that {@link verifyHeader} would accept;
 * HEADER_TOO_BIG when the line passes 64 KiB.
 */
export async function signManifest(manifest: Manifest, keys: NodeKeys): Promise<SignedManifest> {
  const payload = Buffer.from(JSON.stringify(manifest));
  parseManifest(payload);
  checkSender(manifest, keys.card);
  const jws = await new FlattenedSign(payload)
    .setProtectedHeader({ alg: ALGORITHM, kid: keys.kid, typ: TYPE })
    .sign(keys.signKey);
  const line = writeLine({
    payload: jws.payload,
    protected: jws.protected as string,
    signature: jws.signature,
  });
  if (line.length > BATCH_LIMITS.headerBytes) {
    throw refuse('HEADER_TOO_BIG', `Line 1 has ${line.length} bytes, at most 65536 may be.`);
  }
  return { line, digest: sha256(payload) };
}

/**
 * Reads line 1 (without its newline) strictly, WITHOUT checking who signed it: for tools that show
 * a batch, and for finding out what it is about before its key is known.
 * @throws SallyportError NOT_A_BATCH, BAD_HEADER, BAD_SIGNATURE (a header that no valid signature
 * can have), BAD_JSON, BAD_UTF8, UNSUPPORTED_VERSION, SCHEMA, WAIT_UPGRADE, TOO_BIG, INFLATE_LIMIT,
 * TOO_MANY_RECORDS, COUNT_MISMATCH.
 */
export function readHeader(line: Buffer): Header & { protectedHeader: Record<string, unknown> } {
  const { payload, protectedHeader, kid } = readLine(line);
  return { manifest: parseManifest(payload), digest: sha256(payload), kid, protectedHeader };
}

/**
 * Reads line 1 and checks its signature by the card of its `kid` before the manifest is parsed:
 * the algorithm, the header's form, the sender's name and its right to send the stream.
 * @throws SallyportError as {@link readHeader} does, and UNKNOWN_KEY, BAD_SIGNATURE, KEY_WRONG_ROLE.
 */
export async function verifyHeader(
  line: Buffer,
  cardOf: (kid: string) => Card | undefined,
): Promise<Header> {
  const { jws, payload, kid } = readLine(line);
  const card = cardOf(kid);
  if (!card) {
    throw refuse('UNKNOWN_KEY', `It is signed by the key ${kid}, which is not trusted here.`, {
      next: "Compare the fingerprint of the sender's card and trust it with `keys trust CARD`.",
    });
  }
  try {
    await flattenedVerify(jws, publicKey(card), { algorithms: [ALGORITHM] });
  } catch (cause) {
    throw refuse('BAD_SIGNATURE', 'The signature of line 1 does not fit its content.', { cause });
  }
  const manifest = parseManifest(payload);
  checkSender(manifest, card);
  return { manifest, digest: sha256(payload), kid };
}

type Jws = { payload: string; protected: string; signature: string };

/** The flattened JWS of line 1 in the one form that we write, its parts decoded. */
function readLine(line: Buffer): {
  jws: Jws;
  payload: Buffer;
  protectedHeader: Record<string, unknown>;
  kid: string;
} {
  checkLine(line);
  const jws = parseStrictly(line, { ...JSON_LIMITS, depth: 4 }) as Record<string, unknown>;
  const extra = Object.keys(jws).find((name) => !MEMBERS.includes(name));
  if (extra !== undefined) {
    throw refuse('BAD_HEADER', `Line 1 has the member ${JSON.stringify(extra)}.`);
  }
  const payload = base64Url(jws['payload'], 'payload');
  const head = base64Url(jws['protected'], 'protected');
  if (base64Url(jws['signature'], 'signature').length !== 64) {
    throw refuse('BAD_SIGNATURE', 'The signature is not 64 bytes long.');
  }
  const checked = jws as Jws;
  if (!writeLine(checked).equals(line)) {
    throw refuse('BAD_HEADER', 'Line 1 is not written as payload, protected, signature.');
  }
  const protectedHeader = parseStrictly(head);
  const read = checkProtectedHeader(protectedHeader);
  // As it is written, not only as it is read: white space, order and escapes too.
  if (head.toString() !== JSON.stringify({ alg: ALGORITHM, kid: read.kid, typ: TYPE })) {
    throw refuse('BAD_SIGNATURE', 'The header of the signature is not written as alg, kid, typ.');
  }
  return { jws: checked, payload, ...read };
}

/** Refuses what is no flattened JWS at all, and names the usual ways in which copies go wrong. */
function checkLine(line: Buffer): void {
  if (line.length > BATCH_LIMITS.headerBytes) {
    throw refuse('HEADER_TOO_BIG', `Line 1 has ${line.length} bytes, at most 65536 may be.`);
  }
  if (line[0] === 0xef && line[1] === 0xbb && line[2] === 0xbf) {
    throw refuse('BAD_HEADER', 'It starts with a byte order mark: an editor has changed it.');
  }
  if (line.at(-1) === 0x0d) {
    throw refuse('BAD_HEADER', 'Line 1 ends in CR LF: it was copied in text mode.');
  }
  if (line[0] !== 0x7b) throw refuse('NOT_A_BATCH', 'It does not start with a signed manifest.');
}

function checkProtectedHeader(header: unknown): {
  protectedHeader: Record<string, unknown>;
  kid: string;
} {
  const members = isObject(header) ? header : {};
  const { alg, typ, kid } = members;
  const names = Object.keys(members).sort().join();
  if (alg !== ALGORITHM || typ !== TYPE || typeof kid !== 'string' || names !== 'alg,kid,typ') {
    throw refuse('BAD_SIGNATURE', `The header of the signature is not exactly alg, kid and typ.`);
  }
  return { protectedHeader: members, kid };
}

function parseManifest(payload: Buffer): Manifest {
  const value = parseStrictly(payload);
  if (!isObject(value) || value['fmt'] !== 'sallyport-batch') {
    throw refuse('NOT_A_BATCH', 'What is signed is not the manifest of a batch.');
  }
  const version = value['v'];
  if (Number.isInteger(version) && (version as number) > 1) {
    throw refuse('UNSUPPORTED_VERSION', `It is of format version ${String(version)}, we know 1.`, {
      next: 'Upgrade this software; the file stays and is tried again.',
    });
  }
  let manifest: Manifest;
  try {
    manifest = checkManifest(value);
  } catch (cause) {
    if (!(cause instanceof SallyportError)) throw cause;
    throw refuse('SCHEMA', `The manifest is not well formed: ${cause.message}`, { cause });
  }
  checkTimes(manifest);
  checkRanges(manifest);
  checkBody(manifest);
  checkTypes(manifest);
  return manifest;
}

function checkTimes(manifest: Manifest): void {
  for (const name of ['createdAt', 'notAfter'] as const) {
    const time = manifest[name];
    if (time !== undefined && !isRealTime(time)) {
      throw refuse('SCHEMA', `The manifest's ${name} is not a time: ${time}.`);
    }
  }
}

/** The ranges of an acknowledgement run upwards and share no number. */
function checkRanges({ ack }: Manifest): void {
  for (const [stream, told] of Object.entries(ack.streams)) {
    for (const name of ['extra', 'missing'] as const) {
      const numbers = told[name].flat();
      const wrong = numbers.some((number, i) => {
        const before = numbers[i - 1] ?? 0;
        return i % 2 === 0 ? number <= before : number < before;
      });
      if (!wrong) continue;
      throw refuse('SCHEMA', `The ranges in ack.${stream}.${name} do not run upwards.`);
    }
  }
}

/** Whether a text in the form of `Timestamp` names a moment that exists (no February 30). */
export function isRealTime(time: string): boolean {
  const part = (from: number, to: number) => Number(time.slice(from, to));
  const month = part(5, 7);
  const day = part(8, 10);
  if (
    part(0, 4) < 1970 ||
    month < 1 ||
    month > 12 ||
    day < 1 ||
    part(11, 13) > 23 ||
    part(17, 19) > 59
  )
    return false;
  return day <= 28 || day <= new Date(Date.UTC(part(0, 4), month, 0)).getUTCDate();
}

function checkBody({ stream, body, records }: Manifest): void {
  const { bytes, rawBytes, enc, crypt } = body;
  if (STREAMS[stream].alwaysEncrypted && crypt === 'none') {
    throw refuse('SCHEMA', `The stream ${stream} must be encrypted, this batch is not.`);
  }
  if (bytes > BATCH_LIMITS.fileBytes) {
    throw refuse('TOO_BIG', `Its body has ${bytes} bytes, a file may have 3.9 GiB.`);
  }
  if (rawBytes > BATCH_LIMITS.rawBytes) {
    throw refuse('INFLATE_LIMIT', `Unpacked it has ${rawBytes} bytes, at most 2 GiB may be.`);
  }
  if (enc === 'gzip' && rawBytes > bytes * BATCH_LIMITS.inflateRatio) {
    throw refuse(
      'INFLATE_LIMIT',
      `It would grow from ${bytes} to ${rawBytes} bytes, over 200 : 1.`,
    );
  }
  if (records > BATCH_LIMITS.records) {
    throw refuse('TOO_MANY_RECORDS', `It has ${records} records, at most 1,000,000 may be.`);
  }
}

function checkTypes({ stream, types, records, kind }: Manifest): void {
  const unknown = Object.keys(types).find((type) => !Object.hasOwn(RECORD_TYPES, type));
  if (unknown !== undefined) {
    throw refuse('WAIT_UPGRADE', `It has records of the unknown type ${unknown}.`, {
      next: 'Upgrade this software; the file stays and is tried again.',
    });
  }
  const foreign = Object.keys(types).find(
    (type) => !STREAMS[stream].types.includes(type as RecordType),
  );
  if (foreign !== undefined) {
    throw refuse('SCHEMA', `Records of type ${foreign} do not belong in the stream ${stream}.`);
  }
  const sum = Object.values(types).reduce((total, count) => total + count, 0);
  if (sum !== records) {
    throw refuse('COUNT_MISMATCH', `It states ${records} records, its types add up to ${sum}.`);
  }
  if (kind === 'heartbeat' && records !== 0) {
    throw refuse('COUNT_MISMATCH', `It is a heartbeat and states ${records} records.`);
  }
}

/** A key speaks only for its node, and only in the streams that its network sends. */
function checkSender(manifest: Manifest, card: Card): void {
  if (manifest.from !== card.node) {
    throw refuse(
      'KEY_WRONG_ROLE',
      `It says it comes from ${manifest.from}, but the key belongs to ${card.node}.`,
    );
  }
  if (!STREAMS[manifest.stream].from.includes(card.role)) {
    throw refuse(
      'KEY_WRONG_ROLE',
      `A key of the ${card.role} network may not sign the stream ${manifest.stream}.`,
    );
  }
}

/** As {@link parseJson}, its refusals with what to do next. */
function parseStrictly(bytes: Uint8Array, limits = JSON_LIMITS): unknown {
  try {
    return parseJson(bytes, limits);
  } catch (cause) {
    if (!(cause instanceof SallyportError)) throw cause;
    throw refuse(cause.code, cause.message, { cause });
  }
}

function writeLine({ payload, protected: head, signature }: Jws): Buffer {
  return Buffer.from(JSON.stringify({ payload, protected: head, signature }));
}

function base64Url(value: unknown, name: string): Buffer {
  if (typeof value !== 'string') throw refuse('BAD_HEADER', `Line 1 has no ${name}.`);
  const bytes = Buffer.from(value, 'base64url');
  // Also refuses padding, foreign characters and stray bits in the last character.
  if (bytes.toString('base64url') !== value) {
    throw refuse('BAD_HEADER', `The ${name} of line 1 is not base64url as RFC 7515 writes it.`);
  }
  return bytes;
}

const publicKeys = new WeakMap<Card, KeyObject>();

/** The same object for the same card: jose keeps what it makes of it. */
function publicKey(card: Card): KeyObject {
  const known = publicKeys.get(card);
  if (known) return known;
  const jwk = { kty: 'OKP', crv: 'Ed25519', x: card.sign };
  const key = createPublicKey({ key: jwk, format: 'jwk' });
  publicKeys.set(card, key);
  return key;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function refuse(
  code: ErrorCode,
  message: string,
  options: { next?: string; cause?: unknown } = {},
): SallyportError {
  return new SallyportError(code, message, {
    next: 'Copy the file again from the sender; if it is refused again, tell the sender.',
    ...options,
  });
}
