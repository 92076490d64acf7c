import fs, { promises } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { isUnder, lives, never, passFile, type Life } from './life.js';
import type { WrittenFile } from './power-cut.js';
import { SKIPPED } from './sabotage.js';

const opened = new WeakMap<FileHandle, OpenedFile>();
type OpenedFile = { path: string; folder: boolean; file: WrittenFile | undefined };

type Method = (this: FileHandle, ...args: unknown[]) => Promise<unknown>;
const original = {} as Record<'write' | 'writev' | 'sync' | 'datasync' | 'read', Method>;

/** Makes every operation of node:fs that changes something, and every read of a handle, a point. */
export async function patchFiles(): Promise<void> {
  const probe = await promises.open('/dev/null');
  const prototype = Object.getPrototypeOf(probe) as Record<keyof typeof original, Method>;
  await probe.close();
  for (const name of ['write', 'writev', 'sync', 'datasync', 'read'] as const) {
    original[name] = prototype[name];
  }
  patchHandles(prototype);
  patchPromises();
  patchStreams();
}

function patchHandles(prototype: Record<keyof typeof original, Method>): void {
  prototype.write = function write(...args) {
    const file = opened.get(this);
    if (!file) return original.write.apply(this, args);
    const half = () => {
      const bytes = args[0] as Uint8Array;
      const offset = typeof args[1] === 'number' ? args[1] : 0;
      const length = typeof args[2] === 'number' ? args[2] : bytes.length - offset;
      return original.write.call(this, bytes, offset, Math.floor(length / 2));
    };
    return passFile({ op: 'write', path: file.path, half }, () => original.write.apply(this, args));
  };
  prototype.writev = function writev(...args) {
    const file = opened.get(this);
    const run = () => original.writev.apply(this, args);
    return file ? passFile({ op: 'writev', path: file.path }, run) : run();
  };
  prototype.read = function read(...args) {
    const file = opened.get(this);
    const run = () => original.read.apply(this, args);
    return file ? passFile({ op: 'read', path: file.path }, run) : run();
  };
  for (const name of ['sync', 'datasync'] as const) {
    prototype[name] = function sync() {
      const run = () => original[name].call(this);
      const found = opened.get(this);
      if (!found) return run();
      const { path, folder, file } = found;
      const op = name === 'sync' ? 'fsync' : name;
      const unsynced = lives.getStore()?.unsynced;
      const done = (result: unknown) => {
        if (result === SKIPPED) return;
        if (folder) unsynced?.folderSynced(path);
        else if (file) unsynced?.synced(file);
      };
      return passFile({ op, path, folder, done }, run);
    };
  }
}

/** A handle of a life that has ended is closed by its death alone. */
function own(life: Life, handle: FileHandle): void {
  const close = handle.close.bind(handle);
  life.handles.set(handle, close);
  handle.close = () => {
    if (life.dead) return never();
    life.handles.delete(handle);
    return close();
  };
}

function patchPromises(): void {
  const target = promises as unknown as Record<string, (...args: never[]) => Promise<unknown>>;
  const before = { ...target } as Record<string, (...args: unknown[]) => Promise<unknown>>;
  const call = (name: string, args: unknown[]): Promise<unknown> => {
    const method = before[name];
    if (!method) throw new Error(`node:fs/promises has no ${name}`);
    return method(...args);
  };
  const life = () => lives.getStore();

  target['open'] = async (...args: unknown[]) => {
    const path = String(args[0]);
    const flags = args[1] ?? 'r';
    const creates = typeof flags === 'string' ? /[wa]/.test(flags) : (Number(flags) & 64) !== 0;
    const existed = creates && fs.existsSync(path);
    const open = async (): Promise<FileHandle> => {
      const handle = (await call('open', args)) as FileHandle;
      const owner = life();
      if (owner) own(owner, handle);
      return handle;
    };
    if (life()?.dead) return never();
    if (!creates) {
      const handle = await open();
      const folder = typeof flags === 'number' && (flags & fs.constants.O_DIRECTORY) !== 0;
      opened.set(handle, { path, folder, file: undefined });
      return handle;
    }
    return passFile({ op: 'open', path }, async () => {
      const handle = await open();
      const current = life();
      const follows = current && isUnder(current, path) ? current.unsynced : undefined;
      opened.set(handle, { path, folder: false, file: follows?.opened(path, !existed) });
      return handle;
    });
  };
  for (const [name, op] of [
    ['unlink', 'unlink'],
    ['rm', 'rm'],
  ] as const) {
    target[name] = (...args: unknown[]) => {
      const path = String(args[0]);
      let gone: (() => void) | undefined;
      return passFile({ op, path, done: () => gone?.() }, () => {
        gone = life()?.unsynced?.removing(path);
        return call(name, args);
      });
    };
  }
  target['rename'] = (...args: unknown[]) => {
    const [from, to] = args.map(String) as [string, string];
    let renamed: (() => void) | undefined;
    return passFile({ op: 'rename', path: to, done: () => renamed?.() }, () => {
      renamed = life()?.unsynced?.renaming(from, to);
      return call('rename', args);
    });
  };
  target['link'] = (...args: unknown[]) => {
    const path = String(args[1]);
    const done = () => life()?.unsynced?.linked(path);
    return passFile({ op: 'link', path, done }, () => call('link', args));
  };
  target['mkdir'] = (...args: unknown[]) => {
    const path = String(args[0]);
    const made = (first: unknown) => {
      const { recursive } = (args[1] ?? {}) as { recursive?: boolean };
      if (typeof first === 'string') life()?.unsynced?.made(first);
      else if (!recursive) life()?.unsynced?.made(path);
    };
    return passFile({ op: 'mkdir', path, folder: true, done: made }, () => call('mkdir', args));
  };
  target['copyFile'] = (...args: unknown[]) => {
    const path = String(args[1]);
    return passFile({ op: 'copy', path }, async () => {
      const result = await call('copyFile', args);
      life()?.unsynced?.opened(path, true);
      return result;
    });
  };
}

/** Write streams go through the callback functions; they are points, without power cuts. */
function patchStreams(): void {
  const paths = new Map<number, string>();
  type Callback = (error: Error | null, ...rest: unknown[]) => void;
  type Call = (...args: unknown[]) => void;
  const target = fs as unknown as Record<string, Call>;
  for (const name of ['open', 'write', 'writev', 'fsync'] as const) {
    const before = target[name];
    if (!before) continue;
    target[name] = (...args: unknown[]) => {
      const callback = args.at(-1) as Callback;
      const path = name === 'open' ? String(args[0]) : paths.get(args[0] as number);
      const writes = name !== 'open' || /[wa]/.test(String(args[1] ?? 'r'));
      if (!lives.getStore() || path === undefined || !writes) return before(...args);
      const run = () =>
        new Promise<unknown[]>((resolve, reject) => {
          before(...args.slice(0, -1), (error: Error | null, ...rest: unknown[]) =>
            error ? reject(error) : resolve(rest),
          );
        });
      const tell = async () => {
        let rest: unknown[];
        try {
          rest = await passFile({ op: name, path }, run);
        } catch (error) {
          return callback(error as Error);
        }
        if (name === 'open') paths.set(rest[0] as number, path);
        callback(null, ...rest);
      };
      void tell();
    };
  }
}
