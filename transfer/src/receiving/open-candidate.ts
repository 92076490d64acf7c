import type { Candidate } from './candidate.js';
import { SMALL_BYTES, openBody, readBody } from '../format/body.js';
import type { PlainBody } from '../format/records.js';

/**
 * Opens the body of a verified batch: a small one in memory, because files cost more than opening it,
 * any other into `target`.
 * @throws SallyportError as {@link openBody} does.
 */
export async function openCandidate(
  { header, manifest: { body } }: Candidate,
  {
    path,
    ageIdentities,
    target,
  }: { path: string; ageIdentities: readonly string[]; target: string },
): Promise<PlainBody> {
  const offset = header.line.length + 1;
  if (body.rawBytes <= SMALL_BYTES) {
    // Where the whole file was read with its line 1, they are the bytes that were verified.
    const bytes = header.whole?.subarray(offset);
    return readBody({ path, offset, body, ageIdentities, bytes });
  }
  await openBody(path, offset, body, { ageIdentities, target });
  return target;
}
