import { existsSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SallyportError, type ErrorCode } from '@sallyport/shared';
import { judgeBatch, validateBatch, type FarKey, type ValidatingNode } from '@sallyport/transfer';
import {
  LINK,
  makeBatches,
  NOW,
  oneOf,
  REQUEST,
  RESPONSE,
  type Parts,
  type Side,
} from './fuzz-batches.js';
import { mutate, whole, type Mutant } from './fuzz-mutations.js';
import { randomFrom, type Random } from './random.js';

export type FuzzOptions = {
  seed: number;
  cases: number;
  /** Judge this case alone: how a failing one is replayed. */
  only?: number;
  say: (line: string) => void;
};
export type FuzzResult = {
  cases: number;
  crashes: number;
  applied: number;
  disagreements: number;
};

/** What a validator made of a file; `part` is `d` where only the data of a record is at fault. */
type Judgement = { code: string; part?: unknown; facts?: string; crash?: unknown };

const REPORT_EVERY = 50_000;
const AT_ONCE = 8;
const MAX_SHOWN = 20;
const ACCEPTED = 'accepted';

/**
 * Changes valid batches of all kinds and has both validators judge each. Clean are: no exception that
 * is no refusal, no changed file accepted that its sender did not sign, and no file that one accepts
 * and the other refuses, but for the schema of a record's data, which only the importer knows. The
 * same seed gives the same cases; each that fails is told with its number.
 */
export async function runFuzz({ seed, cases, only, say }: FuzzOptions): Promise<FuzzResult> {
  const folder = await mkdtemp(join(memoryFolder(), 'sallyport-fuzz-'));
  const result: FuzzResult = { cases: 0, crashes: 0, applied: 0, disagreements: 0 };
  const stray = (error: unknown) => {
    result.crashes += 1;
    say(`case ${result.cases} of seed ${seed}: outside of any call: ${String(error)}`);
  };
  process.on('unhandledRejection', stray).on('uncaughtException', stray);
  try {
    const batches = makeBatches(randomFrom(seed));
    for (const parts of batches) await requireValid({ folder, slot: 0 }, parts, seed);
    const seen = new Map<string, number>();
    let memory = 0;
    const end = only === undefined ? cases : only + 1;
    let next = only ?? 0;
    const judgeNext = async (slot: number) => {
      while (next < end) {
        const number = next++;
        const fault = await tryCase({ folder, slot }, batches, { seed, number, seen });
        result.cases += 1;
        if (fault) {
          result[fault.kind] += 1;
          if (result[fault.kind] <= MAX_SHOWN)
            say(`case ${number} of seed ${seed}: ${fault.found}`);
        }
        // The first tenth fills caches; what grows after it grows for ever.
        if (number === Math.floor(cases / 10)) memory = process.memoryUsage().rss;
        if (result.cases % REPORT_EVERY === 0) say(`${result.cases} cases`);
      }
    };
    // Each waits for files and keys most of the time; every case stands for itself.
    await Promise.all(Array.from({ length: AT_ONCE }, (_, slot) => judgeNext(slot)));
    const grown = memory === 0 ? 0 : Math.round((process.memoryUsage().rss - memory) / 2 ** 20);
    say(`${describeCodes(seen)}; memory grew by ${grown} MiB after the first tenth`);
    return result;
  } finally {
    process.off('unhandledRejection', stray).off('uncaughtException', stray);
    await rm(folder, { recursive: true, force: true });
  }
}

/** Files that live for a millisecond need no disk. */
function memoryFolder(): string {
  return existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
}

/** Every case under way has a file of its own. */
type Judges = { folder: string; slot: number };
type Fault = { kind: 'crashes' | 'applied' | 'disagreements'; found: string };

async function tryCase(
  judges: Judges,
  batches: readonly Parts[],
  { seed, number, seen }: { seed: number; number: number; seen: Map<string, number> },
): Promise<Fault | undefined> {
  const random = randomFrom(Math.imul(seed, 0x9e3779b1) ^ Math.imul(number + 1, 0x85ebca6b));
  const parts = pickBatch(batches, random);
  const other = pickBatch(batches, random);
  const mutant = mutate(parts, random, other);
  const [ours, second] = await judge(judges, parts.receiver, mutant.bytes);
  const outcome = ours.code === second.code ? ours.code : `${ours.code}/${second.code}`;
  seen.set(outcome, (seen.get(outcome) ?? 0) + 1);
  return findFault(mutant, ours, second);
}

/** Mostly small ones, and not often encrypted ones: they take ten times as long. */
function pickBatch(batches: readonly Parts[], random: Random): Parts {
  if (random.chance(0.01)) return oneOf(random, batches.slice(-4));
  const crypt = random.chance(0.1) ? 'age' : 'none';
  return oneOf(
    random,
    batches.slice(0, -4).filter((parts) => parts.crypt === crypt),
  );
}

function findFault(mutant: Mutant, ours: Judgement, second: Judgement): Fault | undefined {
  const name = `"${mutant.name}" (${mutant.bytes.length} bytes)`;
  const crash = ours.crash ?? second.crash;
  if (crash !== undefined) {
    const stack = crash instanceof Error ? (crash.stack ?? crash.message) : String(crash);
    return { kind: 'crashes', found: `${name}: ${stack}` };
  }
  const accepted = [ours, second].filter(({ code }) => code === ACCEPTED).length;
  if (accepted === 2 && !mutant.signed) {
    return { kind: 'applied', found: `${name}: accepted, though nobody signed the change` };
  }
  const agreed = accepted === 0 || (accepted === 2 && ours.facts === second.facts);
  if (agreed || (second.code === ACCEPTED && ours.part === 'd')) return undefined;
  const found = `${name}: importer ${ours.code} (${ours.facts}), second ${second.code} (${second.facts})`;
  return { kind: 'disagreements', found };
}

async function judge(
  { folder, slot }: Judges,
  receiver: Side,
  bytes: Buffer,
): Promise<[ours: Judgement, second: Judgement]> {
  const path = join(folder, `mutant-${slot}.batch`);
  writeFileSync(path, bytes);
  return [await judgeOurs(folder, path, receiver), await judgeSecond(path, receiver)];
}

async function judgeOurs(folder: string, path: string, receiver: Side): Promise<Judgement> {
  try {
    const { candidate, records } = await validateBatch(
      asNode(receiver, folder),
      { link: LINK },
      keysOf(receiver),
      path,
    );
    return { code: ACCEPTED, facts: `${candidate.digest} ${records}` };
  } catch (error) {
    const refused = error instanceof SallyportError && isBatchCode(error.code);
    if (!refused) return { code: 'crash', crash: error };
    return { code: error.code, part: error.extra['part'], facts: error.message };
  }
}

async function judgeSecond(path: string, { card, identity }: Side): Promise<Judgement> {
  const sender = senderTo(card.node);
  try {
    const verdict = await judgeBatch({
      path,
      node: card.node,
      link: LINK,
      senders: [sender.card],
      identities: [identity],
      now: NOW.getTime(),
    });
    if (verdict.ok) return { code: ACCEPTED, facts: `${verdict.digest} ${verdict.records}` };
    return { code: verdict.code, facts: verdict.sentence };
  } catch (error) {
    return { code: 'crash', crash: error };
  }
}

function senderTo(node: string): Side {
  return node === REQUEST.card.node ? RESPONSE : REQUEST;
}

function asNode({ card, identity }: Side, folder: string): ValidatingNode {
  return {
    name: card.node,
    keys: { kid: card.kid, ageIdentities: [identity] },
    clock: { now: () => NOW },
    folders: { staging: folder },
  };
}

function keysOf({ card }: Side): Map<string, FarKey> {
  const sender = senderTo(card.node);
  const state = { retire: null, retireEpoch: null, revokedAt: null, trustedAt: NOW };
  return new Map([[sender.card.kid, { card: sender.card, ...state }]]);
}

/** A fuzzer whose valid batches are refused would find nothing. */
async function requireValid(judges: Judges, parts: Parts, seed: number): Promise<void> {
  const bytes = whole(parts, randomFrom(seed));
  const verdicts = await judge(judges, parts.receiver, bytes);
  for (const { code, facts, crash } of verdicts) {
    if (code === ACCEPTED) continue;
    const about = `${String(parts.manifest['stream'])}, ${parts.enc}, ${parts.crypt}`;
    throw new Error(`an unchanged batch (${about}) is refused: ${code} ${facts}`, { cause: crash });
  }
}

function isBatchCode(code: ErrorCode): boolean {
  return code === code.toUpperCase();
}

/** How deep the mutants came: how many ended with which code, one for both or `ours/second`. */
function describeCodes(seen: ReadonlyMap<string, number>): string {
  const ordered = [...seen].sort(([, a], [, b]) => b - a);
  return ordered.map(([code, count]) => `${count} ${code}`).join(', ');
}
