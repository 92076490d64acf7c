import { SallyportError, rows, type Clock, type Database, type Settings } from '@sallyport/shared';
import { withJitter } from './limits.js';

/** What is on its way to the far side, and when that side was last heard of. */
export type Backlog = {
  records: number;
  bytes: number;
  oldestAt: Date | null;
  heardAt: Date | null;
};
export type LinkState = 'green' | 'amber' | 'red';

/** Holds submits back while too much is on its way; looks at most once a second. */
export type BackPressure = {
  /** @throws SallyportError `queue-full`, for bulks first. */
  requireRoom(kind: 'single' | 'bulk'): Promise<void>;
  /** What is on its way, and how full that makes the outbox: 1 is amber. */
  look(): Promise<{ backlog: Backlog; load: number; state: LinkState }>;
  /** Looks again with the next call: what was carried, or a setting, may have changed much. */
  drop(): void;
};

/** How often the amber mark may be exceeded before submits are refused. */
const MOST_LOAD = { bulk: 2, single: 4 };
const HOUR_MS = 3_600_000;
const LOOK_MS = 1_000;
/** Far from the mark it takes longer to get there. */
const CALM_LOOK_MS = 10_000;
const CALM_LOAD = 0.5;
const SAMPLE = 1_000;
const RETRY_S = 300;

/** Opens the back pressure of one process. */
export function openBackPressure(
  db: Database,
  { clock, settings }: { clock: Clock; settings: () => Settings },
): BackPressure {
  let backlog: Promise<Backlog> | undefined;
  let nextAt = -Infinity;

  const look = async () => {
    if (!backlog || performance.now() >= nextAt) {
      nextAt = performance.now() + LOOK_MS;
      // More than this many make no difference.
      const most = settings()['backpressure.records'] * MOST_LOAD.single;
      backlog = readBacklog(db, { most, oneWay: settings()['transfer.one_way'] });
      backlog.catch(() => (backlog = undefined));
    }
    const found = await backlog;
    const load = loadOf(found, settings(), clock.now());
    if (load < CALM_LOAD && nextAt - performance.now() < LOOK_MS) nextAt += CALM_LOOK_MS - LOOK_MS;
    return { backlog: found, load, state: stateOf(load) };
  };

  return {
    look,
    drop() {
      nextAt = -Infinity;
    },
    async requireRoom(kind) {
      const { load, backlog: found } = await look();
      if (load < MOST_LOAD[kind]) return;
      throw new SallyportError(
        'queue-full',
        `${found.records} requests wait for the far side, the oldest since ` +
          `${found.oldestAt?.toISOString() ?? 'just now'}.`,
        {
          next: 'Nothing was stored; try again when batches have been carried.',
          retryAfterS: withJitter(RETRY_S),
        },
      );
    },
  };
}

function stateOf(load: number): LinkState {
  if (load < 1) return 'green';
  return load < MOST_LOAD.bulk ? 'amber' : 'red';
}

function loadOf({ records, bytes, oldestAt }: Backlog, settings: Settings, now: Date): number {
  const cycleMs = settings['backpressure.cycle_hours'] * HOUR_MS;
  const ageMs = oldestAt ? now.getTime() - oldestAt.getTime() : 0;
  return Math.max(
    records / settings['backpressure.records'],
    bytes / settings['backpressure.bytes'],
    ageMs / (cycleMs * settings['backpressure.carry_cycles']),
  );
}

async function readBacklog(
  db: Database,
  { most, oneWay }: { most: number; oneWay: boolean },
): Promise<Backlog> {
  const [found] = await rows<Backlog>(db, BACKLOG, { most, one_way: oneWay });
  return found as Backlog;
}

// Records that no batch has yet, and batches without a receipt, which a one-way link never gets.
const BACKLOG = `
  with waiting as (
    select count(*) as records from (
      select from outbox_records
      where batch_id is null and stream in ('requests', 'requests.urgent') limit :most) bounded
  ), sample as (
    select coalesce(avg(octet_length(line)), 0) as bytes,
      min((line::jsonb->>'at')::timestamptz) as oldest_at
    from (
      select line from outbox_records
      where batch_id is null and stream in ('requests', 'requests.urgent')
      order by position limit ${SAMPLE}) first
  ), batches as (
    select coalesce(sum(records), 0) as records, coalesce(sum(raw_bytes), 0) as bytes,
      min(sealed_at) as oldest_at
    from outbound_batches
    where stream in ('requests', 'requests.urgent') and records > 0 and not :one_way
      and state in ('building', 'sealed', 'ready', 'handed_over')
  )
  select (w.records + b.records)::bigint as records,
    round(w.records * s.bytes + b.bytes)::bigint as bytes,
    least(s.oldest_at, b.oldest_at) as "oldestAt",
    (select max(at) from (
       select max(applied_at) as at from inbound_batches
       union all select max(acked_at) from outbound_batches) heard) as "heardAt"
  from waiting w, sample s, batches b`;
