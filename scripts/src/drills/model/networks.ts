import {
  batchCodeKind,
  SallyportError,
  type BatchCode,
  type StreamName,
  type WorkerName,
} from '@sallyport/shared';
import type { ImportReport } from '@sallyport/transfer';
import type { Random } from '../random.js';
import type { CarryRules } from './carrier.js';
import { findFalseClaims } from './checks.js';
import { blame, MINUTE_MS, note, type Run } from './run.js';
import { farOf, SIDES, type Side } from './sides.js';

const ROUGH: CarryRules = {
  loss: 0.05,
  again: 0.05,
  damage: 0.01,
  delayMs: (random) =>
    random.chance(0.05)
      ? random.between(1, 4 * 24 * 60) * MINUTE_MS
      : random.between(0, 5 * 60) * MINUTE_MS,
};

/** The workers of each network. */
export const WORK: Record<Side, readonly [WorkerName, ...WorkerName[]]> = {
  request: ['import-batches', 'export-requests', 'export-control', 'housekeeping'],
  response: [
    'import-batches',
    'execute-queries',
    'export-results',
    'export-identity',
    'export-settings',
    'export-control',
    'housekeeping',
  ],
};

/** Some workers of either network run once, in any order. */
export async function workSome(run: Run, random: Random): Promise<void> {
  for (let count = random.between(1, 4); count > 0; count -= 1) {
    const side = random.pick(SIDES);
    await work(run, side, random.pick(WORK[side]));
  }
}

/** A worker of a network runs once; what it says of imported files is judged. */
export async function work(run: Run, side: Side, name: WorkerName): Promise<void> {
  const { site } = run;
  try {
    const done = await site.open(side).work(name);
    if (name === 'import-batches') judgeImport(run, side, done as ImportReport);
    else note(run, `${side} ${name}`);
  } catch (error) {
    note(run, `${side} ${name} failed`);
    if (!(error instanceof SallyportError)) throw error;
    blame(run, `${side} ${name}: ${error.code}: ${error.message}`);
  }
}

function judgeImport(run: Run, side: Side, { files }: ImportReport): void {
  const counts = new Map<string, number>();
  for (const { file, outcome, sentence } of files) {
    counts.set(outcome, (counts.get(outcome) ?? 0) + 1);
    const sha256 = run.carrier.brought(side, file);
    const damaged = sha256 !== undefined && run.carrier.isDamaged(sha256);
    const alarm = outcome !== 'APPLIED' && outcome !== 'FAILED' && isAlarm(outcome);
    if (outcome === 'APPLIED' && damaged) blame(run, `${side} applied ${file}, which is damaged`);
    if (outcome === 'FAILED') blame(run, `${side} failed at ${file}: ${sentence}`);
    if (alarm && !(outcome === 'KEY_REVOKED' && run.revoked.size > 0)) {
      blame(run, `${side} ${outcome} at ${file}: ${sentence}`);
    }
  }
  const told = [...counts].map(([outcome, count]) => `${count} ${outcome}`).join(', ');
  const odd = files.find(({ outcome }) => outcome !== 'APPLIED' && outcome !== 'DUPLICATE');
  const why = odd ? `; ${odd.file} ${odd.outcome}: ${odd.sentence}` : '';
  note(run, `${side} imports: ${told || 'nothing'}${why}`);
}

function isAlarm(code: BatchCode): boolean {
  return batchCodeKind(code) === 'alarm';
}

/** A carrier takes what lies in an outbox and brings what is due. */
export async function carrySome(run: Run, random: Random): Promise<void> {
  const side = random.pick(SIDES);
  await collect(run, side, random, ROUGH);
  const delivered = await run.carrier.deliver(side, random);
  note(run, `carry from ${side}: ${delivered} delivered`);
  if (random.chance(0.5)) await work(run, farOf(side), 'import-batches');
}

/** A carrier takes copies from an outbox; what new manifests claim is checked. */
export async function collect(
  run: Run,
  side: Side,
  random: Random,
  rules: CarryRules,
): Promise<void> {
  const { copies, lost, damaged, fresh } = await run.carrier.collect(side, random, rules);
  note(run, `collect from ${side}: ${copies} copies, ${lost} lost, ${damaged} damaged`);
  for (const manifest of fresh) {
    const claims = await findFalseClaims(run.site.open(side).db, manifest);
    for (const sentence of claims) blame(run, `${side}: ${sentence}`);
  }
}

const RESENT: Record<Side, readonly [StreamName, ...StreamName[]]> = {
  request: ['requests', 'requests.urgent', 'control'],
  response: ['results', 'identity', 'settings', 'control'],
};

/** Somebody has numbers published again. */
export async function resendSome(run: Run, random: Random): Promise<void> {
  const side = random.pick(SIDES);
  const stream = random.pick(RESENT[side]);
  const from = random.between(1, 30);
  const range = `${from}-${from + random.between(0, 5)}`;
  const positionals = random.chance(0.5) ? [stream, range] : [stream];
  note(run, `${side} resend ${positionals.join(' ')}`);
  await run.site.open(side).command('resend', { positionals }).catch(unless('not-found'));
}

function unless(code: string): (error: unknown) => void {
  return (error) => {
    if (!(error instanceof SallyportError && error.code === code)) throw error;
  };
}
