import cliProgress from 'cli-progress';

/** Tells how far a long step has come: a bar on a terminal, lines elsewhere. */
export type Progress = {
  add(bytes: number): void;
  stop(): void;
};

/** Below this size a step is over before anybody could read about it. */
const WORTH_TELLING_BYTES = 64 * 1024 * 1024;
const LINES = 4;

/** Starts to tell about a step of so many bytes on standard error; `quiet` tells nothing. */
export function startProgress(
  name: string,
  totalBytes: number,
  options: { quiet?: boolean } = {},
): Progress {
  if (options.quiet || totalBytes < WORTH_TELLING_BYTES) return { add: () => {}, stop: () => {} };
  return process.stderr.isTTY ? showBar(name, totalBytes) : writeLines(name, totalBytes);
}

function showBar(name: string, totalBytes: number): Progress {
  const bar = new cliProgress.SingleBar({
    format: '{bar} {percentage} % of {size}, {eta_formatted} left  {name}',
    stream: process.stderr,
    hideCursor: true,
    clearOnComplete: true,
  });
  bar.start(totalBytes, 0, { name, size: formatBytes(totalBytes) });
  return { add: (bytes) => bar.increment(bytes), stop: () => bar.stop() };
}

function writeLines(name: string, totalBytes: number): Progress {
  const startedAt = performance.now();
  let done = 0;
  let told = 0;
  return {
    add(bytes) {
      done += bytes;
      const reached = Math.floor((done / totalBytes) * LINES);
      if (reached <= told) return;
      told = reached;
      const size = `${formatBytes(done)} of ${formatBytes(totalBytes)}`;
      const passedMs = performance.now() - startedAt;
      const leftS = Math.ceil((passedMs * (totalBytes - done)) / done / 1_000);
      process.stderr.write(`${name}: ${size}, ${Math.max(0, leftS)} s left\n`);
    },
    stop: () => {},
  };
}

/** A size as people read it: `1.4 MiB`. */
export function formatBytes(bytes: number): string {
  const units = ['bytes', 'KiB', 'MiB', 'GiB'];
  const step = Math.min(units.length - 1, bytes < 1 ? 0 : Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** step;
  return `${step === 0 ? value : value.toFixed(1)} ${units[step]}`;
}
