import { lstat, readdir, unlink } from 'node:fs/promises';
import { basename, join } from 'node:path';
import {
  STREAMS,
  batchCodeKind,
  rows,
  type BatchCode,
  type Clock,
  type Database,
} from '@sallyport/shared';
import {
  isBatchFileName,
  isForeign,
  parseBatchName,
  type HeaderLine,
} from '../format/batch-file.js';
import { SLIP_SUFFIX } from '../custody/custody-slip.js';

/** How long an incomplete file may stay as it is before it counts as cut. */
export const GROWTH_MS = 15 * 60_000;

/** What another copy of the same file may mend: never decided for good. */
const DAMAGE_CODES: readonly string[] = [
  'NOT_A_BATCH',
  'BAD_HEADER',
  'HEADER_TOO_BIG',
  'BAD_JSON',
  'BAD_UTF8',
  'BAD_SIGNATURE',
  'TRUNCATED',
  'TRAILING_DATA',
  'HASH_MISMATCH',
  'INFLATE_FAILED',
  'INFLATE_LIMIT',
];
/** After which a damaged file that cannot be removed is looked at again. */
const LOOK_AGAIN_MS = 15 * 60_000;

/**
 * The batch files of an untrusted folder, in the order in which lanes and numbers of their names say
 * they should be looked at; and the names of files that are none of ours.
 */
export async function listInbox(folder: string): Promise<{ paths: string[]; foreign: string[] }> {
  const names = await readdir(folder);
  const hinted = names.filter(isBatchFileName).map((name) => {
    const hint = parseBatchName(name);
    const lane = hint ? STREAMS[hint.stream].lane : Number.MAX_SAFE_INTEGER;
    return { name, lane, stream: hint?.stream ?? '', epoch: hint?.epoch ?? 0, seq: hint?.seq ?? 0 };
  });
  hinted.sort(
    (a, b) => a.lane - b.lane || byText(a.stream, b.stream) || a.epoch - b.epoch || a.seq - b.seq,
  );
  return {
    paths: hinted.map(({ name }) => join(folder, name)),
    foreign: names.filter((name) => isForeign(name) && !name.endsWith(SLIP_SUFFIX)),
  };
}

/** By code units: comparing ten thousand names by the rules of a language takes a tenth of a second. */
function byText(a: string, b: string): number {
  return a < b ? -1 : Number(a > b);
}

/** What is noted of one file that stays in the inbox. */
export type SeenFile = {
  name: string;
  bytes: number;
  mtimeMs: number;
  ctimeMs: number;
  inode: string;
  code: BatchCode | 'APPLIED';
  lastSeenAt: Date;
};

/** What is noted of the files that stay in the inbox, by their names. */
export async function readSeen(db: Database): Promise<ReadonlyMap<string, SeenFile>> {
  const seen = await rows<SeenFile>(
    db,
    `select name, bytes, mtime_ms as "mtimeMs", ctime_ms as "ctimeMs", inode, code,
       last_seen_at as "lastSeenAt" from inbox_seen`,
  );
  return new Map(seen.map((file) => [file.name, file]));
}

/**
 * Whether the file, unchanged since, was decided on before and could only not be removed. A damaged
 * one is looked at again from time to time: not every file system tells a replaced file by its inode
 * and times.
 */
export async function wasDecided(
  seen: SeenFile | undefined,
  clock: Clock,
  path: string,
): Promise<boolean> {
  if (!seen) return false;
  const found = await lstat(path).catch(() => undefined);
  const unchanged =
    found?.size === seen.bytes &&
    found.mtimeMs === seen.mtimeMs &&
    found.ctimeMs === seen.ctimeMs &&
    String(found.ino) === seen.inode;
  if (!unchanged) return false;
  if (DAMAGE_CODES.includes(seen.code)) {
    const ageMs = clock.now().getTime() - seen.lastSeenAt.getTime();
    return ageMs >= 0 && ageMs < LOOK_AGAIN_MS;
  }
  return seen.code === 'APPLIED' || batchCodeKind(seen.code) !== 'wait';
}

/** Forgets the files that are in none of the folders any more. */
export async function forgetGone(db: Database, folders: string[]): Promise<void> {
  const listed = await Promise.all(folders.map((folder) => readdir(folder).catch(() => undefined)));
  // What cannot be listed may still be there.
  if (listed.includes(undefined)) return;
  const names = listed.flatMap((each) => each ?? []);
  await db.raw('delete from inbox_seen where name <> all(?)', [names]);
}

/**
 * Notes what became of a file that stays in the inbox.
 * @returns since when it has had this size and this code; undefined when it is gone.
 */
export async function rememberFile(
  db: Database,
  clock: Clock,
  path: string,
  { code, detail }: { code: BatchCode | 'APPLIED'; detail: string },
): Promise<Date | undefined> {
  const found = await lstat(path).catch(() => undefined);
  if (!found) return undefined;
  const [seen] = await rows<{ since: Date }>(
    db,
    `insert into inbox_seen as s (name, bytes, mtime_ms, ctime_ms, inode, code, detail,
       first_seen_at, last_seen_at)
     values (:name, :bytes, :mtime, :ctime, :inode, :code, :detail, :now, :now)
     on conflict (name) do update set
       bytes = excluded.bytes, mtime_ms = excluded.mtime_ms, ctime_ms = excluded.ctime_ms,
       inode = excluded.inode, code = excluded.code,
       detail = excluded.detail, last_seen_at = excluded.last_seen_at,
       first_seen_at = case when s.bytes = excluded.bytes and s.code = excluded.code
                            then s.first_seen_at else excluded.first_seen_at end
     returning first_seen_at as since`,
    {
      name: basename(path),
      bytes: found.size,
      mtime: found.mtimeMs,
      ctime: found.ctimeMs,
      inode: String(found.ino),
      code,
      detail,
      now: clock.now(),
    },
  );
  return seen?.since;
}

/** Removes a decided file; where that is not allowed, remembers it instead. */
export async function removeFile(
  db: Database,
  clock: Clock,
  path: string,
  decided: { code: BatchCode | 'APPLIED'; detail: string },
): Promise<void> {
  try {
    await unlink(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    await rememberFile(db, clock, path, decided);
  }
}

/** Whether the path still leads to the file that was looked at. */
export async function isSameFile(
  path: string,
  { ino, dev, size }: Pick<HeaderLine, 'ino' | 'dev' | 'size'>,
): Promise<boolean> {
  const now = await lstat(path).catch(() => undefined);
  return now?.ino === ino && now.dev === dev && now.size === size;
}
