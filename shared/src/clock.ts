/** Where time comes from; tests hand in their own. The database clock is read by the limiter only. */
export type Clock = { now(): Date };

/** The clock of this machine. */
export const systemClock: Clock = { now: () => new Date() };
