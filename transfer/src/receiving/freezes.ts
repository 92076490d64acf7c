import {
  SallyportError,
  appendAudit,
  rows,
  type BatchCode,
  type Database,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import { findLink } from '../keys/links.js';
import type { Node } from '../node.js';

/** What a person sees of a stream that an alarm has stopped. */
export type FrozenStream = {
  stream: StreamName;
  /** `in`: nothing of it is imported; `out`: nothing of it is sealed. */
  direction: 'in' | 'out';
  code: BatchCode;
  since: Date;
  evidence: Evidence[];
  /** What to ask the far side before the stream is let go. */
  ask: string;
};

/** One thing that raised an alarm: what was found, and what is known here of the same number. */
export type Evidence = {
  sentence: string;
  /** The quarantined file, where there is one. */
  quarantine: string | null;
  file: string | null;
  seq: number | null;
  /** Digest of the manifest that was found. */
  found: string | null;
  /** Digest of the batch with this number that was taken before. */
  known: string | null;
  decision: string | null;
};

/** A file that waits until a person allows it (a jump in the numbers, a frozen stream). */
export type WaitingForPerson = { file: string; sentence: string; since: Date };

const ASK: Partial<Record<BatchCode, string>> = {
  SEQ_FORK:
    'Which of the two digests is theirs? Was a database restored there, or the same number sealed twice? If neither is theirs, treat their key as stolen.',
  CHAIN_BREAK:
    'Which digest do they have for the number before? Was a database restored there without re-adopt?',
  VALIDATOR_DISAGREE:
    'Nothing yet: the two checks of this network disagree on a file. Keep the file, and report it to whoever maintains the software.',
  ACK_FORK:
    'What do they have under these numbers? If the database of this network was restored, run re-adopt here; if theirs was, have it run there.',
};

/**
 * Stops a stream that we receive until a person has looked (alarms). Repeating it changes nothing.
 */
export async function freezeStream(
  db: Database,
  node: Node,
  { link, stream, code }: { link: string; stream: StreamName; code: BatchCode },
): Promise<void> {
  const [at, actor] = [node.clock.now(), node.account];
  await db.transaction((tx) => markFrozen(tx, { link, stream, code, at, actor }));
}

/** The same in the caller's transaction, by whoever is named. */
export async function markFrozen(
  tx: Transaction,
  alarm: { link: string; stream: StreamName; code: BatchCode; at: Date; actor: string },
): Promise<void> {
  const { link, stream, code, at, actor } = alarm;
  const frozen = await rows(
    tx,
    `update inbound_streams set frozen_code = ?, frozen_at = ?
     where link = ? and stream = ? and frozen_code is null returning stream`,
    [code, at, link, stream],
  );
  if (frozen.length === 0) return;
  const details = { code, direction: 'in' };
  await appendAudit(tx, { at, actor, action: 'link.freeze', subject: stream, details });
}

/**
 * Stops a stream that we send, in the epoch in which the far side acknowledges it as we never sealed
 * it: going on could sign one number twice. A new epoch is not affected.
 */
export async function freezeOutbound(
  tx: Transaction,
  node: Node,
  { link, stream, alarm }: { link: string; stream: StreamName; alarm: SallyportError },
): Promise<void> {
  const now = node.clock.now();
  const frozen = await rows(
    tx,
    `insert into outbound_freezes as f (link, stream, epoch, code, sentence, at)
     select link, :stream, epoch, :code, :sentence, cast(:now as timestamptz)
     from links where link = :link
     on conflict (link, stream) do update
       set epoch = excluded.epoch, sentence = excluded.sentence, at = excluded.at
       where f.epoch <> excluded.epoch
     returning stream`,
    { link, stream, code: alarm.code, sentence: alarm.message, now },
  );
  if (frozen.length === 0) return;
  await appendAudit(tx, {
    at: now,
    actor: node.account,
    action: 'link.freeze',
    subject: stream,
    details: { code: alarm.code, direction: 'out' },
  });
}

/** Whether a stream may not be sealed until a person has decided. */
export async function isOutboundFrozen(
  db: Database,
  link: string,
  stream: StreamName,
): Promise<boolean> {
  const found = await rows(
    db,
    `select 1 from outbound_freezes f join links l on l.link = f.link and l.epoch = f.epoch
     where f.link = ? and f.stream = ?`,
    [link, stream],
  );
  return found.length > 0;
}

/**
 * Refuses to seal anything in a stream before a person has decided.
 * @throws SallyportError WAIT_APPROVAL.
 */
export async function requireNotFrozen(
  db: Database,
  link: string,
  stream: StreamName,
): Promise<void> {
  if (!(await isOutboundFrozen(db, link, stream))) return;
  throw new SallyportError('WAIT_APPROVAL', `${stream} is frozen: nothing of it is sealed.`, {
    next: 'link frozen shows why; link unfreeze lets the stream go on.',
  });
}

/** The streams that alarms have stopped, with the evidence; and the files that wait for a person. */
export async function listFrozen(
  db: Database,
): Promise<{ streams: FrozenStream[]; waiting: WaitingForPerson[] }> {
  const inbound = await rows<Omit<FrozenStream, 'evidence' | 'ask'>>(
    db,
    `select stream, 'in' as direction, frozen_code as code, frozen_at as since
     from inbound_streams where frozen_code is not null order by frozen_at`,
  );
  const outbound = await rows<Omit<FrozenStream, 'evidence' | 'ask'> & { sentence: string }>(
    db,
    `select f.stream, 'out' as direction, f.code, f.at as since, f.sentence
     from outbound_freezes f join links l on l.link = f.link and l.epoch = f.epoch
     order by f.at`,
  );
  const streams: FrozenStream[] = [];
  for (const one of inbound) {
    const evidence = await rows<Evidence>(db, EVIDENCE_SQL, { stream: one.stream });
    streams.push({ ...one, evidence, ask: ASK[one.code] ?? '' });
  }
  for (const { sentence, ...one } of outbound) {
    const told = { sentence, quarantine: null, file: null, seq: null };
    const evidence = [{ ...told, found: null, known: null, decision: null }];
    streams.push({ ...one, evidence, ask: ASK[one.code] ?? '' });
  }
  const waiting = await rows<WaitingForPerson>(
    db,
    `select name as file, detail as sentence, first_seen_at as since from inbox_seen
     where code = 'WAIT_APPROVAL' order by first_seen_at limit 100`,
  );
  return { streams, waiting };
}

/**
 * Lets a stream go on, both directions of it where both were stopped. What waits is taken by the next
 * import.
 * @throws SallyportError `not-found` when it is not frozen.
 */
export async function unfreezeStream(
  db: Database,
  { stream, reason, by, at }: { stream: string; reason: string; by: string; at: Date },
): Promise<{ codes: string[] }> {
  return db.transaction(async (tx) => {
    const found = await rows<{ direction: string; code: string }>(
      tx,
      `select 'in' as direction, frozen_code as code from inbound_streams
       where stream = :stream and frozen_code is not null
       union all
       select 'out', code from outbound_freezes where stream = :stream`,
      { stream },
    );
    if (found.length === 0) {
      throw new SallyportError('not-found', `The stream "${stream}" is not frozen.`, {
        next: 'link frozen lists those that are.',
      });
    }
    await tx.raw(
      'update inbound_streams set frozen_code = null, frozen_at = null where stream = ?',
      [stream],
    );
    await tx.raw('delete from outbound_freezes where stream = ?', [stream]);
    for (const { direction, code } of found) {
      await appendAudit(tx, {
        at,
        actor: by,
        action: 'link.unfreeze',
        subject: stream,
        details: { code, direction, reason },
      });
    }
    return { codes: found.map(({ code }) => code) };
  });
}

/** Lets numbers of a stream jump up to one that two people allowed. */
export async function allowJump(
  tx: Transaction,
  { stream, epoch, seq }: { stream: string; epoch: number; seq: number },
): Promise<void> {
  const allowed = await rows(
    tx,
    `update inbound_streams set jump_allowed_to = greatest(jump_allowed_to, ?)
     where stream = ? and epoch = ? returning stream`,
    [seq, stream, epoch],
  );
  if (allowed.length > 0) return;
  throw new SallyportError('version-conflict', `${stream} is not in epoch ${epoch} any more.`, {
    next: 'Ask again for the numbers of the present epoch.',
  });
}

/** Lets the far side announce an epoch further on than the next, which two people allowed. */
export async function allowEpoch(tx: Transaction, epoch: number): Promise<void> {
  const allowed = await rows(
    tx,
    'update links set far_epoch_allowed = :epoch where far_epoch < :epoch returning link',
    { epoch },
  );
  if (allowed.length > 0) return;
  throw new SallyportError('version-conflict', `The far side is in epoch ${epoch} or beyond.`, {
    next: 'link shows the epochs of both sides.',
  });
}

/**
 * The inbound stream that a person named, with its epoch and the newest number seen.
 * @throws SallyportError `usage` when the far side sends no such stream, `not-trusted`.
 */
export async function findInboundStream(
  db: Database,
  stream: string,
): Promise<{ stream: StreamName; epoch: number; newest: number }> {
  const link = await findLink(db);
  if (!link) {
    throw new SallyportError('not-trusted', 'No far side is trusted yet.', {
      next: 'Run keys trust with the card of the other network.',
    });
  }
  const [found] = await rows<{ stream: StreamName; epoch: number; newest: number }>(
    db,
    `select s.stream, s.epoch, greatest(s.contiguous, max(b.seq)) as newest
     from inbound_streams s left join inbound_batches b
       on b.link = s.link and b.stream = s.stream and b.epoch = s.epoch
     where s.link = ? and s.stream = ? group by s.stream, s.epoch, s.contiguous`,
    [link.link, stream],
  );
  if (found) return found;
  throw new SallyportError('usage', `The far side sends no stream "${stream}".`, {
    next: 'link shows the streams under RECEIVING.',
  });
}

/**
 * That a number we receive is not closed yet.
 * @throws SallyportError `version-conflict`.
 */
export async function requireOpenNumber(
  db: Database,
  { stream, epoch, seq }: { stream: StreamName; epoch: number; seq: number },
): Promise<void> {
  const closed = await rows(
    db,
    `select 1 from inbound_streams
     where stream = :stream and epoch = :epoch and contiguous >= :seq
     union all
     select 1 from inbound_batches
     where stream = :stream and epoch = :epoch and seq = :seq and state <> 'waiting'`,
    { stream, epoch, seq },
  );
  if (closed.length === 0) return;
  throw new SallyportError('version-conflict', `Number ${seq} of ${stream} is closed already.`, {
    next: `There is nothing to allow; batch show ${stream} ${seq} --received shows what became of it.`,
  });
}

// Quarantined files; and withdrawals that contradict what is here, which come without a file.
const EVIDENCE_SQL = `
select q.report->>'sentence' as sentence, q.id as quarantine, q.file_name as file,
  (q.report->>'seq')::bigint as seq, q.report->>'batch' as found, b.digest as known, q.decision
from quarantine q
left join inbound_batches b on b.stream = q.report->>'stream'
  and b.epoch = (q.report->>'epoch')::integer and b.seq = (q.report->>'seq')::bigint
where q.report->>'stream' = :stream and (q.decided_at is null or q.decided_at >= (
  select frozen_at from inbound_streams where stream = :stream limit 1))
union all
select a.details->>'sentence', null, null, substring(a.subject from ' ([0-9]{1,18})$')::bigint,
  a.details->>'digest', b.digest, null
from audit_log a
join inbound_streams s on s.stream = :stream and a.at >= s.frozen_at
left join inbound_batches b on b.link = s.link and b.stream = s.stream and b.epoch = s.epoch
  and b.seq = substring(a.subject from ' ([0-9]{1,18})$')::bigint
where a.action = 'link.alarm' and split_part(a.subject, ' ', 1) = :stream
  and a.subject like '% %'
limit 20`;
