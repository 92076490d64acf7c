import { join } from 'node:path';
import {
  STREAMS,
  SallyportError,
  appendAudit,
  newId,
  preparedRows,
  type BatchCode,
  type Database,
  type RecordType,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import { forgetAcks, mergeAck, mergeTail } from './acks.js';
import { someAtOnce } from './some-at-once.js';
import type { PlainBody } from '../format/records.js';
import { removeIfThere } from '../format/durable-file.js';
import type { Ack } from '../format/manifest.js';
import type { Candidate } from './candidate.js';
import { keepFarHeads } from '../custody/audit-heads.js';
import { noteCustody, type BatchKey, type CustodyNote } from '../custody/custody.js';
import { freezeOutbound } from './freezes.js';
import { stageRecords } from './incoming.js';
import type { Node } from '../node.js';
import { openCandidate } from './open-candidate.js';
import { sendForgotten, settleRefusals } from '../sending/refusals.js';
import { askSecondOpinion, type Opinion } from './second-opinion.js';
import { advanceCursor, decideRun, readPlace, restartCursors, type Decision } from './sequence.js';

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

/** A verified batch, and the path of the copy of it that is ours. */
export type ClaimedBatch = { candidate: Candidate; claimed: string };

/** A claimed batch whose body is open, and what the second validator is about to say of it. */
export type OpenedBatch = ClaimedBatch & {
  target: string;
  plain: PlainBody;
  opinion: Promise<Opinion>;
};

/**
 * Opens a claimed copy and applies it in one transaction, if the second validator accepts it too.
 * @returns false when another importer applied it meanwhile.
 * @throws SallyportError as {@link applyOpened} does, and what refuses the body.
 */
export async function applyBatch(
  db: Database,
  node: Node,
  applies: ApplyTable,
  batch: ClaimedBatch,
): Promise<boolean> {
  const opened = await openBatches(node, [batch]);
  return applyOpened(db, node, applies, opened).finally(() => closeBatches(opened));
}

/**
 * Opens claimed copies; {@link closeBatches} removes what that makes.
 * @throws SallyportError what refuses a body; then nothing is left.
 */
export async function openBatches(
  node: Node,
  batches: readonly ClaimedBatch[],
): Promise<OpenedBatch[]> {
  const opened = batches.map(({ candidate, claimed }): OpenedBatch => {
    // A name of its own: another importer that lost its lock must not write what we read.
    const target = join(node.folders.staging, `import-${candidate.digest}.${newId()}.plain`);
    // It reads the same copy while we open and stage it; its word counts before the commit.
    const opinion = askOpinion(node, candidate, claimed);
    return { candidate, claimed, target, plain: target, opinion };
  });
  try {
    await someAtOnce(opened, async (batch) => {
      const { ageIdentities } = node.keys;
      const options = { path: batch.claimed, ageIdentities, target: batch.target };
      batch.plain = await openCandidate(batch.candidate, options);
    });
    return opened;
  } catch (error) {
    await closeBatches(opened);
    throw error;
  }
}

/** Removes the plain text of opened batches. */
export async function closeBatches(opened: readonly OpenedBatch[]): Promise<void> {
  await someAtOnce(opened, async ({ plain }) => {
    if (typeof plain === 'string') await removeIfThere(plain);
  });
}

/**
 * Applies opened batches in one transaction, if the second validator accepts each. More than one are
 * of one stream, follow each other in number, and are all applied or none.
 * @returns false, with nothing applied, when one is not to be applied (any more): another importer
 * did it meanwhile, or one of several has to be looked at alone.
 * @throws SallyportError VALIDATOR_DISAGREE, WAIT_LOCK when the second validator gave no answer, and
 * what refuses the content; with nothing applied.
 */
export async function applyOpened(
  db: Database,
  node: Node,
  applies: ApplyTable,
  opened: readonly OpenedBatch[],
): Promise<boolean> {
  return db.transaction(async (tx) => {
    const applied = await applyInTransaction(tx, node, applies, opened);
    if (!applied) return false;
    for (const { candidate, opinion } of opened) requireAgreement(node, candidate, await opinion);
    return true;
  });
}

function askOpinion(
  node: Node,
  { link, card, manifest: { body } }: Candidate,
  path: string,
): Promise<Opinion> {
  const identities = [...node.keys.ageIdentities];
  const question = { path, node: node.name, link, senders: [card], identities };
  return askSecondOpinion(question, body.bytes + body.rawBytes);
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
    await insertBatches(tx, [candidate], { state: 'rejected', code, now });
    await advanceCursor(tx, candidate.manifest.link, candidate.manifest.stream);
    await closeNumbers(tx, node, [candidate], { now, steps: ['received'] });
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
    await insertBatches(tx, [renamed], { state: 'waiting', code: null, now });
    await noteCustody(tx, stepsOf(node, candidate, ['received', 'verified'], now), now);
    await mergeTail(tx, candidate.manifest.link, candidate.manifest.tail);
    await raiseAckVersion(tx, candidate.manifest, { notify: false });
  });
}

/** The decision on a candidate by what is known now. */
export async function decideNow(
  db: Database,
  candidate: Candidate,
  options: { lock: boolean },
): Promise<Decision> {
  const [decision] = await decideAllNow(db, [candidate], options);
  if (!decision) throw new Error('every batch has a decision');
  return decision;
}

/** The decisions on candidates of one stream whose numbers follow each other. */
export async function decideAllNow(
  db: Database,
  candidates: readonly Candidate[],
  { lock }: { lock: boolean },
): Promise<Decision[]> {
  const [first] = candidates;
  if (!first) return [];
  const { manifest } = first;
  const place = await readPlace(db, manifest.link, manifest, { lock, count: candidates.length });
  const numbered = candidates.map((each) => ({
    ...each.manifest,
    kid: each.kid,
    digest: each.digest,
  }));
  return decideRun(numbered, place);
}

async function applyInTransaction(
  tx: Transaction,
  node: Node,
  applies: ApplyTable,
  opened: readonly OpenedBatch[],
): Promise<boolean> {
  const candidates = opened.map(({ candidate }) => candidate);
  const newest = candidates.at(-1);
  if (!newest) return false;
  const now = node.clock.now();
  const decisions = await decideAllNow(tx, candidates, { lock: true });
  const [decision] = decisions;
  if (decision === 'duplicate') return false;
  if (decisions.length > 1 && decisions.some((each) => each !== 'apply')) return false;
  const { manifest, kid } = newest;
  const { link, stream, epoch, seq, kind } = manifest;
  if (decision === 'announce') {
    await restartCursors(tx, link, epoch);
    await forgetAcks(tx, link);
  }
  const ids = await insertBatches(tx, candidates, { state: 'applied', code: null, now });
  const idOf = ({ digest }: Candidate) => ids.get(digest) ?? '';
  const batch: ImportedBatch = {
    ...{ id: idOf(newest), link, stream, epoch, seq, kind, digest: newest.digest, kid },
    createdAt: new Date(manifest.createdAt),
  };
  const types = new Set(candidates.flatMap((each) => Object.keys(each.manifest.types)));
  if (kind === 'snapshot' || candidates.some((each) => each.manifest.records > 0)) {
    await blameContent(async () => {
      const bodies = opened.map(({ candidate, plain }) => {
        return { batchId: idOf(candidate), plain, stated: candidate.manifest };
      });
      await stageRecords(tx, bodies);
      await applyRecords(tx, applies, batch, { types, now });
    });
  }
  if (decision === 'heal') await healStream(tx, batch);
  else await advanceCursor(tx, link, stream);
  await closeNumbers(tx, node, candidates, { now, steps: ['received', 'verified', 'applied'] });
  if (CHANGES_RIGHTS.includes(stream)) await auditApplied(tx, node, newest, now);
  return true;
}

/** Their batches come one at a time. */
const CHANGES_RIGHTS: readonly StreamName[] = ['identity', 'settings', 'accounts'];

async function auditApplied(
  tx: Transaction,
  node: Node,
  { manifest: { stream, epoch, seq, kind, by, types }, digest }: Candidate,
  at: Date,
): Promise<void> {
  await appendAudit(tx, {
    at,
    actor: node.account,
    action: 'batch.apply',
    subject: `${stream} ${seq}`,
    details: { epoch, digest, kind, by, types },
  });
}

async function applyRecords(
  tx: Transaction,
  applies: ApplyTable,
  batch: ImportedBatch,
  { types, now }: { types: ReadonlySet<string>; now: Date },
): Promise<void> {
  for (const type of STREAMS[batch.stream].types) {
    const apply = applies[type];
    const wanted = batch.kind === 'snapshot' || types.has(type);
    if (apply && wanted) await apply(tx, batch, now);
    else if (types.has(type)) throw unknownType(type);
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

/** What closed numbers bring, applied or refused: receipts for us, and the sender's newest. */
async function closeNumbers(
  tx: Transaction,
  node: Node,
  candidates: readonly Candidate[],
  { now, steps }: { now: Date; steps: CustodyNote['step'][] },
): Promise<void> {
  const newest = candidates.at(-1);
  if (!newest) return;
  const notes = candidates.flatMap((candidate) => stepsOf(node, candidate, steps, now));
  for (const [at, candidate] of candidates.entries()) {
    const next = candidates[at + 1];
    // What the next one says in the same words need not be heard twice.
    if (next && saysTheSame(candidate.manifest.ack, next.manifest.ack)) continue;
    const receipts = await hearAck(tx, node, candidate, now);
    notes.push(...receipts.map((batch) => ({ ...batch, ...byUs(node, 'receipt', now) })));
  }
  await noteCustody(tx, notes, now);
  await keepFarHeads(tx, candidates, now);
  const { manifest } = newest;
  await mergeTail(tx, manifest.link, manifest.tail);
  await raiseAckVersion(tx, manifest, { notify: true });
}

function saysTheSame(one: Ack, other: Ack): boolean {
  const same = one.incarnation === other.incarnation;
  return same && JSON.stringify(one.streams) === JSON.stringify(other.streams);
}

/** Merges the acknowledgement of a batch; returns what it proves to be applied, but for control. */
async function hearAck(
  tx: Transaction,
  node: Node,
  { manifest, file }: Candidate,
  now: Date,
): Promise<BatchKey[]> {
  const { link, stream, seq, ack } = manifest;
  const { alarms, receipts, refused, forgotten } = await mergeAck(tx, link, ack, now);
  await settleRefusals(tx, node, refused, now);
  await sendForgotten(tx, node, forgotten, now);
  for (const alarm of alarms) {
    node.log.error({ err: alarm, file }, 'acknowledgement refused');
    await appendAudit(tx, {
      at: now,
      actor: node.account,
      action: 'link.alarm',
      subject: stream,
      details: { code: alarm.code, sentence: alarm.message, seq },
    });
    const about = alarm.extra['stream'] as StreamName | undefined;
    if (about) await freezeOutbound(tx, node, { link, stream: about, alarm });
  }
  return receipts.filter((batch) => batch.stream !== 'control');
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
async function raiseAckVersion(
  tx: Transaction,
  { link, stream }: Candidate['manifest'],
  { notify }: { notify: boolean },
): Promise<void> {
  await preparedRows(tx, RAISE_ACK_VERSION, { link, stream, notify });
}

const RAISE_ACK_VERSION = `
with raised as (
  update links set ack_version = ack_version + 1 where link = :link and :stream <> 'control'
)
select pg_notify('sallyport_imported', :stream) where cast(:notify as boolean)`;

/** Notes what became of batches; returns their ids by digest. */
async function insertBatches(
  tx: Transaction,
  candidates: readonly Candidate[],
  { state, code, now }: { state: string; code: BatchCode | null; now: Date },
): Promise<Map<string, string>> {
  const batches = candidates.map(({ manifest, digest, file, header }) => {
    const { link, stream, epoch, seq, prev, kind, records, types, createdAt } = manifest;
    const facts = { link, stream, epoch, seq, digest, prev, kind, records, types };
    return { ...facts, id: newId(), file, bytes: header.size, created_at: createdAt };
  });
  const noted = await preparedRows<{ id: string; digest: string }>(tx, INSERT_BATCHES, {
    batches: JSON.stringify(batches),
    state,
    code,
    now,
    appliedAt: state === 'applied' ? now : null,
  });
  return new Map(noted.map(({ id, digest }) => [digest, id]));
}

const INSERT_BATCHES = `
insert into inbound_batches as known (id, link, stream, epoch, seq, digest, prev, kind, state, code,
  file_name, file_bytes, records, types, duplicates, created_at, seen_at, applied_at)
select id, link, stream, epoch, seq, digest, prev, kind, :state, :code, file, bytes, records, types,
  0, created_at, :now, cast(:appliedAt as timestamptz)
from json_to_recordset(:batches) as b(id uuid, link text, stream text, epoch integer, seq bigint,
  digest text, prev text, kind text, file text, bytes bigint, records integer, types jsonb,
  created_at timestamptz)
order by seq
on conflict (link, stream, epoch, seq) do update
  set state = excluded.state, code = excluded.code, applied_at = excluded.applied_at,
    prev = excluded.prev, kind = excluded.kind, file_name = excluded.file_name,
    file_bytes = excluded.file_bytes, records = excluded.records, types = excluded.types,
    created_at = excluded.created_at
returning id, digest`;

function unknownType(type: string): SallyportError {
  return new SallyportError('WAIT_UPGRADE', `This version cannot apply ${type} records.`, {
    next: 'Upgrade this network; the file is tried again by itself.',
  });
}
