import { basename } from 'node:path';
import { SallyportError, type StreamName } from '@sallyport/shared';
import { readHeaderLine, type HeaderLine } from './batch-file.js';
import type { FarKey, Link } from './links.js';
import { readHeader, verifyHeader, type Manifest } from './manifest.js';
import type { Node } from './node.js';

const DAY_MS = 86_400_000;

/** A file whose line 1 has been verified: signed by the far side, for us, for this link. */
export type Candidate = {
  path: string;
  file: string;
  header: HeaderLine;
  manifest: Manifest;
  digest: string;
  kid: string;
};

/**
 * Reads and verifies line 1 of a file; no byte of the body is read.
 * @throws SallyportError for every refusal that line 1 alone can earn.
 */
export async function readCandidate(
  node: Node,
  link: Link,
  keys: Map<string, FarKey>,
  path: string,
): Promise<Candidate> {
  const header = await readHeaderLine(path);
  const { kid: claimedKid, manifest: claimed } = readHeader(header.line);
  if (claimedKid === node.keys.kid || claimed.from === node.name) {
    throw new SallyportError('WRONG_DIRECTION', 'This batch was made here.', {
      next: 'Carry it to the other network.',
    });
  }
  const { kid, manifest, digest } = await verifyHeader(header.line, (id) => keys.get(id)?.card);
  requireAddressedToUs(node, link, manifest);
  if (new Date(manifest.createdAt).getTime() > node.clock.now().getTime() + DAY_MS) {
    throw new SallyportError(
      'FROM_FUTURE',
      `It was made at ${manifest.createdAt}, more than a day in our future.`,
      { next: 'Compare the clocks of both networks; it is tried again by itself.' },
    );
  }
  return { path, file: basename(path), header, manifest, digest, kid };
}

/**
 * Refuses a number that its key may not sign.
 * @throws SallyportError KEY_REVOKED, KEY_RETIRED.
 */
export function requireValidKey(
  { card, retire, revokedAt }: FarKey,
  { stream, seq }: { stream: StreamName; seq: number },
): void {
  if (revokedAt) {
    throw new SallyportError('KEY_REVOKED', `It is signed by ${card.kid}, which was revoked.`, {
      next: 'The stream is frozen: somebody signs with a revoked key. Tell the security officer.',
    });
  }
  const last = retire?.[stream];
  if (!retire || (last !== undefined && seq <= last)) return;
  throw new SallyportError(
    'KEY_RETIRED',
    `It is signed by ${card.kid}, which may sign ${stream} up to ${last ?? 0} only.`,
    { next: 'Ask the sender for the batch signed by its current key.' },
  );
}

function requireAddressedToUs(node: Node, link: Link, manifest: Manifest): void {
  if (manifest.to !== node.name) {
    throw new SallyportError(
      'WRONG_DESTINATION',
      `It is addressed to ${manifest.to}; this node is ${node.name}.`,
      { next: `Carry it to ${manifest.to}.` },
    );
  }
  if (manifest.link !== link.link) {
    throw new SallyportError(
      'WRONG_LINK',
      `It belongs to link ${manifest.link}; this pair of networks is link ${link.link}.`,
      { next: 'Take it to the pair it was made for: a test batch never enters production.' },
    );
  }
}
