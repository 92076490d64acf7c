import { createHash, createPublicKey } from 'node:crypto';
import { flattenedVerify, FlattenedSign } from 'jose';
import { Type, type Static, type TSchema } from 'typebox';
import {
  BATCH_JSON_CODES,
  compileSchema,
  type JsonLimits,
  parseJson,
  SallyportError,
  Sha256,
  STREAM_NAMES,
  type StreamName,
  Timestamp,
  Uuid,
} from '@sallyport/shared';
import type { IndexSigner } from './carrier.js';
import { type Card, NodeName, thumbprint } from '../keys/keys.js';
import { MEDIUM_FILES } from './medium.js';

/** The most media and files of one set. */
export const SET_LIMITS = { media: 100, files: 20_000, indexBytes: 16 * 1024 * 1024 } as const;

const object = <T extends Record<string, TSchema>>(properties: T) =>
  Type.Object(properties, { additionalProperties: false });

const IndexFileSchema = object({
  name: Type.String({ pattern: '^[a-z0-9][a-z0-9.-]{0,98}$' }),
  bytes: Type.Integer({ minimum: 1, maximum: 2 ** 32 }),
  /** Of the whole file. */
  sha256: Sha256,
  /** Of the manifest, by which the batch is known. */
  digest: Sha256,
  stream: Type.Unsafe<StreamName>({ type: 'string', enum: [...STREAM_NAMES] }),
  epoch: Type.Integer({ minimum: 1, maximum: 9_999 }),
  seq: Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER }),
});
/** One batch as the INDEX names it. */
export type IndexFile = Static<typeof IndexFileSchema>;

/** What an INDEX says: which batches were written together, and on which medium each lies. */
export const IndexSchema = object({
  v: Type.Literal(1),
  set: Uuid,
  made_at: Timestamp,
  carrier: object({
    name: Type.String({ minLength: 1, maxLength: 100 }),
    /** The Ed25519 public key that signed. */
    sign: Type.String({ pattern: '^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$' }),
  }),
  from: NodeName,
  to: NodeName,
  media: Type.Array(
    object({
      id: Uuid,
      label: Type.Optional(Type.String({ minLength: 1, maxLength: 40 })),
      files: Type.Array(IndexFileSchema, { maxItems: MEDIUM_FILES }),
    }),
    { minItems: 1, maxItems: SET_LIMITS.media },
  ),
});
export type MediaIndex = Static<typeof IndexSchema>;

/** An INDEX whose signature fits the key in it; `sha256` is of the file's bytes. */
export type VerifiedIndex = { index: MediaIndex; kid: string; sha256: string };

const TYPE = 'sallyport-media+jws';
const ALGORITHM = 'Ed25519';
const LIMITS: JsonLimits = {
  depth: 6,
  keys: 500_000,
  keysPerObject: 16,
  stringLength: SET_LIMITS.indexBytes,
  arrayLength: SET_LIMITS.files,
  safeNumbers: true,
  negativeZero: false,
  nul: false,
  codes: BATCH_JSON_CODES,
};
const checkIndex = compileSchema(IndexSchema);

/** The bytes of a signed INDEX: a flattened JWS on one line. */
export async function signIndex(index: MediaIndex, signer: IndexSigner): Promise<Buffer> {
  const payload = Buffer.from(JSON.stringify(checkIndex(index)));
  const jws = await new FlattenedSign(payload)
    .setProtectedHeader({ alg: ALGORITHM, kid: signer.kid, typ: TYPE })
    .sign(signer.signKey);
  const { payload: body, protected: head, signature } = jws;
  return Buffer.from(`${JSON.stringify({ payload: body, protected: head, signature })}\n`);
}

/**
 * Reads an INDEX and checks its signature by the key that it names. Whose key that is, only a card
 * can tell.
 * @throws SallyportError index-invalid.
 */
export async function verifyIndex(bytes: Buffer): Promise<VerifiedIndex> {
  try {
    const jws = parseJson(bytes, LIMITS) as Record<string, unknown>;
    if (Object.keys(jws).sort().join() !== 'payload,protected,signature') {
      throw new Error('it is not a flattened JWS of payload, protected and signature');
    }
    const [payload, head] = [decode(jws['payload']), decode(jws['protected'])];
    const { alg, typ, kid, ...more } = parseJson(head, LIMITS) as Record<string, unknown>;
    if (alg !== ALGORITHM || typ !== TYPE || Object.keys(more).length > 0) {
      throw new Error('the header of its signature is not exactly alg, kid and typ');
    }
    const index = checkIndex(parseJson(payload, LIMITS));
    const { sign } = index.carrier;
    if (kid !== thumbprint(sign)) throw new Error('its kid is not that of the key it names');
    const key = createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: sign }, format: 'jwk' });
    await flattenedVerify(jws as { payload: string; signature: string }, key, {
      algorithms: [ALGORITHM],
    });
    requireDistinct(index);
    return { index, kid, sha256: createHash('sha256').update(bytes).digest('hex') };
  } catch (cause) {
    throw new SallyportError('index-invalid', `The INDEX is not in order: ${messageOf(cause)}.`, {
      cause,
      next: 'It was changed after it was signed, or is damaged. Ask whoever wrote the medium.',
    });
  }
}

/** Who signed, as people say it: a node whose card is known, or an unknown carrier. */
export function signerOf(
  { index, kid }: Pick<VerifiedIndex, 'index' | 'kid'>,
  cards: ReadonlyMap<string, Card> | undefined,
): { node?: string; text: string } {
  const card = cards?.get(kid);
  if (card) return { node: card.node, text: `the node ${card.node} (${kid})` };
  return { text: `an unknown carrier who calls itself ${index.carrier.name} (${kid})` };
}

/** SHA-256 in groups of four to read aloud, eight groups a line. */
export function digestGroups(sha256: string): string[] {
  const groups = sha256.match(/.{4}/g) ?? [];
  return [groups.slice(0, 8).join(' '), groups.slice(8).join(' ')];
}

function requireDistinct({ media }: MediaIndex): void {
  const files = media.flatMap((medium) => medium.files);
  const distinct = (values: string[]) => new Set(values).size === values.length;
  if (
    files.length <= SET_LIMITS.files &&
    distinct(media.map(({ id }) => id)) &&
    distinct(files.map(({ name }) => name)) &&
    distinct(files.map(({ digest }) => digest))
  ) {
    return;
  }
  throw new Error('it names a medium or a file twice, or too many');
}

function decode(value: unknown): Buffer {
  if (typeof value !== 'string') throw new Error('a part of its signature is no text');
  return Buffer.from(value, 'base64url');
}

function messageOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).replace(/\.$/, '');
}
