import {
  SallyportError,
  appendAudit,
  findUserByLogin,
  newId,
  retryDeadlock,
  rolesOn,
  rows,
  type Database,
  type Transaction,
} from '@sallyport/shared';
import { allowEpoch, allowJump } from '../receiving/freezes.js';
import type { Node } from '../node.js';
import { isSamePerson, requirePerson } from './people.js';
import { approveRelease, findQuarantined, requireReleasable } from '../receiving/quarantine.js';
import { findWithdrawable, withdrawBatch } from '../sending/withdrawals.js';

/**
 * What needs two people: to withdraw a number, to release a quarantined file, to let numbers jump; and
 * one, besides the importer that asks: to apply a batch that it holds.
 */
export type Act = 'withdraw' | 'release' | 'jump' | 'apply';

export type Approval = {
  id: string;
  act: Act;
  /**
   * One text per thing: `requests 1 7` (stream, epoch, number), `epoch 9`, the id of a quarantined
   * file, or the digest of a held batch.
   */
  subject: string;
  details: Record<string, unknown>;
  reason: string;
  asked_by: string;
  asked_at: Date;
  decision: 'approved' | 'declined' | null;
  decided_by: string | null;
  decided_at: Date | null;
  /** Why it was declined. */
  answer: string | null;
};

/** What an approval sets off, in the transaction that decides. */
type Effect = (tx: Transaction, node: Node, approved: ApprovedAct) => Promise<void>;
type ApprovedAct = Approval & { decided_by: string; decided_at: Date };

const EFFECTS: Record<Act, Effect> = {
  withdraw: async (
    tx,
    node,
    { subject, details, reason, asked_by: one, decided_by, decided_at },
  ) => {
    const link = String(details['link']);
    const by: [string, string] = [one, decided_by];
    await withdrawBatch(tx, node, { link, ...parseNumber(subject), reason, by, at: decided_at });
  },
  release: (tx, node, { subject, id }) => approveRelease(tx, node, { id: subject, approval: id }),
  jump: (tx, _node, { subject }) => {
    const { stream, epoch, seq } = parseNumber(subject);
    return stream === 'epoch' ? allowEpoch(tx, epoch) : allowJump(tx, { stream, epoch, seq });
  },
  // The next import finds it approved.
  apply: () => Promise.resolve(),
};

const COLUMNS = `id, act, subject, details, reason, asked_by, asked_at, decision, decided_by,
  decided_at, answer`;
const MAX_LISTED = 1_000;

/**
 * Asks for an act that a second person must approve. Asking again for the same thing answers with
 * the request that is open.
 * @throws SallyportError `unauthenticated` for root without a login.
 */
export async function askApproval(
  tx: Transaction,
  ask: {
    act: Act;
    subject: string;
    details: Record<string, unknown>;
    reason: string;
    by: string;
    at: Date;
  },
): Promise<Approval & { fresh: boolean }> {
  const { act, subject, details, reason, by, at } = ask;
  requirePerson(by);
  const [made] = await rows<Approval>(
    tx,
    `insert into approvals (id, act, subject, details, reason, asked_by, asked_at)
     values (:id, :act, :subject, :details, :reason, :by, :at)
     on conflict (act, subject) where decision is null do nothing
     returning ${COLUMNS}`,
    { id: newId(), act, subject, details: JSON.stringify(details), reason, by, at },
  );
  if (!made) {
    const [open] = await rows<Approval>(
      tx,
      `select ${COLUMNS} from approvals where act = ? and subject = ? and decision is null`,
      [act, subject],
    );
    if (open) return { ...open, fresh: false };
    throw new SallyportError('version-conflict', 'It was decided this very moment.', {
      next: 'Look at approvals ls --all, then ask again if it is still needed.',
    });
  }
  await appendAudit(tx, {
    at,
    actor: by,
    action: 'approval.ask',
    subject: made.id,
    details: { act, about: subject, reason, ...details },
  });
  return { ...made, fresh: true };
}

/**
 * Asks to give a sealed number up for good.
 * @throws SallyportError as {@link askApproval} and `findWithdrawable`.
 */
export async function askWriteOff(
  db: Database,
  node: Node,
  asked: { stream: string; seq: number; epoch?: number; reason: string; by: string },
): Promise<Approval & { fresh: boolean }> {
  const { reason, by, ...number } = asked;
  const details = await findWithdrawable(db, number);
  const ask = { act: 'withdraw', subject: numberSubject(details), details, reason, by } as const;
  return db.transaction((tx) => askApproval(tx, { ...ask, at: node.clock.now() }));
}

/**
 * Asks to import a refused file after all.
 * @throws SallyportError as {@link askApproval}, `findQuarantined` and `requireReleasable`.
 */
export async function askRelease(
  db: Database,
  node: Node,
  { id, reason, by }: { id: string; reason: string; by: string },
): Promise<Approval & { fresh: boolean }> {
  const file = await findQuarantined(db, id);
  await requireReleasable(node, file);
  const { code, stream, seq, batch, sentence } = file.report;
  const details = { file: file.file_name, code, stream, seq, batch, sentence };
  const ask = { act: 'release', subject: file.id, details, reason, by } as const;
  return db.transaction((tx) => askApproval(tx, { ...ask, at: node.clock.now() }));
}

/** The last one of a page: lists go on after it. */
export type After = { at: string; id: string };

/** What waits for a second person, newest first; with `all`, what was decided too. */
export async function listApprovals(
  db: Database,
  { all = false, limit = MAX_LISTED, after }: { all?: boolean; limit?: number; after?: After } = {},
): Promise<Approval[]> {
  return rows<Approval>(
    db,
    `select ${COLUMNS} from approvals where (decision is null or cast(:all as boolean))
       and (cast(:at as timestamptz) is null
         or (asked_at, id) < (cast(:at as timestamptz), cast(:id as uuid)))
     order by asked_at desc, id desc limit :limit`,
    { all, limit, at: after?.at ?? null, id: after?.id ?? null },
  );
}

/**
 * Decides a request for an act, and sets it off when approved, in one transaction. Whoever asked may
 * take the request back, but never approve it; what the importer holds takes an admin.
 * @throws SallyportError `not-found`, `version-conflict` when it is decided, `approval-same-person`,
 * `role-missing`, `unauthenticated` for root without a login.
 */
export async function decideApproval(
  db: Database,
  node: Node,
  decided: {
    id: string;
    by: string;
    decision: 'approved' | 'declined';
    reason?: string | undefined;
  },
): Promise<Approval> {
  // Rejecting a file locks it before the request to release it: here it is the other way round.
  return retryDeadlock(() => db.transaction((tx) => decideOpen(tx, node, decided)));
}

async function decideOpen(
  tx: Transaction,
  node: Node,
  decided: Parameters<typeof decideApproval>[2],
): Promise<Approval> {
  const { by, decision, reason = null } = decided;
  const at = node.clock.now();
  const asked = await findOpen(tx, decided.id);
  if (decision === 'approved') requirePerson(by);
  if (decision === 'approved' && isSamePerson(by, asked.asked_by)) {
    throw new SallyportError(
      'approval-same-person',
      `${asked.asked_by} asked for this, and ${by} is the same person.`,
      { next: 'Have a second person approve it, under their own account or with --as LOGIN.' },
    );
  }
  if (decision === 'approved' && asked.act === 'apply') await requireAdmin(tx, node, by);
  await tx.raw(
    `update approvals set decision = :decision, decided_by = :by, decided_at = :at,
       answer = :reason where id = :id`,
    { decision, by, at, reason, id: asked.id },
  );
  const approval = { ...asked, decision, decided_by: by, decided_at: at, answer: reason };
  await appendAudit(tx, {
    at,
    actor: by,
    action: decision === 'approved' ? 'approval.approve' : 'approval.decline',
    subject: asked.id,
    details: { act: asked.act, about: asked.subject, asked_by: asked.asked_by, reason },
  });
  if (decision === 'approved') await EFFECTS[asked.act](tx, node, approval);
  return approval;
}

/** That a login is an admin's; whoever has a command line of this network administers it anyway. */
async function requireAdmin(tx: Transaction, node: Node, by: string): Promise<void> {
  if (by.startsWith('cli:')) return;
  const user = await findUserByLogin(tx, by.replace(/^user:/, ''));
  if (user && !user.disabled && rolesOn(user, node.role).includes('admin')) return;
  throw new SallyportError('role-missing', 'This is for: admin.', {
    next: 'Have an administrator of this network let the batch in; declining takes an operator.',
  });
}

/** What was asked for, by the name of its command, and about what. */
export function describeAct({
  act,
  subject,
}: Pick<Approval, 'act' | 'subject'>): [act: string, about: string] {
  if (act === 'release') return ['release', `file ${subject}`];
  if (act === 'apply') return ['apply', `batch ${subject.slice(0, 12)}`];
  const { stream, epoch, seq } = parseNumber(subject);
  if (stream === 'epoch') return ['allow', `epoch ${epoch}`];
  const name = act === 'withdraw' ? 'write-off' : 'allow';
  return [name, `${stream} number ${seq} (epoch ${epoch})`];
}

/** The subject of an approval that is about one number of a stream. */
export function numberSubject(number: { stream: string; epoch: number; seq: number }): string {
  return `${number.stream} ${number.epoch} ${number.seq}`;
}

function parseNumber(subject: string): { stream: string; epoch: number; seq: number } {
  const [stream = '', epoch, seq] = subject.split(' ');
  return { stream, epoch: Number(epoch), seq: Number(seq) };
}

async function findOpen(tx: Transaction, id: string): Promise<Approval> {
  if (!/^[0-9a-f-]{4,36}$/.test(id)) throw unknown(id);
  const found = await rows<Approval>(
    tx,
    `select ${COLUMNS} from approvals where id::text like :id || '%'
     order by decision is not null limit 2 for update`,
    { id },
  );
  const [first, second] = found;
  if (!first) throw unknown(id);
  if (second && first.id !== id) {
    throw new SallyportError('usage', `Several requests begin with ${id}.`, {
      next: 'Give the whole id, as approvals ls shows it.',
    });
  }
  if (first.decision === null) return first;
  throw new SallyportError(
    'version-conflict',
    `It was ${first.decision} by ${first.decided_by ?? 'somebody'} already.`,
    { next: 'approvals ls --all shows what was decided.' },
  );
}

function unknown(id: string): SallyportError {
  return new SallyportError('not-found', `There is no request for approval ${id}.`, {
    next: 'approvals ls shows those that wait.',
  });
}
