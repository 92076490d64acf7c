import { setImmediate as breathe } from 'node:timers/promises';
import {
  SallyportError,
  compileSchema,
  parseJson,
  type ErrorDetail,
  type JsonLimits,
} from '@sallyport/shared';
import { SubmissionSchema, type BulkAnswer, type Submission } from './request-schemas.js';
import { MAX_BULK_LINES, type NewRequest } from './requests.js';
import type { Admitted } from './submissions.js';

export type BulkOptions = {
  limits: JsonLimits;
  lineBytes: number;
  /** Refuse all when one line is refused. */
  atomic: boolean;
  admit: (submission: Submission) => Admitted;
};

const LF = 0x0a;
const MAX_ERRORS = 20;
/** Lines between two pauses, so that others are answered meanwhile. */
const LINES_PER_TURN = 100;
const checkSubmission = compileSchema(SubmissionSchema);

/**
 * Reads and judges the lines of a bulk; pointers of errors start with the line's number from 1.
 * @throws SallyportError `too-many-lines`; `bulk-line-invalid` when a line is refused (atomic), or
 * every line is.
 */
export async function parseBulk(
  bytes: Uint8Array,
  { limits, lineBytes, atomic, admit }: BulkOptions,
): Promise<{ requests: NewRequest[]; answer: BulkAnswer }> {
  const lines = splitLines(bytes);
  const requests: NewRequest[] = [];
  const items: BulkAnswer['items'] = [];
  const errors: ErrorDetail[] = [];
  for (const [index, line] of lines.entries()) {
    if (index % LINES_PER_TURN === LINES_PER_TURN - 1) await breathe();
    const number = index + 1;
    try {
      if (line.length > lineBytes) throw lineTooLong(lineBytes, line.length);
      const { request } = admit(checkSubmission(parseJson(line, limits)));
      requests.push(request);
      items.push({ line: number, id: request.id, custom_id: request.customId, error: null });
    } catch (error) {
      if (!(error instanceof SallyportError)) throw error;
      const [detail] = atPointer(error, `/${number}`);
      errors.push(detail);
      items.push({ line: number, id: null, custom_id: null, error: detail });
      if (atomic && errors.length >= MAX_ERRORS) break;
    }
  }
  if (errors.length > 0 && (atomic || requests.length === 0)) throw refuse(errors);
  return {
    requests,
    answer: { accepted: requests.length, refused: errors.length, items },
  };
}

function splitLines(bytes: Uint8Array): Uint8Array[] {
  const lines: Uint8Array[] = [];
  for (let start = 0; start < bytes.length;) {
    const found = bytes.indexOf(LF, start);
    const end = found === -1 ? bytes.length : found;
    if (lines.length === MAX_BULK_LINES) {
      throw new SallyportError(
        'too-many-lines',
        `The body has more than ${MAX_BULK_LINES} lines.`,
        {
          next: 'Split it into several calls.',
        },
      );
    }
    lines.push(bytes.subarray(start, end));
    start = end + 1;
  }
  if (lines.length > 0) return lines;
  throw new SallyportError('bulk-line-invalid', 'The body has no lines.', {
    next: 'Send one JSON object per line.',
  });
}

function lineTooLong(limit: number, actual: number): SallyportError {
  const code = 'body-too-large';
  return new SallyportError(code, `The line has ${actual} bytes, at most ${limit} may be.`, {
    errors: [{ pointer: '', code, detail: 'is too long', limit, actual }],
  });
}

function atPointer(error: SallyportError, prefix: string): [ErrorDetail, ...ErrorDetail[]] {
  const { code, message } = error;
  // A detail is a part of a sentence; that of broken JSON is a whole one.
  const [first, ...rest] = error.errors.map((each) => ({
    ...each,
    pointer: `${prefix}${each.pointer}`,
    detail: withoutStop(each.detail),
  }));
  return [first ?? { pointer: prefix, code, detail: withoutStop(message) }, ...rest];
}

function withoutStop(sentence: string): string {
  return sentence.replace(/\.$/, '');
}

function refuse(errors: ErrorDetail[]): SallyportError {
  const [first] = errors;
  return new SallyportError(
    'bulk-line-invalid',
    `${errors.length} line(s) are refused, first at ${first?.pointer}: ${first?.detail}.`,
    { next: 'Nothing was stored; correct them and send it again.', errors },
  );
}
