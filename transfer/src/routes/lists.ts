import { createHash } from 'node:crypto';
import { readPageToken, writePageToken, type Principal } from '@sallyport/shared';

/** One call for a page: who asks, with which filter, and where it goes on. */
export type PageCall = {
  secret: Buffer;
  /** Which list; a token opens on no other. */
  list: string;
  actor: Pick<Principal, 'userId'>;
  query: { page_size: number; page_token?: string };
};

export type Page<T> = { items: T[]; next_page_token?: string };

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

/** A cursor of a list that is ordered by a time and then by id. */
export function timeCursor(at: Date, id: string): string {
  return `${at.toISOString()} ${id}`;
}

/** What {@link timeCursor} wrote; nothing for the first page. */
export function afterCursor(cursor: string | undefined): { after?: { at: string; id: string } } {
  if (cursor === undefined) return {};
  const [at = '', id = ''] = cursor.split(' ');
  return { after: { at, id } };
}
