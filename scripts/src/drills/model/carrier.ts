import { createHash } from 'node:crypto';
import { readdir, readFile, rename, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readHeader, type Folders, type Manifest } from '@sallyport/transfer';
import type { Random } from '../random.js';
import { farOf, type Side } from './sides.js';

/** What a carrier may do to the copies in its hands. */
export type CarryRules = {
  loss: number;
  again: number;
  damage: number;
  /** Until a copy may be delivered. */
  delayMs(random: Random): number;
};

/** A carrier that loses nothing, and is there at once. */
export const FAITHFUL: CarryRules = { loss: 0, again: 0, damage: 0, delayMs: () => 0 };

type Copy = { from: Side; name: string; bytes: Buffer; sha256: string; dueAt: number };
export type Collected = { copies: number; lost: number; damaged: number; fresh: Manifest[] };

/** People with media between two networks; keeps every file ever seen. */
export type Carrier = {
  /** Takes copies of what lies new, or again, in the outbox. */
  collect(side: Side, random: Random, rules: CarryRules): Promise<Collected>;
  /** Brings copies that are due to the other side, in any order; `all`: those that are not due too. */
  deliver(from: Side, random: Random, options?: { all?: boolean }): Promise<number>;
  /** What lies in the inbox under this name, as far as it was brought by this carrier. */
  brought(to: Side, name: string): string | undefined;
  /** The manifest of a file, by the SHA-256 of its bytes; undefined for those damaged on the way. */
  manifestOf(sha256: string): Manifest | undefined;
  isDamaged(sha256: string): boolean;
  /** The key that signed the first batch of control in the newest epoch of a node. */
  opener(node: string): string | undefined;
  /** How many copies are under way. */
  waiting(): number;
  /** Numbers that were seen with different bytes: one sentence each. */
  forks: string[];
};

/** Makes the carriers of both directions. */
export function makeCarrier(folders: Record<Side, Folders>, time: { now: Date }): Carrier {
  const pending: Copy[] = [];
  const looked = new Map<string, string>();
  const numbers = new Map<string, string>();
  const manifests = new Map<string, Manifest>();
  const damaged = new Set<string>();
  const inboxes = { request: new Map<string, string>(), response: new Map<string, string>() };
  const forks: string[] = [];
  const openers = new Map<string, { epoch: number; kid: string }>();

  /** Notes a file of the sender; answers its manifest when it was never seen before. */
  const note = (bytes: Buffer, sha256: string): Manifest | undefined => {
    if (manifests.has(sha256)) return undefined;
    const { manifest, kid } = readHeader(bytes.subarray(0, bytes.indexOf('\n')));
    manifests.set(sha256, manifest);
    const { from, stream, epoch, seq } = manifest;
    const number = `${from} ${stream} epoch ${epoch} number ${seq}`;
    if (numbers.has(number)) forks.push(`${number} was sealed twice`);
    numbers.set(number, sha256);
    const opens = stream === 'control' && seq === 1 && epoch >= (openers.get(from)?.epoch ?? 0);
    if (opens) openers.set(from, { epoch, kid });
    return manifest;
  };

  return {
    forks,
    waiting: () => pending.length,
    brought: (to, name) => inboxes[to].get(name),
    manifestOf: (sha256) => manifests.get(sha256),
    opener: (node) => openers.get(node)?.kid,
    isDamaged: (sha256) => damaged.has(sha256),
    async collect(side, random, rules) {
      const { outbox } = folders[side];
      const collected: Collected = { copies: 0, lost: 0, damaged: 0, fresh: [] };
      const names = (await readdir(outbox)).filter((name) => name.endsWith('.batch')).sort();
      for (const name of names) {
        const path = join(outbox, name);
        const mark = String((await stat(path)).mtimeMs);
        if (looked.get(path) === mark) continue;
        looked.set(path, mark);
        const bytes = await readFile(path);
        const sha256 = digestOf(bytes);
        const fresh = note(bytes, sha256);
        if (fresh) collected.fresh.push(fresh);
        for (
          const times = random.chance(rules.again) ? [1, 2] : [1];
          times.length > 0;
          times.pop()
        ) {
          if (random.chance(rules.loss)) {
            collected.lost += 1;
            continue;
          }
          const copy: Copy = { from: side, name, bytes, sha256, dueAt: 0 };
          copy.dueAt = time.now.getTime() + rules.delayMs(random);
          if (random.chance(rules.damage)) {
            copy.bytes = damage(bytes, random);
            copy.sha256 = digestOf(copy.bytes);
            damaged.add(copy.sha256);
            collected.damaged += 1;
          }
          pending.push(copy);
          collected.copies += 1;
        }
      }
      return collected;
    },
    async deliver(from, random, { all = false } = {}) {
      const to = farOf(from);
      const due = pending.filter(
        (copy) => copy.from === from && (all || copy.dueAt <= time.now.getTime()),
      );
      let delivered = 0;
      while (due.length > 0) {
        const [copy] = due.splice(random.between(0, due.length - 1), 1);
        if (!copy || (!all && random.chance(0.3))) continue;
        pending.splice(pending.indexOf(copy), 1);
        const renamed = random.chance(0.05) ? `copy of ${copy.name}` : copy.name;
        const path = join(folders[to].inbox, renamed);
        await writeFile(`${path}.part`, copy.bytes);
        await rename(`${path}.part`, path);
        inboxes[to].set(renamed, copy.sha256);
        delivered += 1;
      }
      return delivered;
    },
  };
}

/** A byte flipped, the end cut, or the tail zeroed; never the same bytes. */
function damage(bytes: Buffer, random: Random): Buffer {
  const at = random.between(0, bytes.length - 1);
  const kind = random.pick(['flip', 'cut', 'zeros'] as const);
  if (kind === 'cut') return Buffer.from(bytes.subarray(0, at));
  const changed = Buffer.from(bytes);
  if (kind === 'zeros') changed.fill(0, at);
  if (!changed.equals(bytes)) return changed;
  changed[at] = (changed[at] ?? 0) ^ (1 << random.between(0, 7));
  return changed;
}

function digestOf(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
