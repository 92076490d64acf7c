import { randomBytes } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { verifyBytes } from '../format/batch-file.js';
import {
  readCandidate,
  requireComplete,
  requireInTime,
  requireValidKey,
  type Addressee,
  type Candidate,
} from './candidate.js';
import type { FarKey, Link } from '../keys/links.js';
import type { Node } from '../node.js';
import { openCandidate } from './open-candidate.js';
import { readRecords } from '../format/records.js';

/** What {@link validateBatch} needs of a node; the opened body is staged in `folders.staging`. */
export type ValidatingNode = Addressee & {
  keys: Pick<Node['keys'], 'kid' | 'ageIdentities'>;
  folders: Pick<Node['folders'], 'staging'>;
};

/** `bad` counts the records that were refused alone. */
export type ValidatedBatch = { candidate: Candidate; records: number; bad: number };

/**
 * Everything the importer checks of a file without asking its database, in the importer's order and
 * by the same functions: line 1, key, deadline, length, hash, opening, and every record. What the
 * database knows (the sequence, repeated ids) is not judged.
 * @throws SallyportError with a batch code for every file that is refused.
 */
export async function validateBatch(
  node: ValidatingNode,
  link: Pick<Link, 'link'>,
  keys: ReadonlyMap<string, FarKey>,
  path: string,
): Promise<ValidatedBatch> {
  const candidate = await readCandidate(node, link, keys, path);
  const { header, manifest, kid } = candidate;
  requireValidKey(keys.get(kid) as FarKey, manifest);
  requireInTime(node, manifest);
  requireComplete(candidate);
  await verifyBytes(path, { ...header, manifest });
  const target = join(node.folders.staging, `validate-${randomBytes(8).toString('hex')}.plain`);
  let records = 0;
  let bad = 0;
  try {
    const { ageIdentities } = node.keys;
    const plain = await openCandidate(candidate, { path, ageIdentities, target });
    for await (const group of readRecords(plain, manifest)) {
      records += group.length;
      for (const record of group) if (record.bad) bad += 1;
    }
  } finally {
    await rm(target, { force: true });
  }
  return { candidate, records, bad };
}
