import { statfs } from 'node:fs/promises';
import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import {
  WORKERS,
  listWorkers,
  readAuditCheck,
  readWorkerStates,
  rows,
  type Database,
  type QueueAdmin,
  type ReadinessCheck,
} from '@sallyport/shared';
import { readClockOffset, type ClockOffset } from './custody/clock-offset.js';
import type { Node } from './node.js';

/** What the detailed health of a network is read from. */
export type HealthContext = {
  db: Database;
  node: Node;
  queueAdmin: QueueAdmin;
  /** Of this software. */
  version: string;
  /** Further services that the network needs, such as Elasticsearch. */
  services: readonly ReadinessCheck[];
};

/** How one thing that the network needs stands; `error` says what was wrong. */
export type Part<Facts> = ({ ok: true } & Facts) | { ok: false; error: string };

export type Health = {
  /** `ok` when every part is, else `degraded`; without its database a network answers 503. */
  status: 'ok' | 'degraded';
  at: string;
  version: string;
  node: { name: string; role: string; node_js: string; uptime_s: number };
  process: {
    rss_bytes: number;
    heap_bytes: number;
    /** Since the look before, in milliseconds. */
    event_loop_lag: { p50_ms: number; p99_ms: number; max_ms: number };
  };
  database: Part<{
    latency_ms: number;
    server: string;
    connections: number;
    connections_max: number;
    bytes: number;
    migrations: { applied: number; newest: string };
  }>;
  queues: Part<{ store: 'redis' | 'postgresql'; depth: number; paused: string[] }>;
  services: Record<string, Part<{ latency_ms: number }>>;
  disks: Record<string, Part<{ free_bytes: number; total_bytes: number; used_percent: number }>>;
  clock_offset: ClockOffset;
  /** How far the audit chain was recomputed, and whether it held; null before the first time. */
  audit: Part<{ entries: number; checked_at: string; from_start_at: string }> | null;
  schedules: {
    worker: string;
    last_success_at: string | null;
    failures: number;
    /**
     * Without success for more than two of its cadences and a tenth of its time limit, at least a
     * minute; one that never succeeded, for so long since this process began.
     */
    overdue: boolean;
  }[];
};

const LIMIT_MS = 3_000;
const MINUTE_MS = 60_000;
const NS = 1e6;

const delays = monitorEventLoopDelay({ resolution: 20 });

/** Looks at everything that a network needs; each look is bounded and spoils no other. */
export async function readHealth(context: HealthContext): Promise<Health> {
  delays.enable();
  const { node, version, services, db } = context;
  const database = await part(() => lookAtDatabase(db));
  const queues = await part(() => lookAtQueues(context));
  const checked = await Promise.all(
    services.map(async ({ name, check }) => [name, await part(() => timed(check))] as const),
  );
  const disks = await Promise.all(
    Object.entries(node.folders).map(
      async ([name, path]) => [name, await part(() => lookAtDisk(path))] as const,
    ),
  );
  const [audit, schedules, clocks] = await Promise.all([
    within(() => lookAtAudit(db)).catch(failed),
    part(async () => ({ all: await lookAtSchedules(context) })),
    part(() => readClockOffset(db)),
  ]);
  const parts = [
    database,
    queues,
    ...checked.map(([, one]) => one),
    ...disks.map(([, one]) => one),
    schedules,
    clocks,
  ];
  const late = schedules.ok && schedules.all.some(({ overdue }) => overdue);
  const well = parts.every(({ ok }) => ok) && audit?.ok !== false && !late;
  return {
    status: well ? 'ok' : 'degraded',
    at: node.clock.now().toISOString(),
    version,
    node: {
      name: node.name,
      role: node.role,
      node_js: process.version,
      uptime_s: Math.round(process.uptime()),
    },
    process: lookAtProcess(),
    database,
    queues,
    services: Object.fromEntries(checked),
    disks: Object.fromEntries(disks),
    audit,
    clock_offset: clocks.ok
      ? { least_ms: clocks.least_ms, most_ms: clocks.most_ms }
      : { least_ms: null, most_ms: null },
    schedules: schedules.ok ? schedules.all : [],
  };
}

function lookAtProcess(): Health['process'] {
  const { rss, heapUsed } = process.memoryUsage();
  const ms = (nanoseconds: number) => Math.round((nanoseconds / NS) * 10) / 10 || 0;
  const lag = {
    p50_ms: ms(delays.percentile(50)),
    p99_ms: ms(delays.percentile(99)),
    max_ms: ms(delays.max),
  };
  delays.reset();
  return { rss_bytes: rss, heap_bytes: heapUsed, event_loop_lag: lag };
}

async function lookAtDatabase(db: Database) {
  const { latency_ms } = await timed(() => db.raw('select 1'));
  const [facts] = await rows<{
    server: string;
    connections: number;
    connections_max: number;
    bytes: number;
    applied: number;
    newest: string;
  }>(
    db,
    `select current_setting('server_version') as server,
       (select count(*)::integer from pg_stat_activity where datname = current_database())
         as connections,
       current_setting('max_connections')::integer as connections_max,
       pg_database_size(current_database()) as bytes,
       (select count(*)::integer from migrations) as applied,
       (select name from migrations order by id desc limit 1) as newest`,
  );
  if (!facts) throw new Error('the database said nothing');
  const { applied, newest, ...rest } = facts;
  return { latency_ms, ...rest, migrations: { applied, newest } };
}

async function lookAtAudit(db: Database): Promise<Health['audit']> {
  const check = await readAuditCheck(db);
  if (!check) return null;
  const { entries, brokenAt, checkedAt, fullAt } = check;
  if (brokenAt !== null) {
    return { ok: false, error: `the chain does not hold at entry ${brokenAt}` };
  }
  const times = { checked_at: checkedAt.toISOString(), from_start_at: fullAt.toISOString() };
  return { ok: true, entries, ...times };
}

async function lookAtQueues({ queueAdmin }: HealthContext) {
  const queues = await queueAdmin.queues.open();
  const status = await queues.status();
  return {
    store: queues.store,
    depth: status.reduce((sum, { waiting }) => sum + waiting, 0),
    paused: status.filter(({ paused }) => paused).map(({ name }) => name),
  };
}

async function lookAtDisk(path: string) {
  const { blocks, bsize, bavail } = await statfs(path);
  const [total, free] = [blocks * bsize, bavail * bsize];
  const used = total === 0 ? 0 : Math.round((1 - free / total) * 100);
  return { free_bytes: free, total_bytes: total, used_percent: used };
}

async function lookAtSchedules({ db, node, queueAdmin }: HealthContext) {
  const states = await readWorkerStates(db);
  const now = node.clock.now().getTime();
  const looks = listWorkers(node.role).map(async (worker) => {
    const state = states.get(worker);
    const cadenceMs = (await queueAdmin.cadences.read(worker)) * 1_000;
    const patienceMs = 2 * cadenceMs + Math.max(MINUTE_MS, WORKERS[worker].timeLimitMs / 10);
    const since = state?.succeeded_at?.getTime() ?? now - process.uptime() * 1_000;
    return {
      worker,
      last_success_at: state?.succeeded_at?.toISOString() ?? null,
      failures: state?.failures ?? 0,
      overdue: !state?.schedule_paused && now - since > patienceMs,
    };
  });
  return Promise.all(looks);
}

async function timed(work: () => PromiseLike<unknown>): Promise<{ latency_ms: number }> {
  const startedAt = performance.now();
  await work();
  return { latency_ms: Math.round((performance.now() - startedAt) * 10) / 10 };
}

async function part<Facts>(look: () => Promise<Facts>): Promise<Part<Facts>> {
  return within(async () => ({ ok: true as const, ...(await look()) })).catch(failed);
}

function failed(error: unknown): { ok: false; error: string } {
  return { ok: false, error: error instanceof Error ? error.message : 'unknown' };
}

async function within<T>(look: () => Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${LIMIT_MS} ms`)), LIMIT_MS);
  });
  try {
    return await Promise.race([look(), late]);
  } finally {
    clearTimeout(timer);
  }
}
