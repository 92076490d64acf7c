import { SallyportError } from './errors.js';

/** The entity tag of a version. */
export function etagOf(version: number): string {
  return `"${version}"`;
}

/** Whether If-None-Match names the tag (RFC 9110, weak comparison). */
export function matchesEtag(ifNoneMatch: string | undefined, etag: string): boolean {
  if (ifNoneMatch === undefined) return false;
  return ifNoneMatch.split(',').some((each) => {
    const tag = each.trim().replace(/^W\//, '');
    return tag === '*' || tag === etag;
  });
}

/**
 * The version that a change was made from, as If-Match names it: one strong tag.
 * @throws SallyportError `if-match-required` without the header, `bad-header` for anything else.
 */
export function versionOf(ifMatch: string | undefined): number {
  if (ifMatch === undefined) {
    throw new SallyportError('if-match-required', 'This change needs the header If-Match.', {
      next: 'Read it first and send back its ETag.',
    });
  }
  const match = /^"(\d{1,10})"$/.exec(ifMatch.trim());
  if (match) return Number(match[1]);
  throw new SallyportError('bad-header', 'If-Match must be one ETag as it was read, like "7".');
}

/**
 * That nobody changed the thing since the caller read it.
 * @throws SallyportError `version-conflict` with both versions.
 */
export function requireVersion(found: number, expected: number): void {
  if (found === expected) return;
  throw new SallyportError(
    'version-conflict',
    `It has version ${found} now; the change was made from version ${expected}.`,
    { next: 'Read it again and repeat the change.', extra: { version: found, expected } },
  );
}
