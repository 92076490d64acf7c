import {
  BATCH_JSON_CODES,
  RECORD_TYPES,
  SallyportError,
  compileSchema,
  scanJson,
  type JsonLimits,
  type RecordType,
} from '@sallyport/shared';
import { BATCH_LIMITS } from './manifest.js';

/** Bounds of one line of a batch (docs/reference/batch-format.md). */
export const MAX_LINE_BYTES = BATCH_LIMITS.lineBytes;
export const LINE_LIMITS: JsonLimits = {
  depth: 32,
  keys: MAX_LINE_BYTES,
  keysPerObject: 256,
  stringLength: MAX_LINE_BYTES,
  arrayLength: MAX_LINE_BYTES,
  safeNumbers: true,
  negativeZero: false,
  nul: false,
  codes: BATCH_JSON_CODES,
};

const checks = Object.fromEntries(
  Object.entries(RECORD_TYPES).map(([type, { schema }]) => [type, compileSchema(schema)]),
) as Record<RecordType, (value: unknown) => unknown>;

/**
 * Checks the `d` of a record against the schema of its type, on the way out and on the way in.
 * @throws SallyportError naming the first mistake.
 */
export function checkRecordData(type: RecordType, data: unknown): void {
  checks[type](data);
}

/**
 * Checks that the far side's scan will accept a line that we are about to send.
 * @throws SallyportError `record-invalid`.
 */
export function checkRecordLine(type: RecordType, line: string): void {
  const bytes = Buffer.from(line);
  try {
    scanJson(bytes, LINE_LIMITS);
  } catch (cause) {
    throw unsendable(type, (cause as Error).message, cause);
  }
  if (bytes.length > MAX_LINE_BYTES) {
    throw unsendable(
      type,
      `its line has ${bytes.length} bytes, at most ${MAX_LINE_BYTES} may cross`,
    );
  }
}

/** The refusal of a record before it waits: nothing that cannot leave is ever stored. */
export function unsendable(type: RecordType, found: string, cause?: unknown): SallyportError {
  return new SallyportError('record-invalid', `A ${type} record cannot leave: ${found}`, { cause });
}
