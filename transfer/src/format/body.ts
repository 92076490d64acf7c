import { createHash, type webcrypto } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open, rm } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import { ReadableStream } from 'node:stream/web';
import { crc32, createGzip, createInflateRaw, inflateRawSync, type InflateRaw } from 'node:zlib';
import { bech32 } from '@scure/base';
import { Decrypter, Encrypter } from 'age-encryption';
import { type ErrorCode, SallyportError } from '@sallyport/shared';
import { diskError, errorCode, readRange, writeAll } from './durable-file.js';
import { BATCH_LIMITS, type Manifest } from './manifest.js';

/** What a manifest states of its body. */
export type Body = Manifest['body'];

/** Above this ratio a body is written plain, so that no importer takes it for a bomb. */
const WRITE_RATIO = 100;
/** Small pieces are gathered up to this size, because each one costs a turn of the event loop. */
const PIECE_BYTES = 256 * 1024;
/** An age header has some hundred bytes per recipient. */
const AGE_HEADER_BYTES = 64 * 1024;
/** Bodies of at most this size, packed and unpacked, are small: of a few hundred requests. */
export const SMALL_BYTES = 256 * 1024;
/** What stands before the 32 bytes of an X25519 key in PKCS #8 (RFC 8410). */
const X25519_PKCS8 = Buffer.from('302e020100300506032b656e04220420', 'hex');
/** The least that zlib takes. */
const MIN_CHUNK_BYTES = 64;
const GZIP_HEADER_BYTES = 10;
const GZIP_TRAILER_BYTES = 8;

/**
 * Writes a body to a new file (0600), hashed while it is written, and syncs it; memory stays flat.
 * `lines` is called again when the content compresses so well that it is stored plain instead.
 * Nothing is left of a body that failed.
 * @throws SallyportError WAIT_DISK; whatever `lines` throws.
 */
export async function writeBody(
  lines: () => AsyncIterable<Uint8Array>,
  options: { path: string; enc: Body['enc']; crypt: Body['crypt']; recipients: string[] },
): Promise<Body> {
  const body = await writeOnce(lines(), options);
  if (body.enc === 'none' || body.rawBytes <= body.bytes * WRITE_RATIO) return body;
  await rm(options.path);
  return writeOnce(lines(), { ...options, enc: 'none' });
}

/** Where the body of a claimed batch begins, and who may open it. */
type Sealed = { path: string; offset: number; body: Body; ageIdentities: readonly string[] };

/**
 * Decrypts and inflates the body that starts at `offset` of a claimed batch into `target` (new,
 * 0600), which exists afterwards only if everything was right.
 * @throws SallyportError DECRYPT_FAILED, INFLATE_FAILED, INFLATE_LIMIT, TRAILING_DATA,
 * COUNT_MISMATCH (fewer raw bytes than stated), TRUNCATED, WAIT_DISK.
 */
export async function openBody(
  path: string,
  offset: number,
  body: Body,
  { ageIdentities, target }: { ageIdentities: readonly string[]; target: string },
): Promise<void> {
  const file = await openNew(target);
  try {
    const pieces = openPieces({ path, offset, body, ageIdentities });
    for await (const piece of pieces) await writeAll(file, piece);
  } catch (error) {
    await rm(target, { force: true }).catch(() => undefined);
    throw diskError(error, target);
  } finally {
    await file.close();
  }
}

/**
 * As {@link openBody}, for a body that is small enough for the memory; of its own bytes where they
 * are at hand.
 * @throws SallyportError as {@link openBody} does.
 */
export async function readBody(sealed: Sealed & { bytes?: Buffer | undefined }): Promise<Buffer> {
  const pieces: Uint8Array[] = [];
  const opened = sealed.bytes ? unpack([sealed.bytes], sealed) : openPieces(sealed);
  for await (const piece of opened) pieces.push(piece);
  return Buffer.concat(pieces);
}

async function* openPieces(sealed: Sealed): AsyncGenerator<Uint8Array> {
  const { path, offset, body } = sealed;
  const source = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    yield* unpack(readRange(source, offset, offset + body.bytes), sealed);
  } finally {
    await source.close();
  }
}

function unpack(
  bytes: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  { body, ageIdentities }: Sealed,
): AsyncGenerator<Uint8Array> {
  let pieces = exactly(bytes, body.bytes);
  if (body.crypt === 'age') pieces = decrypt(pieces, ageIdentities);
  const small = Math.max(body.bytes, body.rawBytes) <= SMALL_BYTES;
  if (body.enc === 'gzip') pieces = (small ? inflateSmall : inflate)(pieces, body.rawBytes);
  return capped(pieces, body.rawBytes);
}

async function writeOnce(
  lines: AsyncIterable<Uint8Array>,
  { path, enc, crypt, recipients }: Parameters<typeof writeBody>[1],
): Promise<Body> {
  const body: Body = { bytes: 0, sha256: '', enc, rawBytes: 0, crypt };
  const hash = createHash('sha256');
  const file = await openNew(path);
  try {
    const counted = async function* () {
      for await (const piece of gather(lines)) {
        body.rawBytes += piece.length;
        yield piece;
      }
    };
    let pieces: AsyncIterable<Uint8Array> = counted();
    if (enc === 'gzip') pieces = compress(pieces);
    if (crypt === 'age') pieces = encrypt(pieces, recipients);
    for await (const piece of gather(pieces)) {
      hash.update(piece);
      body.bytes += piece.length;
      await writeAll(file, piece);
    }
    await file.sync();
  } catch (error) {
    await rm(path, { force: true }).catch(() => undefined);
    throw diskError(error, path);
  } finally {
    await file.close();
  }
  return { ...body, sha256: hash.digest('hex') };
}

function openNew(path: string): Promise<FileHandle> {
  return open(path, 'wx', 0o600).catch((error: unknown) => {
    throw diskError(error, path);
  });
}

/** The same bytes in pieces of at least 256 KiB, but the last. */
async function* gather(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let held: Uint8Array[] = [];
  let bytes = 0;
  for await (const piece of pieces) {
    if (held.length === 0 && piece.length >= PIECE_BYTES) {
      yield piece;
      continue;
    }
    held.push(piece);
    bytes += piece.length;
    if (bytes < PIECE_BYTES) continue;
    yield Buffer.concat(held, bytes);
    held = [];
    bytes = 0;
  }
  if (bytes > 0) yield Buffer.concat(held, bytes);
}

async function* compress(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const engine = createGzip({ level: 1, chunkSize: PIECE_BYTES });
  const feeding = pipeline(pieces, engine);
  // A failed feed ends the engine with the same error, and the loop below throws it.
  feeding.catch(() => undefined);
  try {
    for await (const piece of engine as AsyncIterable<Buffer>) yield piece;
    await feeding;
  } finally {
    engine.destroy();
  }
}

async function* encrypt(
  pieces: AsyncIterable<Uint8Array>,
  recipients: string[],
): AsyncGenerator<Uint8Array> {
  const encrypter = new Encrypter();
  for (const recipient of recipients) encrypter.addRecipient(recipient);
  yield* await encrypter.encrypt(ReadableStream.from(pieces));
}

async function* decrypt(
  pieces: AsyncGenerator<Uint8Array>,
  identities: readonly string[],
): AsyncGenerator<Uint8Array> {
  const decrypter = await decrypterOf(identities);
  try {
    yield* await decrypter.decrypt(ReadableStream.from(withAgeHeader(pieces)));
  } catch (cause) {
    if (cause instanceof SallyportError || isSystemError(cause)) throw cause;
    throw refuse('DECRYPT_FAILED', 'It cannot be decrypted with the key of this node.', {
      cause,
      next: 'Check that the sender trusts the card of this node as it is now; else copy it again.',
    });
  }
}

const decrypters = new Map<string, Promise<Decrypter>>();
const MAX_DECRYPTERS = 16;

/**
 * What decrypts for these identities, made once: its keys leave no process, and making them again for
 * every file is most of what opening a small one costs.
 */
function decrypterOf(identities: readonly string[]): Promise<Decrypter> {
  const name = identities.join(' ');
  const known = decrypters.get(name);
  if (known) return known;
  if (decrypters.size >= MAX_DECRYPTERS) decrypters.clear();
  const made = makeDecrypter(identities);
  decrypters.set(name, made);
  return made;
}

async function makeDecrypter(identities: readonly string[]): Promise<Decrypter> {
  const decrypter = new Decrypter();
  for (const identity of identities) decrypter.addIdentity(await importIdentity(identity));
  return decrypter;
}

function importIdentity(identity: string): Promise<webcrypto.CryptoKey> {
  const { bytes } = bech32.decodeToBytes(identity);
  return crypto.subtle.importKey(
    'pkcs8',
    Buffer.concat([X25519_PKCS8, bytes]),
    { name: 'X25519' },
    false,
    ['deriveBits'],
  );
}

/** Holds the bytes back until the age header has ended, so that no endless one is gathered. */
async function* withAgeHeader(pieces: AsyncGenerator<Uint8Array>): AsyncGenerator<Uint8Array> {
  let head: Buffer | undefined = Buffer.alloc(0);
  for await (const piece of pieces) {
    if (head === undefined) {
      yield piece;
      continue;
    }
    head = Buffer.concat([head, piece]);
    const mac = head.indexOf('\n--- ');
    if (mac > AGE_HEADER_BYTES || (mac === -1 && head.length > AGE_HEADER_BYTES)) break;
    if (mac === -1) continue;
    yield head;
    head = undefined;
  }
  if (head === undefined) return;
  throw refuse('DECRYPT_FAILED', 'Its body is not encrypted with age, though line 1 says so.');
}

/**
 * Inflates exactly one gzip member. Not by a gunzip stream: that joins further members silently and
 * passes over zeros after the end. The last 8 bytes are the trailer, all before must be consumed.
 */
async function* inflate(
  pieces: AsyncIterable<Uint8Array>,
  rawBytes: number,
): AsyncGenerator<Uint8Array> {
  const chunkSize = Math.min(PIECE_BYTES, Math.max(MIN_CHUNK_BYTES, rawBytes + 1));
  const engine = createInflateRaw({ chunkSize });
  const closed = new Promise<void>((resolve) => engine.once('close', resolve));
  const feeding = feed(engine, gather(pieces), closed);
  // A failed feed ends the engine with the same error; it is thrown below.
  feeding.catch((error: unknown) => engine.destroy(error as Error));
  let crc = 0;
  let size = 0;
  try {
    for await (const piece of engine as AsyncIterable<Buffer>) {
      crc = crc32(piece, crc);
      size += piece.length;
      yield piece;
    }
  } catch (cause) {
    if (cause instanceof SallyportError || isSystemError(cause)) throw cause;
    throw refuse('INFLATE_FAILED', 'Its gzip data is broken or ends too early.', { cause });
  } finally {
    engine.destroy();
  }
  const { fed, trailer } = await feeding;
  if (engine.bytesWritten !== fed) throw dataAfterEnd();
  checkTrailer(trailer, crc, size);
}

/** As {@link inflate}, in one call: a stream costs ten times what a few kilobytes cost. */
async function* inflateSmall(
  pieces: AsyncIterable<Uint8Array>,
  rawBytes: number,
): AsyncGenerator<Uint8Array> {
  const gathered: Uint8Array[] = [];
  for await (const piece of pieces) gathered.push(piece);
  const bytes = Buffer.concat(gathered);
  if (bytes.length < GZIP_HEADER_BYTES + GZIP_TRAILER_BYTES) throw endsTooEarly();
  checkGzipHeader(bytes);
  const packed = bytes.subarray(GZIP_HEADER_BYTES, -GZIP_TRAILER_BYTES);
  const { buffer, engine } = inflateAtOnce(packed, rawBytes);
  if (engine.bytesWritten !== packed.length) throw dataAfterEnd();
  checkTrailer(bytes.subarray(-GZIP_TRAILER_BYTES), crc32(buffer), buffer.length);
  yield buffer;
}

/** The types of Node.js do not know that `info` gives the engine too. */
type Inflated = { buffer: Buffer; engine: { bytesWritten: number } };

function inflateAtOnce(packed: Buffer, rawBytes: number): Inflated {
  const chunkSize = Math.max(MIN_CHUNK_BYTES, rawBytes + 1);
  const options = { info: true, chunkSize, maxOutputLength: chunkSize };
  try {
    return inflateRawSync(packed, options) as unknown as Inflated;
  } catch (cause) {
    if (errorCode(cause) === 'ERR_BUFFER_TOO_LARGE') throw tooMuch(rawBytes);
    throw refuse('INFLATE_FAILED', 'Its gzip data is broken or ends too early.', { cause });
  }
}

/** Gives the engine what lies between gzip header and trailer, until it takes no more. */
async function feed(
  engine: InflateRaw,
  pieces: AsyncIterable<Uint8Array>,
  closed: Promise<void>,
): Promise<{ fed: number; trailer: Buffer }> {
  let held = Buffer.alloc(0);
  let headerRead = false;
  let fed = 0;
  for await (const piece of pieces) {
    held = Buffer.concat([held, piece]);
    if (!headerRead) {
      if (held.length < GZIP_HEADER_BYTES) continue;
      checkGzipHeader(held);
      held = held.subarray(GZIP_HEADER_BYTES);
      headerRead = true;
    }
    if (held.length <= GZIP_TRAILER_BYTES) continue;
    const ready = held.subarray(0, held.length - GZIP_TRAILER_BYTES);
    held = held.subarray(ready.length);
    fed += ready.length;
    const written = new Promise<boolean>((resolve) => {
      engine.write(ready, (error) => resolve(!error));
    });
    // An engine that has seen the end of its data never calls back, it closes.
    if (!(await Promise.race([written, closed.then(() => false)]))) break;
  }
  if (!headerRead || held.length < GZIP_TRAILER_BYTES) {
    throw endsTooEarly();
  }
  engine.end();
  return { fed, trailer: held };
}

function checkTrailer(trailer: Buffer, crc: number, size: number): void {
  if (trailer.readUInt32LE(0) === crc && trailer.readUInt32LE(4) === size % 2 ** 32) return;
  throw refuse('INFLATE_FAILED', 'The checksum of its gzip data is wrong.');
}

function endsTooEarly(): SallyportError {
  return refuse('INFLATE_FAILED', 'Its gzip data ends too early.');
}

function dataAfterEnd(): SallyportError {
  return refuse('TRAILING_DATA', 'There is data after the end of its gzip data.');
}

function tooMuch(limit: number): SallyportError {
  return refuse('INFLATE_LIMIT', `Unpacked it has more than the ${limit} bytes it states.`);
}

function checkGzipHeader(head: Buffer): void {
  const plain = head[0] === 0x1f && head[1] === 0x8b && head[2] === 8 && head[3] === 0;
  if (!plain) {
    throw refuse('INFLATE_FAILED', 'Its body is not gzip as we write it, though line 1 says so.');
  }
}

async function* exactly(
  pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  bytes: number,
): AsyncGenerator<Uint8Array> {
  let seen = 0;
  for await (const piece of pieces) {
    seen += piece.length;
    yield piece;
  }
  if (seen < bytes) throw refuse('TRUNCATED', `The body has ${seen} of ${bytes} bytes.`);
}

async function* capped(
  pieces: AsyncIterable<Uint8Array>,
  rawBytes: number,
): AsyncGenerator<Uint8Array> {
  const limit = Math.min(rawBytes, BATCH_LIMITS.rawBytes);
  let seen = 0;
  for await (const piece of pieces) {
    seen += piece.length;
    if (seen > limit) throw tooMuch(limit);
    yield piece;
  }
  if (seen < rawBytes) {
    throw refuse('COUNT_MISMATCH', `Unpacked it has ${seen} bytes, line 1 states ${rawBytes}.`);
  }
}

/** A failure of the disk, not of the data; zlib's own errors also have a number. */
function isSystemError(error: unknown): boolean {
  return error instanceof Error && 'syscall' in error && errorCode(error) !== undefined;
}

function refuse(
  code: ErrorCode,
  message: string,
  options: { next?: string; cause?: unknown } = {},
): SallyportError {
  return new SallyportError(code, message, {
    next: 'The number stays missing; ask the sender for the same batch again.',
    ...options,
  });
}
