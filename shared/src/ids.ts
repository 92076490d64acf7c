import { v7 } from 'uuid';

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** A new UUIDv7 (RFC 9562): unique, and ordered by the time it was made. */
export function newId(): string {
  return v7();
}

/** Whether the text is a UUID in the lower-case form that we write. */
export function isId(text: string): boolean {
  return UUID.test(text);
}
