import {
  createDecipheriv,
  createHmac,
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  hkdfSync,
  type KeyObject,
} from 'node:crypto';
import { readSync } from 'node:fs';
import { Readable, Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { crc32, createInflateRaw, inflateRawSync } from 'node:zlib';
import { refuse } from './text.js';

/** Bytes of which the length is known before the first one is read. */
export type Plain = { length: number; pieces: Iterable<Buffer> };

const PIECE = 65_536;
const TAG = 16;

/** The bytes of an open file from `start` to `end`, in pieces of 64 KiB. */
export function readBytes(file: number, start: number, end: number): Plain {
  return { length: end - start, pieces: readPieces(file, start, end) };
}

/**
 * The plain text of the age file (age-encryption.org/v1) that lies there, for X25519 identities.
 * @throws Refusal DECRYPT_FAILED, also while the pieces are read.
 */
export function openAge(file: number, start: number, end: number, identities: string[]): Plain {
  const head = readAt(file, start, Math.min(PIECE, end - start)).toString('latin1');
  const [header = '', stanzas = '', mac = ''] =
    /^age-encryption\.org\/v1\n((?:->(?: [!-~]+)+\n(?:[\w+/]{64}\n)*[\w+/]{0,63}\n)+)--- ([\w+/]{43})\n/.exec(
      head,
    ) ?? refuse('DECRYPT_FAILED', 'It has no age header.');
  const fileKey = unwrap(stanzas, identities);
  const signed = header.slice(0, -mac.length - 2);
  const expected = createHmac('sha256', derive(fileKey, '', 'header'))
    .update(signed)
    .digest();
  if (!expected.equals(base64(mac))) refuse('DECRYPT_FAILED', 'The age header was changed.');
  const from = start + header.length + TAG;
  const chunks = Math.ceil((end - from) / (PIECE + TAG));
  const key = derive(fileKey, readAt(file, from - TAG, TAG), 'payload');
  const last = end - from - (chunks - 1) * (PIECE + TAG) - TAG;
  if (chunks < 1 || last < 0 || (last === 0 && chunks > 1)) {
    refuse('DECRYPT_FAILED', 'Its last age chunk is cut.');
  }
  const pieces = function* () {
    for (let i = 0; i < chunks; i++) {
      const at = from + i * (PIECE + TAG);
      const nonce = Buffer.alloc(12);
      nonce.writeUIntBE(i, 5, 6);
      nonce[11] = Number(i === chunks - 1);
      const chunk = decipher(key, nonce, readAt(file, at, Math.min(PIECE + TAG, end - at)));
      yield chunk ?? refuse('DECRYPT_FAILED', 'An age chunk was changed, moved or cut.');
    }
  };
  return { length: (chunks - 1) * PIECE + last, pieces: pieces() };
}

/** The stanzas are judged one after the other, up to the one that is for us. */
function unwrap(text: string, identities: string[]): Buffer {
  const stanzas = text.split(/^-> /m).slice(1);
  const parsed = stanzas.map((stanza) => {
    const [head = '', ...lines] = stanza.split('\n');
    return { words: head.split(' '), body: base64(lines.join('')) };
  });
  for (const identity of identities) {
    for (const { words, body } of parsed) {
      if (words[0] !== 'X25519') continue;
      const share = base64(words[1] ?? '');
      const good = words.length === 2 && share.length === 32 && body.length === 32;
      if (!good) refuse('DECRYPT_FAILED', 'An age stanza is not well formed.');
      const fileKey = unwrapOne(readIdentity(identity), share, body);
      if (fileKey) return fileKey;
    }
  }
  return refuse('DECRYPT_FAILED', 'It is not encrypted to this node.');
}

/** The file key, or undefined where the stanza is for somebody else. */
function unwrapOne(
  { privateKey, own }: ReturnType<typeof readIdentity>,
  share: Buffer,
  body: Buffer,
): Buffer | undefined {
  const x = share.toString('base64url');
  const publicKey = createPublicKey({ key: { kty: 'OKP', crv: 'X25519', x }, format: 'jwk' });
  let secret: Buffer;
  try {
    secret = diffieHellman({ privateKey, publicKey });
  } catch {
    return refuse('DECRYPT_FAILED', 'An age stanza has a point of low order.');
  }
  const key = derive(secret, Buffer.concat([share, own]), 'age-encryption.org/v1/X25519');
  return decipher(key, Buffer.alloc(12), body);
}

/** Undefined where the tag does not fit. */
function decipher(key: Buffer, nonce: Buffer, sealed: Buffer): Buffer | undefined {
  const cut = sealed.length - TAG;
  const engine = createDecipheriv('chacha20-poly1305', key, nonce, { authTagLength: TAG });
  engine.setAuthTag(sealed.subarray(cut));
  const opened = engine.update(sealed.subarray(0, cut));
  try {
    engine.final();
    return opened;
  } catch {
    return undefined;
  }
}

function derive(secret: Buffer, salt: Buffer | string, info: string): Buffer {
  return Buffer.from(hkdfSync('sha256', secret, salt, info, 32));
}

const opened = new Map<string, { privateKey: KeyObject; own: Buffer }>();

/** The key pair of an identity (Bech32); kept, because making it costs more than a small batch. */
function readIdentity(identity: string): { privateKey: KeyObject; own: Buffer } {
  const known = opened.get(identity);
  if (known) return known;
  const data = identity.slice('AGE-SECRET-KEY-1'.length, -6).toLowerCase();
  const digits = [...data].map((c) => 'qpzry9x8gf2tvdw0s3jn54khce6mua7l'.indexOf(c));
  const bits = digits.map((digit) => digit.toString(2).padStart(5, '0')).join('');
  const scalar = (bits.match(/.{8}/g) ?? []).map((byte) => Number.parseInt(byte, 2));
  const privateKey = createPrivateKey({
    key: Buffer.from([...Buffer.from('302e020100300506032b656e04220420', 'hex'), ...scalar]),
    format: 'der',
    type: 'pkcs8',
  });
  const own = Buffer.from(
    createPublicKey(privateKey).export({ format: 'jwk' }).x ?? '',
    'base64url',
  );
  opened.set(identity, { privateKey, own });
  return { privateKey, own };
}

/**
 * Hands over the content of exactly one gzip member without optional fields: 10 bytes, deflate data,
 * CRC-32 and length; never more than a piece beyond `most` bytes at once.
 * @throws Refusal INFLATE_FAILED, INFLATE_LIMIT, TRAILING_DATA; what `take` throws.
 */
export async function inflate(
  { length, pieces }: Plain,
  most: number,
  take: (piece: Buffer) => void,
): Promise<void> {
  if (length < 18) refuse('INFLATE_FAILED', 'It is too short for gzip.');
  const frame = Buffer.alloc(18);
  let crc = 0;
  let size = 0;
  const pass = (piece: Buffer) => {
    crc = crc32(piece, crc);
    size += piece.length;
    take(piece);
  };
  const deflated = unframe(pieces, length, frame);
  let used: number;
  try {
    used = await (length > PIECE
      ? inflateStream(deflated, pass)
      : inflateOnce(deflated, most, pass));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ERR_STREAM_PREMATURE_CLOSE') refuse('TRAILING_DATA', 'Data follow the gzip end.');
    if (code === 'ERR_BUFFER_TOO_LARGE') refuse('INFLATE_LIMIT', `It has over ${most} bytes.`);
    if (code?.startsWith('Z_')) refuse('INFLATE_FAILED', 'Its gzip data is broken.');
    throw error;
  }
  if (used !== length - 18) refuse('TRAILING_DATA', 'Data follow the gzip end.');
  if (frame.readUInt32LE(10) !== crc || frame.readUInt32LE(14) !== size % 2 ** 32) {
    refuse('INFLATE_FAILED', 'Its gzip checksum is wrong.');
  }
}

/** The deflate data; the first 10 and the last 8 bytes go into `frame`. */
function* unframe(pieces: Iterable<Buffer>, length: number, frame: Buffer): Generator<Buffer> {
  let at = 0;
  for (const piece of pieces) {
    const from = Math.max(0, 10 - at);
    const to = Math.max(0, Math.min(piece.length, length - 8 - at));
    piece.copy(frame, at, 0, from);
    if (to < piece.length) piece.copy(frame, 10 + at + to - (length - 8), to);
    if (frame.readUInt32BE(0) !== 0x1f8b0800) refuse('INFLATE_FAILED', 'It is not gzip.');
    at += piece.length;
    if (from < to) yield piece.subarray(from, to);
  }
}

/** Quicker than a stream for what fits into one piece. */
function inflateOnce(
  deflated: Iterable<Buffer>,
  most: number,
  pass: (piece: Buffer) => void,
): number {
  const options = { info: true, maxOutputLength: Math.max(1, most) };
  const result: unknown = inflateRawSync(Buffer.concat([...deflated]), options);
  const { buffer, engine } = result as { buffer: Buffer; engine: { bytesWritten: number } };
  pass(buffer);
  return engine.bytesWritten;
}

async function inflateStream(
  deflated: Iterable<Buffer>,
  pass: (piece: Buffer) => void,
): Promise<number> {
  const engine = createInflateRaw({ chunkSize: 2 * PIECE });
  const sink = new Writable({
    write(piece: Buffer, _encoding, done) {
      try {
        pass(piece);
        done();
      } catch (error) {
        done(error as Error);
      }
    },
  });
  await pipeline(Readable.from(deflated), engine, sink);
  return engine.bytesWritten;
}

function base64(value: string): Buffer {
  const bytes = Buffer.from(value, 'base64');
  if (bytes.toString('base64').replace(/=+$/, '') === value) return bytes;
  return refuse('DECRYPT_FAILED', 'Its age header is not base64.');
}

function* readPieces(file: number, start: number, end: number): Generator<Buffer> {
  for (let at = start; at < end; at += PIECE) yield readAt(file, at, Math.min(PIECE, end - at));
}

/** Up to `length` bytes; fewer only where the file ends. */
export function readAt(file: number, at: number, length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  let done = 0;
  while (done < length) {
    const read = readSync(file, bytes, done, length - done, at + done);
    if (read === 0) break;
    done += read;
  }
  return bytes.subarray(0, done);
}
