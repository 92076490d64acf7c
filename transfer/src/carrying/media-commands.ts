import {
  type Command,
  type CommandArguments,
  type CommandOutput,
  type Commands,
  EXIT,
  formatTable,
  printable,
  SallyportError,
} from '@sallyport/shared';
import type { Carrier } from './carrier.js';
import { readCards } from './carry.js';
import { readCarryPlaces } from './carry-config.js';
import { unlockBy } from '../keys/key-files.js';
import { loadKeys } from '../keys/keys.js';
import { digestGroups } from './media-index.js';
import { readMedia, type ReadMediumReport, type ReadReport } from './media-read.js';
import type { SetState } from './media-sets.js';
import { mediaStatus, type PlaceStatus, type StatusReport } from './media-status.js';
import type { WrittenMedium } from './fill-medium.js';
import { writeMedia, type WriteReport } from './media-write.js';
import { paperSlip } from './paper-slip.js';
import { formatBytes, startProgress } from './progress.js';
import type { FileFault } from './ready-batches.js';

/** More names than that are counted, not listed. */
const SHOWN = 50;
const MOST_MEDIA = 100;

const write: Command = {
  usage:
    'write MEDIUM… [--from OUTBOX] [--key FOLDER] [--card CARD] [--carrier NAME] [--set-size N] ' +
    '[--hand-over] [--print] [--state FOLDER]',
  does:
    'Writes the batches of an outbox onto mounted media, what matters most first, spread over all ' +
    'that are named, and reads every byte back before it says SAFE TO REMOVE. --key signs the ' +
    'INDEX with the keys of a node; --set-size says how many media the set has when they are ' +
    'plugged in one after the other; --hand-over notes that the carrier has it now; --print prints ' +
    'the slip.',
  positionals: [1, MOST_MEDIA],
  values: ['from', 'key', 'card', 'carrier', 'set-size', 'state'],
  switches: ['hand-over', 'print'],
  run: runWrite,
};

const read: Command = {
  usage:
    'read MEDIUM… [--into INBOX] [--card CARD] [--clear] [--again] [--carrier NAME] [--state FOLDER]',
  does:
    'Copies the batches of media, in any order, into an inbox and says what of their sets is ' +
    'missing. --card (a key card, or a folder of cards) takes only what its node signed; --clear ' +
    'removes from the medium what lies proven in the inbox; --again copies what was read before.',
  positionals: [1, MOST_MEDIA],
  values: ['into', 'card', 'carrier', 'state'],
  switches: ['clear', 'again'],
  run: runRead,
};

const status: Command = {
  usage: 'status [MEDIUM|FOLDER…] [--verify] [--card CARD] [--state FOLDER]',
  does:
    'Says what lies on media and in folders, what of their sets is missing, and which media are ' +
    'bad. --verify reads every byte past the page cache. It changes nothing.',
  positionals: [0, MOST_MEDIA],
  values: ['card', 'state'],
  switches: ['verify'],
  run: runStatus,
};

/** The commands of `sallyport-carry` that deal with media. */
export const mediaCommands: Commands = { write, read, status };

async function runWrite(args: CommandArguments): Promise<CommandOutput> {
  const { positionals, values, switches } = args;
  const places = readCarryPlaces();
  const from = values['from'] ?? places.outbox;
  if (from === undefined) throw missing('--from OUTBOX', 'OUTBOX_DIR');
  const { stop, start } = progressOf('write and read back', switches);
  const setSize = readSetSize(values['set-size']);
  const report = await writeMedia({
    from,
    roots: positionals,
    carrier: carrierOf(args),
    ...(values['key'] === undefined
      ? {}
      : { keys: await loadKeys(values['key'], unlockBy(undefined)) }),
    ...(await cardsOf(values['card'])),
    ...(setSize === undefined ? {} : { setSize }),
    handOver: switches.has('hand-over'),
    startProgress: start,
  }).finally(stop);
  const exitCode = exitOfWrite(report);
  const { set, ...rest } = report;
  return {
    text: writeText(report, switches.has('print')),
    data: { set: set ?? null, ...rest },
    ...(exitCode === EXIT.ok ? {} : { exitCode }),
  };
}

function exitOfWrite({ media, left, refused }: WriteReport): number {
  const codes = media.flatMap(({ fault }) => fault?.code ?? []);
  if (refused.length > 0 || codes.includes('read-back-differs')) return EXIT.integrity;
  const done = media.every(({ state }) => state === 'safe') && left.length === 0;
  return done ? EXIT.ok : EXIT.other;
}

function writeText(report: WriteReport, print: boolean): string {
  const { set, media, toDo, left, waiting, refused, notes } = report;
  if (media.length === 0) {
    return [...faultLines('waits', waiting), ...faultLines('refused', refused)]
      .concat('Nothing is ready to be written.')
      .join('\n');
  }
  const lines = [];
  if (set) {
    lines.push(`Set ${set.id} from ${set.from} to ${set.to}`, 'SHA-256 of the INDEX:');
    lines.push(...digestGroups(set.sha256).map((groups) => `  ${groups}`));
  }
  for (const medium of media) lines.push('', ...mediumLines(medium));
  if (left.length > 0) {
    const bytes = left.reduce((sum, batch) => sum + batch.bytes, 0);
    lines.push('', `NOT WRITTEN: ${left.length} batch(es), ${formatBytes(bytes)}:`);
    lines.push(...shown(left.map(({ name, bytes: size }) => `${name}  ${formatBytes(size)}`)));
    if (media.every(({ fault }) => !fault)) {
      lines.push('Full: plug in more media and name them all, or use --set-size.');
    }
  }
  for (const { id, label, files } of toDo) {
    lines.push('', `NEXT: ${label ?? 'a further medium'} (${id}), ${files} batch(es); repeat the`);
    lines.push('command with it.');
  }
  lines.push(...faultLines('waits', waiting), ...faultLines('refused', refused));
  lines.push(...notes.map((note) => `note: ${printable(note)}`));
  if (print && set) {
    for (const medium of media.filter(({ state }) => state !== 'not-safe')) {
      lines.push('', paperSlip({ index: set.index, sha256: set.sha256, medium }));
    }
  }
  return lines.join('\n');
}

function mediumLines(medium: WrittenMedium): string[] {
  const { root, id, label, state, way, files, copied, there, foreign, fault } = medium;
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  const lines = [
    `${root}  medium ${id}${label === undefined ? '' : ` (${printable(label)})`}`,
    `  ${files.length} batch(es), ${formatBytes(bytes)}: ${copied} copied, ${there} there before`,
  ];
  if (foreign.length > 0) {
    lines.push(`  ${foreign.length} foreign, left alone: ${namesOf(foreign)}`);
  }
  if (fault) {
    lines.push(`  ${fault.code}: ${printable(fault.message)}`);
    if (fault.next !== null) lines.push(`  ${fault.next}`);
  }
  return [...lines, `  ${verdictOf(state, way)}`];
}

function verdictOf(state: WrittenMedium['state'], way: WrittenMedium['way']): string {
  if (state === 'not-safe') return 'NOT SAFE: do not carry this medium.';
  if (state === 'unproven') {
    return (
      'NOT PROVEN: this system cannot read past its memory. Unmount the medium, mount it again ' +
      'and run: sallyport-carry status MEDIUM --verify'
    );
  }
  if (way === 'direct') return 'SAFE TO REMOVE: every byte was read back from the medium.';
  return (
    'SAFE TO REMOVE: every byte was read back after the system was asked to forget its copy ' +
    '(it refuses to read past it).'
  );
}

async function runRead(args: CommandArguments): Promise<CommandOutput> {
  const { positionals, values, switches } = args;
  const places = readCarryPlaces();
  const into = values['into'] ?? places.inbox;
  if (into === undefined) throw missing('--into INBOX', 'INBOX_DIR');
  const { stop, start } = progressOf('read', switches);
  const report = await readMedia({
    roots: positionals,
    into,
    ...(places.outbox === undefined ? {} : { outbox: places.outbox }),
    carrier: carrierOf(args),
    ...(await cardsOf(values['card'])),
    clear: switches.has('clear'),
    again: switches.has('again'),
    startProgress: start,
  }).finally(stop);
  const damaged = report.media.some(({ faults, lost }) => faults.length + lost.length > 0);
  const failed = report.media.some(({ failure }) => failure !== undefined);
  const empty = report.media.some((medium) => medium.empty);
  const exitCode = damaged
    ? EXIT.integrity
    : failed
      ? EXIT.other
      : empty
        ? EXIT.notFound
        : undefined;
  // What is only remembered may have been lost since.
  const complete = report.sets.every(
    ({ missing, remembered }) => missing.length + remembered === 0,
  );
  return {
    text: readText(report),
    data: { complete: complete && !damaged && !failed && !empty, ...report },
    ...(exitCode === undefined ? {} : { exitCode }),
  };
}

function readText({ media, sets, notes }: ReadReport): string {
  const lines = [...media.flatMap(readLines), ...setsLines(sets, media)];
  return [...lines, ...notes.map((note) => `note: ${printable(note)}`)].join('\n');
}

function readLines(medium: ReadMediumReport): string[] {
  if (medium.empty) {
    return [`${medium.root}  Nothing of Sallyport lies here. Is it the right folder, and mounted?`];
  }
  const { root, id, label, copied, there, before, cleared, unlisted, lost } = medium;
  const lines = [
    `${root}  medium ${id ?? 'without a mark'}${label === undefined ? '' : ` (${printable(label)})`}`,
    `  ${copied.length} batch(es) copied, ${there.length} in the inbox already, ` +
      `${before.length} read before${cleared.length > 0 ? `, ${cleared.length} removed from the medium` : ''}`,
  ];
  if (unlisted.length > 0)
    lines.push(`  ${unlisted.length} that no INDEX names (good by themselves)`);
  if (medium.foreign.length > 0) {
    lines.push(`  ${medium.foreign.length} foreign, left alone: ${namesOf(medium.foreign)}`);
  }
  lines.push(...shown(lost).map((name) => `  MISSING here, though the INDEX names it: ${name}`));
  lines.push(...faultLines('REFUSED', medium.faults));
  if (medium.failure) {
    lines.push(`  ${medium.failure.code}: ${printable(medium.failure.message)}`);
    if (medium.failure.next !== null) lines.push(`  ${medium.failure.next}`);
  }
  return lines;
}

function setsLines(sets: readonly SetState[], near: readonly { id?: string }[]): string[] {
  const plugged = new Set(near.flatMap(({ id }) => id ?? []));
  return sets.flatMap((state) => setLines(state, plugged));
}

/** What of a set is here; `plugged` are the media that need not be brought. */
function setLines(state: SetState, plugged: ReadonlySet<string>): string[] {
  const { set, from, to, madeAt, signer, sha256, files, remembered, missing } = state;
  const here = files - missing.length - remembered;
  const lines = [
    `Set ${set} from ${from} to ${to}, made ${madeAt}`,
    `  INDEX signed by ${printable(signer)}; its SHA-256:`,
    ...digestGroups(sha256).map((groups) => `    ${groups}`),
    `  ${here} of ${files} batch(es) are here${here === files ? ': complete' : ''}` +
      (remembered === 0 ? '' : `, ${remembered} not, but read in the last hours`),
  ];
  for (const [id, names] of byMedium(missing)) {
    const label = missing.find((file) => file.medium === id)?.label;
    const which = label === undefined ? '' : ` (${printable(label)})`;
    const what = plugged.has(id)
      ? `NOT TAKEN from medium ${id}${which}, for the reasons above`
      : `BRING medium ${id}${which}`;
    lines.push(`  ${what}: ${names.length} batch(es)`);
    lines.push(...shown(names).map((name) => `  ${name}`));
  }
  return lines;
}

function byMedium(missing: SetState['missing']): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const { medium, name } of missing) {
    found.set(medium, [...(found.get(medium) ?? []), name]);
  }
  return found;
}

async function runStatus(args: CommandArguments): Promise<CommandOutput> {
  const { positionals, values, switches } = args;
  const { stop, start } = progressOf('verify', switches);
  const report = await mediaStatus({
    paths: positionals,
    carrier: carrierOf(args),
    ...(await cardsOf(values['card'])),
    verify: switches.has('verify'),
    startProgress: start,
  }).finally(stop);
  const sound = report.places.every(({ faults, bad }) => faults.length === 0 && !bad);
  return {
    text: statusText(report) || 'Nothing is remembered here; name a medium or a folder.',
    data: report,
    ...(sound ? {} : { exitCode: EXIT.integrity }),
  };
}

function statusText({ places, sets, bad, toDo }: StatusReport): string {
  const lines = [...places.flatMap(placeLines), ...setsLines(sets, places)];
  for (const { medium, at, file } of bad) {
    lines.push(
      `BAD medium ${printable(medium)}: gave back other bytes of ${printable(file)} at ${at}`,
    );
  }
  for (const { set, outbox, media } of toDo) {
    lines.push(`Set ${set} of ${printable(outbox)}: still to be written`);
    for (const { id, label, files } of media) {
      lines.push(`  ${label ?? 'medium'} (${id}), ${files} batch(es)`);
    }
  }
  return lines.join('\n');
}

function placeLines(place: PlaceStatus): string[] {
  const { path, kind, id, label, bad, freeBytes, batches, bytes, foreign, parts, way } = place;
  const mark =
    id === undefined ? '' : ` ${id}${label === undefined ? '' : ` (${printable(label)})`}`;
  const lines = [
    `${path}  ${kind}${mark}${bad ? '  BAD: do not use it' : ''}`,
    `  ${batches} batch(es), ${formatBytes(bytes)}; ${formatBytes(freeBytes)} free`,
  ];
  const streams = Object.entries(place.byStream);
  if (streams.length > 0) {
    const rows = streams.map(([stream, sum]) => [
      `  ${stream}`,
      String(sum.batches),
      `${sum.first} to ${sum.last}`,
      formatBytes(sum.bytes),
    ]);
    lines.push(formatTable(['  STREAM', 'BATCHES', 'NUMBERS', 'SIZE'], rows));
  }
  if (parts > 0) lines.push(`  ${parts} rest(s) of copies that were cut off`);
  if (foreign.length > 0) lines.push(`  ${foreign.length} foreign: ${namesOf(foreign)}`);
  lines.push(...faultLines('waits', place.waiting), ...faultLines('REFUSED', place.faults));
  if (way !== undefined && place.faults.length === 0) {
    lines.push(
      way === 'cached'
        ? '  every byte is right, but perhaps only in memory: unmount and mount it first'
        : '  every byte is right',
    );
  }
  return lines;
}

function faultLines(word: string, faults: readonly FileFault[]): string[] {
  return shown(
    faults.map(
      ({ file, code, message }) => `${word} ${printable(file)}: ${code}: ${printable(message)}`,
    ),
  );
}

function namesOf(names: readonly string[]): string {
  const first = names.slice(0, SHOWN).map(printable).join(', ');
  return names.length > SHOWN ? `${first} and ${names.length - SHOWN} more` : first;
}

function shown(lines: readonly string[]): string[] {
  const first = lines.slice(0, SHOWN).map((line) => `  ${printable(line)}`);
  return lines.length > SHOWN ? [...first, `  and ${lines.length - SHOWN} more`] : first;
}

function carrierOf({ values }: CommandArguments): Carrier {
  const { carrier } = readCarryPlaces();
  const name = values['carrier'] ?? carrier.name;
  if (name === '' || name.length > 100 || printable(name) !== name) {
    throw new SallyportError('usage', "The carrier's name is not 1 to 100 printable characters.");
  }
  return { name, folder: values['state'] ?? carrier.folder };
}

async function cardsOf(path: string | undefined) {
  return path === undefined ? {} : { cards: await readCards(path) };
}

function readSetSize(value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  if (/^[1-9][0-9]{0,2}$/.test(value)) return Number(value);
  throw new SallyportError('usage', `--set-size is ${JSON.stringify(value)}, expected 1 to 100.`);
}

function progressOf(name: string, switches: ReadonlySet<string>) {
  let stop = (): void => undefined;
  return {
    stop: () => stop(),
    start: (totalBytes: number) => {
      stop();
      const progress = startProgress(name, totalBytes, { quiet: switches.has('json') });
      stop = () => progress.stop();
      return (bytes: number) => progress.add(bytes);
    },
  };
}

function missing(option: string, variable: string): SallyportError {
  return new SallyportError('usage', `Which folder? ${option} is missing.`, {
    next: `Give ${option}, or set ${variable}.`,
  });
}
