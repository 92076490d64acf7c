import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { from as copyFrom } from 'pg-copy-streams';
import { SallyportError, rows, withConnection, type Transaction } from '@sallyport/shared';
import {
  readRecords,
  type IncomingRecord,
  type PlainBody,
  type StatedRecords,
} from '../format/records.js';

// No record has these two bytes unquoted, so that COPY needs no escapes where JSON has many.
const QUOTE = '\u0001';
const DELIMITER = '\u0002';

/** The opened body of one batch, and what its manifest states of it. */
export type StagedBody = { batchId: string; plain: PlainBody; stated: StatedRecords };

/**
 * Reads and checks the records of opened bodies into the temporary table `incoming` of this
 * transaction, from which the apply functions work. Memory stays flat whatever the size.
 * @throws SallyportError as {@link readRecords} does, and DUPLICATE_ID_CONFLICT when one record comes
 * twice with different content; the same content twice is kept once.
 */
export async function stageRecords(tx: Transaction, bodies: StagedBody[]): Promise<void> {
  // Made once for each connection, emptied with each transaction.
  await tx.raw(
    `create temporary table if not exists incoming (
       line integer not null, t text not null, id uuid not null, v integer not null,
       at timestamptz not null, d jsonb not null, text text, code text, detail text,
       batch_id uuid not null
     ) on commit delete rows`,
  );
  let bad = 0;
  await withConnection(tx, async (connection) => {
    const copy = connection.query(
      copyFrom(
        `copy incoming (line, t, id, v, at, d, text, code, detail, batch_id)
         from stdin (format csv, quote e'\\x01', delimiter e'\\x02')`,
      ),
    );
    const lines = encode(bodies, (group) => {
      for (const record of group) if (record.bad) bad += 1;
    });
    await pipeline(Readable.from(lines), copy);
  });
  await refuseConflicts(tx);
  if (bad > 0) await tx.raw(NOTE_FAULTS);
}

/** For those who ask what became of each line. */
const NOTE_FAULTS = `
insert into inbound_faults (batch_id, line, type, record_id, code, detail)
select batch_id, line, t, id, code, coalesce(detail, '') from incoming where code is not null
on conflict do nothing`;

async function* encode(
  bodies: StagedBody[],
  look: (group: IncomingRecord[]) => void,
): AsyncGenerator<Buffer> {
  for (const { batchId, plain, stated } of bodies) {
    for await (const group of readRecords(plain, stated)) {
      look(group);
      yield encodeGroup(group, batchId);
    }
  }
}

function encodeGroup(group: IncomingRecord[], batchId: string): Buffer {
  let lines = '';
  for (const { line, t, id, v, at, d, text, bad } of group) {
    const values = [String(line), t, id, String(v), at, JSON.stringify(d)];
    lines += `${values.join(DELIMITER)}${DELIMITER}${quote(text)}${DELIMITER}`;
    lines += `${quote(bad?.code ?? null)}${DELIMITER}${quote(bad?.detail ?? null)}`;
    lines += `${DELIMITER}${batchId}\n`;
  }
  return Buffer.from(lines);
}

/** Nothing between two delimiters is null; what is quoted is taken as it is. */
function quote(text: string | null): string {
  return text === null ? '' : `${QUOTE}${text.replaceAll(QUOTE, QUOTE + QUOTE)}${QUOTE}`;
}

async function refuseConflicts(tx: Transaction): Promise<void> {
  const [repeated] = await rows(
    tx,
    'select 1 from incoming group by t, id having count(*) > 1 limit 1',
  );
  if (!repeated) return;
  const [conflict] = await rows<{ t: string; id: string; line: number }>(
    tx,
    `select t, id, max(line) as line from incoming
     group by t, id, ${VERSION} having count(distinct (d, text)) > 1 limit 1`,
  );
  if (conflict) {
    throw new SallyportError(
      'DUPLICATE_ID_CONFLICT',
      `Line ${conflict.line} repeats ${conflict.t} ${conflict.id} with other content.`,
      { next: 'Tell the sender: the batch was signed as it is.' },
    );
  }
  await tx.raw(
    `delete from incoming where ctid not in (
       select min(ctid) from incoming group by t, id, ${VERSION})`,
  );
}

// What tells two records of one entity apart: its version, a part's index, a credential's counters.
const VERSION = `d->>'version', d->>'index', d->>'generation', d->>'counter', d->>'profile_version'`;
