import type { Request } from 'express';
import type { TSchema } from 'typebox';
import { SallyportError } from './errors.js';
import { HTTP_JSON_CODES, parseJson, type JsonLimits } from './json.js';
import { compileSchema, type Check } from './schema.js';

export type BodyLimits = {
  sizeBytes: number;
  /** From the moment the body is asked for until its last byte. */
  timeMs: number;
};

/** What a JSON body may be unless its route says otherwise. */
export const JSON_BODY_LIMITS: BodyLimits & { json: JsonLimits } = {
  sizeBytes: 256 * 1024,
  timeMs: 30_000,
  json: {
    depth: 32,
    keys: 5_000,
    keysPerObject: 1_000,
    stringLength: 64 * 1024,
    arrayLength: 10_000,
    safeNumbers: true,
    negativeZero: false,
    nul: false,
    codes: HTTP_JSON_CODES,
  },
};

/**
 * Compiles a reader of JSON bodies of one shape.
 * @throws SallyportError (from the reader) as {@link readBody}, `parseJson` and `compileSchema` do,
 * and `unsupported-media-type`.
 */
export function jsonReader<Schema extends TSchema>(
  schema: Schema,
  limits: BodyLimits & { json: JsonLimits } = JSON_BODY_LIMITS,
): (req: Request) => Promise<ReturnType<Check<Schema>>> {
  const check = compileSchema(schema);
  return async (req) => {
    requireMediaType(req, 'application/json');
    return check(parseJson(await readBody(req, limits), limits.json));
  };
}

/** @throws SallyportError `unsupported-media-type` unless the body says it is of that type. */
export function requireMediaType(req: Request, expected: string): void {
  const given = req.headers['content-type'];
  const type = given?.split(';', 1)[0]?.trim().toLowerCase();
  if (type === expected) return;
  throw new SallyportError(
    'unsupported-media-type',
    `The body is ${type === undefined ? 'of no stated type' : `"${type.slice(0, 100)}"`}.`,
    { next: `Send ${expected} and say so in Content-Type.` },
  );
}

/**
 * Reads a whole body into memory, as it was sent (no decoding). A body that says it is too large is
 * refused before a byte of it is read.
 * @throws SallyportError `body-too-large`, `body-too-slow`, `body-incomplete`, or
 * `unsupported-media-type` for a content coding.
 */
export async function readBody(
  req: Request,
  { sizeBytes, timeMs }: BodyLimits,
): Promise<Uint8Array> {
  const coding = req.headers['content-encoding'];
  if (coding !== undefined && coding !== 'identity') {
    throw new SallyportError('unsupported-media-type', 'The body has a content coding.', {
      next: 'Send it without Content-Encoding.',
    });
  }
  const stated = req.headers['content-length'];
  if (stated !== undefined && Number(stated) > sizeBytes) {
    throw tooLarge(sizeBytes, Number(stated));
  }
  if (req.destroyed && !req.readableEnded) throw incomplete();
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    const stop = (error?: SallyportError) => {
      clearTimeout(timer);
      req.off('data', onData).off('end', onEnd).off('close', onCut).off('error', onCut);
      if (error) reject(error);
      else resolve(chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks, size));
    };
    const onData = (chunk: Buffer) => {
      size += chunk.length;
      if (size > sizeBytes) stop(tooLarge(sizeBytes));
      else chunks.push(chunk);
    };
    const onEnd = () => stop();
    const onCut = () => stop(incomplete());
    const timer = setTimeout(() => {
      const text = `The body was not complete after ${timeMs / 1000} s.`;
      stop(new SallyportError('body-too-slow', text));
    }, timeMs);
    req.on('data', onData).on('end', onEnd).on('close', onCut).on('error', onCut);
  });
}

function incomplete(): SallyportError {
  return new SallyportError('body-incomplete', 'The connection ended before the body did.');
}

function tooLarge(limit: number, actual?: number): SallyportError {
  const size = actual === undefined ? `more than ${limit}` : String(actual);
  return new SallyportError('body-too-large', `The body has ${size} bytes.`, {
    next: `At most ${limit} bytes are taken here.`,
    errors: [
      {
        pointer: '',
        code: 'body-too-large',
        detail: 'is too large',
        limit,
        ...(actual === undefined ? {} : { actual }),
      },
    ],
  });
}
