import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  STREAMS,
  SallyportError,
  appendAudit,
  newId,
  rows,
  type BatchCode,
  type Database,
  type RecordType,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import { forgetAcks, mergeAck, mergeTail } from './acks.js';
import { openBody } from '../format/body.js';
import type { Candidate } from './candidate.js';
import { noteCustody, type CustodyNote } from '../custody/custody.js';
import { freezeOutbound } from './freezes.js';
import { stageRecords } from './incoming.js';
import type { Node } from '../node.js';
import { sendForgotten, settleRefusals } from '../sending/refusals.js';
import { askSecondOpinion, type Opinion } from './second-opinion.js';
import {
  advanceCursor,
  decide,
  readCursor,
  readNeighbours,
  restartCursors,
  type Decision,
} from './sequence.js';

/** A batch as its apply functions see it. */
export type ImportedBatch = {
  id: string;
  link: string;
  stream: StreamName;
  epoch: number;
  seq: number;
  kind: 'delta' | 'snapshot' | 'heartbeat';
  digest: string;
  /** The key that signed it. */
  kid: string;
  createdAt: Date;
};

/**
 * Applies all records of one type that a batch brought, from the temporary table `incoming`, inside
 * the transaction that imports the batch. Idempotent and set-based. For a snapshot it is called for
 * every type of the stream: entities that are absent are disabled.
 */
export type Apply = (tx: Transaction, batch: ImportedBatch, now: Date) => Promise<void>;
export type ApplyTable = Partial<Record<RecordType, Apply>>;

/**
 * Opens a claimed copy and applies it in one transaction, if the second validator accepts it too.
 * @returns false when another importer applied it meanwhile.
 * @throws SallyportError VALIDATOR_DISAGREE, WAIT_LOCK when the second validator gave no answer, and
 * what refuses the content; with nothing applied.
 */
export async function applyBatch(
  db: Database,
  node: Node,
  applies: ApplyTable,
  candidate: Candidate,
  claimed: string,
): Promise<boolean> {
  const { manifest, digest, header } = candidate;
  // A name of its own: another importer that lost its lock must not write what we read.
  const plain = join(node.folders.staging, `import-${digest}.${newId()}.plain`);
  // It reads the same copy while we open and stage it; its word counts before the commit.
  const opinion = askSecondOpinion(
    {
      path: claimed,
      node: node.name,
      link: candidate.link,
      senders: [candidate.card],
      identities: [...node.keys.ageIdentities],
    },
    manifest.body.bytes + manifest.body.rawBytes,
  );
  try {
    await openBody(claimed, header.line.length + 1, manifest.body, {
      ageIdentities: node.keys.ageIdentities,
      target: plain,
    });
    return await db.transaction(async (tx) => {
      const applied = await applyInTransaction(tx, node, applies, candidate, plain);
      if (applied) requireAgreement(node, candidate, await opinion);
      return applied;
    });
  } finally {
    await rm(plain, { force: true });
  }
}

function requireAgreement(node: Node, { file }: Candidate, opinion: Opinion): void {
  if (opinion.ok) return;
  if (opinion.code === 'WAIT_LOCK') {
    node.log.error({ file, sentence: opinion.sentence }, 'second check gave no answer');
    throw new SallyportError('WAIT_LOCK', opinion.sentence, {
      next: 'It is tried again by itself. If it says so again, look for a machine that is overloaded or broken.',
    });
  }
  throw new SallyportError(
    'VALIDATOR_DISAGREE',
    `The importer accepts it, the second validator refuses it (${opinion.code}): ${opinion.sentence}`,
    {
      next: 'Nothing of it was applied. Keep the file and tell the developers: one of the two validators is wrong.',
    },
  );
}

/** Closes a number whose content was refused, so that it is told to the sender and not asked for. */
export async function closeRefused(
  db: Database,
  node: Node,
  candidate: Candidate,
  code: BatchCode,
): Promise<void> {
  const now = node.clock.now();
  await db.transaction(async (tx) => {
    const decision = await decideNow(tx, candidate, { lock: true });
    // Nothing of an epoch is told before it has begun here.
    if (decision === 'duplicate' || decision === 'announce') return;
    await insertBatch(tx, candidate, { state: 'rejected', code, now });
    await advanceCursor(tx, candidate.manifest.link, candidate.manifest.stream);
    await closeNumber(tx, node, candidate, { now, steps: ['received'] });
  });
}

/** Notes a batch of an ordered stream that waits for the numbers before it. */
export async function noteWaiting(
  db: Database,
  node: Node,
  candidate: Candidate,
  fileName: string,
): Promise<void> {
  await db.transaction(async (tx) => {
    if ((await decideNow(tx, candidate, { lock: true })) !== 'wait') return;
    const renamed = { ...candidate, file: fileName };
    const now = node.clock.now();
    await insertBatch(tx, renamed, { state: 'waiting', code: null, now });
    await noteCustody(tx, stepsOf(node, candidate, ['received', 'verified'], now), now);
    await mergeTail(tx, candidate.manifest.link, candidate.manifest.tail);
    await raiseAckVersion(tx, candidate.manifest);
  });
}

/** The decision on a candidate by what is known now. */
export async function decideNow(
  db: Database,
  { manifest, digest, kid }: Candidate,
  { lock }: { lock: boolean },
): Promise<Decision> {
  const cursor = await readCursor(db, manifest.link, manifest.stream, { lock });
  const neighbours = await readNeighbours(db, manifest.link, manifest);
  return decide({ ...manifest, kid }, digest, cursor, neighbours);
}

async function applyInTransaction(
  tx: Transaction,
  node: Node,
  applies: ApplyTable,
  candidate: Candidate,
  plain: string,
): Promise<boolean> {
  const { manifest, digest } = candidate;
  const now = node.clock.now();
  const decision = await decideNow(tx, candidate, { lock: true });
  if (decision === 'duplicate') return false;
  if (decision === 'announce') {
    await restartCursors(tx, manifest.link, manifest.epoch);
    await forgetAcks(tx, manifest.link);
  }
  const batch: ImportedBatch = {
    id: await insertBatch(tx, candidate, { state: 'applied', code: null, now }),
    link: manifest.link,
    stream: manifest.stream,
    epoch: manifest.epoch,
    seq: manifest.seq,
    kind: manifest.kind,
    digest,
    kid: candidate.kid,
    createdAt: new Date(manifest.createdAt),
  };
  if (manifest.records > 0 || manifest.kind === 'snapshot') {
    await blameContent(async () => {
      await stageRecords(tx, plain, manifest);
      await applyRecords(tx, applies, manifest, batch, now);
    });
  }
  if (decision === 'heal') await healStream(tx, batch);
  else await advanceCursor(tx, manifest.link, manifest.stream);
  await closeNumber(tx, node, candidate, { now, steps: ['received', 'verified', 'applied'] });
  return true;
}

async function applyRecords(
  tx: Transaction,
  applies: ApplyTable,
  { stream, kind, types }: Candidate['manifest'],
  batch: ImportedBatch,
  now: Date,
): Promise<void> {
  for (const type of STREAMS[stream].types) {
    const apply = applies[type];
    if (apply && (kind === 'snapshot' || type in types)) await apply(tx, batch, now);
    else if (type in types) throw unknownType(type);
  }
}

/** A value that the database cannot take (SQLSTATE class 22) is a fault of what was sent. */
async function blameContent(work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (cause) {
    const { code } = cause as { code?: unknown };
    if (typeof code !== 'string' || !/^22[0-9A-Z]{3}$/.test(code)) throw cause;
    throw new SallyportError('SCHEMA', `A record holds a value that no column takes (${code}).`, {
      cause,
      next: 'Tell the sender: the batch was signed as it is.',
    });
  }
}

/** A snapshot replaces everything up to its own number; its digest starts the chain. */
async function healStream(tx: Transaction, batch: ImportedBatch): Promise<void> {
  const { link, stream, epoch, seq, digest } = batch;
  await tx.raw(
    `update inbound_batches set state = 'superseded', code = 'HEALED'
     where link = :link and stream = :stream and epoch = :epoch and seq < :seq
       and state in ('waiting', 'rejected')`,
    { link, stream, epoch, seq },
  );
  await tx.raw(
    `update inbound_streams set contiguous = :seq, contiguous_digest = :digest
     where link = :link and stream = :stream`,
    { link, stream, seq, digest },
  );
}

/** What every closed number brings, applied or refused: receipts for us, and the sender's newest. */
async function closeNumber(
  tx: Transaction,
  node: Node,
  candidate: Candidate,
  { now, steps }: { now: Date; steps: CustodyNote['step'][] },
): Promise<void> {
  const { manifest, file } = candidate;
  const { alarms, receipts, refused, forgotten } = await mergeAck(
    tx,
    manifest.link,
    manifest.ack,
    now,
  );
  await settleRefusals(tx, node, refused, now);
  await sendForgotten(tx, node, forgotten, now);
  for (const alarm of alarms) {
    node.log.error({ err: alarm, file }, 'acknowledgement refused');
    await appendAudit(tx, {
      at: now,
      actor: node.account,
      action: 'link.alarm',
      subject: manifest.stream,
      details: { code: alarm.code, sentence: alarm.message, seq: manifest.seq },
    });
    const stream = alarm.extra['stream'] as StreamName | undefined;
    if (stream) await freezeOutbound(tx, node, { link: manifest.link, stream, alarm });
  }
  const notes = [
    ...stepsOf(node, candidate, steps, now),
    ...receipts
      .filter(({ stream }) => stream !== 'control')
      .map((batch) => ({ ...batch, ...byUs(node, 'receipt', now) })),
  ];
  await noteCustody(tx, notes, now);
  await mergeTail(tx, manifest.link, manifest.tail);
  await raiseAckVersion(tx, manifest);
  await tx.raw(`select pg_notify('sallyport_imported', ?)`, [manifest.stream]);
}

/**
 * What becomes of a batch here, and that its manifest says by whom and when it was sealed, which the
 * far side therefore need not tell. The way of control batches is not followed.
 */
function stepsOf(
  node: Node,
  { manifest, digest, receivedAt }: Candidate,
  steps: CustodyNote['step'][],
  now: Date,
): CustodyNote[] {
  const { stream, epoch, seq, by: who, createdAt } = manifest;
  if (stream === 'control') return [];
  const batch = { stream, epoch, seq, digest };
  const sealed = { ...batch, step: 'sealed', source: 'far', who, at: new Date(createdAt) } as const;
  const ours = steps.map((step) => {
    return { ...batch, ...byUs(node, step, step === 'received' ? receivedAt : now) };
  });
  return [sealed, ...ours];
}

function byUs(node: Node, step: CustodyNote['step'], at: Date) {
  return { step, who: node.account, at, tell: true };
}

/** Receipts do not answer receipts: what arrives in control is no news for the next control batch. */
async function raiseAckVersion(tx: Transaction, manifest: Candidate['manifest']): Promise<void> {
  if (manifest.stream === 'control') return;
  await tx.raw('update links set ack_version = ack_version + 1 where link = ?', [manifest.link]);
}

async function insertBatch(
  tx: Transaction,
  { manifest, digest, file, header }: Candidate,
  { state, code, now }: { state: string; code: BatchCode | null; now: Date },
): Promise<string> {
  const [row] = await rows<{ id: string }>(
    tx,
    `insert into inbound_batches (id, link, stream, epoch, seq, digest, prev, kind, state, code,
       file_name, file_bytes, records, types, duplicates, created_at, seen_at, applied_at)
     values (:id, :link, :stream, :epoch, :seq, :digest, :prev, :kind, :state, :code,
       :file, :bytes, :records, :types, 0, :createdAt, :now, :appliedAt)
     on conflict (link, stream, epoch, seq) do update
       set state = excluded.state, code = excluded.code, applied_at = excluded.applied_at,
        prev = excluded.prev, kind = excluded.kind, file_name = excluded.file_name,
        file_bytes = excluded.file_bytes, records = excluded.records, types = excluded.types,
        created_at = excluded.created_at
     returning id`,
    {
      id: newId(),
      link: manifest.link,
      stream: manifest.stream,
      epoch: manifest.epoch,
      seq: manifest.seq,
      digest,
      prev: manifest.prev,
      kind: manifest.kind,
      state,
      code,
      file,
      bytes: header.size,
      records: manifest.records,
      types: JSON.stringify(manifest.types),
      createdAt: manifest.createdAt,
      now,
      appliedAt: state === 'applied' ? now : null,
    },
  );
  if (!row) throw new Error('an upsert always returns its row');
  return row.id;
}

function unknownType(type: string): SallyportError {
  return new SallyportError('WAIT_UPGRADE', `This version cannot apply ${type} records.`, {
    next: 'Upgrade this network; the file is tried again by itself.',
  });
}
