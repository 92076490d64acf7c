import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import { Type } from 'typebox';
import { SallyportError } from './errors.js';

/** The query parameters of every list that comes in pages. */
export const PageQuery = {
  page_size: Type.Integer({ minimum: 1, maximum: 500, default: 50 }),
  page_token: Type.Optional(Type.String({ minLength: 1, maxLength: 1_024 })),
};

/** One call for a page: who asks, by {@link PageQuery} and with which filter. */
export type PageCall = {
  secret: Buffer;
  /** Which list; a token opens on no other. */
  list: string;
  actor: { userId: string };
  query: { page_size: number; page_token?: string };
};
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
 * A page of a list, read with one row more than it has; `cursorOf` names the last row of a page.
 * @throws SallyportError `bad-page-token`.
 */
export async function readPage<Row, View>(
  { secret, list, actor, query }: PageCall,
  read: (limit: number, cursor: string | undefined) => Promise<Row[]>,
  { cursorOf, view }: { cursorOf: (row: Row) => string; view: (row: Row) => View },
): Promise<Page<View>> {
  const { page_size: size, page_token: token, ...filter } = query;
  const digest = createHash('sha256').update(JSON.stringify(filter)).digest('hex');
  const binding = `${list} ${actor.userId} ${digest}`;
  const found = await read(size + 1, readPageToken(secret, binding, token));
  const items = found.slice(0, size);
  const last = items.at(-1);
  const page = { items: items.map(view) };
  if (found.length <= size || last === undefined) return page;
  return { ...page, next_page_token: writePageToken(secret, binding, cursorOf(last)) };
}

function macOf(secret: Buffer, binding: string, cursor: Buffer): Buffer {
  return createHmac('sha256', secret)
    .update(binding)
    .update('\0')
    .update(cursor)
    .digest()
    .subarray(0, MAC_BYTES);
}
