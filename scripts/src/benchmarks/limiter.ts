import { rows } from '@sallyport/shared';
import {
  floorRow,
  inParallel,
  measurePairs,
  ratioRow,
  until,
  type Bench,
  type Benchmark,
  type Row,
} from './benchmark.js';
import { CONNECTIONS, headersOf, loadSubmits, makeUsers, submission } from './requests.js';
import { settle, withSite, type Site } from './site.js';

const PARALLEL = 500;
/** 110 % of the limit of 60. */
const ADMITTED = 66;
const MINUTE_MS = 60_000;

/** What the limits cost a submit, what one user can have, and that they are exact. */
export const limiterBenchmark: Benchmark = {
  names: ['limiter', 'limiter-one-user', 'limiter-exact'],
  run: (bench) =>
    withSite(bench, async (site) => {
      const url = await site.start('serve');
      const found: Row[] = [];
      if (bench.wants('limiter')) found.push(await measureLimiter(bench, site, url));
      if (bench.wants('limiter-one-user')) {
        const calls = await loadSubmits(bench, `${url}/v1/requests`, [site.user.apiKey]);
        found.push(floorRow('limiter-one-user', 'requests/s', 0, calls));
      }
      if (bench.wants('limiter-exact')) found.push(await measureExact(bench, site, url));
      return found;
    }),
};

/** Submits of 50 users on 50 connections, against the same with a charge that always admits. */
async function measureLimiter(bench: Bench, site: Site, url: string): Promise<Row> {
  const { db } = site.request;
  const keys = await makeUsers(site, CONNECTIONS);
  const [charge] = await rows<{ definition: string; admitted: string }>(
    db,
    `select pg_get_functiondef(f.oid) as definition,
       charge_submit(u.id, p.limits, null, null, 0, null)::text as admitted
     from pg_proc f, users u join profile_types p on p.id = u.profile_type_id
     where f.proname = 'charge_submit' and u.id = ?`,
    [site.user.id],
  );
  const replace = (definition: string) => db.raw(definition.replaceAll('?', '\\?'));
  const free = `create or replace function charge_submit(
    p_user uuid, p_limits jsonb, p_key uuid, p_key_limits jsonb, p_requests bigint, p_now timestamptz
  ) returns json language plpgsql as $$ begin return '${charge?.admitted}'::json; end $$`;
  const pairs = await measurePairs(bench, 'limiter', {
    async baseline() {
      await replace(free);
      await settle(db);
      return loadSubmits(bench, `${url}/v1/requests`, keys);
    },
    async ours() {
      await replace(charge?.definition ?? '');
      await settle(db);
      return loadSubmits(bench, `${url}/v1/requests`, keys);
    },
  });
  return ratioRow('limiter', 'requests/s', 0.8, pairs);
}

/** 500 parallel submits of a user who did nothing yet and whose limit is 60 a minute. */
async function measureExact(bench: Bench, site: Site, url: string): Promise<Row> {
  const { db } = site.request;
  await rows(
    db,
    `update profile_types set limits = limits || '{"submit_per_minute": 60}' where id =
       (select profile_type_id from users where id = ?)`,
    [site.user.id],
  );
  const [key = ''] = await makeUsers(site, 1);
  // All of them in one minute by the clock.
  await until('the first half of a minute', async () => {
    const [now] = await rows<{ ms: number }>(
      db,
      'select (extract(epoch from clock_timestamp()) * 1000)::bigint as ms',
    );
    return (now?.ms ?? 0) % MINUTE_MS < MINUTE_MS / 2;
  });
  let admitted = 0;
  await inParallel(Array.from({ length: PARALLEL }), PARALLEL, async () => {
    const answer = await fetch(`${url}/v1/requests`, {
      method: 'POST',
      headers: headersOf(key),
      body: submission(1),
    });
    await answer.arrayBuffer();
    if (answer.status === 202) admitted += 1;
    else if (answer.status !== 429) throw new Error(`submit: ${answer.status}`);
  });
  bench.say(`limiter-exact: ${admitted} of ${PARALLEL}`);
  const row = floorRow('limiter-exact', 'admitted', ADMITTED, admitted);
  return { ...row, ok: admitted === ADMITTED };
}
