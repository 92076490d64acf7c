import type { Priority } from '@sallyport/shared';
import type { Random } from '../random.js';
import type { Expected, Oracle, Promised, Seen, Verdict } from './oracle.js';
import { blame, DAY_MS, note, type Run } from './run.js';
import { DATASET, LOGINS, type Login, type Site } from './site.js';

/** Hits that an answer holds at most. */
const HITS = 20;

/** A user submits a few queries, or many. */
export async function submitSome(run: Run, random: Random): Promise<void> {
  const login = random.pick(LOGINS);
  const count = random.chance(0.5) ? random.between(1, 3) : random.between(20, 70);
  let accepted = 0;
  for (let at = 0; at < count; at += 1) {
    if (await submitOne(run, random, login)) accepted += 1;
  }
  note(run, `${login} submits ${count}, of which ${accepted} are accepted`);
}

/** Submits one query and notes the promise; false when it was refused. */
export async function submitOne(run: Run, random: Random, login: Login): Promise<boolean> {
  const { body, expected, ttlS } = question(run.site, random);
  const text = JSON.stringify(body);
  const key = random.chance(0.3) ? random.uuid() : undefined;
  return submitText(run, { login, text, expected, ttlMs: ttlS * 1_000, key });
}

type Submission = {
  login: Login;
  text: string;
  expected: Expected;
  ttlMs: number;
  key?: string | undefined;
};

async function submitText(run: Run, submission: Submission): Promise<boolean> {
  const { login, text, expected, ttlMs, key } = submission;
  const { site, oracle, step } = run;
  const headers = key === undefined ? {} : { 'idempotency-key': key };
  const answer = await site.call(login, '/v1/requests', { text, headers });
  if (answer.status !== 202) {
    if (login === 'ada' || login === 'bob' || ![401, 403].includes(answer.status)) {
      blame(
        run,
        `a submit of ${login} was answered ${answer.status}: ${answer.text.slice(0, 200)}`,
      );
    }
    return false;
  }
  const view = JSON.parse(answer.text) as { id: string; expires_at: string };
  oracle.promises.set(view.id, {
    id: view.id,
    login,
    expected,
    step,
    deadline: Date.parse(view.expires_at),
    ttlMs,
    cancelAsked: false,
    lost: false,
    tooLate: false,
    ...(key !== undefined && { again: { key, text, at: site.time.now.getTime() } }),
  });
  return true;
}

function question(
  { claims }: Site,
  random: Random,
): { body: object; expected: Expected; ttlS: number } {
  const [first] = claims;
  if (!first) throw new Error('the dataset is empty');
  const { region, amount } = random.pick([first, ...claims]);
  const found = claims.filter((claim) => claim.region === region && claim.amount >= amount);
  const filter = [{ term: { region } }, { range: { amount: { gte: amount } } }];
  const few = found.length <= HITS;
  const ids = few ? found.map((claim) => claim.claim_id).sort() : [];
  const query = { query: { bool: { filter } }, size: few ? HITS : 0, _source: ['claim_id'] };
  const priority: Priority = random.pick(['low', 'normal', 'normal', 'urgent']);
  const ttlS = random.chance(0.6)
    ? 14 * 86_400
    : random.chance(0.25)
      ? random.between(1, 6) * 3_600
      : random.between(24, 72) * 3_600;
  return {
    body: { dataset: DATASET, query, priority, ttl_s: ttlS },
    expected: { total: found.length, ids },
    ttlS,
  };
}

/** The same key and body again gives the same request, as long as the network remembers it. */
export async function submitAgain(run: Run, random: Random): Promise<void> {
  const { site, oracle } = run;
  const since = site.time.now.getTime() - DAY_MS;
  const one = pickFrom(random, oracle, ({ again }) => again !== undefined && again.at > since);
  if (!one?.again) return;
  const { login, again, id, lost } = one;
  const headers = { 'idempotency-key': again.key };
  const answer = await site.call(login, '/v1/requests', { text: again.text, headers });
  note(run, `${login} submits ${id} again: ${answer.status}`);
  if (answer.status !== 202) return;
  const view = JSON.parse(answer.text) as { id: string; expires_at: string };
  if (view.id === id) return;
  if (!lost) blame(run, `${id} was submitted again and became ${view.id}`);
  const { again: _again, ended: _ended, ...rest } = one;
  const deadline = Date.parse(view.expires_at);
  const fresh = {
    ...rest,
    id: view.id,
    step: run.step,
    deadline,
    cancelAsked: false,
    lost: false,
    tooLate: false,
  };
  oracle.promises.set(view.id, fresh);
}

/** Users cancel what has not ended as far as they know. */
export async function cancelSome(run: Run, random: Random): Promise<void> {
  for (let count = random.between(1, 4); count > 0; count -= 1) {
    const open = pickFrom(random, run.oracle, ({ ended, lost }) => ended === undefined && !lost);
    if (!open) return;
    const { id, login } = open;
    const answer = await run.site.call(login, `/v1/requests/${id}:cancel`, { text: '' });
    note(run, `${login} cancels ${id}: ${answer.status}`);
    if (answer.status === 200 || answer.status === 202) open.cancelAsked = true;
    else if (![401, 409].includes(answer.status)) {
      blame(run, `a cancel of ${id} was answered ${answer.status}: ${answer.text.slice(0, 200)}`);
    }
  }
}

/** Users look at what has become of their requests. */
export async function pollSome(run: Run, random: Random): Promise<void> {
  for (let count = 10; count > 0; count -= 1) {
    const one = pickFrom(random, run.oracle, () => true);
    if (one) await look(run, one);
  }
}

/** What the API says of a request; undefined when it knows none, or its user may not ask now. */
export async function look(run: Run, one: Promised): Promise<{ seen?: Seen; verdict?: Verdict }> {
  const { site, oracle } = run;
  const answer = await site.call(one.login, `/v1/requests/${one.id}`);
  if (answer.status === 404) return {};
  if (answer.status !== 200)
    return { seen: { status: `${answer.status}`, failure: null, text: null } };
  const view = JSON.parse(answer.text) as Omit<Seen, 'text'>;
  let text: string | null = null;
  if (view.status === 'delivered') {
    const result = await site.call(one.login, `/v1/requests/${one.id}/result`);
    text = result.status === 200 ? result.text : null;
  }
  const seen = { status: view.status, failure: view.failure, text };
  const verdict = oracle.observe(one, seen);
  if (verdict) blame(run, verdict.sentence);
  return { seen, ...(verdict && { verdict }) };
}

function pickFrom(
  random: Random,
  { promises }: Oracle,
  wanted: (promised: Promised) => boolean,
): Promised | undefined {
  const [first, ...rest] = [...promises.values()].slice(-600).filter(wanted);
  return first && random.pick([first, ...rest]);
}
