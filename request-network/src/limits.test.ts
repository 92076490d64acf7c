import { expect } from 'chai';
import fc from 'fast-check';
import { newId, rows, type Limits } from '@sallyport/shared';
import type { Apply } from '@sallyport/transfer';
import { requestApplies } from './apply.js';
import { maxCostNow, refuseCharge, viewWindows, type Charge, type WindowView } from './limits.js';
import { QUERY, makeKey, openTestNetwork, type TestNetwork } from './testing.js';

const MINUTE = 60_000;
const HOUR = 3_600_000;
const DAY = 86_400_000;
/** The start of a minute, an hour and a day. */
const START = Date.UTC(2026, 5, 1);
const LIMITS: Limits = {
  submit_per_minute: 60,
  submit_per_hour: 100_000,
  submit_per_day: 1_000_000,
  read_per_minute: 600,
  warn_percent: 80,
  ceiling_percent: 110,
  grace_s: 300,
  rearm_minute_s: 3_600,
  rearm_hour_s: 86_400,
  rearm_day_s: 604_800,
  open_requests: 1_000_000,
  stored_bytes: 1_000_000_000,
};
/**
 * The minute in slow motion, sixty seconds to its second, because the hour takes many at once: what
 * a simulation asks for in one call would be that many calls.
 */
const HOURLY = { warn_percent: 80, ceiling_percent: 110, grace_s: 18_000, rearm_hour_s: 216_000 };
const SIMULATIONS = `
  create schema simulated;
  -- Takes all it can every 4 s, for 1,440 minutes; the most that one cell admitted.
  create function simulated.be_greedy(limits jsonb, phase integer, out admitted bigint, out cell bigint)
  language plpgsql as $$
  declare
    s limit_state;
    j judged_submit;
    at timestamptz := '2026-06-01T00:00:00Z'::timestamptz + make_interval(secs => phase);
    most bigint;
    this bigint := 0;
    taken bigint := 0;
  begin
    admitted := 0;
    cell := 0;
    for step in 1..21600 loop
      j := judge_submit(s, limits, null, 1, at);
      most := (j.told).most[2];
      if most > 0 then
        if most > 1 then
          j := judge_submit(s, limits, null, most, at);
        end if;
        s := j.state;
        if s.cells[2] <> this then
          this := s.cells[2];
          taken := 0;
        end if;
        taken := taken + most;
        admitted := admitted + most;
        cell := greatest(cell, taken);
      end if;
      at := at + interval '240 seconds';
    end loop;
  end $$;
  -- Asks again and again; the most that one cell admitted.
  create function simulated.ask(limits jsonb, waits integer[], costs integer[]) returns bigint
  language plpgsql as $$
  declare
    s limit_state;
    j judged_submit;
    at timestamptz := '2026-06-01T00:00:00Z';
    this bigint := 0;
    taken bigint := 0;
    worst bigint := 0;
  begin
    for i in 1..cardinality(waits) loop
      at := at + make_interval(secs => waits[i]);
      j := judge_submit(s, limits, null, costs[i], at);
      continue when (j.told).verdict[2] not in ('admit', 'open');
      s := j.state;
      if s.cells[2] <> this then
        this := s.cells[2];
        taken := 0;
      end if;
      taken := taken + costs[i];
      worst := greatest(worst, taken);
    end loop;
    return worst;
  end $$;`;
let network: TestNetwork;

before(async () => {
  network = await openTestNetwork();
  await network.db.raw(SIMULATIONS);
});
after(() => network.stop());

/** Somebody who submits without the rest of the network: what the windows say is what counts. */
function subject(limits: Partial<Limits> = {}) {
  const userId = newId();
  let mine: Partial<Limits> = { ...LIMITS, ...limits };
  const submits = async (count: number, atMs: number, requests = 1): Promise<Charge[]> => {
    const found = await rows<{ charge: Charge }>(
      network.db,
      `select charge_submit(?::uuid, ?::jsonb, null, null, ?, ?::timestamptz) as charge
       from generate_series(1, ?)`,
      [userId, JSON.stringify(mine), requests, new Date(atMs).toISOString(), count],
    );
    return found.map(({ charge }) => charge);
  };
  return {
    userId,
    submits,
    /** The windows after so many submits. */
    after: async (count: number, atMs: number, requests = 1) =>
      windowsOf((await submits(count, atMs, requests)).at(-1)),
    submit: async (atMs: number, requests = 1) => (await submits(1, atMs, requests))[0] as Charge,
    admitted: async (count: number, atMs: number) =>
      (await submits(count, atMs)).filter(({ refusal }) => refusal === null).length,
    look: async (atMs: number) => windowsOf((await submits(1, atMs, 0))[0]),
    change: (changed: Partial<Limits>) => (mine = { ...mine, ...changed }),
  };
}

function windowsOf(charge: Charge | undefined): Record<WindowView['window'], WindowView> {
  const views = viewWindows(charge as Charge);
  return Object.fromEntries(views.map((view) => [view.window, view])) as never;
}

/** What a refusal tells: code, reason, windows, seconds. */
function refusalOf(charge: Charge) {
  const error = refuseCharge(charge as Parameters<typeof refuseCharge>[0]);
  return { code: error.code, ...error.extra } as Record<string, unknown> & { code: string };
}

const waitOf = (charge: Charge) => Math.max(...charge.user.wait_s);

describe('charge_submit', () => {
  it('1: request 47 is normal, 48 and 60 are warnings, with 13, 12 and 0 left', async () => {
    const one = subject();
    const { minute: normal } = await one.after(47, START);
    expect([normal.state, normal.remaining]).to.deep.equal(['normal', 13]);
    const { minute: warned } = await one.after(1, START);
    expect([warned.state, warned.remaining]).to.deep.equal(['warning', 12]);
    const { minute: full } = await one.after(12, START);
    expect([full.state, full.remaining]).to.deep.equal(['warning', 0]);
  });

  it('2: the 61st opens grace', async () => {
    const one = subject();
    await one.submits(60, START);
    const { minute } = await one.after(1, START);
    expect(minute.state).to.equal('grace');
    expect(minute.grace).to.deep.equal({
      length_s: 300,
      ends_in_s: 300,
      rearms_in_s: 3_600,
      spent: false,
    });
  });

  it('3: the 66th is in grace, the 67th is refused at the ceiling and charges nothing', async () => {
    const one = subject();
    expect((await one.after(66, START)).minute.state).to.equal('grace');
    const refused = await one.submit(START);
    expect(refusalOf(refused)).to.include({ code: 'rate-limited', reason: 'ceiling' });
    const { minute, hour, day } = await one.look(START);
    expect([minute.used, hour.used, day.used]).to.deep.equal([66, 66, 66]);
  });

  it('4: the 67th one second after a burst at the start of a cell waits 65 s', async () => {
    const one = subject();
    await one.submits(66, START);
    expect(waitOf(await one.submit(START + 1_000))).to.equal(65);
  });

  it('5: after 66 at the start of a cell, +60.0 s is refused and +60.95 s is in grace', async () => {
    const one = subject();
    await one.submits(66, START);
    const refused = await one.submit(START + MINUTE);
    expect([refused.refusal, refused.user.used[0]]).to.deep.equal(['rate-limited', 66]);
    const { minute } = await one.after(1, START + MINUTE + 950);
    expect([minute.state, minute.used]).to.deep.equal(['grace', 65]);
  });

  it('6: a dip below the limit and back within 300 s is the same episode', async () => {
    const one = subject();
    await one.submits(61, START);
    await one.submits(1, START + 2 * MINUTE);
    const { minute } = await one.after(61, START + 4 * MINUTE);
    expect([minute.state, minute.grace.ends_in_s]).to.deep.equal(['grace', 60]);
  });

  it('7: over the limit is refused 1 ms before re-arming and a new episode at it', async () => {
    const one = subject();
    await one.submits(61, START);
    await one.submits(60, START + HOUR - 1);
    const refused = await one.submit(START + HOUR - 1);
    expect(refusalOf(refused)).to.include({ reason: 'grace_spent' });
    const { minute } = await one.after(1, START + HOUR);
    expect([minute.state, minute.grace.ends_in_s]).to.deep.equal(['grace', 300]);
  });

  it('8: a greedy client gets at most 87,264 in 24 h, whatever its phase', async function () {
    this.timeout(60_000);
    const phaseS = Math.floor(Math.random() * 3_600);
    const [found] = await rows<{ admitted: number; cell: number }>(
      network.db,
      'select * from simulated.be_greedy(?::jsonb, ?::integer)',
      [JSON.stringify({ submit_per_hour: 60, ...HOURLY }), phaseS],
    );
    expect(found?.admitted, `phase ${phaseS}`).to.be.within(80_000, 87_264);
    expect(found?.cell, `phase ${phaseS}`).to.be.at.most(66);
  });

  it('9: 66 at :59.0 and 100 at exactly :60.0 are 66 in all', async () => {
    const one = subject();
    const before = await one.admitted(66, START + 59_000);
    expect(before + (await one.admitted(100, START + MINUTE))).to.equal(66);
  });

  it('10: at 55 a bulk of 11 is in grace; one of 12 is refused whole, and 11 is told', async () => {
    for (const [lines, refusal] of [[11, null] as const, [12, 'rate-limited'] as const]) {
      const one = subject({ submit_per_hour: 60 });
      await one.submit(START, 55);
      const charge = await one.submit(START, lines);
      expect(charge.refusal).to.equal(refusal);
      if (refusal) expect(maxCostNow(charge)).to.equal(11);
      expect((await one.look(START)).hour.used).to.equal(refusal ? 55 : 66);
    }
  });

  it('11: on an empty window a cost of 60 warns and one of 61 can never be taken', async () => {
    const one = subject({ submit_per_hour: 60 });
    expect(refusalOf(await one.submit(START, 61))).to.include({
      code: 'cost-exceeds-limit',
      max_cost_now: 60,
    });
    expect((await one.after(1, START, 60)).hour.state).to.equal('warning');
  });

  it('12: a limit of 9 has no grace, a limit of 10 has', async () => {
    const nine = subject({ submit_per_minute: 9 });
    await nine.submits(9, START);
    expect((await nine.submit(START)).refusal).to.equal('rate-limited');
    const ten = subject({ submit_per_minute: 10 });
    expect((await ten.after(11, START)).minute.state).to.equal('grace');
  });

  it('13: an hour of 100 takes 44 of 60 after 66, and the minute is not charged', async () => {
    const one = subject({ submit_per_hour: 100 });
    await one.submits(66, START);
    const later = START + 3 * MINUTE;
    const charges = await one.submits(60, later);
    expect(charges.filter(({ refusal }) => refusal === null)).to.have.length(44);
    expect(refusalOf(charges.at(-1) as Charge)).to.deep.include({
      'violated-policies': ['submit-hour'],
    });
    expect((await one.look(later)).minute.used).to.equal(44);
  });

  it('14: no minute episode opens when the hour refuses', async () => {
    const one = subject({ submit_per_hour: 60, ceiling_percent: 100 });
    await one.submits(60, START);
    one.change({ ceiling_percent: 110, submit_per_hour: 54 });
    const refused = await one.submit(START);
    expect(refusalOf(refused)).to.deep.include({ 'violated-policies': ['submit-hour'] });
    const { minute } = await one.look(START);
    expect(minute.grace).to.include({ ends_in_s: null, rearms_in_s: null });
  });

  it('17: a lowered limit opens no episode; raised again it warns', async () => {
    const one = subject();
    await one.submits(50, START);
    one.change({ submit_per_minute: 40 });
    const refused = await one.submit(START);
    expect(refusalOf(refused)).to.deep.include({
      reason: 'ceiling',
      grace: { ends_in_s: null, rearms_in_s: null },
    });
    one.change({ submit_per_minute: 60 });
    expect((await one.after(1, START)).minute).to.include({ state: 'warning', used: 51 });
  });

  it('18: a limit raised to 120 frees who was blocked at 66', async () => {
    const one = subject();
    await one.submits(67, START);
    one.change({ submit_per_minute: 120 });
    expect((await one.after(1, START)).minute).to.include({ state: 'normal', used: 67 });
  });

  it('20: a step back of 61 s keeps the count; a corrected jump alarms once and rolls on', async () => {
    const one = subject();
    await one.submits(66, START + 61_000);
    expect((await one.submit(START)).refusal).to.equal('rate-limited');
    const other = subject();
    await other.submits(30, START);
    await other.submits(20, START + DAY);
    expect((await other.after(1, START + 1_000)).minute.used).to.equal(21);
    expect((await other.after(1, START + 2_000)).minute.used).to.equal(22);
    expect((await other.after(1, START + 3 * MINUTE)).minute.used).to.equal(1);
    const alarms = await rows(network.db, `select 1 from notices where kind = 'limit.clock'`);
    expect(alarms).to.have.length(1);
  });

  it('21: day grace opened at 23:55 ends with the day and is not armed for 7 days', async () => {
    const one = subject({ submit_per_day: 100, submit_per_minute: 1_000 });
    await one.submits(101, START - 5 * MINUTE);
    const { day } = await one.after(1, START);
    expect([day.used, day.state]).to.deep.equal([1, 'normal']);
    expect(day.grace).to.include({ ends_in_s: null, rearms_in_s: 7 * 86_400 - 300, spent: true });
    expect(await one.admitted(110, START + HOUR)).to.equal(99);
  });

  it('lets no cell admit more than its ceiling, whoever asks when and for how much', async () => {
    const property = fc.asyncProperty(
      fc.integer({ min: 1, max: 40 }),
      fc.integer({ min: 100, max: 200 }),
      fc.array(fc.tuple(fc.oneof(fc.nat(60), fc.nat(4_000)), fc.integer({ min: 1, max: 30 })), {
        minLength: 20,
        maxLength: 300,
      }),
      async (limit, ceiling, calls) => {
        const limits = { submit_per_hour: limit, ...HOURLY, ceiling_percent: ceiling };
        const [found] = await rows<{ worst: number }>(
          network.db,
          'select simulated.ask(?::jsonb, ?::integer[], ?::integer[]) as worst',
          [JSON.stringify(limits), calls.map(([s]) => s), calls.map(([, cost]) => cost)],
        );
        expect(found?.worst).to.be.at.most(Math.max(limit, Math.floor((limit * ceiling) / 100)));
      },
    );
    await fc.assert(property, { numRuns: 60 });
  });
});

describe('POST /v1/requests within limits', () => {
  const SUBMISSION = { dataset: 'claims', query: QUERY };
  const submit = (as: string, headers = {}) =>
    network.call('/v1/requests', { body: SUBMISSION, as, headers });
  /** Somebody with all of the windows unused, at the start of a minute. */
  const fresh = async (who: 'ada' | 'bob', limits: Partial<Limits> = {}) => {
    const { id, key } = network.users[who];
    await network.db('rate_limits').where({ subject: id }).delete();
    await network
      .db('profile_types')
      .update({ limits: JSON.stringify({ ...LIMITS, ...limits }), updated_at: new Date(START) });
    network.limiter.drop();
    network.time.now = new Date(START);
    return key;
  };

  it('tells what is left, in every window, with every counted answer', async () => {
    const { headers } = await submit(
      await fresh('ada', { submit_per_hour: 1, submit_per_day: 10 }),
    );
    expect(headers.get('ratelimit-policy')).to.equal(
      '"submit-min";q=60;w=60;sp-warn=48;sp-ceil=66;sp-grace=300, ' +
        '"submit-hour";q=1;w=3600;sp-warn=1;sp-ceil=1;sp-grace=300, ' +
        '"submit-day";q=10;w=86400;sp-warn=8;sp-ceil=11;sp-grace=300',
    );
    expect(headers.get('ratelimit')).to.equal(
      '"submit-min";r=59;t=0;sp-state=normal, "submit-hour";r=0;t=3601;sp-state=warning, ' +
        '"submit-day";r=9;t=0;sp-state=normal',
    );
  });

  it('says why it refuses, how long to wait and what would be taken', async () => {
    const as = await fresh('ada', { submit_per_minute: 10 });
    for (let n = 0; n < 11; n += 1) await submit(as);
    network.time.now = new Date(START + 1_000);
    const { status, headers, body } = await submit(as);
    expect([status, body['code'], body['retryable']]).to.deep.equal([429, 'rate-limited', true]);
    expect(Number(headers.get('retry-after'))).to.be.within(65, 71);
    expect(body).to.deep.include({
      'violated-policies': ['submit-min'],
      state: 'blocked',
      reason: 'ceiling',
      grace: { ends_in_s: 299, rearms_in_s: 3_599 },
      max_cost_now: 0,
    });
    expect(headers.get('ratelimit')).to.match(
      /^"submit-min";r=0;t=65;sp-state=blocked;sp-grace-left=299, /,
    );
    const anonymous = await network.call('/v1/requests', { body: SUBMISSION, as: null });
    expect([anonymous.status, anonymous.headers.get('ratelimit')]).to.deep.equal([401, null]);
  });

  it('15: of 500 parallel calls exactly 66 are admitted', async function () {
    this.timeout(60_000);
    const as = await fresh('bob');
    const answers = await Promise.all(Array.from({ length: 500 }, () => submit(as)));
    const [stored] = await rows<{ count: number }>(
      network.db,
      `select count(*) as count from requests where user_id = ?`,
      [network.users.bob.id],
    );
    const admitted = answers.filter(({ status }) => status === 202);
    expect([admitted.length, stored?.count]).to.deep.equal([66, 66]);
    expect(answers.filter(({ status }) => status === 429)).to.have.length(434);
  });

  it('16: a replay at the limit changes no count and tells none', async () => {
    const as = await fresh('ada', { submit_per_minute: 2 });
    const headers = { 'idempotency-key': newId() };
    await submit(as, headers);
    expect((await submit(as)).headers.get('ratelimit')).to.match(/^"submit-min";r=0/);
    const replay = await submit(as, headers);
    expect([replay.status, replay.headers.get('idempotency-replayed')]).to.deep.equal([
      202,
      'true',
    ]);
    expect(replay.headers.get('ratelimit')).to.equal(null);
    const refused = await submit(as, { 'idempotency-key': newId() });
    expect(refused.status).to.equal(429);
  });

  it('22: two keys of one user share the windows of the user', async () => {
    const as = await fresh('ada', { submit_per_minute: 2 });
    const other = await makeKey(network, network.users.ada.id, ['requests:write']);
    const statuses = [];
    for (const key of [as, other, other]) statuses.push((await submit(key)).status);
    expect(statuses).to.deep.equal([202, 202, 429]);
  });

  it('23: limits of an older version are ignored, with a line in the audit log', async () => {
    await fresh('ada', { submit_per_minute: 7 });
    const [mine] = await rows<{ id: string; version: number; limits: object }>(
      network.db,
      `update profile_types set version = 5 returning id, version, limits`,
    );
    const { id = '', limits } = mine ?? {};
    await network.db.transaction(async (tx) => {
      await tx.raw(
        `create temporary table incoming (line integer, t text, id uuid, d jsonb, batch_id uuid,
           code text) on commit drop`,
      );
      await tx.raw(
        `insert into incoming (line, t, id, d)
         select 1, 'profile_type', p.id, to_jsonb(p) || '{"version": 4, "limits": {}}'
         from profile_types p`,
      );
      const batch = { id: newId(), kind: 'delta' } as Parameters<Apply>[1];
      await requestApplies(network.replica).profile_type?.(tx, batch, network.time.now);
    });
    const stored = await network.db('profile_types').where({ id }).first('version', 'limits');
    expect(stored).to.deep.equal({ version: 5, limits });
    const [entry] = await rows<{ action: string; details: object }>(
      network.db,
      'select action, details from audit_log where subject = ?',
      [id],
    );
    expect(entry?.action).to.equal('profile-type.ignore-older');
    expect(entry?.details).to.include({ found: 4, stored: 5 });
  });

  it('notes once in the audit log that a setting is of an older version', async () => {
    const at = network.time.now;
    await network.db.transaction(async (tx) => {
      await tx('settings').insert({
        key: 'retention.events_days',
        version: 5,
        value: '40',
        updated_at: at,
      });
      await tx.raw(
        `create temporary table incoming (line integer, t text, id uuid, d jsonb, batch_id uuid,
           code text) on commit drop`,
      );
      const d = { key: 'retention.events_days', version: 4, value: 30 };
      await tx('incoming').insert({ line: 1, t: 'setting', id: newId(), d: JSON.stringify(d) });
      const batch = { id: newId(), kind: 'delta' } as Parameters<Apply>[1];
      await requestApplies(network.replica).setting?.(tx, batch, at);
    });
    const noted = await rows(network.db, 'select action from audit_log where subject = ?', [
      'retention.events_days',
    ]);
    expect(noted).to.deep.equal([{ action: 'setting.ignore' }]);
  });

  it('charges what is accepted and nothing else', async () => {
    const as = await fresh('ada', { submit_per_minute: 3 });
    await network.call('/v1/requests?validate_only=true', { body: SUBMISSION, as });
    await network.call('/v1/requests', { body: { ...SUBMISSION, dataset: 'secrets' }, as });
    const lines = (count: number) =>
      Array.from({ length: count }, () => JSON.stringify(SUBMISSION)).join('\n');
    const bulk = await network.call('/v1/requests:bulk?atomic=false', {
      text: `${lines(4)}\n{}`,
      headers: { 'content-type': 'application/x-ndjson' },
      as,
    });
    expect(bulk.headers.get('ratelimit')).to.match(/^"submit-min";r=2;.*"submit-hour";r=99996;/);
  });

  it('holds back for a minute who goes on and on while refused', async () => {
    const as = await fresh('ada', { submit_per_minute: 1 });
    for (let n = 0; n < 12; n += 1) await submit(as);
    await network.db('rate_limits').delete();
    const held = await submit(as);
    expect([held.status, held.body['reason']]).to.deep.equal([429, 'abnormal']);
    network.time.now = new Date(START + MINUTE);
    expect((await submit(as)).status).to.equal(202);
  });

  it('refuses more open requests than the profile type has, until some have ended', async () => {
    const [open] = await rows<{ count: number }>(
      network.db,
      `select count(*) as count from requests where user_id = ? and status = 'submitted'`,
      [network.users.ada.id],
    );
    const as = await fresh('ada', { open_requests: (open?.count ?? 0) + 1 });
    const { body: last } = await submit(as);
    const full = await submit(as);
    expect([full.status, full.body['code']]).to.deep.equal([429, 'open-requests-limit']);
    await network.call(`/v1/requests/${String(last['id'])}:cancel`, { method: 'POST', as });
    expect((await submit(as)).status).to.equal(202);
  });

  it('refuses who keeps more bytes of results than the profile type has', async () => {
    const as = await fresh('ada', { stored_bytes: 10 });
    const { body } = await submit(as);
    const id = String(body['id']);
    await network.db('results').insert({
      request_id: id,
      status: 'delivered',
      bytes: 10,
      parts: 0,
      complete: true,
      late: false,
      times: '{}',
      batch_id: newId(),
      imported_at: new Date(START),
    });
    const full = await submit(as);
    expect([full.status, full.body['code']]).to.deep.equal([429, 'stored-bytes-limit']);
    await network
      .db('results')
      .where({ request_id: id })
      .update({ purged_at: new Date(START) });
    expect((await submit(as)).status).to.equal(202);
  });

  it('tells the user once of a crossing, and the admins of grace', async () => {
    const as = await fresh('bob', { submit_per_minute: 10 });
    await network.db('notices').delete();
    for (let n = 0; n < 11; n += 1) await submit(as);
    const told = await rows<{ kind: string; user_id: string | null; title: string }>(
      network.db,
      'select kind, user_id, title from notices order by position',
    );
    const { id } = network.users.bob;
    expect(told).to.deep.equal([
      { kind: 'limit.warning', user_id: id, title: 'Near the limit of 10 a minute' },
      { kind: 'limit.grace', user_id: id, title: 'Over the limit of 10 a minute' },
      { kind: 'limit.grace', user_id: null, title: 'bob is over the limit of 10 a minute' },
    ]);
  });
});
