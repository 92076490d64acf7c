import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { SallyportError, rows, type Database, type StreamName } from '@sallyport/shared';
import { parseBatchName } from '../format/batch-file.js';
import { removeIfThere, writeFileDurably } from '../format/durable-file.js';
import { findLink } from '../keys/links.js';
import type { Node } from '../node.js';

const DAY_MS = 86_400_000;

/** A sealed batch whose bytes are, or should be, in the store. */
export type StoredBatch = { id: string; fileName: string; stream: StreamName; seq: number };

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
      `update outbound_batches set state = 'ready', ready_at = :now, published_at = :now,
         publications = publications + 1, version = version + 1
       where id = :id and state = 'sealed'`,
      { now: node.clock.now(), id: batch.id },
    );
  }
  return sealed.length;
}

/**
 * Removes from the outbox folder what is closed, and over a one-way link what was published often and
 * long enough; not what was published again after its acknowledgement, and no other files.
 */
export async function tidyOutbox(db: Database, node: Node): Promise<number> {
  const published = (await readdir(node.folders.outbox)).filter((name) => name.endsWith('.batch'));
  if (published.length === 0) return 0;
  const done = await rows<{ fileName: string }>(
    db,
    `select file_name as "fileName" from outbound_batches
     where file_name = any(:published) and (
       state in ('rejected', 'withdrawn')
       or state = 'acked' and (published_at is null or published_at <= acked_at
         or published_at <= :before)
       or :oneWay and state in ('ready', 'handed_over') and sealed_at <= :before
         and published_at <= :before)`,
    {
      published,
      oneWay: node.options.oneWay,
      before: daysAgo(node, node.options.historyDays),
    },
  );
  for (const { fileName } of done) await removeIfThere(join(node.folders.outbox, fileName));
  return done.length;
}

/**
 * Deletes stored bytes some days after their number was closed, or over a one-way link, where nothing
 * ever is, after it was sealed; never the newest of a stream.
 */
export async function pruneStore(db: Database, node: Node): Promise<number> {
  const stored = (await readdir(node.folders.store)).filter((name) => name.endsWith('.batch'));
  if (stored.length === 0) return 0;
  const { keepDays, historyDays, oneWay } = node.options;
  const old = await rows<{ fileName: string }>(
    db,
    `select file_name as "fileName" from outbound_batches b
     where file_name = any(:stored) and (
       state in ('acked', 'rejected', 'withdrawn')
         and coalesce(closed_at, acked_at, sealed_at) <= :before
       or :oneWay and state in ('ready', 'handed_over') and sealed_at <= :before)
       and seq < (select max(seq) from outbound_batches n
                  where n.link = b.link and n.stream = b.stream and n.epoch = b.epoch)`,
    { stored, oneWay, before: daysAgo(node, oneWay ? Math.max(keepDays, historyDays) : keepDays) },
  );
  for (const { fileName } of old) await removeIfThere(join(node.folders.store, fileName));
  return old.length;
}

/**
 * Deletes the outbox rows of results some days after the batch that carried them was closed, or over
 * a one-way link sealed: the answers themselves are kept elsewhere. Rows of requests are needed to
 * tell their status.
 */
export async function pruneOutbox(db: Database, node: Node): Promise<number> {
  const { keepDays, oneWay } = node.options;
  const deleted = await rows(
    db,
    `delete from outbox_records o using outbound_batches b
     where b.id = o.batch_id and b.stream in ('results', 'results.bulk', 'control')
       and (b.state in ('acked', 'rejected', 'withdrawn')
         or :oneWay and b.state in ('ready', 'handed_over'))
       and coalesce(b.closed_at, b.acked_at, b.sealed_at) <= :before returning o.position`,
    { oneWay, before: daysAgo(node, keepDays) },
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
    // In the epochs before ours nothing is sealed any more, whoever knows what is there.
    const ours = parts?.stream === stream && parts.from === node.name;
    return ours && parts.epoch >= (link?.epoch ?? 1) ? [{ name, ...parts }] : [];
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

function daysAgo(node: Node, days: number): Date {
  return new Date(node.clock.now().getTime() - days * DAY_MS);
}

/**
 * Copies a stored batch into the outbox folder, under the same name, with the same bytes.
 * @throws SallyportError `outbox-unwritable`, `store-bytes-missing`.
 */
export async function publishBatch(node: Node, batch: StoredBatch): Promise<void> {
  const source = join(node.folders.store, batch.fileName);
  const bytes = await stat(source).catch(() => undefined);
  if (!bytes) {
    throw new SallyportError(
      'store-bytes-missing',
      `Number ${batch.seq} of ${batch.stream} is sealed, but its bytes are gone from the store.`,
      {
        next: `Restore the file from a backup of the store; if there is none, two people give the number up with write-off ${batch.stream} ${batch.seq} --reason TEXT.`,
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
    {
      next: `Nothing of ${stream} is exported. Restore a newer backup of the database, or run re-adopt.`,
    },
  );
}
