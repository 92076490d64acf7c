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
