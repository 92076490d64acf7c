import type { Death, Fault } from './life.js';

export type Side = 'red' | 'blue';

/** The folder that stands for a medium, beside red's outbox. */
export const MEDIUM = 'medium';

/** Where a world lies; red is the request network, blue the response network. */
export type WorldPlace = Record<Side, { root: string; url: string }>;

/** One thing that a node does; `twice` does it in two at once. */
export type Step =
  | { do: 'send'; side: Side; stream: DrillStream; records: SentRecord[]; commit: boolean }
  | { do: 'export'; side: Side; stream: DrillStream | 'control'; twice: boolean }
  | { do: 'import'; side: Side; twice: boolean }
  | { do: 'snapshot' }
  /** Between red's outbox and blue's inbox. */
  | { do: 'write-medium' }
  | { do: 'read-medium' }
  | { do: 'tidy'; side: Side };

export type DrillStream = 'requests' | 'requests.urgent' | 'results' | 'settings';

/** A record by what the model must know; `key` names a setting, `version` counts its changes. */
export type SentRecord = { id: string; key: string; version: number; padding: number };

/** What became of one step. */
export type StepReport = {
  /** Refused as a whole: the error's code, whether it is one of ours, and its sentence. */
  errors: { code: string; ours: boolean; sentence: string }[];
  /** Of an import: each file's outcome. */
  files: { file: string; outcome: string; sentence: string | undefined }[];
  /** Where the armed fault struck, if it did. */
  struck: string | null;
  /** Names of the points passed in this life. */
  names: string[];
};

export type Order =
  | {
      order: 'open';
      place: WorldPlace;
      now: string;
      seed: number;
      followUnsynced: boolean;
      sabotage: string | null;
      /** Whether bodies are encrypted. */
      encrypt: boolean;
    }
  | { order: 'arm'; fault: Fault | null }
  | { order: 'step'; step: Step; now: string }
  | { order: 'close' };

export type Answer =
  { answer: 'done' } | { answer: 'report'; report: StepReport } | { answer: 'died'; death: Death };
