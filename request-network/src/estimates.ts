import { rows, type Clock, type Database } from '@sallyport/shared';
import type { Eta } from './request-schemas.js';

/** Estimates from how long recent answers took, the carrying included. */
export type Estimates = {
  /** Null while too little is known to say anything honest. */
  eta(createdAt: Date): Promise<Eta | null>;
};

const SAMPLE = 200;
const LEAST_SAMPLE = 5;
const MAX_AGE_MS = 10_000;

/** Makes the estimates of one process; they look at the last answers at most every ten seconds. */
export function createEstimates(db: Database, clock: Clock): Estimates {
  let ages: Promise<number[]> = Promise.resolve([]);
  let readAt = -Infinity;
  return {
    async eta(createdAt) {
      if (performance.now() - readAt > MAX_AGE_MS) {
        readAt = performance.now();
        ages = readAges(db);
        ages.catch(() => (readAt = -Infinity));
      }
      // Who has waited long is compared with those who waited longer.
      const age = clock.now().getTime() - createdAt.getTime();
      const longer = (await ages).filter((each) => each > age);
      if (longer.length < LEAST_SAMPLE) return null;
      const at = (share: number) => {
        const index = Math.min(longer.length - 1, Math.floor(longer.length * share));
        return new Date(createdAt.getTime() + (longer[index] ?? 0)).toISOString();
      };
      return { p50: at(0.5), p90: at(0.9) };
    },
  };
}

async function readAges(db: Database): Promise<number[]> {
  const found = await rows<{ age_ms: number }>(
    db,
    `select extract(epoch from finished_at - created_at)::double precision * 1000 as age_ms
     from (select created_at, finished_at from requests
           where status = 'delivered' order by finished_at desc limit ${SAMPLE}) recent`,
  );
  return found.map((row) => row.age_ms).sort((a, b) => a - b);
}
