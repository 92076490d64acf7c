/**
 * A text of at most so many UTF-16 units that can be stored and sent: half a character, at the cut or
 * elsewhere, becomes U+FFFD.
 */
export function shorten(text: string, maxLength: number): string {
  return text.slice(0, maxLength).replaceAll(/\p{Surrogate}/gu, '\ufffd');
}

/** The pattern of SQL's `like` for texts in small letters that contain this one. */
export function containing(text: string): string {
  return `%${text.toLowerCase().replace(/[\\%_]/g, '\\$&')}%`;
}
