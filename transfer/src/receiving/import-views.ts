import { Type, type Static } from 'typebox';
import {
  STREAM_NAMES,
  Timestamp,
  Uuid,
  rows,
  type BatchCode,
  type Database,
} from '@sallyport/shared';
import { listFaults } from '../custody/batch-records.js';
import type { Upload } from './uploads.js';

const strict = { additionalProperties: false };
const nullable = <T extends Parameters<typeof Type.Union>[0][number]>(schema: T) =>
  Type.Union([schema, Type.Null()]);

/** A file that was sent, and what the importer said of it. */
export const ImportSchema = Type.Object(
  {
    id: Uuid,
    by: Type.String(),
    /** `receiving`: bytes are awaited; `received`: in the inbox; `judged`: see `verdict`. */
    state: Type.Unsafe<'receiving' | 'received' | 'judged'>({
      type: 'string',
      enum: ['receiving', 'received', 'judged'],
    }),
    received_bytes: Type.Integer(),
    total_bytes: nullable(Type.Integer()),
    sha256: nullable(Type.String()),
    verdict: nullable(
      Type.Object(
        {
          /** APPLIED, or the code that says why not. */
          outcome: Type.String(),
          sentence: nullable(Type.String()),
          next: nullable(Type.String()),
          stream: nullable(Type.Unsafe<string>({ type: 'string', enum: STREAM_NAMES })),
          seq: nullable(Type.Integer()),
          records: nullable(Type.Integer()),
        },
        strict,
      ),
    ),
    /** The batch it was, once it is known here, and the file in quarantine. */
    batch: nullable(Uuid),
    quarantine: nullable(Uuid),
    /** Lines that were refused alone, the first 100. */
    lines: Type.Array(
      Type.Object(
        {
          line: Type.Integer(),
          type: Type.String(),
          id: Uuid,
          code: Type.String(),
          detail: Type.String(),
        },
        strict,
      ),
    ),
    created_at: Timestamp,
    updated_at: Timestamp,
  },
  strict,
);
export type ImportView = Static<typeof ImportSchema>;

type Known = {
  id: string;
  state: string;
  code: BatchCode | null;
  stream: string;
  seq: number;
  records: number;
  applied_at: Date | null;
};

const MAX_LINES = 100;

/** What became of an uploaded file, by what is known of it now. */
export async function viewImport(db: Database, upload: Upload): Promise<ImportView> {
  const { digest, verdict } = upload;
  const [batch] =
    digest === null
      ? []
      : await rows<Known>(
          db,
          `select id, state, code, stream, seq, records, applied_at from inbound_batches
           where digest = ?`,
          [digest],
        );
  const [refused] = await rows<{ id: string }>(
    db,
    `select id from quarantine where digest = ? or file_name = ?
     order by created_at desc limit 1`,
    [upload.sha256, verdict?.file ?? ''],
  );
  const judged = upload.state === 'received' ? judge(upload, batch) : null;
  return {
    id: upload.id,
    by: upload.actor,
    state: judged ? 'judged' : upload.state,
    received_bytes: upload.received_bytes,
    total_bytes: upload.total_bytes,
    sha256: upload.sha256,
    verdict: judged,
    batch: judged && batch ? batch.id : null,
    quarantine: judged && refused ? refused.id : null,
    lines: judged && batch ? await listFaults(db, batch.id, MAX_LINES) : [],
    created_at: upload.created_at.toISOString(),
    updated_at: upload.updated_at.toISOString(),
  };
}

/** The word of the importer, but for what waited then and was applied since. */
function judge(upload: Upload, batch: Known | undefined): ImportView['verdict'] {
  const { verdict } = upload;
  const appliedSince =
    batch?.applied_at && (!verdict || verdict.outcome.startsWith('WAIT')) ? batch : undefined;
  if (appliedSince) {
    const { stream, seq, records, applied_at: at } = appliedSince;
    const before = at !== null && at < upload.created_at;
    const facts = { sentence: null, next: null, stream, seq };
    return before
      ? { ...facts, outcome: 'DUPLICATE', records: null }
      : { ...facts, outcome: 'APPLIED', records };
  }
  if (!verdict) return null;
  return {
    outcome: verdict.outcome,
    sentence: verdict.sentence ?? null,
    next: verdict.next ?? null,
    stream: verdict.stream ?? null,
    seq: verdict.seq ?? null,
    records: verdict.records ?? null,
  };
}
