import type { Login } from './site.js';
import type { Side } from './sides.js';

/** What the right answer to a query is. */
export type Expected = { total: number; ids: string[] };

/** One submission that the request network has accepted (202). */
export type Promised = {
  id: string;
  login: Login;
  expected: Expected;
  /** In which step it was submitted. */
  step: number;
  /** By the clock of the request network. */
  deadline: number;
  ttlMs: number;
  /** What to send to submit the same again. */
  again?: { key: string; text: string; at: number };
  cancelAsked: boolean;
  /** A restore of the request network took it back: it may be unknown now. */
  lost: boolean;
  /** A restore came so late that what it took back could not be done again in time. */
  tooLate: boolean;
  /** How it was last seen to have ended. */
  ended?: Ended;
};
type Ended = { status: string; text: string | null };

/** What the API says of a request, with the text of its answer once delivered. */
export type Seen = {
  status: string;
  failure: { class: string | null; code: string } | null;
  text: string | null;
};

export type Verdict = { kind: 'unanswered' | 'doubled' | 'wrong'; sentence: string };

/**
 * The model: pure, in memory, fed with what the outside saw. It knows nothing of batches; it knows
 * what was promised, and what may become of a promise.
 */
export type Oracle = {
  promises: Map<string, Promised>;
  /** From this step on the response network lets this user do nothing, or all again. */
  noteRights(step: number, login: Login, denied: boolean): void;
  isDenied(login: Login): boolean;
  noteBackup(side: Side, step: number): void;
  noteRestore(side: Side, step: number, now: number): void;
  hasBackup(side: Side): boolean;
  /** Compares what is seen during the run with what was seen before. */
  observe(promised: Promised, seen: Seen): Verdict | undefined;
  /** What is wrong with how a request has ended. */
  judge(promised: Promised, seen: Seen | undefined, now: number, step: number): Verdict | undefined;
};

const FINAL: readonly string[] = ['delivered', 'failed', 'rejected', 'cancelled', 'expired'];
/** Who asks in time, with days to spare, gets an answer. */
const LONG_MS = 10 * 86_400_000;
/** What it takes at most until all that a restore took back has been done again. */
const HEALED_MS = 5 * 86_400_000;
/** How much the clocks of the networks may differ, and what a deadline is late by. */
const CLOCKS_MS = 20 * 60_000;

/** A model that knows of nothing yet. */
export function makeOracle(): Oracle {
  const promises = new Map<string, Promised>();
  const denials: { step: number; login: Login; denied: boolean }[] = [];
  let denied = new Set<Login>();
  const backups: { request?: { step: number }; response?: { denied: Set<Login> } } = {};

  const noteRights = (step: number, login: Login, isDenied: boolean): void => {
    if (denied.has(login) === isDenied) return;
    if (isDenied) denied.add(login);
    else denied.delete(login);
    denials.push({ step, login, denied: isDenied });
  };

  /** Which of both the user's rights were between two steps, both included. */
  const rightsWithin = (login: Login, from: number, to: number): Set<boolean> => {
    const mine = denials.filter((one) => one.login === login && one.step <= to);
    const before = mine.findLast((one) => one.step < from);
    return new Set([
      before?.denied ?? false,
      ...mine.filter((one) => one.step >= from).map((one) => one.denied),
    ]);
  };

  return {
    promises,
    noteRights,
    isDenied: (login) => denied.has(login),
    hasBackup: (side) => backups[side] !== undefined,
    noteBackup(side, step) {
      if (side === 'request') backups.request = { step };
      else backups.response = { denied: new Set(denied) };
    },
    noteRestore(side, step, now) {
      for (const one of promises.values()) {
        if (one.deadline < now + HEALED_MS) one.tooLate = true;
      }
      if (side === 'request') {
        for (const one of promises.values()) {
          if (one.step > (backups.request?.step ?? 0)) one.lost = true;
          delete one.ended;
        }
        return;
      }
      const before = new Set(backups.response?.denied);
      for (const login of new Set([...denied, ...before]))
        noteRights(step, login, before.has(login));
      denied = before;
    },
    observe(promised, seen) {
      // Its user is shut out for the moment.
      if (seen.status === '401') return undefined;
      const { id, ended } = promised;
      if (ended && ended.status !== seen.status) {
        return doubled(`${id} was ${ended.status} and is ${seen.status}`);
      }
      if (ended && ended.text !== seen.text) {
        return doubled(`the answer to ${id} has changed`);
      }
      if (FINAL.includes(seen.status)) {
        promised.ended = { status: seen.status, text: seen.text };
      }
      return undefined;
    },
    judge(promised, seen, now, step) {
      const { id, login, lost, cancelAsked, deadline, ttlMs } = promised;
      if (!seen) return lost ? undefined : unanswered(`${id} is unknown`);
      const rights = rightsWithin(login, promised.step, step);
      const overdue = now > deadline - CLOCKS_MS;
      switch (seen.status) {
        case 'delivered':
          if (!rights.has(false)) return wrong(`${id} of ${login} was answered against all rights`);
          return isRight(seen.text, promised.expected)
            ? undefined
            : wrong(`${id} got another answer than its own: ${seen.text?.slice(0, 300)}`);
        case 'rejected':
          return rights.has(true) ? undefined : wrong(`${id} of ${login} was rejected`);
        case 'cancelled':
          return cancelAsked ? undefined : wrong(`${id} was cancelled by nobody`);
        case 'expired':
          if (!overdue) return unanswered(`${id} has expired before its time`);
          return ttlMs < LONG_MS || promised.tooLate
            ? undefined
            : unanswered(
                `${id} of step ${promised.step} had ${ttlMs / 86_400_000} days and expired`,
              );
        case 'failed':
          return overdue && seen.failure?.code === 'EXPIRED'
            ? undefined
            : unanswered(`${id} failed: ${JSON.stringify(seen.failure)}`);
        default:
          return unanswered(`${id} is still ${seen.status}`);
      }
    },
  };
}

/** Whether an answer of Elasticsearch holds exactly what was asked for. */
function isRight(text: string | null, expected: Expected): boolean {
  if (text === null) return false;
  const { hits } = JSON.parse(text) as {
    hits: { total: { value: number }; hits: { _source: { claim_id: string } }[] };
  };
  const ids = hits.hits.map((hit) => hit._source.claim_id).sort();
  return (
    hits.total.value === expected.total && JSON.stringify(ids) === JSON.stringify(expected.ids)
  );
}

function unanswered(sentence: string): Verdict {
  return { kind: 'unanswered', sentence };
}

function doubled(sentence: string): Verdict {
  return { kind: 'doubled', sentence };
}

function wrong(sentence: string): Verdict {
  return { kind: 'wrong', sentence };
}
