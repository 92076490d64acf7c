import { createHmac, timingSafeEqual } from 'node:crypto';
import { Type } from 'typebox';
import { SallyportError } from './errors.js';

/** The query parameters of every list that comes in pages. */
export const PageQuery = {
  page_size: Type.Integer({ minimum: 1, maximum: 500, default: 50 }),
  page_token: Type.Optional(Type.String({ minLength: 1, maxLength: 1_024 })),
};

/** Which page of a list is wanted, by {@link PageQuery}, and what its tokens are bound to. */
export type Paging = { pageSize: number; pageToken?: string | undefined; secret: Buffer };
export type Page<T> = { items: T[]; next_page_token?: string };

const MAC_BYTES = 16;

/**
 * A token for the page after this cursor (the sort key of the last row, as text); it opens only with
 * the same secret and binding: who lists what with which filter.
 */
export function writePageToken(secret: Buffer, binding: string, cursor: string): string {
  const bytes = Buffer.from(cursor);
  return Buffer.concat([bytes, macOf(secret, binding, bytes)]).toString('base64url');
}

/**
 * The cursor in a page token; undefined without a token.
 * @throws SallyportError `bad-page-token` unless it was written with the same secret and binding.
 */
export function readPageToken(
  secret: Buffer,
  binding: string,
  token: string | undefined,
): string | undefined {
  if (token === undefined) return undefined;
  const bytes = Buffer.from(token, 'base64url');
  const cursor = bytes.subarray(0, -MAC_BYTES);
  const mac = bytes.subarray(-MAC_BYTES);
  const sound = mac.length === MAC_BYTES && timingSafeEqual(mac, macOf(secret, binding, cursor));
  if (sound) return cursor.toString();
  throw new SallyportError('bad-page-token', 'The page token is not one of this list.', {
    next: 'Start again without page_token, with the same filters throughout.',
  });
}

/**
 * One page of a list that is read in the order of a text, one row more than the page holds.
 * @throws SallyportError `bad-page-token`.
 */
export async function readPage<T>(
  { pageSize, pageToken, secret }: Paging,
  binding: string,
  list: {
    /** Reads up to `limit` rows that follow the cursor. */
    read: (after: string | undefined, limit: number) => Promise<T[]>;
    cursorOf: (row: T) => string;
  },
): Promise<Page<T>> {
  const found = await list.read(readPageToken(secret, binding, pageToken), pageSize + 1);
  const items = found.slice(0, pageSize);
  const last = items.at(-1);
  if (found.length <= pageSize || last === undefined) return { items };
  return { items, next_page_token: writePageToken(secret, binding, list.cursorOf(last)) };
}

function macOf(secret: Buffer, binding: string, cursor: Buffer): Buffer {
  return createHmac('sha256', secret)
    .update(binding)
    .update('\0')
    .update(cursor)
    .digest()
    .subarray(0, MAC_BYTES);
}
