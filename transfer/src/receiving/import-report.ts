import { SallyportError, batchCodeKind, type BatchCode, type StreamName } from '@sallyport/shared';
import type { Candidate } from './candidate.js';

/** What became of one file: applied, or the code that says why not. */
export type FileReport = {
  file: string;
  outcome: 'APPLIED' | 'FAILED' | BatchCode;
  sentence?: string;
  next?: string | null;
  stream?: StreamName;
  seq?: number;
  records?: number;
};

export type ImportReport = {
  applied: number;
  records: number;
  duplicates: number;
  waiting: number;
  quarantined: number;
  failed: number;
  /** Names in the inbox that are none of ours: listed, never opened. */
  foreign: string[];
  files: FileReport[];
  /** The streams that something was applied of. */
  streams: StreamName[];
};

/** A failure with a batch code: a refusal, a wait or an alarm. */
export type BatchError = SallyportError & { code: BatchCode };

/** A report of nothing yet. */
export function emptyReport(): ImportReport {
  return {
    ...{ applied: 0, records: 0, duplicates: 0, waiting: 0, quarantined: 0, failed: 0 },
    ...{ foreign: [], files: [], streams: [] },
  };
}

/** Adds what became of one file. */
export function note(report: ImportReport, file: FileReport): void {
  report.files.push(file);
  const { outcome, stream } = file;
  if (outcome === 'FAILED') report.failed += 1;
  else if (outcome === 'DUPLICATE') report.duplicates += 1;
  else if (outcome !== 'APPLIED') {
    if (batchCodeKind(outcome) === 'wait') report.waiting += 1;
    else report.quarantined += 1;
  } else {
    report.applied += 1;
    report.records += file.records ?? 0;
    if (stream && !report.streams.includes(stream)) report.streams.push(stream);
  }
}

/** Whether the failure says what is wrong with a file. */
export function isBatchError(error: unknown): error is BatchError {
  return error instanceof SallyportError && /^[A-Z][A-Z0-9_]*$/.test(error.code);
}

/** A failure as a report tells it. */
export function describe(
  error: BatchError,
  candidate: Candidate | undefined,
): Omit<FileReport, 'file'> & { outcome: BatchCode } {
  const { code, message, next } = error;
  return { outcome: code, sentence: message, next: next ?? null, ...place(candidate) };
}

/** The stream and number of a file, where its line 1 was verified. */
export function place(candidate: Candidate | undefined): { stream?: StreamName; seq?: number } {
  if (!candidate) return {};
  return { stream: candidate.manifest.stream, seq: candidate.manifest.seq };
}
