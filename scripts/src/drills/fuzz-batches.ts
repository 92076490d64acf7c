import {
  createCipheriv,
  createHash,
  createHmac,
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  hkdfSync,
  sign,
  type KeyObject,
} from 'node:crypto';
import { gzipSync } from 'node:zlib';
import type { NetworkName, RecordType, StreamName } from '@sallyport/shared';
import { deriveLink, thumbprint, type Card } from '@sallyport/transfer';
import type { Random } from './random.js';

/** One network of the fuzzed pair. Its keys are fixed, so that a case is the same in every run. */
export type Side = { card: Card; signKey: KeyObject; identity: string; ageKey: KeyObject };
export type Enc = 'none' | 'gzip';
export type Crypt = 'none' | 'age';
/** A valid batch, taken apart as far as mutations go. */
export type Parts = {
  sender: Side;
  receiver: Side;
  manifest: Record<string, unknown>;
  enc: Enc;
  crypt: Crypt;
  plain: Buffer;
};

export const NOW = new Date('2026-03-01T12:00:00.000Z');
const ZERO = '0'.repeat(64);
const ID = '0197b2a0-0000-7000-8000-000000000001';
const AT = '2026-03-01T10:00:00.000Z';

export const REQUEST = makeSide('asker', 'request', {
  identity: 'AGE-SECRET-KEY-1D0ZKSTPAWSLKMC609VQUPU75GFXRMKAY7JDALQPRD07GVM5TVZTSYF3L89',
  age: 'age15gf890kdzayjlsx29pfcx93aa36kygkt0hz7vs2vr8phxsf2s4zqlwuw0g',
});
export const RESPONSE = makeSide('answerer', 'response', {
  identity: 'AGE-SECRET-KEY-17Z8ZJ5G2MQTZN7Y80XXCJ5UFSWUUKJJLMD45RJ080EE00AMT05RQP5MYF3',
  age: 'age156g2nva7zzju3ql2scv6zx940c46nfty789y3j9eskwz6sne8uhqsyqkj5',
});
export const LINK = deriveLink(REQUEST.card, RESPONSE.card);

const LIMITS = {
  submit_per_minute: 1,
  submit_per_hour: 1,
  submit_per_day: 1,
  read_per_minute: 1,
  warn_percent: 80,
  ceiling_percent: 100,
  grace_s: 0,
  rearm_minute_s: 60,
  rearm_hour_s: 60,
  rearm_day_s: 60,
  open_requests: 1,
  stored_bytes: 1,
};
const PROFILE = {
  profile_version: 0,
  display_name: 'Ä "quoted" \\ name 😀',
  email: null,
  language: 'de',
  notices: { done: ['app'] },
};
const CREDENTIAL = { generation: 1, counter: 0, verifier: '$argon2id$v=19$m=65536,t=3,p=1$c2FsdA' };
const NUMBERED = { stream: 'requests', epoch: 1, seq: 7, digest: ZERO };
const OPEN = { version: 1, name: 'x', title: 'x', description: '', disabled: false };

/** A `d` of every type that its schema accepts. */
export const SAMPLES: Readonly<Record<RecordType, unknown>> = {
  request: {
    user_id: ID,
    dataset: 'claims',
    dataset_version: 1,
    policy_version: 1,
    tier: 'B',
    pinned_now: AT,
    expires_at: '2026-03-04T12:00:00.000Z',
    priority: 'normal',
    query: '{"query":{"term":{"x":"é\\n"}},"size":9007199254740993}',
    query_digest: `sha256:${ZERO}`,
    traceparent: null,
  },
  'request.cancel': { user_id: ID, expires_at: AT },
  'request.progress': {
    version: 1,
    status: 'processing',
    stage: 'queued',
    reason_code: null,
    times: { received_at: AT, started_at: null },
  },
  result: {
    status: 'delivered',
    failure: null,
    media_type: 'application/json',
    bytes: 2,
    sha256: ZERO,
    parts: 0,
    text: '{}',
    disclosure: null,
    dataset_version: 1,
    policy_version: 1,
    times: { received_at: AT, started_at: AT, finished_at: AT, took_ms: 3 },
  },
  'result.part': { index: 0, text: 'some "text" with \u2028 and 😀' },
  profile_type: {
    version: 1,
    name: 'x',
    description: '',
    datasets: ['claims'],
    tier: 'A',
    priorities: ['low'],
    limits: LIMITS,
    retention_days: 30,
    disabled: false,
  },
  user: {
    version: 1,
    login: 'ada',
    profile_type_id: ID,
    roles: [{ network: 'request', role: 'user' }],
    disabled: false,
    must_change_password: false,
    ...PROFILE,
  },
  'user.credential': CREDENTIAL,
  dataset: { ...OPEN, epoch: 1, time_field: null, fields: [{ name: 'a', type: 'long' }] },
  template: { ...OPEN, dataset: 'claims', params: {}, body: { a: [1, 2.5, { b: null }] } },
  policy: { version: 1, table: { max: 10 } },
  setting: { key: 'a.b', version: 1, value: [true, { deep: 'x' }] },
  'account.credential': CREDENTIAL,
  'account.profile': PROFILE,
  'batch.withdrawn': { ...NUMBERED, reason: 'lost', by: ['a', 'b'] },
  'key.change': { change: 'rotate', kid: 'x', card: null, retire: { requests: 3 }, epoch: 1 },
  custody: { ...NUMBERED, step: 'sealed', who: 'x', at: AT, medium: null },
};

/** Every stream with who sends it and what it may carry. */
export const STREAM_TYPES: readonly (readonly [StreamName, Side, readonly RecordType[]])[] = [
  ['control', REQUEST, ['batch.withdrawn', 'key.change', 'custody']],
  ['control', RESPONSE, ['request.progress', 'key.change', 'custody']],
  ['accounts', REQUEST, ['account.credential', 'account.profile']],
  ['identity', RESPONSE, ['profile_type', 'user', 'user.credential']],
  ['settings', RESPONSE, ['dataset', 'template', 'policy', 'setting']],
  ['requests.urgent', REQUEST, ['request', 'request.cancel']],
  ['requests', REQUEST, ['request', 'request.cancel']],
  ['results', RESPONSE, ['result', 'result.part']],
  ['results.bulk', RESPONSE, ['result.part']],
];

/** Valid batches of all streams, encodings, encryptions and several sizes; the large ones last. */
export function makeBatches(random: Random): Parts[] {
  const kinds: [Enc, Crypt][] = [
    ['none', 'none'],
    ['gzip', 'none'],
    ['gzip', 'age'],
    ['none', 'age'],
  ];
  const batches = STREAM_TYPES.flatMap(([stream, sender, types]) =>
    kinds.flatMap(([enc, crypt]) => {
      const secret = stream === 'identity' || stream === 'accounts';
      if (secret && crypt === 'none') return [];
      return [0, 1, 4].map((count) => make(random, { stream, sender, types, enc, crypt, count }));
    }),
  );
  const types: RecordType[] = ['request'];
  const large = kinds.map(([enc, crypt]) =>
    make(random, { stream: 'requests', sender: REQUEST, types, enc, crypt, count: 300 }),
  );
  return [...batches, ...large];
}

/** Any of a list that has at least one. */
export function oneOf<T>(random: Random, list: readonly T[]): T {
  return list[random.between(0, list.length - 1)] as T;
}

/** One record as a line, without its newline. */
export function recordLine(type: RecordType, random: Random): string {
  const id = `0197b2a0-0000-7000-8000-${String(random.between(0, 999_999_999)).padStart(12, '0')}`;
  return JSON.stringify({ t: type, id, v: 1, at: AT, d: SAMPLES[type] });
}

function make(
  random: Random,
  options: {
    stream: StreamName;
    sender: Side;
    types: readonly RecordType[];
    enc: Enc;
    crypt: Crypt;
    count: number;
  },
): Parts {
  const { stream, sender, enc, crypt, count } = options;
  const receiver = sender === REQUEST ? RESPONSE : REQUEST;
  const chosen = Array.from({ length: count }, () => oneOf(random, options.types));
  const types: Record<string, number> = {};
  for (const type of chosen) types[type] = (types[type] ?? 0) + 1;
  const state = { epoch: 1, contiguous: 3, digest: ZERO, extra: [[5, 6]], missing: [[4, 4]] };
  const rejected = [{ seq: 4, digest: ZERO, code: 'SCHEMA' }];
  const manifest = {
    fmt: 'sallyport-batch',
    v: 1,
    link: LINK,
    from: sender.card.node,
    to: receiver.card.node,
    stream,
    epoch: 1,
    seq: random.between(1, 1_000),
    prev: ZERO,
    kind: count === 0 ? 'heartbeat' : 'delta',
    createdAt: AT,
    ...(random.chance(0.5) ? {} : { notAfter: '2026-03-31T12:00:00.000Z' }),
    records: count,
    types,
    body: {},
    ack: { no: 1, incarnation: ID, streams: { control: { ...state, rejected, more: false } } },
    tail: { requests: { epoch: 1, seq: 9, digest: ZERO } },
    auditHead: ZERO,
    by: 'tester',
    build: '0.1.0',
  };
  const plain = Buffer.from(chosen.map((type) => `${recordLine(type, random)}\n`).join(''));
  return { sender, receiver, manifest, enc, crypt, plain };
}

/** What lies below line 1, made of the plain lines. */
export function pack({ enc, crypt, plain, receiver }: Parts, random: Random): Buffer {
  const packed = enc === 'gzip' ? gzipSync(plain, { level: 1 }) : plain;
  return crypt === 'age' ? sealAge(packed, receiver, random) : packed;
}

/** The manifest with what is true of its body. */
export function state(parts: Parts, body: Buffer): Record<string, unknown> {
  const sha256 = createHash('sha256').update(body).digest('hex');
  const { enc, crypt, plain, manifest } = parts;
  const stated = { bytes: body.length, sha256, enc, rawBytes: plain.length, crypt };
  // A copy to the bottom: who changes it must not change the batch for the cases that follow.
  return { ...structuredClone(manifest), body: stated };
}

/** A whole file, signed by the key that may sign it. */
export function signFile(
  parts: Parts,
  manifest: string | Buffer,
  body: Buffer,
  head?: string,
): Buffer {
  const { sender } = parts;
  const header = head ?? protectedHeader(sender);
  const payload = Buffer.from(manifest).toString('base64url');
  const guarded = Buffer.from(header).toString('base64url');
  const signature = sign(null, Buffer.from(`${guarded}.${payload}`), sender.signKey);
  const line = `{"payload":"${payload}","protected":"${guarded}","signature":"${signature.toString('base64url')}"}\n`;
  return Buffer.concat([Buffer.from(line), body]);
}

export function protectedHeader({ card }: Side): string {
  return JSON.stringify({ alg: 'Ed25519', kid: card.kid, typ: 'sallyport-batch+jws' });
}

/** What can be wrong in an age file though its sender holds the right key. */
export type AgeTricks = {
  /** Stanzas before and after the right one, as they are written. */
  before?: string;
  after?: string;
  /** Changes the header before its MAC is made, or the whole file after. */
  header?: (header: string) => string;
  chunk?: (
    index: number,
    last: boolean,
    plain: Buffer,
  ) => { index: number; last: boolean; plain: Buffer }[];
};

/** Encrypts to a node in the age v1 format, without the library that both sides of the gap use. */
export function sealAge(
  plain: Buffer,
  receiver: Side,
  random: Random,
  { before = '', after = '', header = (text) => text, chunk }: AgeTricks = {},
): Buffer {
  const fileKey = random.bytes(16);
  const wrap = wrapKey(fileKey, receiver);
  const unsigned = header(`age-encryption.org/v1\n${before}${wrap}${after}---`);
  const mac = createHmac('sha256', derive(fileKey, '', 'header'))
    .update(unsigned, 'latin1')
    .digest();
  const nonce = random.bytes(16);
  const key = derive(fileKey, nonce, 'payload');
  const count = Math.max(1, Math.ceil(plain.length / 65_536));
  const chunks = Array.from({ length: count }, (_, index) => {
    const piece = plain.subarray(index * 65_536, (index + 1) * 65_536);
    const last = index === count - 1;
    const written = chunk?.(index, last, piece) ?? [{ index, last, plain: piece }];
    return written.map((one) => {
      const chunkNonce = Buffer.alloc(12);
      chunkNonce.writeUInt32BE(one.index, 7);
      chunkNonce[11] = one.last ? 1 : 0;
      return encrypt(key, chunkNonce, one.plain);
    });
  });
  const head = Buffer.from(`${unsigned} ${base64(mac)}\n`, 'latin1');
  return Buffer.concat([head, nonce, ...chunks.flat()]);
}

const SHARED = new Map<Side, { share: string; key: Buffer }>();

/** One ephemeral key serves all files: making one costs more than judging a file. */
function wrapKey(fileKey: Buffer, receiver: Side): string {
  const { share, key } = SHARED.get(receiver) ?? agree(receiver);
  return `-> X25519 ${share}\n${base64(encrypt(key, Buffer.alloc(12), fileKey))}\n`;
}

function agree(receiver: Side): { share: string; key: Buffer } {
  const privateKey = rawPrivateKey('X25519', createHash('sha256').update('ephemeral').digest());
  const share = rawPublicKey(privateKey);
  const secret = diffieHellman({ privateKey, publicKey: createPublicKey(receiver.ageKey) });
  const salt = Buffer.concat([share, rawPublicKey(receiver.ageKey)]);
  const key = derive(secret, salt, 'age-encryption.org/v1/X25519');
  const agreed = { share: base64(share), key };
  SHARED.set(receiver, agreed);
  return agreed;
}

/** Base64 without padding, as age headers have it. */
export function base64(bytes: Buffer): string {
  return bytes.toString('base64').replace(/=+$/, '');
}

function encrypt(key: Buffer, nonce: Buffer, plain: Buffer): Buffer {
  const cipher = createCipheriv('chacha20-poly1305', key, nonce, { authTagLength: 16 });
  return Buffer.concat([cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
}

function derive(secret: Buffer, salt: Buffer | string, info: string): Buffer {
  return Buffer.from(hkdfSync('sha256', secret, salt, info, 32));
}

function makeSide(
  node: string,
  role: NetworkName,
  { identity, age }: { identity: string; age: string },
): Side {
  const signKey = rawPrivateKey('Ed25519', createHash('sha256').update(`fuzz ${node}`).digest());
  const sign = rawPublicKey(signKey).toString('base64url');
  const card: Card = { v: 1, node, role, kid: thumbprint(sign), sign, age };
  return { card, signKey, identity, ageKey: rawPrivateKey('X25519', bech32(identity)) };
}

function rawPrivateKey(curve: 'Ed25519' | 'X25519', bytes: Buffer): KeyObject {
  const oid = curve === 'Ed25519' ? '70' : '6e';
  const prefix = Buffer.from(`302e020100300506032b65${oid}04220420`, 'hex');
  return createPrivateKey({ key: Buffer.concat([prefix, bytes]), format: 'der', type: 'pkcs8' });
}

function rawPublicKey(privateKey: KeyObject): Buffer {
  return createPublicKey(privateKey).export({ format: 'der', type: 'spki' }).subarray(-32);
}

/** The 32 bytes in an age identity. */
function bech32(identity: string): Buffer {
  const data = identity.toLowerCase().slice('age-secret-key-1'.length, -6);
  const digits = [...data].map((c) => 'qpzry9x8gf2tvdw0s3jn54khce6mua7l'.indexOf(c));
  const bits = digits.map((digit) => digit.toString(2).padStart(5, '0')).join('');
  return Buffer.from((bits.match(/.{8}/g) ?? []).map((byte) => parseInt(byte, 2)));
}
