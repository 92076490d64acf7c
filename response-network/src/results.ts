import { createHash } from 'node:crypto';
import {
  RESULT_TEXT_BYTES,
  rows,
  runPrepared,
  shorten,
  type Database,
  type Failure,
  type FinalStatus,
  type RecordData,
  type StreamName,
  type Transaction,
} from '@sallyport/shared';
import { CURRENT_LINK, OUTBOX_INSERT, recordLine, sendRecords } from '@sallyport/transfer';

/** How a request ended; `text` is the answer, exactly as Elasticsearch wrote it. */
export type Outcome = {
  requestId: string;
  status: FinalStatus;
  failure: Failure | null;
  text: string | null;
  datasetVersion: number | null;
  policyVersion: number | null;
  receivedAt: Date;
  startedAt: Date | null;
  finishedAt: Date;
  tookMs: number | null;
};

/** Whose outcome it is: of a lease, of a request nobody started, of a record that was no request. */
export type OutcomeOwner = { leaseToken: string } | 'unstarted' | 'unreadable';

type ResultData = RecordData<'result'>;
type StoredResult = Omit<ResultData, 'times'> & {
  request_id: string;
  received_at: Date;
  started_at: Date | null;
  finished_at: Date;
  took_ms: number | null;
  /** Set when its text was deleted for its age. */
  purged_at?: Date | null;
};

/** Parts of a result up to here travel with the results, larger ones in their own lane. */
const BULK_BYTES = 4 * 1024 * 1024;
/** A line of a batch is at most 1 MiB; this leaves room for the record around the text. */
const ESCAPED_BYTES = 1024 * 1024 - 4_096;
const PARTS_PER_STATEMENT = 8;
/** Between texts on their way to the database: JSON has no such character (RFC 8259, section 7). */
const SEPARATOR = '\x1e';
const RESENDS_PER_PAGE = 50;
const MAX_DETAIL = 1_000;

/**
 * Stores outcomes and sends their results in one statement (one transaction where a result has
 * parts). What its owner no longer holds is left alone: a request is answered once. An outcome that
 * cannot be sent is stored as `failed` with the code `result-unsendable`; the others are untouched.
 * @returns the ids that were stored.
 */
export async function storeOutcomes(
  db: Database,
  outcomes: Outcome[],
  owner: OutcomeOwner,
): Promise<string[]> {
  const packed = outcomes.map(packSendable);
  const whole = packed.filter(({ parts }) => parts.length === 0);
  const stored = whole.length === 0 ? [] : await storePacked(db, whole, owner);
  for (const one of packed.filter(({ parts }) => parts.length > 0)) {
    stored.push(...(await db.transaction((tx) => storeWithParts(tx, one, owner))));
  }
  return stored;
}

/** Sends stored results again, those of the ids that have one. */
export async function resendResults(tx: Transaction, ids: string[], now: Date): Promise<void> {
  for (let from = 0; from < ids.length; from += RESENDS_PER_PAGE) {
    const found = await rows<StoredResult>(
      tx,
      `select request_id, status, failure, media_type, bytes, sha256, parts, text,
         dataset_version, policy_version, received_at, started_at, finished_at, took_ms, purged_at
       from results where request_id = any(?::uuid[])`,
      [ids.slice(from, from + RESENDS_PER_PAGE)],
    );
    for (const result of found.map(withoutPurged)) {
      const id = result.request_id;
      await sendRecords(tx, 'results', [{ type: 'result', id, data: toRecord(result) }], now);
      for (let part = 0; part < result.parts; part += 1) {
        const [stored] = await rows<{ text: string }>(
          tx,
          'select text from result_parts where request_id = ? and part = ?',
          [id, part],
        );
        const data = { index: part, text: stored?.text ?? '' };
        const stream = streamOfParts(result.bytes ?? 0);
        await sendRecords(tx, stream, [{ type: 'result.part', id, data }], now);
      }
    }
  }
}

/**
 * Cuts a text into pieces of at most 768 KiB, whose JSON form fits a line, on character boundaries.
 */
export function cutText(text: string): string[] {
  const bytes = Buffer.from(text);
  const pieces: string[] = [];
  let from = 0;
  while (from < bytes.length) {
    let length = Math.min(RESULT_TEXT_BYTES, bytes.length - from);
    for (;;) {
      const end = characterBoundary(bytes, from + length);
      const piece = bytes.toString('utf8', from, end);
      if (Buffer.byteLength(JSON.stringify(piece)) <= ESCAPED_BYTES) {
        pieces.push(piece);
        from = end;
        break;
      }
      length = Math.floor((end - from) / 2);
    }
  }
  return pieces;
}

type Packed = { row: StoredResult; parts: string[]; line: string };

function packSendable(outcome: Outcome): Packed {
  try {
    return pack(outcome);
  } catch (error) {
    const detail = shorten((error as Error).message, MAX_DETAIL);
    const failure = { class: 'internal' as const, code: 'result-unsendable', detail };
    return pack({ ...outcome, status: 'failed', failure, text: null, tookMs: null });
  }
}

function pack(outcome: Outcome): Packed {
  const { text, finishedAt } = outcome;
  const bytes = text === null ? null : Buffer.byteLength(text);
  const fits =
    text === null ||
    (text.length <= RESULT_TEXT_BYTES / 2 && (bytes ?? 0) <= RESULT_TEXT_BYTES / 2);
  const pieces = fits ? [] : cutText(text);
  const parts = pieces.length > 1 ? pieces : [];
  const row: StoredResult = {
    request_id: outcome.requestId,
    status: outcome.status,
    failure: outcome.failure,
    media_type: text === null ? null : 'application/json',
    bytes,
    sha256: text === null ? null : createHash('sha256').update(text).digest('hex'),
    parts: parts.length,
    text: parts.length > 0 ? null : text,
    disclosure: null,
    dataset_version: outcome.datasetVersion,
    policy_version: outcome.policyVersion,
    received_at: outcome.receivedAt,
    started_at: outcome.startedAt,
    finished_at: finishedAt,
    took_ms: outcome.tookMs,
  };
  const id = row.request_id;
  return { row, parts, line: recordLine({ type: 'result', id, data: toRecord(row) }, finishedAt) };
}

/** What is told of an answer whose text is gone: whoever asks again must ask anew. */
function withoutPurged(result: StoredResult): StoredResult {
  if (!result.purged_at) return result;
  const detail = 'The answer was kept as long as the settings say, and has been deleted.';
  return {
    ...result,
    status: 'failed',
    failure: { class: 'internal', code: 'result-purged', detail },
    ...{ media_type: null, bytes: null, sha256: null, parts: 0, text: null },
  };
}

function toRecord(row: StoredResult): ResultData {
  return {
    status: row.status,
    failure: row.failure,
    media_type: row.media_type,
    bytes: row.bytes,
    sha256: row.sha256,
    parts: row.parts,
    text: row.text,
    disclosure: null,
    dataset_version: row.dataset_version,
    policy_version: row.policy_version,
    times: {
      received_at: row.received_at.toISOString(),
      started_at: row.started_at?.toISOString() ?? null,
      finished_at: row.finished_at.toISOString(),
      took_ms: row.took_ms,
    },
  };
}

async function storeWithParts(
  tx: Transaction,
  packed: Packed,
  owner: OutcomeOwner,
): Promise<string[]> {
  const stored = await storePacked(tx, [packed], owner);
  if (stored.length === 0) return stored;
  const { row, parts } = packed;
  const id = row.request_id;
  const stream = streamOfParts(row.bytes ?? 0);
  for (let from = 0; from < parts.length; from += PARTS_PER_STATEMENT) {
    const some = parts.slice(from, from + PARTS_PER_STATEMENT);
    await rows(
      tx,
      `insert into result_parts (request_id, part, text)
       select ?, n - 1 + ?, text from unnest(?::text[]) with ordinality as p (text, n)`,
      [id, from, some],
    );
    const records = some.map((text, n) => ({
      type: 'result.part' as const,
      id,
      data: { index: from + n, text },
    }));
    await sendRecords(tx, stream, records, row.finished_at);
  }
  return stored;
}

async function storePacked(db: Database, packed: Packed[], owner: OutcomeOwner): Promise<string[]> {
  // Three texts instead of arrays: escaping the elements of an array costs more than the statement.
  const stored = await runPrepared<{ request_id: string }>(db, STORE, [
    typeof owner === 'object' ? owner.leaseToken : null,
    owner === 'unreadable',
    JSON.stringify(packed.map(({ row: { text: _text, ...scalars } }) => scalars)),
    packed.map(({ row }) => row.text ?? '').join(SEPARATOR),
    packed.map(({ line }) => line).join('\n'),
  ]);
  return stored.map((row) => row.request_id);
}

function streamOfParts(bytes: number): StreamName {
  return bytes > BULK_BYTES ? 'results.bulk' : 'results';
}

// Bytes of the form 10xxxxxx continue a character (RFC 3629).
function characterBoundary(bytes: Buffer, end: number): number {
  let boundary = end;
  while (boundary < bytes.length && ((bytes[boundary] ?? 0) & 0xc0) === 0x80) boundary -= 1;
  return boundary;
}

const STORE = {
  name: 'store-outcomes',
  text: `
with ended as (
  select e.*, nullif(t.text, '') as text, l.line
  from rows from (
    json_to_recordset($3::json) as (request_id uuid, status text, failure jsonb, media_type text,
      bytes bigint, sha256 text, parts integer, dataset_version integer, policy_version integer,
      received_at timestamptz, started_at timestamptz, finished_at timestamptz, took_ms integer)
  ) with ordinality as e (request_id, status, failure, media_type, bytes, sha256, parts,
    dataset_version, policy_version, received_at, started_at, finished_at, took_ms, n)
  left join string_to_table($4::text, e'\\x1e') with ordinality as t (text, n) using (n)
  join string_to_table($5::text, e'\\n') with ordinality as l (line, n) using (n)
), released as (
  update requests r set state = 'done', finished_at = e.finished_at, version = r.version + 1,
    lease_token = null, lease_until = null
  from ended e
  where r.id = e.request_id and not $2::boolean and case
    when $1::uuid is null then r.state = 'received'
    else r.state = 'running' and r.lease_token = $1 end
  returning r.id
), owned as (
  select id from released
  union all
  select e.request_id from ended e
  where $2 and not exists (select 1 from requests r where r.id = e.request_id)
), stored as (
  insert into results (request_id, status, failure, media_type, bytes, sha256, parts, text,
    dataset_version, policy_version, received_at, started_at, finished_at, took_ms)
  select e.request_id, e.status, e.failure, e.media_type, e.bytes, e.sha256, e.parts, e.text,
    e.dataset_version, e.policy_version, e.received_at, e.started_at, e.finished_at, e.took_ms
  from ended e join owned o on o.id = e.request_id
  on conflict (request_id) do nothing
  returning request_id
), sent as (
  ${OUTBOX_INSERT}
  select ${CURRENT_LINK}, 'results', 'result', e.request_id, e.line
  from ended e join stored using (request_id) order by e.n
)
select request_id from stored`,
};
