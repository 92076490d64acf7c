import {
  SallyportError,
  appendAudit,
  rows,
  type BatchCode,
  type Database,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import { parseBatchName } from '../format/batch-file.js';
import {
  markHandedOver,
  noteCustody,
  readCustody,
  type BatchKey,
  type CustodyEvent,
} from './custody.js';
import type { Node } from '../node.js';

/** A batch as lists show it, sent or received. */
export type BatchRow = {
  stream: StreamName;
  epoch: number;
  seq: number;
  kind: 'delta' | 'snapshot' | 'heartbeat';
  state: string;
  code: BatchCode | null;
  records: number;
  file_bytes: number | null;
  digest: string | null;
  file_name: string | null;
  created_at: Date;
};

/** How far a batch has come, and since when; null while it has not. */
export type BatchLevel = { level: 'SEALED' | 'HANDED_OVER' | 'APPLIED'; at: Date | null };

export type BatchDetails = BatchRow & {
  types: Record<string, number>;
  medium: string | null;
  handed_over_by: string | null;
  /** How often its bytes were put into the outbox; of sent ones only. */
  publications: number | null;
  /** How often it came again; of received ones only. */
  duplicates: number | null;
  levels: BatchLevel[];
  custody: CustodyEvent[];
};

const MAX_LISTED = 500;
const OPEN = `('building', 'sealed', 'ready', 'handed_over', 'waiting')`;
const COMMON =
  'stream, epoch, seq, kind, state, records, file_bytes, digest, file_name, created_at';

/** The newest batches, sent or received, of one stream or of all; with `open`, those not closed. */
export async function listBatches(
  db: Database,
  { received, stream, open }: { received: boolean; stream?: string | undefined; open?: boolean },
): Promise<BatchRow[]> {
  const [table, code] = received ? ['inbound_batches', 'code'] : ['outbound_batches', 'far_code'];
  return rows(
    db,
    `select ${COMMON}, ${code} as code from ${table}
     where (cast(:stream as text) is null or stream = :stream)
       and (not cast(:open as boolean) or state in ${OPEN})
     order by epoch desc, created_at desc, stream, seq desc limit ${MAX_LISTED}`,
    { stream: stream ?? null, open: open ?? false },
  );
}

/**
 * Everything known of one batch: its state, how far it has come, and who had it in hands, on both
 * networks. Of the newest epoch unless one is named.
 * @throws SallyportError `not-found`.
 */
export async function readBatch(
  db: Database,
  batch: { received: boolean; stream: string; seq: number; epoch?: number | undefined },
): Promise<BatchDetails> {
  const { received, stream, seq, epoch = null } = batch;
  const [table, columns] = received
    ? ['inbound_batches', RECEIVED_COLUMNS]
    : ['outbound_batches', SENT_COLUMNS];
  const [found] = await rows<
    Omit<BatchDetails, 'levels' | 'custody'> & {
      sealed_at: Date | null;
      handed_over_at: Date | null;
      applied_at: Date | null;
    }
  >(
    db,
    `select ${COMMON}, types, ${columns} from ${table}
     where stream = :stream and seq = :seq and epoch = coalesce(cast(:epoch as integer), epoch)
     order by epoch desc limit 1`,
    { stream, seq, epoch },
  );
  if (!found) {
    const where = received ? 'was received' : 'was made here';
    throw new SallyportError('not-found', `No number ${seq} of ${stream} ${where}.`, {
      next: received ? 'batch ls --received shows what was.' : 'batch ls shows what was.',
    });
  }
  const { sealed_at: sealed, handed_over_at: handedOver, ...rest } = found;
  const { applied_at: acked, ...batchOnly } = rest;
  const custody = rest.digest === null ? [] : await readCustody(db, rest.digest);
  // A number that was written off is never acknowledged; that its bytes came after all is told.
  const told = custody.find(({ step, source }) => step === 'applied' && source === 'far');
  const applied = acked ?? (rest.state === 'withdrawn' ? (told?.at ?? null) : null);
  return {
    ...batchOnly,
    levels: [
      { level: 'SEALED', at: sealed },
      { level: 'HANDED_OVER', at: handedOver },
      { level: 'APPLIED', at: applied },
    ],
    custody,
  };
}

/**
 * Notes that a person took batches away, for carriers that leave no slip: each named by its file, or
 * as `stream/number`, of the newest epoch. What was handed over or closed before is left as it is.
 * @throws SallyportError `usage`, `not-found`; then nothing is noted.
 */
export async function handOver(
  db: Database,
  node: Node,
  { names, by, medium }: { names: string[]; by: string; medium: string | null },
): Promise<{ handedOver: BatchKey[]; before: number }> {
  return db.transaction(async (tx) => {
    const ids: string[] = [];
    for (const name of names) ids.push(await findSealed(tx, name));
    const handedOver = await handOverBatches(tx, node, { ids, by, who: by, medium });
    return { handedOver, before: new Set(ids).size - handedOver.length };
  });
}

/**
 * Notes that `who` took sealed batches away, as `by` says; what had left before stays as it is.
 * @returns the batches that had not left before.
 */
export async function handOverBatches(
  tx: Transaction,
  node: Node,
  { ids, by, who, medium }: { ids: string[]; by: string; who: string; medium: string | null },
): Promise<BatchKey[]> {
  const at = node.clock.now();
  const handedOver = await markHandedOver(tx, { ids, by: who, medium, at });
  const step = { step: 'handed_over', who, at, medium, tell: true } as const;
  await noteCustody(
    tx,
    handedOver.filter(({ stream }) => stream !== 'control').map((key) => ({ ...key, ...step })),
    at,
  );
  for (const { stream, epoch, seq, digest } of handedOver) {
    await appendAudit(tx, {
      at,
      actor: by,
      action: 'batch.hand-over',
      subject: `${stream} ${seq}`,
      details: { epoch, digest, medium, ...(who !== by && { who }) },
    });
  }
  return handedOver;
}

async function findSealed(db: Database, name: string): Promise<string> {
  const file = name.slice(name.lastIndexOf('/') + 1);
  const number = /^([a-z.]+)\/(\d{1,15})$/.exec(name);
  if (!number && !parseBatchName(file)) {
    throw new SallyportError('usage', `"${name}" is neither a batch file nor STREAM/NUMBER.`, {
      next: 'Name the file as it lies in the outbox, or the number as in requests/7.',
    });
  }
  const [found] = await rows<{ id: string }>(
    db,
    number
      ? `select id from outbound_batches where stream = ? and seq = ? and digest is not null
         order by epoch desc limit 1`
      : 'select id from outbound_batches where file_name = ?',
    number ? [number[1] ?? '', Number(number[2])] : [file],
  );
  if (found) return found.id;
  throw new SallyportError('not-found', `No sealed batch of this network is ${name}.`, {
    next: 'batch ls shows what was sealed.',
  });
}

const SENT_COLUMNS = `far_code as code, medium, handed_over_by, publications, null as duplicates,
  sealed_at, handed_over_at, acked_at as applied_at`;
// By the custody that the manifest and the far side tell; the clock is theirs.
const RECEIVED_COLUMNS = `code, (
    select medium from custody_events c where c.digest = inbound_batches.digest
      and step = 'handed_over' and medium is not null limit 1) as medium,
  (select who from custody_events c where c.digest = inbound_batches.digest
     and step = 'handed_over' limit 1) as handed_over_by,
  null as publications, duplicates, created_at as sealed_at,
  (select min(at) from custody_events c where c.digest = inbound_batches.digest
     and step = 'handed_over') as handed_over_at, applied_at`;
