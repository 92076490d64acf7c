import autocannon from 'autocannon';
import { hashApiKey, newApiKey, newId, rows } from '@sallyport/shared';
import { providerName } from '../dataset.js';
import { inParallel, rate, type Bench } from './benchmark.js';
import { DATASET, type Site } from './site.js';

/** Users, and connections, of a load of single calls. */
export const CONNECTIONS = 50;
/** Lines that one bulk call may have. */
export const BULK_LINES = 1_000;
const BULK_CALLS_AT_A_TIME = 2;
const PROVIDERS = 400;
const DAYS = 360;

/** The body of a submission: a small search, a different one for each number. */
export function submission(n: number): string {
  const from = new Date(Date.UTC(2025, 0, 1 + (n % DAYS)));
  const to = new Date(from.getTime() + 7 * 86_400_000);
  return JSON.stringify({
    dataset: DATASET,
    query: {
      size: 5,
      query: {
        bool: {
          filter: [
            { range: { submitted_at: { gte: day(from), lt: day(to) } } },
            { term: { provider: providerName(n % PROVIDERS) } },
          ],
        },
      },
    },
    custom_id: `bench-${n}`,
  });
}

/** Submits so many requests in bulk, two calls at a time; answers the rate. */
export async function submitBulk(site: Site, url: string, count: number): Promise<number> {
  const bodies = Array.from({ length: Math.ceil(count / BULK_LINES) }, (_, call) =>
    Array.from({ length: Math.min(BULK_LINES, count - call * BULK_LINES) }, (_unused, n) =>
      submission(call * BULK_LINES + n),
    ).join('\n'),
  );
  return rate(count, () =>
    inParallel(bodies, BULK_CALLS_AT_A_TIME, async (body) => {
      const answer = await fetch(`${url}/v1/requests:bulk`, {
        method: 'POST',
        headers: {
          authorization: `Bearer ${site.user.apiKey}`,
          'content-type': 'application/x-ndjson',
        },
        body,
      });
      const text = await answer.text();
      if (answer.status !== 202) throw new Error(`bulk: ${answer.status} ${text.slice(0, 500)}`);
    }),
  );
}

/** Keeps lines of real requests as a pattern for {@link fillOutbox}; the outbox is empty after it. */
export async function makePattern(site: Site): Promise<void> {
  const url = await site.start('serve');
  await submitBulk(site, url, BULK_LINES);
  await site.stop();
  await site.request.db.raw(
    `create table bench_pattern as
       select row_number() over (order by position) - 1 as n, record_id, line
       from outbox_records where stream = 'requests'`,
  );
  await site.request.db.raw('truncate outbox_records');
}

/** Replaces the outbox by so many waiting requests of the pattern, with new ids in order of time. */
export async function fillOutbox({ request }: Site, count: number): Promise<void> {
  await request.db.raw('truncate outbox_records');
  await rows(
    request.db,
    `insert into outbox_records (link, stream, type, record_id, line)
     select (select link from links), 'requests', 'request', made.id::uuid,
       replace(p.line, p.record_id::text, made.id)
     from (
       select n, lpad(to_hex(?::bigint + n / 10), 12, '0') as time, md5(random()::text) as noise
       from generate_series(0, ?::integer - 1) as n
     ) g
     cross join lateral (
       select substr(time, 1, 8) || '-' || substr(time, 9) || '-7' || substr(noise, 1, 3) || '-8'
         || substr(noise, 4, 3) || '-' || substr(noise, 7, 12) as id
     ) made
     join bench_pattern p on p.n = g.n % ?
     order by g.n`,
    [Date.now(), count, BULK_LINES],
  );
}

function day(date: Date): string {
  return date.toISOString().slice(0, 10);
}

/** Submits one request a call on 50 connections, with the keys in turn; the rate. */
export async function loadSubmits(
  bench: Bench,
  url: string,
  keys: readonly string[],
): Promise<number> {
  let connection = 0;
  const result = await autocannon({
    url,
    method: 'POST',
    body: submission(1),
    connections: CONNECTIONS,
    duration: bench.quick ? 1 : 8,
    setupClient: (client) => client.setHeaders(headersOf(keys[connection++ % keys.length] ?? '')),
  });
  if (result.non2xx + result.errors > 0) {
    throw new Error(`${url}: ${result.non2xx} refusals, ${result.errors} errors`);
  }
  return result['2xx'] / result.duration;
}

/** The headers of a submit with an API key. */
export function headersOf(key: string): Record<string, string> {
  return { authorization: `Bearer ${key}`, 'content-type': 'application/json' };
}

/** Users like the site's own, each with a key. */
export async function makeUsers(
  { request: { db, apiKeySecret }, user }: Site,
  count: number,
): Promise<string[]> {
  const made = Array.from({ length: count }, () => ({ id: newId(), ...newApiKey('bench') }));
  const ids = made.map(({ id }) => id);
  await rows(
    db,
    `insert into users
     select (jsonb_populate_record(u, jsonb_build_object('id', n.id, 'login', 'bench-' || n.id))).*
     from users u, unnest(?::uuid[]) as n (id) where u.id = ?`,
    [ids, user.id],
  );
  await rows(
    db,
    `insert into api_keys
       (id, user_id, name, hash, prefix, last_four, scopes, created_at, first_used_at)
     select id, id, 'bench', hash, 'sp_bench', '0000', '{requests:write}', now(), now()
     from unnest(?::uuid[], ?::text[]) as made (id, hash)`,
    [ids, made.map(({ key }) => hashApiKey(key, apiKeySecret))],
  );
  return made.map(({ key }) => key);
}
