import { createHmac, timingSafeEqual } from 'node:crypto';
import { SallyportError, isId } from '@sallyport/shared';

const MAC_BYTES = 16;

/** A token for the page after this id; it opens only with the same secret and binding. */
export function writePageToken(secret: Buffer, binding: string, id: string): string {
  const bytes = Buffer.from(id.replaceAll('-', ''), 'hex');
  return Buffer.concat([bytes, macOf(secret, binding, bytes)]).toString('base64url');
}

/**
 * The id in a page token; undefined without a token.
 * @throws SallyportError `bad-page-token` unless it was written with the same secret and binding.
 */
export function readPageToken(
  secret: Buffer,
  binding: string,
  token: string | undefined,
): string | undefined {
  if (token === undefined) return undefined;
  const bytes = Buffer.from(token, 'base64url');
  const idBytes = bytes.subarray(0, -MAC_BYTES);
  const mac = bytes.subarray(-MAC_BYTES);
  const hex = idBytes.toString('hex');
  const id = hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
  const sound = mac.length === MAC_BYTES && timingSafeEqual(mac, macOf(secret, binding, idBytes));
  if (sound && isId(id)) return id;
  throw new SallyportError('bad-page-token', 'The page token is not one of this list.', {
    next: 'Start again without page_token, with the same filters throughout.',
  });
}

function macOf(secret: Buffer, binding: string, id: Buffer): Buffer {
  return createHmac('sha256', secret).update(binding).update(id).digest().subarray(0, MAC_BYTES);
}
