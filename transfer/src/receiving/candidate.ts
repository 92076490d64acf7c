import { basename } from 'node:path';
import { SallyportError, type StreamName } from '@sallyport/shared';
import { checkLength, readHeaderLine, type HeaderLine } from '../format/batch-file.js';
import type { Card } from '../keys/keys.js';
import type { FarKey, Link } from '../keys/links.js';
import { readHeader, verifyHeader, type Manifest } from '../format/manifest.js';
import type { Node } from '../node.js';

const DAY_MS = 86_400_000;

/** What of a node decides whether a batch is for it. */
export type Addressee = { name: string; keys: Pick<Node['keys'], 'kid'>; clock: Node['clock'] };

/** A file whose line 1 has been verified: signed by the far side, for us, for this link. */
export type Candidate = {
  path: string;
  file: string;
  header: HeaderLine;
  manifest: Manifest;
  digest: string;
  kid: string;
  /** The card that the signature was checked by, and the link it is trusted for. */
  card: Card;
  link: string;
  /** When its line 1 was read here. */
  receivedAt: Date;
};

/**
 * Reads and verifies line 1 of a file; no byte of the body is read.
 * @throws SallyportError for every refusal that line 1 alone can earn.
 */
export async function readCandidate(
  node: Addressee,
  link: Pick<Link, 'link'>,
  keys: ReadonlyMap<string, FarKey>,
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
  const { card } = keys.get(kid) as FarKey;
  requireAddressedToUs(node, link, manifest);
  if (new Date(manifest.createdAt).getTime() > node.clock.now().getTime() + DAY_MS) {
    throw new SallyportError(
      'FROM_FUTURE',
      `It was made at ${manifest.createdAt}, more than a day in our future.`,
      { next: 'Compare the clocks of both networks; it is tried again by itself.' },
    );
  }
  const receivedAt = node.clock.now();
  const file = basename(path);
  return { path, file, header, manifest, digest, kid, card, link: link.link, receivedAt };
}

/**
 * Refuses a number that its key may not sign.
 * @throws SallyportError KEY_REVOKED, KEY_RETIRED.
 */
export function requireValidKey(
  { card, retire, retireEpoch, revokedAt }: FarKey,
  { stream, epoch, seq }: { stream: StreamName; epoch: number; seq: number },
): void {
  if (revokedAt) {
    throw new SallyportError('KEY_REVOKED', `It is signed by ${card.kid}, which was revoked.`, {
      next: 'Somebody has a revoked key, or it was signed before: tell the security officer. Nothing is frozen.',
    });
  }
  if (!retire) return;
  // In the epochs before, it was current all the time; it has no say in any after.
  const last = epoch === retireEpoch ? (retire[stream] ?? 0) : 0;
  if (seq <= last || epoch < (retireEpoch ?? 0)) return;
  throw new SallyportError(
    'KEY_RETIRED',
    `It is signed by ${card.kid}, which may sign ${stream} up to ${last} of epoch ${epoch} only.`,
    { next: 'Ask the sender for the batch signed by its current key.' },
  );
}

/**
 * Refuses a batch whose deadline has passed.
 * @throws SallyportError EXPIRED.
 */
export function requireInTime(node: Addressee, { notAfter }: Manifest): void {
  if (!notAfter || new Date(notAfter) >= node.clock.now()) return;
  throw new SallyportError('EXPIRED', `It was to be imported by ${notAfter}.`, {
    next: 'The number is closed and the sender is told; carry sooner, and ask again.',
  });
}

/**
 * Refuses a file that is not as long as its line 1 states.
 * @throws SallyportError INCOMPLETE, TRAILING_DATA, TOO_BIG.
 */
export function requireComplete({ header, manifest }: Candidate): void {
  if (checkLength(header.size, header.line, manifest) === 'complete') return;
  const expected = header.line.length + 1 + manifest.body.bytes;
  throw new SallyportError(
    'INCOMPLETE',
    `It has ${header.size} of ${expected} bytes; a copy seems to be under way.`,
    { next: 'Nothing: it is looked at again, and refused as TRUNCATED once it stops growing.' },
  );
}

function requireAddressedToUs(node: Addressee, link: Pick<Link, 'link'>, manifest: Manifest): void {
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
