import { randomUUID } from 'node:crypto';
import { constants, type Stats } from 'node:fs';
import {
  type FileHandle,
  lstat,
  mkdir,
  open,
  readdir,
  realpath,
  rename,
  rm,
  statfs,
} from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { Type, type Static } from 'typebox';
import {
  compileSchema,
  HTTP_JSON_CODES,
  type JsonLimits,
  parseJson,
  SallyportError,
  Timestamp,
  Uuid,
} from '@sallyport/shared';
import { isBatchFileName } from '../format/batch-file.js';
import { errorCode, syncDirectory, writeAll } from '../format/durable-file.js';

/** The folder on a medium in which everything of ours lies. */
export const MEDIA_FOLDER = 'SALLYPORT';
/** The most batch files that are put on, or read from, one medium. */
export const MEDIUM_FILES = 10_000;

const MEDIUM_FILE = 'MEDIUM.json';
const README_FILE = 'READ-ME.txt';
const SLIP_FILE = 'SLIP.txt';
/** The first words of the texts that we write; a text without them is somebody else's. */
export const TEXT_MARK = 'SALLYPORT ';

const MediumSchema = Type.Object(
  {
    v: Type.Literal(1),
    kind: Type.Literal('medium'),
    id: Uuid,
    label: Type.Optional(Type.String({ minLength: 1, maxLength: 40 })),
    made_at: Timestamp,
  },
  { additionalProperties: false },
);
const checkMedium = compileSchema(MediumSchema);
const MEDIUM_LIMITS: JsonLimits = {
  depth: 2,
  keys: 16,
  keysPerObject: 16,
  stringLength: 256,
  arrayLength: 0,
  safeNumbers: true,
  negativeZero: false,
  nul: false,
  codes: HTTP_JSON_CODES,
};

/** A stick, disc or folder that is carried; `id` stays the same for its life. */
export type Medium = { root: string; id: string; label?: string };

/** One batch file on a medium; nothing of it has been believed yet. */
export type MediumFile = { path: string; name: string; to: string; bytes: number };

/** What lies on a medium. */
export type MediumContent = {
  batches: MediumFile[];
  /** INDEX files by path. */
  indexes: string[];
  /** Rests of copies that were cut off. */
  parts: string[];
  /** Names of what is none of ours: listed, never opened. */
  foreign: string[];
};

/** What a file system says about its room. */
export type Space = { freeBytes: number; blockBytes: number };

/** The room on the file system of a folder. */
export async function spaceOf(folder: string): Promise<Space> {
  const disk = await statfs(folder);
  return { freeBytes: disk.bavail * disk.bsize, blockBytes: Math.max(disk.bsize, 512) };
}

/**
 * The medium mounted at `root`; undefined when it has none of our marks.
 * @throws SallyportError medium-gone, medium-invalid when its mark cannot be read as one.
 */
export async function readMedium(root: string): Promise<Medium | undefined> {
  const place = await requireFolder(root);
  const folder = await lookAt(join(place, MEDIA_FOLDER));
  if (!folder) return undefined;
  if (!folder.isDirectory()) throw invalid(root, `its ${MEDIA_FOLDER} is no folder`);
  const path = join(place, MEDIA_FOLDER, MEDIUM_FILE);
  if (!(await lookAt(path))) return undefined;
  let read: Static<typeof MediumSchema>;
  try {
    read = checkMedium(parseJson(await readSmall(path, 4_096), MEDIUM_LIMITS));
  } catch (cause) {
    if (!(cause instanceof SallyportError)) throw cause;
    throw invalid(root, `its ${MEDIUM_FILE} cannot be read: ${cause.message}`, cause);
  }
  const { id, label } = read;
  return { root: place, id, ...(label === undefined ? {} : { label }) };
}

/**
 * The medium mounted at `root`, marked with an id of its own if it has none; the folders for `to` are
 * made, and what cut-off copies left is removed.
 * @throws SallyportError medium-gone, medium-invalid, medium-unwritable, medium-full.
 */
export async function prepareMedium(
  root: string,
  to: string,
  fresh: { id?: string; at: Date },
): Promise<Medium> {
  const found = await readMedium(root);
  const place = found?.root ?? (await requireFolder(root));
  try {
    await mkdir(join(place, MEDIA_FOLDER, to), { recursive: true });
    const ours = await lookAt(join(place, MEDIA_FOLDER, to));
    // A link would lead away from the medium.
    if (!ours?.isDirectory()) throw invalid(root, `its ${MEDIA_FOLDER}/${to} is no folder`);
    const content = await scanMedium(place);
    for (const path of content.parts) await rm(path, { force: true });
    if (found) return found;
    const id = fresh.id ?? randomUUID();
    const label = labelOf(place);
    const mark: Static<typeof MediumSchema> = {
      v: 1,
      kind: 'medium',
      id,
      ...(label === undefined ? {} : { label }),
      made_at: fresh.at.toISOString(),
    };
    const path = join(place, MEDIA_FOLDER, MEDIUM_FILE);
    await writeOnMedium(path, Buffer.from(`${JSON.stringify(mark)}\n`));
    return { root: place, id, ...(label === undefined ? {} : { label }) };
  } catch (error) {
    throw mediumError(error, place);
  }
}

/**
 * Makes sure that the same medium is still mounted there.
 * @throws SallyportError medium-gone.
 */
export async function requireStillThere(medium: Medium): Promise<void> {
  const found = await readMedium(medium.root).catch(() => undefined);
  if (found?.id === medium.id) return;
  throw gone(medium.root);
}

/**
 * Keeps the folder of a medium open, so that it can be told from that of a twin; whoever holds it
 * closes it.
 */
export async function holdMedium({ root }: Medium): Promise<FileHandle> {
  const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
  return open(join(root, MEDIA_FOLDER), flags).catch((error: unknown) => {
    throw mediumError(error, root);
  });
}

/**
 * Makes sure that the folder mounted there is the one that is held: a copy of a medium has its mark.
 * @throws SallyportError medium-gone.
 */
export async function requireHeld({ root }: Medium, held: FileHandle): Promise<void> {
  const [then, now] = [await held.stat(), await lookAt(join(root, MEDIA_FOLDER))];
  if (now?.ino !== then.ino || now.dev !== then.dev) throw gone(root);
}

/** Where a batch lies on a medium. */
export function batchPath(medium: Medium, to: string, name: string): string {
  return join(medium.root, MEDIA_FOLDER, to, name);
}

/** Where the INDEX of a set lies. */
export function indexPath(medium: Medium, set: string): string {
  return join(medium.root, MEDIA_FOLDER, `INDEX.${set}.jws`);
}

/** Where the two texts for people go: never over a text of somebody else. */
export async function textPaths(medium: Medium): Promise<{ readMe: string; slip: string }> {
  const place = async (name: string) => {
    const path = join(medium.root, name);
    const found = await lookAt(path);
    if (!found) return path;
    const start = found.isFile() ? await readStart(path, TEXT_MARK.length) : '';
    return start === TEXT_MARK ? path : join(medium.root, MEDIA_FOLDER, name);
  };
  return { readMe: await place(README_FILE), slip: await place(SLIP_FILE) };
}

/** Lists a medium without opening anything; links, pipes and devices are foreign. */
export async function scanMedium(root: string): Promise<MediumContent> {
  const content: MediumContent = { batches: [], indexes: [], parts: [], foreign: [] };
  for (const name of await readdir(root)) {
    if (name === MEDIA_FOLDER) continue;
    const ours = name === README_FILE || name === SLIP_FILE;
    if (!ours || (await lookAt(join(root, name)))?.isFile() !== true) content.foreign.push(name);
  }
  const top = join(root, MEDIA_FOLDER);
  for (const name of await readdirIfThere(top)) {
    const path = join(top, name);
    const found = await lookAt(path);
    if (found?.isDirectory() && /^[a-z0-9-]{1,16}$/.test(name)) {
      await scanNode(path, name, content);
    } else if (!found?.isFile()) content.foreign.push(join(MEDIA_FOLDER, name));
    else if (name.endsWith('.part')) content.parts.push(path);
    else if (/^INDEX\.[0-9a-f-]{36}\.jws$/.test(name)) content.indexes.push(path);
    else if (![MEDIUM_FILE, README_FILE, SLIP_FILE].includes(name)) {
      content.foreign.push(join(MEDIA_FOLDER, name));
    }
  }
  return content;
}

/** Writes a small file: `.part`, fsync, rename, fsync of the folder. */
export async function writeOnMedium(path: string, bytes: Buffer): Promise<void> {
  const temporary = join(dirname(path), `${basename(path)}.part`);
  await rm(temporary, { force: true });
  try {
    const file = await open(temporary, 'wx', 0o644);
    try {
      await writeAll(file, bytes);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncDirectory(dirname(path));
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw error;
  }
}

/**
 * Reads a small regular file, at most `limit` bytes of it.
 * @throws SallyportError NOT_REGULAR_FILE, TOO_BIG.
 */
export async function readSmall(path: string, limit: number): Promise<Buffer> {
  if (!(await lstat(path)).isFile()) {
    throw new SallyportError('NOT_REGULAR_FILE', `${basename(path)} is not a regular file.`);
  }
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  const file = await open(path, flags);
  try {
    const { size } = await file.stat();
    if (size > limit) {
      throw new SallyportError(
        'TOO_BIG',
        `${basename(path)} has ${size} bytes, at most ${limit} may be.`,
      );
    }
    const bytes = Buffer.alloc(size);
    const { bytesRead } = await file.read(bytes, 0, size, 0);
    return bytes.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
}

/** A failure of the system on a medium in plain words; every other error stays what it is. */
export function mediumError(error: unknown, root: string): unknown {
  if (error instanceof SallyportError) {
    if (error.code !== 'WAIT_DISK') return error;
    return full(root, error);
  }
  switch (errorCode(error)) {
    case 'ENOENT':
    case 'ENOTDIR':
    case 'EIO':
    case 'ENODEV':
    case 'ENXIO':
    case 'ESTALE':
      return gone(root, error);
    case 'ENOSPC':
    case 'EDQUOT':
      return full(root, error);
    case 'EEXIST':
    case 'EISDIR':
    case 'ERR_FS_EISDIR':
    case 'ELOOP':
      return invalid(root, `a folder or link lies in the way: ${pathOf(error)}`, error);
    case 'EROFS':
    case 'EACCES':
    case 'EPERM':
      return new SallyportError('medium-unwritable', `${root} cannot be written to.`, {
        cause: error,
        next: 'Is its switch on "lock"? Is it mounted read-only, or by another user?',
      });
    default:
      return error;
  }
}

async function scanNode(folder: string, to: string, content: MediumContent): Promise<void> {
  for (const name of await readdir(folder)) {
    const path = join(folder, name);
    const found = await lookAt(path);
    if (found?.isFile() && name.endsWith('.part')) content.parts.push(path);
    else if (found?.isFile() && isBatchFileName(name)) {
      content.batches.push({ path, name, to, bytes: found.size });
    } else content.foreign.push(join(MEDIA_FOLDER, to, name));
  }
}

async function requireFolder(root: string): Promise<string> {
  const found = await lookAt(root);
  if (!found) {
    throw new SallyportError('not-found', `There is no folder ${root}.`, {
      next: 'Is the medium plugged in and mounted? Name the folder where it is mounted.',
    });
  }
  const place = await realpath(root);
  if ((await lookAt(place))?.isDirectory() !== true) throw invalid(root, 'it is no folder');
  return place;
}

async function lookAt(path: string): Promise<Stats | undefined> {
  return lstat(path).catch((error: unknown) => {
    if (errorCode(error) === 'ENOENT') return undefined;
    throw error;
  });
}

async function readdirIfThere(path: string): Promise<string[]> {
  return readdir(path).catch((error: unknown) => {
    if (errorCode(error) === 'ENOENT') return [];
    throw error;
  });
}

async function readStart(path: string, length: number): Promise<string> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, 0);
    return buffer.toString('utf8', 0, bytesRead);
  } finally {
    await file.close();
  }
}

function labelOf(place: string): string | undefined {
  const label = basename(place)
    .replace(/[^A-Za-z0-9 ._-]/g, '_')
    .slice(0, 40);
  return label === '' ? undefined : label;
}

function gone(root: string, cause?: unknown): SallyportError {
  return new SallyportError('medium-gone', `The medium at ${root} is gone or cannot be read.`, {
    cause,
    next: 'Plug it in again and repeat the command: what is there and right is not copied again.',
  });
}

/** Of a rename, the name that was to be taken. */
function pathOf(error: unknown): string {
  const { path, dest } = error as { path?: string; dest?: string };
  return dest ?? path ?? '';
}

function full(root: string, cause?: unknown): SallyportError {
  return new SallyportError('medium-full', `The medium at ${root} is full.`, {
    cause,
    next: 'Use a larger medium, or several: sallyport-carry write MEDIUM MEDIUM.',
  });
}

function invalid(root: string, detail: string, cause?: unknown): SallyportError {
  return new SallyportError('medium-invalid', `${root} cannot be used as a medium: ${detail}.`, {
    cause,
    next: 'Use another medium, or look at what lies on this one.',
  });
}
