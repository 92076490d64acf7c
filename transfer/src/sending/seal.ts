import { createReadStream } from 'node:fs';
import { join } from 'node:path';
import type { Knex } from 'knex';
import type { Client } from 'pg';
import { to as copyTo } from 'pg-copy-streams';
import { STREAMS, rows, type Database, type StreamName, type Transaction } from '@sallyport/shared';
import { tellAuditHead } from '../custody/audit-heads.js';
import { makeAck, makeTail } from '../receiving/acks.js';
import { batchName } from '../format/batch-file.js';
import { writeBody, type Body } from '../format/body.js';
import { noteCustody } from '../custody/custody.js';
import { removeIfThere, requireFree, writeFileDurably } from '../format/durable-file.js';
import { findRecipient, type Link } from '../keys/links.js';
import { ZERO_DIGEST, signManifest, type Manifest } from '../format/manifest.js';
import type { Node } from '../node.js';
import { stagedPrefix } from './store.js';

const DAY_MS = 86_400_000;

/** A number that is being built: its records are bound, nothing of it is visible. */
export type Building = {
  id: string;
  link: string;
  stream: StreamName;
  epoch: number;
  seq: number;
  kind: 'delta' | 'snapshot' | 'heartbeat';
  token: string;
  records: number;
  /** Of its lines, before compression. */
  rawBytes: number;
  types: Record<string, number>;
};

/**
 * Writes, signs, stores, and seals one number.
 * @returns false when somebody else took the number over meanwhile.
 */
export async function sealBatch(
  db: Database,
  node: Node,
  link: Link,
  building: Building,
): Promise<boolean> {
  const startedAt = Date.now();
  const bodyPath = join(node.folders.staging, `${stagedPrefix(building.stream)}${building.token}`);
  try {
    // Bounds what compression and encryption can make of it, twice: staged, and in the store.
    await requireFree(node.folders.store, 2 * building.rawBytes + node.options.reserveBytes);
    const body = await writeRecords(db, node, building, bodyPath);
    const { manifest, ackVersion } = await describeBatch(db, node, link, building, body);
    const signed = await signManifest(manifest, node.keys);
    const name = batchName(manifest, signed.digest);
    await writeFileDurably(join(node.folders.store, name), wholeFile(signed.line, bodyPath), {
      token: building.token,
    });
    const sealed = await db.transaction((tx) =>
      markSealed(tx, building, {
        digest: signed.digest,
        prev: manifest.prev,
        name,
        fileBytes: signed.line.length + 1 + body.bytes,
        rawBytes: body.rawBytes,
        no: manifest.ack.no,
        ackVersion,
        who: node.account,
        now: node.clock.now(),
      }),
    );
    if (!sealed) {
      await removeIfThere(join(node.folders.store, name));
      return false;
    }
    node.log.info(
      { batch: name, records: building.records, bytes: body.bytes, ms: Date.now() - startedAt },
      'batch sealed',
    );
    return true;
  } finally {
    await removeIfThere(bodyPath);
  }
}

async function* wholeFile(line: Buffer, bodyPath: string): AsyncGenerator<Buffer> {
  yield Buffer.concat([line, Buffer.from('\n')]);
  yield* createReadStream(bodyPath, { highWaterMark: 1 << 20 }) as AsyncIterable<Buffer>;
}

async function writeRecords(
  db: Database,
  node: Node,
  building: Building,
  path: string,
): Promise<Body> {
  const always = STREAMS[building.stream].alwaysEncrypted;
  const crypt = always ? 'age' : node.options.crypt(building.stream);
  const { escrow } = node.options;
  const recipients =
    crypt === 'none'
      ? []
      : [await findRecipient(db, building.link), ...(escrow === undefined ? [] : [escrow])];
  return writeBody(() => readLines(db, building), { path, enc: 'gzip', crypt, recipients });
}

/** The lines of a batch as they stand in the outbox, in order: bytes of JSONL. */
async function* readLines(db: Database, building: Building): AsyncGenerator<Buffer> {
  if (building.records === 0) return;
  const pool = db.client as Pick<Knex.Client, 'acquireConnection' | 'releaseConnection'>;
  const connection = (await pool.acquireConnection()) as Client & { __knex__disposed?: unknown };
  // JSON text has no control characters, so with these two as quote and delimiter COPY writes
  // every line exactly as it is.
  const copy = connection.query(
    copyTo(
      `copy (select line from outbox_records
             where batch_id = '${building.id}' and batch_line is not null order by batch_line)
       to stdout (format csv, quote e'\\x01', delimiter e'\\x02')`,
    ),
  );
  try {
    for await (const chunk of copy) yield chunk as Buffer;
  } finally {
    if (!copy.readableEnded) {
      // A connection in the middle of a COPY is of no use to anybody: the pool must not keep it.
      connection.__knex__disposed = new Error('its COPY was cut off');
      await connection.end().catch(() => undefined);
    }
    await pool.releaseConnection(connection);
  }
}

async function describeBatch(
  db: Database,
  node: Node,
  link: Link,
  building: Building,
  body: Body,
): Promise<{ manifest: Manifest; ackVersion: number }> {
  // One transaction under the link's row lock: a higher `no` never tells less than a lower one.
  return db.transaction(async (tx) => {
    const [counter] = await rows<{ no: number; ackVersion: number }>(
      tx,
      `update links set manifest_no = manifest_no + 1 where link = ?
       returning manifest_no as no, ack_version as "ackVersion"`,
      [link.link],
    );
    if (!counter) throw new Error(`link ${link.link} vanished`);
    const now = node.clock.now();
    const manifest: Manifest = {
      fmt: 'sallyport-batch',
      v: 1,
      link: link.link,
      from: node.name,
      to: link.farNode,
      stream: building.stream,
      epoch: building.epoch,
      seq: building.seq,
      prev: await readPrevious(tx, building),
      kind: building.records === 0 && building.kind === 'delta' ? 'heartbeat' : building.kind,
      createdAt: now.toISOString(),
      ...(STREAMS[building.stream].expires && {
        notAfter: new Date(now.getTime() + node.options.notAfterDays * DAY_MS).toISOString(),
      }),
      records: building.records,
      types: building.types,
      body: {
        bytes: body.bytes,
        sha256: body.sha256,
        enc: body.enc,
        rawBytes: body.rawBytes,
        crypt: body.crypt,
      },
      ack: await makeAck(tx, link.link, counter.no),
      tail: await makeTail(tx, link.link),
      auditHead: await tellAuditHead(tx, { link: link.link, no: counter.no, now }),
      by: node.account,
      build: node.build,
    };
    return { manifest, ackVersion: counter.ackVersion };
  });
}

async function readPrevious(tx: Transaction, building: Building): Promise<string> {
  if (building.seq === 1) return ZERO_DIGEST;
  const [before] = await rows<{ digest: string | null }>(
    tx,
    'select digest from outbound_batches where link = ? and stream = ? and epoch = ? and seq = ?',
    [building.link, building.stream, building.epoch, building.seq - 1],
  );
  if (before?.digest) return before.digest;
  throw new Error(`number ${building.seq - 1} of ${building.stream} was never sealed`);
}

async function markSealed(
  tx: Transaction,
  building: Building,
  facts: {
    digest: string;
    prev: string;
    name: string;
    fileBytes: number;
    rawBytes: number;
    no: number;
    ackVersion: number;
    who: string;
    now: Date;
  },
): Promise<boolean> {
  const sealed = await rows(
    tx,
    `update outbound_batches
     set state = 'sealed', digest = :digest, prev = :prev, file_name = :name,
         file_bytes = :fileBytes, raw_bytes = :rawBytes, manifest_no = :no,
         ack_version = :ackVersion, sealed_at = :now, version = version + 1
     where id = :id and state = 'building' and build_token = :token
     returning id`,
    { ...facts, id: building.id, token: building.token },
  );
  if (sealed.length === 0) return false;
  const { stream, epoch, seq } = building;
  if (stream !== 'control') {
    // The manifest itself tells the far side of this step.
    const { digest, who, now: at } = facts;
    await noteCustody(tx, [{ stream, epoch, seq, digest, step: 'sealed', who, at }], at);
  }
  await tx.raw(`select pg_notify('sallyport_sealed', ?)`, [building.stream]);
  return true;
}
