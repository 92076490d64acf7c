import { createHash } from 'node:crypto';
import {
  cacheKey,
  newId,
  POLICY_TABLE,
  retryDeadlock,
  SallyportError,
  WORKERS,
  type Cache,
  type Clock,
  type Database,
  type Log,
} from '@sallyport/shared';
import { readSearchableDatasets, type SearchableDataset } from './dataset-sources.js';
import type { Elastic } from './elastic/client.js';
import { searchGroup, searchText, type SearchFault, type SearchOutcome } from './elastic/search.js';
import {
  claimRequests,
  freeExpiredLeases,
  giveUpLease,
  listCancelAsked,
  putBack,
  renewLeases,
  type ClaimedRequest,
} from './executions.js';
import { judgeRequest, type Verdict } from './judge.js';
import { CANCELLED, DEADLINE_TOLERANCE_MS, EXPIRED } from './requests.js';
import { storeOutcomes, type Outcome } from './results.js';

export type ExecutorOptions = {
  db: Database;
  elastic: Elastic;
  clock: Clock;
  log: Log;
  /** Most searches at a time; asked before each start. */
  concurrencyMax: () => number;
  /** After this long a run starts nothing more, ends what runs, and says that there is more. */
  runMs?: number;
  /** Answers of earlier searches; without it, or while it is off, every request is searched for. */
  cache?: Cache;
  /** No search starts while answers take more, and none grows while they take twice as much. */
  memoryBytes?: number;
};

/** `more`: time was up before nothing waited any more. */
export type ExecutionReport = { answered: number; putBack: number; more: boolean };

export type Executor = {
  /**
   * Runs everything that waits and returns when nothing is left or time is up. The signal stops new starts, gives
   * back what has not started and ends what runs.
   * @throws SallyportError `elasticsearch-unavailable` when it went away; its requests wait again.
   */
  run(signal: AbortSignal): Promise<ExecutionReport>;
  /** Lets runs that are under way take what has arrived since they looked. */
  look(): void;
  /** Looks for cancellations of what runs and stops it. */
  stopCancelled(): Promise<void>;
  /** Takes no new requests in runs that are under way, but lets searches end. */
  drain(): void;
};

const START_CONCURRENCY = 4;
const CLAIM_MIN = 64;
const CLAIM_MAX = 128;
/** What costs no more than this is asked for together, up to so many in one call. */
const CHEAP_COST = 50;
const GROUP_MAX = 16;
/** A store waits a moment for company: one commit for many costs little more than for one. */
const STORE_WAIT_MS = 10;
const STORE_ENOUGH = 32;
const STORE_MAX = 64;
const STORE_MAX_CHARACTERS = 8 * 1024 * 1024;
const RENEW_MS = 15_000;
/** What runs by then ends well before the worker's own limit. */
const RUN_MS = (WORKERS['execute-queries'].timeLimitMs * 2) / 3;
const MEMORY_BYTES = 256 * 1024 * 1024;
const UNAVAILABLE_WAIT_MS = 5_000;
const BACK_OFF_MAX_MS = 300_000;
/** How often a search is tried that failed for a reason which may pass. */
const ATTEMPTS: Readonly<Partial<Record<SearchFault, number>>> = {
  timeout: 2,
  capacity: 8,
  internal: 3,
};
/** A request whose lease ran out so often brings processes down; it is not tried again. */
const ATTEMPTS_MAX = 10;

/** Makes the executor of this process; what it learns about the cluster's capacity it keeps. */
export function createExecutor(options: ExecutorOptions): Executor {
  const served = new Map<string, number>();
  const runs = new Set<Run>();
  let concurrency = START_CONCURRENCY;
  let draining = false;
  return {
    async run(signal) {
      if (draining) return { answered: 0, putBack: 0, more: false };
      await freeExpiredLeases(options.db, options.clock.now());
      const run = new Run({ ...options, signal, served, concurrency });
      runs.add(run);
      try {
        return await run.toEnd();
      } finally {
        runs.delete(run);
        concurrency = run.concurrency;
      }
    },
    look() {
      for (const run of runs) run.look();
    },
    async stopCancelled() {
      for (const run of runs) await run.stopCancelled();
    },
    drain() {
      draining = true;
      for (const run of runs) run.stop();
    },
  };
}

type RunOptions = ExecutorOptions & {
  signal: AbortSignal;
  served: Map<string, number>;
  concurrency: number;
};
type Task = {
  request: ClaimedRequest;
  dataset: SearchableDataset | undefined;
  verdict: Verdict & { ok: true };
  /** Had no clean answer in a group. */
  alone?: true;
};
/** One call under way. */
type Search = { requestIds: string[]; stopper: AbortController };

/** One pass over what waits: claiming, searching and storing overlap, each with its own limit. */
class Run {
  concurrency: number;
  readonly #options: RunOptions;
  readonly #leaseToken = newId();
  readonly #searches = new Set<Search>();
  readonly #cancelled = new Set<string>();
  readonly #report: ExecutionReport = { answered: 0, putBack: 0, more: false };
  readonly #memoryBytes: number;
  /** Bytes of answers that are not stored yet, by request. */
  readonly #held = new Map<string, number>();
  #heldBytes = 0;
  #waiting: Task[] = [];
  #finished: Outcome[] = [];
  #claiming = false;
  #storing = false;
  #storeTimer: NodeJS.Timeout | undefined;
  #storeWaited = false;
  #exhausted = false;
  #looks = 0;
  #stopped = false;
  #failure: unknown;
  #changed: () => void = () => undefined;

  constructor(options: RunOptions) {
    this.#options = options;
    this.#memoryBytes = options.memoryBytes ?? MEMORY_BYTES;
    this.concurrency = options.concurrency;
  }

  async toEnd(): Promise<ExecutionReport> {
    const { signal, db, clock, log, runMs = RUN_MS } = this.#options;
    const abort = () => {
      this.stop();
      for (const { stopper } of this.#searches) stopper.abort();
    };
    signal.addEventListener('abort', abort);
    if (signal.aborted) abort();
    const renewal = setInterval(() => {
      this.look();
      renewLeases(db, this.#leaseToken, clock.now()).catch((err: unknown) =>
        log.warn({ err }, 'could not renew the leases of running searches'),
      );
    }, RENEW_MS);
    const timeUp = setTimeout(() => {
      this.#report.more = !this.#exhausted || this.#waiting.length > 0;
      this.stop();
    }, runMs);
    try {
      while (this.#advance()) await new Promise<void>((resolve) => (this.#changed = resolve));
      await this.#giveBackWaiting();
    } finally {
      clearInterval(renewal);
      clearTimeout(timeUp);
      signal.removeEventListener('abort', abort);
    }
    if (this.#failure !== undefined) {
      // What was lost with the failure would wait for its lease to run out.
      await giveUpLease(db, this.#leaseToken).catch((err: unknown) =>
        log.warn({ err }, 'could not give back what a failed run holds'),
      );
      throw this.#failure as Error;
    }
    return this.#report;
  }

  stop(): void {
    this.#stopped = true;
    this.#changed();
  }

  look(): void {
    this.#looks += 1;
    this.#exhausted = false;
    this.#changed();
  }

  async stopCancelled(): Promise<void> {
    for (const id of await listCancelAsked(this.#options.db, this.#leaseToken)) {
      this.#cancelled.add(id);
      // A group is short; the others in it are wanted.
      for (const { requestIds, stopper } of this.#searches) {
        if (requestIds.length === 1 && requestIds[0] === id) stopper.abort();
      }
    }
  }

  /** Starts whatever can start now; false when nothing is under way any more. */
  #advance(): boolean {
    const low = Math.max(this.concurrency, this.#claimSize() / 2);
    if (!this.#stopped && !this.#exhausted && !this.#claiming && this.#waiting.length < low) {
      this.#claiming = true;
      this.#track(this.#claim(), () => (this.#claiming = false));
    }
    while (!this.#stopped && this.#hasRoom()) {
      const tasks = this.#takeNext();
      if (tasks.length === 0) break;
      const requestIds = tasks.map(({ request }) => request.id);
      const search = { requestIds, stopper: new AbortController() };
      this.#searches.add(search);
      this.#track(this.#search(tasks, search.stopper), () => this.#searches.delete(search));
    }
    if (!this.#storing && this.#isStoreDue()) {
      this.#storing = true;
      this.#track(this.#store(), () => (this.#storing = false));
    }
    return this.#claiming || this.#storing || this.#searches.size > 0 || this.#finished.length > 0;
  }

  #isStoreDue(): boolean {
    const { length } = this.#finished;
    if (length === 0) return false;
    if (length >= STORE_ENOUGH || this.#storeWaited || this.#searches.size === 0) return true;
    this.#storeTimer ??= setTimeout(() => {
      this.#storeWaited = true;
      this.#changed();
    }, STORE_WAIT_MS);
    return false;
  }

  #track(work: Promise<void>, done: () => void): void {
    work
      .catch((error: unknown) => this.#fail(error))
      .finally(() => {
        done();
        this.#changed();
      });
  }

  #fail(error: unknown): void {
    this.#failure ??= error;
    this.#stopped = true;
  }

  #hasRoom(): boolean {
    if (this.#heldBytes > this.#memoryBytes) return false;
    return this.#searches.size < Math.min(this.concurrency, this.#options.concurrencyMax());
  }

  #hold(id: string, bytes: number): boolean {
    this.#heldBytes += bytes;
    this.#held.set(id, (this.#held.get(id) ?? 0) + bytes);
    return this.#heldBytes <= 2 * this.#memoryBytes;
  }

  #release(id: string): void {
    this.#heldBytes -= this.#held.get(id) ?? 0;
    this.#held.delete(id);
  }

  #claimSize(): number {
    return Math.min(CLAIM_MAX, Math.max(CLAIM_MIN, this.concurrency * 4));
  }

  async #claim(): Promise<void> {
    const { db, clock, served } = this.#options;
    const looks = this.#looks;
    const claimed = await claimRequests(db, {
      leaseToken: this.#leaseToken,
      limit: this.#claimSize(),
      served,
      now: clock.now(),
    });
    if (claimed.length === 0) {
      // Somebody may have called while the statement was under way.
      this.#exhausted = looks === this.#looks;
      return;
    }
    noteServed(served, claimed);
    const names = [...new Set(claimed.map(({ dataset }) => dataset))];
    const datasets = await readSearchableDatasets(db, names);
    for (const request of claimed) this.#admit(request, datasets.get(request.dataset));
  }

  /** Ends what must not be searched, and lets the rest wait for its turn. */
  #admit(request: ClaimedRequest, dataset: SearchableDataset | undefined): void {
    if (request.cancel_asked_at) return this.#end(request, CANCELLED);
    if (this.#isExpired(request)) return this.#end(request, EXPIRED);
    if (request.attempts > ATTEMPTS_MAX) return this.#end(request, TOO_OFTEN);
    const verdict = judgeRequest(request, dataset);
    if (!verdict.ok) return this.#end(request, verdict, dataset);
    this.#waiting.push({ request, dataset, verdict });
  }

  #isExpired({ expires_at: deadline }: ClaimedRequest): boolean {
    return deadline.getTime() + DEADLINE_TOLERANCE_MS < this.#options.clock.now().getTime();
  }

  /** The next one, with what waits behind it and can be asked for in the same call. */
  #takeNext(): Task[] {
    const first = this.#waiting.shift();
    if (!first) return [];
    const group = [first];
    if (!isCheap(first)) return group;
    this.#waiting = this.#waiting.filter((task) => {
      const joins = group.length < GROUP_MAX && isCheap(task) && isAlike(task, first);
      if (joins) group.push(task);
      return !joins;
    });
    return group;
  }

  async #search(tasks: Task[], stopper: AbortController): Promise<void> {
    const wanted = tasks.filter(({ request }) => {
      if (this.#cancelled.has(request.id)) this.#end(request, CANCELLED);
      else if (this.#isExpired(request)) this.#end(request, EXPIRED);
      else return true;
      return false;
    });
    const unknown: Task[] = [];
    for (const task of wanted) if (!(await this.#answerAgain(task))) unknown.push(task);
    const [first, ...others] = unknown;
    if (!first) return;
    if (others.length === 0) return this.#searchAlone(first, stopper);
    return this.#searchTogether([first, ...others], stopper);
  }

  /** Answers with what the same search gave a little while ago, if that is wanted and known. */
  async #answerAgain({ request, dataset, verdict }: Task): Promise<boolean> {
    const { cache } = this.#options;
    if (!cache?.admits(0) || !dataset) return false;
    const key = searchKey(request, dataset, verdict);
    const found = cache.get(key) ?? (await cache.fetch(key, () => true));
    if (!found) return false;
    this.#hold(request.id, found.length);
    const text = found.toString();
    this.#end(request, { status: 'delivered', failure: null, text }, dataset);
    return true;
  }

  #remember({ request, dataset, verdict }: Task, text: string): void {
    const { cache } = this.#options;
    const length = Buffer.byteLength(text);
    if (!dataset || !cache?.admits(length)) return;
    cache.put(searchKey(request, dataset, verdict), Buffer.from(text), 'process');
  }

  async #searchAlone(task: Task, stopper: AbortController) {
    const { request, verdict } = task;
    const outcome = await searchText(this.#options.elastic, {
      ...limitsOf(request),
      index: verdict.indexName,
      body: verdict.body,
      opaqueId: request.id,
      stopper,
      admit: (bytes) => this.#hold(request.id, bytes),
    });
    await this.#settle(task, outcome);
  }

  async #searchTogether(tasks: [Task, ...Task[]], stopper: AbortController): Promise<void> {
    const [{ request, verdict }] = tasks;
    const opaqueId = tasks.map((task) => task.request.id).join(',');
    const outcomes = await searchGroup(this.#options.elastic, {
      ...limitsOf(request),
      index: verdict.indexName,
      bodies: tasks.map((task) => task.verdict.body),
      opaqueId,
      stopper,
      admit: (bytes) => this.#hold(opaqueId, bytes),
    });
    this.#release(opaqueId);
    for (const [n, task] of tasks.entries()) {
      const outcome = this.#cancelled.has(task.request.id) ? ABORTED : outcomes[n];
      if (outcome?.ok) this.#hold(task.request.id, outcome.text.length);
      if (outcome) await this.#settle(task, outcome);
      else this.#waiting.unshift({ ...task, alone: true });
    }
  }

  async #settle(task: Task, outcome: SearchOutcome): Promise<void> {
    const { request, dataset } = task;
    if (outcome.ok) {
      this.concurrency = Math.min(this.concurrency + 1, this.#options.concurrencyMax());
      const { text, tookMs } = outcome;
      this.#remember(task, text);
      return this.#end(request, { status: 'delivered', failure: null, text, tookMs }, dataset);
    }
    const { fault, code, detail } = outcome;
    if (fault === 'aborted') {
      if (this.#cancelled.has(request.id)) return this.#end(request, STOPPED, dataset);
      return this.#later(request, 0, false);
    }
    if (fault === 'unavailable') {
      this.#fail(unavailable(detail));
      return this.#later(request, UNAVAILABLE_WAIT_MS, false);
    }
    // Missing shards of one index say nothing about the cluster.
    if (fault === 'capacity' && code !== 'index-unavailable')
      this.concurrency = Math.max(1, Math.floor(this.concurrency / 2));
    if (request.attempts < (ATTEMPTS[fault] ?? 1)) {
      return this.#later(request, Math.min(BACK_OFF_MAX_MS, 1_000 * 2 ** request.attempts), true);
    }
    const failureClass = fault === 'too-large' ? 'query' : fault;
    const failure = { class: failureClass, code, detail };
    return this.#end(request, { status: 'failed', failure }, dataset);
  }

  #end(
    request: ClaimedRequest,
    ending: Pick<Outcome, 'status' | 'failure'> & { text?: string; tookMs?: number },
    dataset?: SearchableDataset,
  ): void {
    this.#finished.push({
      requestId: request.id,
      status: ending.status,
      failure: ending.failure,
      text: ending.text ?? null,
      tookMs: ending.tookMs ?? null,
      datasetVersion: dataset?.dataset.version ?? null,
      policyVersion: POLICY_TABLE.version,
      receivedAt: request.received_at,
      startedAt: request.started_at,
      finishedAt: this.#options.clock.now(),
    });
  }

  async #later({ id }: ClaimedRequest, waitMs: number, counted: boolean): Promise<void> {
    const { db, clock } = this.#options;
    this.#release(id);
    const notBefore = new Date(clock.now().getTime() + waitMs);
    await putBack(db, { ids: [id], leaseToken: this.#leaseToken, notBefore, counted });
    this.#report.putBack += 1;
  }

  /** Stores what has finished since the last time, in one statement. */
  async #store(): Promise<void> {
    clearTimeout(this.#storeTimer);
    this.#storeTimer = undefined;
    this.#storeWaited = false;
    let characters = 0;
    const count = this.#finished.findIndex(({ text }, n) => {
      characters += text?.length ?? 0;
      return n >= STORE_MAX || (n > 0 && characters > STORE_MAX_CHARACTERS);
    });
    const some = this.#finished.splice(0, count === -1 ? this.#finished.length : count);
    const owner = { leaseToken: this.#leaseToken };
    const { db } = this.#options;
    const stored = await retryDeadlock(() => storeOutcomes(db, some, owner));
    this.#report.answered += stored.length;
    for (const { requestId } of some) this.#release(requestId);
  }

  async #giveBackWaiting(): Promise<void> {
    const ids = this.#waiting.map(({ request }) => request.id);
    this.#waiting = [];
    if (ids.length === 0) return;
    const { db, clock } = this.#options;
    await putBack(db, {
      ids,
      leaseToken: this.#leaseToken,
      notBefore: clock.now(),
      counted: false,
    });
    this.#report.putBack += ids.length;
  }
}

/**
 * What decides what a search finds: where and what is asked, row filter and visible fields included.
 * Rights are judged before and are no part of it.
 */
function searchKey(
  { tier }: ClaimedRequest,
  { dataset }: SearchableDataset,
  { indexName, body }: Verdict & { ok: true },
): string {
  const { id, name, version, epoch } = dataset;
  const what = JSON.stringify([id, version, epoch, POLICY_TABLE.version, tier, indexName, body]);
  return cacheKey({
    dataset: name,
    user: '-',
    what: createHash('sha256').update(what).digest('hex'),
  });
}

function isCheap({ request, verdict, alone }: Task): boolean {
  return !alone && (request.tier === 'A' || verdict.cost <= CHEAP_COST);
}

function isAlike(one: Task, other: Task): boolean {
  return (
    one.verdict.indexName === other.verdict.indexName && one.request.tier === other.request.tier
  );
}

function limitsOf({ tier }: ClaimedRequest) {
  const limits = POLICY_TABLE.tiers[tier];
  return {
    maxBytes: limits.resultBytes,
    timeouts: {
      searchMs: limits.searchTimeoutMs,
      socketMs: limits.socketTimeoutMs,
      cancelMs: limits.cancelTimeoutMs,
    },
  };
}

const ABORTED = { ok: false, fault: 'aborted', code: 'aborted', detail: '' } as const;
const STOPPED = {
  status: 'cancelled',
  failure: { class: null, code: 'cancelled', detail: 'It was cancelled while it ran.' },
} as const;
const TOO_OFTEN = {
  status: 'failed',
  failure: {
    class: 'internal',
    code: 'attempts-exhausted',
    detail: `It was begun ${ATTEMPTS_MAX} times and never ended.`,
  },
} as const;

/** Halves what is remembered with every claim, so that it fades, and adds what was just taken. */
function noteServed(served: Map<string, number>, claimed: ClaimedRequest[]): void {
  for (const [user, count] of served) {
    if (count < 1) served.delete(user);
    else served.set(user, count / 2);
  }
  for (const { user_id: user } of claimed) served.set(user, (served.get(user) ?? 0) + 1);
}

function unavailable(detail: string): SallyportError {
  return new SallyportError(
    'elasticsearch-unavailable',
    `Elasticsearch is out of reach: ${detail}`,
    {
      next: 'Check ELASTICSEARCH_URL and the cluster; the requests wait meanwhile.',
    },
  );
}
