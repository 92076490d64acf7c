import { constants } from 'node:fs';
import { open, readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import {
  compileSchema,
  isConnectionError,
  parseJson,
  rows,
  type Database,
  type Transaction,
} from '@sallyport/shared';
import { CustodySlipSchema, SLIP_BYTES, SLIP_SUFFIX, type CustodySlip } from './custody-slip.js';
import {
  countTold,
  markHandedOver,
  MAX_TOLD,
  noteCustody,
  type BatchKey,
  type CustodyNote,
} from './custody.js';
import { rememberFile, removeFile } from '../receiving/inbox.js';
import type { Node } from '../node.js';
import { LINE_LIMITS } from '../format/record-checks.js';

const MAX_SLIPS = 1_000;
/** How long a slip waits for the batches it tells of. */
const KEPT_MS = 7 * 86_400_000;

const STRANGE = { code: 'FOREIGN_FILE', detail: 'no slip' } as const;

const checkSlip = compileSchema(CustodySlipSchema);

type KnownBatch = BatchKey & { id: string; ours: boolean };

/**
 * Takes in what carriers left beside the batches, in the outbox and the inbox, and deletes it once
 * every batch it names is known. Slips are untrusted: they are noted as a carrier's word on batches
 * known here, and nothing but the moment of handing over rests on them. Of many, those that were
 * never looked at come first, then those that were longest ago: strange ones hold up none.
 * @returns the names that are called slips and are none.
 */
export async function takeSlips(
  db: Database,
  node: Node,
): Promise<{ taken: number; strange: string[] }> {
  const result = { taken: 0, strange: [] as string[] };
  for (const folder of [node.folders.outbox, node.folders.inbox]) {
    const names = (await readdir(folder).catch((): string[] => [])).filter(isSlipName);
    const many = names.length > MAX_SLIPS;
    const next = many ? await longestUnseen(db, names) : names;
    for (const name of next) {
      const path = join(folder, name);
      const taken = await takeSlip(db, node, path).catch((err: unknown) => {
        if (isConnectionError(err)) throw err;
        node.log.warn({ err, file: name }, 'slip could not be taken in');
        return false;
      });
      if (taken) result.taken += 1;
      else result.strange.push(name);
      if (many && !taken) await rememberFile(db, node.clock, path, STRANGE);
    }
  }
  return result;
}

/** Whether a file is called like a carrier's slip. */
export function isSlipName(name: string): boolean {
  return /^[^.~]/.test(name) && name.endsWith(SLIP_SUFFIX);
}

async function longestUnseen(db: Database, names: string[]): Promise<string[]> {
  const found = await rows<{ name: string }>(
    db,
    `select n.name from unnest(cast(? as text[])) with ordinality n(name, at)
     left join inbox_seen s on s.name = n.name
     order by s.last_seen_at nulls first, n.at limit ${MAX_SLIPS}`,
    [names],
  );
  return found.map(({ name }) => name);
}

async function takeSlip(db: Database, node: Node, path: string): Promise<boolean> {
  const slip = await readSlip(path);
  if (!slip) return false;
  const now = node.clock.now();
  const known = await findBatches(db, slip);
  await db.transaction((tx) => noteSlip(tx, slip, known, now));
  const complete = slip.events.every(({ digest }) => known.has(digest));
  const seen = { code: 'FOREIGN_FILE', detail: 'a slip of batches not here yet' } as const;
  const since = complete ? undefined : await rememberFile(db, node.clock, path, seen);
  if (since && now.getTime() - since.getTime() < KEPT_MS) return true;
  await removeFile(db, node.clock, path, { code: 'FOREIGN_FILE', detail: 'a slip, taken in' });
  node.log.info({ slip: basename(path), events: slip.events.length }, 'slip taken in');
  return true;
}

async function noteSlip(
  tx: Transaction,
  slip: CustodySlip,
  known: Map<string, KnownBatch>,
  now: Date,
): Promise<void> {
  const { medium, carrier: who } = slip;
  const source = 'carrier' as const;
  const told = await countTold(tx, [...known.keys()], source);
  const notes: CustodyNote[] = [];
  const steps = new Map<string, Set<string>>();
  for (const { digest, step, at } of slip.events) {
    const batch = known.get(digest);
    const count = told.get(digest) ?? 0;
    if (!batch || count >= MAX_TOLD) continue;
    told.set(digest, count + 1);
    const { stream, epoch, seq } = batch;
    const claimed = new Date(Math.min(new Date(at).getTime(), now.getTime()));
    notes.push({ stream, epoch, seq, digest, step, who, medium, source, at: claimed, tell: true });
    steps.set(digest, (steps.get(digest) ?? new Set()).add(step));
  }
  await noteCustody(tx, notes, now);
  const left = [...steps].filter(([, done]) => {
    return done.has('handed_over') || (done.has('written') && done.has('read_back'));
  });
  const ids = left.flatMap(([digest]) => {
    const batch = known.get(digest);
    return batch?.ours ? [batch.id] : [];
  });
  if (ids.length > 0) await markHandedOver(tx, { ids, by: who, medium, at: now });
}

/** What is known here of the batches a slip names: our own, and those that came in. */
async function findBatches(
  db: Database,
  { events }: CustodySlip,
): Promise<Map<string, KnownBatch>> {
  const found = await rows<KnownBatch>(
    db,
    `select id, stream, epoch, seq, digest, true as ours from outbound_batches
     where digest = any(:digests)
     union all
     select id, stream, epoch, seq, digest, false from inbound_batches
     where digest = any(:digests)`,
    { digests: [...new Set(events.map(({ digest }) => digest))] },
  );
  return new Map(found.map((batch) => [batch.digest, batch]));
}

async function readSlip(path: string): Promise<CustodySlip | undefined> {
  let file;
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch {
    return undefined;
  }
  try {
    const found = await file.stat();
    if (!found.isFile() || found.size > SLIP_BYTES) return undefined;
    const bytes = Buffer.alloc(found.size);
    const { bytesRead } = await file.read(bytes, 0, bytes.length, 0);
    return checkSlip(parseJson(bytes.subarray(0, bytesRead), LINE_LIMITS));
  } catch {
    return undefined;
  } finally {
    await file.close();
  }
}
