import { lookUpKeys } from '@sallyport/request-network';
import {
  createLog,
  hashApiKey,
  newApiKey,
  newId,
  openPrincipals,
  rows,
  type Principals,
} from '@sallyport/shared';
import { floorRow, inParallel, median, rate, type Bench, type Benchmark } from './benchmark.js';
import { settle, withSite, type Site } from './site.js';

const KEYS = 5_000;
const CONNECTIONS = 20;
const ROUNDS = 3;

/** Who an API key is, as a function call in one process: remembered, and asked of the database. */
export const keyAuthBenchmark: Benchmark = {
  names: ['key-auth', 'key-auth-uncached'],
  run: (bench) => withSite(bench, (site) => measure(bench, site)),
};

async function measure(bench: Bench, site: Site) {
  const { db, clock, sessionKey, apiKeySecret, node } = site.request;
  const keys = await makeKeys(site);
  await settle(db);
  const open = (hearsChanges: boolean) =>
    openPrincipals({
      db,
      clock,
      log: createLog('bench', 'warn'),
      network: 'request',
      sessionKey,
      issuer: node.name,
      keys: lookUpKeys(db, apiKeySecret, clock),
      hearsChanges: () => hearsChanges,
    });
  const [remembering, forgetting] = [open(true), open(false)];
  const count = bench.quick ? 20_000 : 100_000;
  const callAll = (principals: Principals) =>
    inParallel(keys, CONNECTIONS, async (key) => principals.authenticate(key));
  const remembered = await medianRate(bench, 'key-auth', async () => {
    await callAll(remembering);
    return rate(count, async () => {
      for (let n = 0; n < count; n++) await remembering.authenticate(keys[n % KEYS]);
    });
  });
  const asked = await medianRate(bench, 'key-auth-uncached', () =>
    rate(KEYS, () => callAll(forgetting)),
  );
  await Promise.all([remembering.close(), forgetting.close()]);
  return [
    floorRow('key-auth', 'calls/s', 20_000, remembered),
    floorRow('key-auth-uncached', 'calls/s', 3_000, asked),
  ].filter(({ name }) => bench.wants(name));
}

async function medianRate(
  bench: Bench,
  name: string,
  round: () => Promise<number>,
): Promise<number> {
  const rates: number[] = [];
  for (let n = 0; n <= ROUNDS; n++) {
    const found = await round();
    bench.say(`${name} ${n === 0 ? 'warm-up' : `${n} of ${ROUNDS}`}: ${Math.round(found)}`);
    if (n > 0) rates.push(found);
  }
  return median(rates);
}

/** More keys than a user may have, each used before, as the header that shows it. */
async function makeKeys({ request: { db, apiKeySecret }, user }: Site): Promise<string[]> {
  const made = Array.from({ length: KEYS }, () => ({ id: newId(), ...newApiKey('bench') }));
  await rows(
    db,
    `insert into api_keys
       (id, user_id, name, hash, prefix, last_four, scopes, created_at, first_used_at)
     select id, ?, 'bench', hash, 'sp_bench', '0000', '{requests:read}', now(), now()
     from unnest(?::uuid[], ?::text[]) as made (id, hash)`,
    [user.id, made.map(({ id }) => id), made.map(({ key }) => hashApiKey(key, apiKeySecret))],
  );
  return made.map(({ key }) => `Bearer ${key}`);
}
