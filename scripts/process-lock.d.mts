export type ProcessRecord = { pid: number; stamp: string };

export function withLock<T>(
  file: string,
  work: () => T | Promise<T>,
  options?: { onWait?: (pid: number) => void; limitMs?: number },
): Promise<T>;

export function isAlive(record: ProcessRecord): boolean;

export function processStamp(pid: number): string | undefined;
