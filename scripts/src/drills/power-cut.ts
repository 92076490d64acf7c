import {
  closeSync,
  copyFileSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  linkSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import type { Random } from './random.js';

/** A file that was opened for writing, and how much of it would survive a power cut. */
export type WrittenFile = { path: string; fd: number | undefined; synced: number };

/** What a disk has not been made to keep yet: bytes without fsync, names whose folder has none. */
export type Unsynced = {
  opened(path: string, created: boolean): WrittenFile;
  synced(file: WrittenFile): void;
  folderSynced(folder: string): void;
  made(folder: string): void;
  linked(path: string): void;
  /** Call before the name goes; the result after it has gone. */
  removing(path: string): () => void;
  renaming(from: string, to: string): () => void;
  /** Time has passed: whatever was unsynced has reached the disk by itself. */
  settled(): void;
  /**
   * Takes back what a power cut may take: names from some moment on, latest first, and the bytes
   * after the last fsync, cut off or as zeros. It says what it took.
   */
  cut(random: Random): string[];
};

type Change = { folder: string; what: string; undo: () => void; forget: () => void };

const nothing = (): void => undefined;

/** Follows what is unsynced; removed files are kept in `grave`, on the same file system. */
export function followUnsynced(grave: string): Unsynced {
  mkdirSync(grave, { recursive: true });
  const files = new Set<WrittenFile>();
  let changes: Change[] = [];
  let buried = 0;

  const bury = (path: string): string | undefined => {
    buried += 1;
    const kept = join(grave, `${process.pid}-${Date.now()}-${buried}`);
    try {
      linkSync(path, kept);
      return kept;
    } catch {
      // A folder, or a name that is not there: nothing to bring back.
      return undefined;
    }
  };
  const note = (path: string, what: string, undo: () => void, forget: () => void = nothing) =>
    changes.push({ folder: dirname(path), what: `${what} ${path}`, undo, forget });
  const appeared = (path: string, what: string) =>
    note(path, what, () => rmSync(path, { recursive: true, force: true }));
  const vanished = (path: string, kept: string) =>
    note(
      path,
      'removal of',
      // A copy: rename does nothing between two links to the same bytes.
      () => (existsSync(path) ? undefined : copyFileSync(kept, path)),
      () => rmSync(kept, { force: true }),
    );
  const forgetFile = (file: WrittenFile) => {
    if (file.fd !== undefined) closeSync(file.fd);
    file.fd = undefined;
    files.delete(file);
  };

  return {
    opened(path, created) {
      // A handle of our own: it still leads to the bytes when the name has changed.
      const file = { path, fd: openSync(path, 'r+'), synced: 0 };
      file.synced = created ? 0 : fstatSync(file.fd).size;
      files.add(file);
      if (created) appeared(path, 'creation of');
      return file;
    },
    synced: forgetFile,
    folderSynced(folder) {
      for (const change of changes) if (change.folder === folder) change.forget();
      changes = changes.filter((change) => change.folder !== folder);
    },
    settled() {
      for (const change of changes.splice(0)) change.forget();
      for (const file of [...files]) forgetFile(file);
    },
    made: (folder) => appeared(folder, 'creation of'),
    linked: (path) => appeared(path, 'link'),
    removing(path) {
      const kept = bury(path);
      if (kept === undefined) return nothing;
      return () => {
        for (const file of [...files]) if (file.path === path) forgetFile(file);
        vanished(path, kept);
      };
    },
    renaming(from, to) {
      const replaced = bury(to);
      return () => {
        const kept = bury(to);
        if (kept === undefined) return;
        note(
          to,
          'rename to',
          () => (replaced === undefined ? rmSync(to, { force: true }) : renameSync(replaced, to)),
          () => replaced !== undefined && rmSync(replaced, { force: true }),
        );
        vanished(from, kept);
      };
    },
    cut(random) {
      const took: string[] = [];
      const from = random.chance(0.5) ? 0 : random.between(0, changes.length);
      for (const change of changes.splice(from).reverse()) {
        change.undo();
        took.push(change.what);
      }
      for (const file of files) {
        const { fd, synced, path } = file;
        if (fd === undefined) continue;
        const { size } = fstatSync(fd);
        if (size > synced && !random.chance(0.1)) {
          took.push(`${size - synced} bytes of ${path}`);
          if (random.chance(0.5)) ftruncateSync(fd, random.between(synced, size - 1));
          else writeSync(fd, Buffer.alloc(size - synced), 0, size - synced, synced);
        }
        forgetFile(file);
      }
      return took;
    },
  };
}
