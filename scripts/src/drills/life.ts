import { AsyncLocalStorage } from 'node:async_hooks';
import { writeSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { basename, dirname, relative, sep } from 'node:path';
import type pg from 'pg';
import { followUnsynced, type Unsynced } from './power-cut.js';
import { randomFrom } from './random.js';
import { SABOTAGES, type Sabotage } from './sabotage.js';

/** What happens at a point of a {@link Life}: its end, or the failure of a file operation. */
export type Fault =
  | {
      kind: 'kill';
      /** The point's number since the fault was armed, or the first of this name from there on. */
      at: number;
      name?: string;
      /** Which points are counted. */
      among: Counted;
      side: 'before' | 'during' | 'after';
      /** What else goes: half of the write under way, or all that is unsynced. */
      loss: 'none' | 'torn' | 'power';
      /** `process`: SIGKILL; `inside`: this life alone ends at once, its connections are cut. */
      death: 'process' | 'inside';
    }
  | { kind: 'fail'; at: number; code: FaultCode; lasting: boolean };

export type Counted = 'all' | 'files' | 'writes';
export type FaultCode = 'ENOSPC' | 'EIO' | 'EROFS';

/** One running instance of the product, from its start to its death. */
export type Life = {
  roots: string[];
  fault: Fault | undefined;
  /** Points passed since the fault was armed. */
  passed: Record<Counted, number>;
  names: Map<string, number>;
  dead: boolean;
  /** Whether the fault has struck. */
  struck: string | undefined;
  unsynced: Unsynced | undefined;
  sabotage: Sabotage | undefined;
  seed: number;
  clients: Set<PatchedClient>;
  /** Closes each handle that is open. */
  handles: Map<FileHandle, () => Promise<void>>;
  pending: Set<Promise<unknown>>;
  onDeath: (death: Death) => void;
};

/** Where a life ended, and what the power cut took. */
export type Death = { point: string; side: string; took: string[] };

/** A connection, and what its transaction wrote last. */
export type PatchedClient = pg.Client & {
  connection?: { stream?: { destroy(): void } };
  drillWrote?: string | undefined;
};
/** A file operation about to be done. */
export type Operation = {
  op: string;
  path: string;
  /** Half of it, for a torn write and a disk that becomes full in the middle. */
  half?: () => Promise<unknown>;
  /** What it changes that a power cut may take back; called once it is done. */
  done?: (result: unknown) => void;
  folder?: boolean;
};

const NONE: Record<Counted, number> = { all: 0, files: 0, writes: 0 };
/** The life that the code at work belongs to. */
export const lives = new AsyncLocalStorage<Life>();
/** What belongs to an ended life waits for ever. */
export const never = <T>(): Promise<T> => new Promise<T>(() => undefined);

/** Begins a life: what `work` of {@link inLife} does in it passes points. */
export function beginLife(options: {
  roots: string[];
  seed: number;
  grave?: string | undefined;
  sabotage?: string | undefined;
  onDeath: (death: Death) => void;
}): Life {
  const { roots, seed, grave, sabotage, onDeath } = options;
  if (sabotage !== undefined && !(sabotage in SABOTAGES)) {
    throw new Error(`there is no sabotage ${sabotage}`);
  }
  return {
    roots,
    seed,
    fault: undefined,
    passed: { ...NONE },
    names: new Map(),
    dead: false,
    struck: undefined,
    unsynced: grave === undefined ? undefined : followUnsynced(grave),
    sabotage: sabotage === undefined ? undefined : SABOTAGES[sabotage]?.(),
    clients: new Set(),
    handles: new Map(),
    pending: new Set(),
    onDeath,
  };
}

/** Does the work inside the life. */
export function inLife<T>(life: Life, work: () => Promise<T>): Promise<T> {
  return lives.run(life, work);
}

/**
 * Sets the fault that strikes next, counting points from here; undefined: none. What was unsynced until
 * here is safe from a power cut.
 */
export function arm(life: Life, fault: Fault | undefined): void {
  life.unsynced?.settled();
  Object.assign(life, { fault, passed: { ...NONE }, struck: undefined });
}

/** Whether a path lies below a root of the life. */
export function isUnder(life: Life, path: string): boolean {
  return life.roots.some((root) => path.startsWith(root + sep));
}

/** `rename store batch`: what is done, in which folder of a node, to which kind of file. */
function nameOf(life: Life, { op, path, folder }: Operation): string {
  const root = life.roots.find((each) => path.startsWith(each + sep)) ?? dirname(path);
  const place = relative(root, path).split(sep)[0] ?? '';
  return `${op} ${place} ${folder ? 'folder' : fileKind(basename(path))}`;
}

function fileKind(name: string): string {
  if (name.endsWith('.part')) return 'part';
  if (name.endsWith('.tmp')) return 'tmp';
  if (name.endsWith('.plain')) return 'plain';
  if (name.startsWith('export-')) return 'body';
  if (name.endsWith('.batch')) return 'batch';
  if (name.endsWith('.json')) return 'report';
  return 'other';
}

/** The fault that strikes at this point, if it is a death. */
export function strikes(life: Life, name: string, counted: Counted): Fault | undefined {
  const { fault } = life;
  if (!fault || fault.kind !== 'kill' || life.struck !== undefined) return undefined;
  if (ORDER.indexOf(counted) < ORDER.indexOf(fault.among)) return undefined;
  if (life.passed[fault.among] < fault.at) return undefined;
  return fault.name === undefined || fault.name === name ? fault : undefined;
}

/** Each is counted among those before it. */
const ORDER: readonly Counted[] = ['all', 'files', 'writes'];
const NEEDS_SPACE = ['open', 'write', 'writev', 'fsync', 'datasync', 'mkdir', 'copy', 'link'];

function failure(life: Life, operation: Operation): Error | undefined {
  const { op, path } = operation;
  const { fault } = life;
  if (fault?.kind !== 'fail') return undefined;
  const due = fault.lasting && life.struck !== undefined;
  if (!due && life.passed.files !== fault.at) return undefined;
  life.struck ??= nameOf(life, operation);
  // A full disk still lets files be removed, renamed and read.
  if (fault.code === 'ENOSPC' && !NEEDS_SPACE.includes(op)) return undefined;
  return Object.assign(new Error(`${fault.code}: ${op} '${path}'`), {
    code: fault.code,
    errno: -1,
    syscall: op,
    path,
  });
}

/** Does a file operation as a point of the life that it is made in. */
export async function passFile<T>(operation: Operation, run: () => Promise<T>): Promise<T> {
  const life = lives.getStore();
  if (life?.dead) return never();
  if (!life || !isUnder(life, operation.path)) return run();
  const name = nameOf(life, operation);
  const counted = operation.op.startsWith('write') ? 'writes' : 'files';
  notePoint(life, name, counted);
  const failed = failure(life, operation);
  if (failed) {
    await operation.half?.();
    throw failed;
  }
  const fault = strikes(life, name, counted);
  if (fault?.kind === 'kill') {
    if (fault.loss === 'torn' && operation.half) {
      await operation.half();
      return die(life, name, 'torn');
    }
    if (fault.side === 'before') return die(life, name, 'before');
    if (fault.side === 'during' && fault.loss === 'none') {
      void track(life, run()).catch(() => undefined);
      return die(life, name, 'during');
    }
  }
  await life.sabotage?.stall?.();
  if (life.dead) return never();
  const result = await track(
    life,
    life.sabotage?.file?.(operation.op, operation.path, run) ?? run(),
  );
  operation.done?.(result);
  if (fault?.kind === 'kill') return die(life, name, 'after');
  return life.dead ? never() : result;
}

/** Counts a point. */
export function notePoint(life: Life, name: string, counted: Counted): void {
  for (const each of ORDER.slice(0, ORDER.indexOf(counted) + 1)) life.passed[each] += 1;
  life.names.set(name, (life.names.get(name) ?? 0) + 1);
}

function track<T>(life: Life, work: Promise<T>): Promise<T> {
  life.pending.add(work);
  const forget = () => life.pending.delete(work);
  void work.then(forget, forget);
  return work;
}

/** Ends the life here: nothing that belongs to it has any effect from now on. */
export function die<T>(life: Life, point: string, side: string): Promise<T> {
  const { fault } = life;
  if (life.dead || fault?.kind !== 'kill') return never();
  life.dead = true;
  life.struck = point;
  const lost = fault.loss === 'power';
  const end = (): void => {
    const took = lost ? (life.unsynced?.cut(randomFrom(life.seed)) ?? []) : [];
    const death: Death = { point, side: lost ? `${side}, power cut` : side, took };
    if (fault.death === 'inside') return life.onDeath(death);
    writeSync(REPORT_FD, `${JSON.stringify(death)}\n`);
    process.kill(process.pid, 'SIGKILL');
  };
  if (fault.death === 'process' && !lost) {
    end();
    return never();
  }
  for (const client of life.clients) client.connection?.stream?.destroy();
  // What the kernel had taken over is done by it; a handle is closed once nothing writes to it.
  void Promise.allSettled([...life.pending]).then(async () => {
    await Promise.allSettled([...life.handles.values()].map((close) => close()));
    end();
  });
  return never();
}

/** The pipe on which a process says at which point it kills itself. */
const REPORT_FD = 3;
