import type { StreamName, Transaction } from '@sallyport/shared';

/** A batch of ours that the far side will not apply, and the code that says why. */
export type LostBatch = {
  id: string;
  stream: StreamName;
  epoch: number;
  seq: number;
  /** WITHDRAWN, OLD_EPOCH, or the far side's refusal. */
  code: string;
};

/**
 * What a network knows of the records that it sends; the transfer knows only their lines. All is
 * called in the transaction that closes the batches, while their records are still bound to them.
 */
export type NetworkRules = {
  /**
   * Readies what the records of lost batches stand for to leave again; `inTime` lets only those leave
   * whose own deadline has not passed.
   * @returns the positions in the outbox of those that shall not leave again.
   */
  beforeRequeue?(
    tx: Transaction,
    batchIds: string[],
    options: { now: Date; inTime: boolean },
  ): Promise<number[]>;
  /** Ends what the records that stay with a refused batch stand for: nobody will apply them. */
  failRecords?(tx: Transaction, lost: LostBatch, now: Date): Promise<void>;
  /**
   * Readies what the far side keeps a copy of to be sent as snapshots, after the database was restored
   * from a backup and has begun a new epoch: what was forgotten must not outrank it there.
   */
  afterRestore?(tx: Transaction, restored: { epoch: number; now: Date }): Promise<void>;
};
