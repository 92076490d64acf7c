import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { SallyportError, rows, type Database, type StreamName } from '@sallyport/shared';
import { parseBatchName } from './batch-file.js';
import { removeIfThere, writeFileDurably } from './durable-file.js';
import { findLink } from './links.js';
import type { Node } from './node.js';

const DAY_MS = 86_400_000;

type StoredBatch = { id: string; fileName: string; stream: string; seq: number };

/**
 * Copies what is sealed and not yet published into the outbox folder. The same bytes each time; a
 * folder that cannot be written leaves everything as it is for the next run.
 * @throws SallyportError `outbox-unwritable`, `store-bytes-missing`.
 */
export async function publishSealed(db: Database, node: Node, stream: StreamName): Promise<number> {
  const sealed = await rows<StoredBatch>(
    db,
    `select id, file_name as "fileName", stream, seq from outbound_batches
     where stream = ? and state = 'sealed' order by epoch, seq`,
    [stream],
  );
  for (const batch of sealed) {
    await publishBatch(node, batch);
    await db.raw(
      `update outbound_batches set state = 'ready', ready_at = ?, version = version + 1
       where id = ? and state = 'sealed'`,
      [node.clock.now(), batch.id],
    );
  }
  return sealed.length;
}

/** Removes from the outbox folder what the far side has acknowledged; other files are not touched. */
export async function tidyOutbox(db: Database, node: Node): Promise<number> {
  const published = (await readdir(node.folders.outbox)).filter((name) => name.endsWith('.batch'));
  if (published.length === 0) return 0;
  const done = await rows<{ fileName: string }>(
    db,
    `select file_name as "fileName" from outbound_batches
     where file_name = any(?) and state in ('acked', 'rejected', 'withdrawn')`,
    [published],
  );
  for (const { fileName } of done) await removeIfThere(join(node.folders.outbox, fileName));
  return done.length;
}

/** Deletes stored bytes some days after their acknowledgement, never the newest of a stream. */
export async function pruneStore(db: Database, node: Node): Promise<number> {
  const stored = (await readdir(node.folders.store)).filter((name) => name.endsWith('.batch'));
  if (stored.length === 0) return 0;
  const old = await rows<{ fileName: string }>(
    db,
    `select file_name as "fileName" from outbound_batches b
     where file_name = any(:stored) and state in ('acked', 'rejected', 'withdrawn')
       and coalesce(acked_at, sealed_at) <= :before
       and seq < (select max(seq) from outbound_batches n
                  where n.link = b.link and n.stream = b.stream and n.epoch = b.epoch)`,
    {
      stored,
      before: new Date(node.clock.now().getTime() - node.options.keepDays * DAY_MS),
    },
  );
  for (const { fileName } of old) await removeIfThere(join(node.folders.store, fileName));
  return old.length;
}

/**
 * Deletes the outbox rows of results some days after the batch that carried them was acknowledged:
 * the answers themselves are kept elsewhere. Rows of requests are needed to tell their status.
 */
export async function pruneOutbox(db: Database, node: Node): Promise<number> {
  const before = new Date(node.clock.now().getTime() - node.options.keepDays * DAY_MS);
  const deleted = await rows(
    db,
    `delete from outbox_records o using outbound_batches b
     where b.id = o.batch_id and b.stream in ('results', 'results.bulk', 'control')
       and b.state = 'acked' and b.acked_at <= ? returning o.position`,
    [before],
  );
  return deleted.length;
}

/**
 * Refuses to export from a database that is older than its own store, and removes what a killed
 * exporter left there of a number that it never sealed.
 * @throws SallyportError `store-ahead`.
 */
export async function requireStoreBehindDatabase(
  db: Database,
  node: Node,
  stream: StreamName,
): Promise<void> {
  const link = await findLink(db);
  const stored = (await readdir(node.folders.store)).flatMap((name) => {
    const parts = parseBatchName(name);
    return parts?.stream === stream && parts.from === node.name ? [{ name, ...parts }] : [];
  });
  const newest = stored.reduce(
    (top, { epoch, seq }) => (compareNumbers({ epoch, seq }, top) > 0 ? { epoch, seq } : top),
    { epoch: 0, seq: 0 },
  );
  if (newest.seq === 0 || !link) return;
  const [row] = await rows<{ digest: string | null; state: string }>(
    db,
    `select digest, state from outbound_batches
     where link = ? and stream = ? and epoch = ? and seq = ?`,
    [link.link, stream, newest.epoch, newest.seq],
  );
  for (const file of stored) {
    if (compareNumbers(file, newest) !== 0) continue;
    if (!row) throw olderThanStore(stream, file.name);
    if (row.state === 'building' || !row.digest?.startsWith(file.digest12)) {
      await removeIfThere(join(node.folders.store, file.name));
    }
  }
}

/** How the staged bodies of a stream are called while they are written. */
export function stagedPrefix(stream: StreamName): string {
  return `export-${stream}-`;
}

/** Removes what killed exporters of a stream left half written. Call it while holding the stream. */
export async function tidyUnsealed(node: Node, stream: StreamName): Promise<void> {
  const { staging, store, outbox } = node.folders;
  // A folder that cannot be listed is left to the step that needs it, and its better words.
  const list = (folder: string) => readdir(folder).catch((): string[] => []);
  for (const name of await list(staging)) {
    if (name.startsWith(stagedPrefix(stream))) await removeIfThere(join(staging, name));
  }
  for (const folder of [store, outbox]) {
    for (const name of await list(folder)) {
      const target = /^\.(.+\.batch)\.[0-9a-f-]+\.part$/.exec(name)?.[1];
      const ours = target !== undefined && parseBatchName(target)?.stream === stream;
      if (ours) await removeIfThere(join(folder, name));
    }
  }
}

type Numbered = { epoch: number; seq: number };

function compareNumbers(a: Numbered, b: Numbered): number {
  return a.epoch - b.epoch || a.seq - b.seq;
}

async function publishBatch(node: Node, batch: StoredBatch): Promise<void> {
  const source = join(node.folders.store, batch.fileName);
  const bytes = await stat(source).catch(() => undefined);
  if (!bytes) {
    throw new SallyportError(
      'store-bytes-missing',
      `Number ${batch.seq} of ${batch.stream} is sealed, but its bytes are gone from the store.`,
      {
        next: 'Restore the file from a backup of the store, or restore the database to before it.',
      },
    );
  }
  try {
    await writeFileDurably(
      join(node.folders.outbox, batch.fileName),
      { copyFrom: source },
      { mode: 0o644 },
    );
  } catch (cause) {
    throw new SallyportError(
      'outbox-unwritable',
      `${batch.fileName} cannot be published: ${(cause as Error).message}.`,
      {
        cause,
        next: 'Free space or mend the rights of the outbox; the batch is kept in the store.',
      },
    );
  }
}

function olderThanStore(stream: string, name: string): SallyportError {
  return new SallyportError(
    'store-ahead',
    `The store holds ${name}, which this database does not know: it is older than its store.`,
    { next: `Nothing of ${stream} is exported. Restore a newer backup of the database.` },
  );
}
