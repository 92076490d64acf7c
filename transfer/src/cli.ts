import { realpath } from 'node:fs/promises';
import { resolve } from 'node:path';
import {
  type Command,
  type CommandArguments,
  type CommandOutput,
  type Commands,
  EXIT,
  formatTable,
  runCommandLine,
  SallyportError,
} from '@sallyport/shared';
import { readHeaderLine } from './format/batch-file.js';
import { diffBatches } from './carrying/batch-diff.js';
import {
  type CarryEvent,
  type CarryOptions,
  carryOnce,
  describeTrouble,
  readCards,
  type Verdict,
  verifyBatch,
  watchFolders,
} from './carrying/carry.js';
import { readHeader, type Manifest } from './format/manifest.js';
import { mediaCommands } from './carrying/media-commands.js';
import { formatBytes, startProgress } from './carrying/progress.js';

const verify: Command = {
  usage: 'verify FILE… [--card CARD]',
  does:
    'Checks line 1, length and hash of batch files; with --card (a key card, or a folder of cards) ' +
    'also who signed them. Ends with 7 if any file is not in order.',
  positionals: [1, 100_000],
  values: ['card'],
  run: runVerify,
};

const inspect: Command = {
  usage: 'inspect FILE',
  does: 'Says in plain words what line 1 of a batch file states. It checks no signature.',
  positionals: [1, 1],
  run: runInspect,
};

const watch: Command = {
  usage: 'watch FROM TO [--once] [--interval MS] [--settle S] [--keep|--move] [--state FILE]',
  does:
    'Copies whole batch files from one folder (an outbox) to another (the far inbox) until it is ' +
    'stopped. --once makes one round; --interval sets the pause (1000 ms); --settle leaves files ' +
    'alone that were touched less than so many seconds ago (0); --keep, the default, leaves the ' +
    'source as it is, --move removes what was carried; --state remembers across restarts what ' +
    'was carried.',
  positionals: [2, 2],
  values: ['interval', 'settle', 'state'],
  switches: ['once', 'keep', 'move'],
  run: runWatch,
};

const diff: Command = {
  usage: 'diff A B',
  does:
    'Says in which fields of line 1 two batch files differ: numbers, times, counts of records, ' +
    'receipts. It checks no signature.',
  positionals: [2, 2],
  run: runDiff,
};

const COMMANDS: Commands = { verify, inspect, diff, ...mediaCommands, watch };

/** The carrier's tool: works with no server and no database. */
export async function runCarry(argv: string[] = process.argv.slice(2)): Promise<void> {
  await runCommandLine('sallyport-carry', COMMANDS, argv);
}

async function runVerify({ positionals, values, switches }: CommandArguments) {
  const cards = values['card'] === undefined ? undefined : await readCards(values['card']);
  const verdicts: Verdict[] = [];
  for (const file of positionals) {
    let stop = (): void => undefined;
    const verdict = await verifyBatch(file, cards, (total) => {
      const progress = startProgress(file, total, { quiet: switches.has('json') });
      stop = () => progress.stop();
      return (bytes) => progress.add(bytes);
    });
    stop();
    verdicts.push(verdict);
  }
  const ok = verdicts.every((verdict) => verdict.ok);
  const missing = verdicts.every((verdict) => verdict.ok || verdict.fault?.code === 'not-found');
  if (!ok) process.exitCode = missing ? EXIT.notFound : EXIT.integrity;
  const advice =
    cards === undefined
      ? '\nNo signature was checked against a trusted key; hand in the card of the sender: --card CARD.'
      : '';
  return { text: verdicts.map(verdictText).join('\n') + advice, data: { ok, files: verdicts } };
}

function verdictText({ file, ok, signature, header, notes, fault }: Verdict): string {
  const lines = [`${ok ? 'OK     ' : 'REFUSED'} ${file}`];
  if (header) {
    const { manifest, kid } = header;
    const { records, body } = manifest;
    const size = `${records} record(s), ${formatBytes(body.bytes)}`;
    const by =
      signature === 'valid' ? `signed by ${manifest.from} (${kid})` : 'signature not checked';
    lines.push(
      `        ${nameOf(manifest)} from ${manifest.from} to ${manifest.to}; ${size}; ${by}`,
    );
  }
  if (fault) lines.push(`        ${fault.code}: ${fault.message}`, `        ${fault.next ?? ''}`);
  for (const note of notes) lines.push(`        ${note.code}: ${note.message}`);
  return lines.join('\n');
}

async function runInspect({ positionals }: CommandArguments): Promise<CommandOutput> {
  const file = positionals[0] as string;
  const { line, size } = await readHeaderLine(file).catch((error: unknown) => {
    if (error instanceof SallyportError) throw error;
    throw new SallyportError('not-found', `${file} cannot be read.`, { cause: error });
  });
  const { manifest, digest, kid } = readHeader(line);
  const complete = size === line.length + 1 + manifest.body.bytes;
  return {
    text: manifestText(manifest, { digest, kid, complete }),
    data: { file, size, complete, digest, kid, signature: 'not checked', manifest },
  };
}

function manifestText(
  manifest: Manifest,
  { digest, kid, complete }: { digest: string; kid: string; complete: boolean },
): string {
  const { body, types, ack, tail } = manifest;
  const kinds = Object.entries(types).map(([type, count]) => `${count} ${type}`);
  const packing = [body.enc, body.crypt].filter((name) => name !== 'none').join(', then ');
  const lines = [
    `Batch      ${nameOf(manifest)}, ${manifest.kind}, from ${manifest.from} to ${manifest.to}`,
    `Link       ${manifest.link}`,
    `Made       ${manifest.createdAt} by ${manifest.by}, software ${manifest.build}`,
    `Import     ${manifest.notAfter ? `until ${manifest.notAfter}` : 'at any time'}`,
    `Records    ${manifest.records}${kinds.length > 0 ? ` (${kinds.join(', ')})` : ''}`,
    `Body       ${formatBytes(body.bytes)}, ${packing || 'plain'}; unpacked ${formatBytes(body.rawBytes)}`,
    `File       ${complete ? 'whole by its length' : 'NOT whole, or longer than stated'}`,
    `Digest     ${digest}`,
    `Follows    ${manifest.prev}`,
    `Signature  by key ${kid}, NOT checked here (use verify --card)`,
    `Receipts   number ${ack.no}`,
  ];
  for (const [stream, has] of Object.entries(ack.streams)) {
    const missing = has.missing.map(([first, last]) => `${first}–${last}`).join(', ');
    lines.push(
      `           ${stream}: has all up to ${has.contiguous}` +
        (missing ? `, misses ${missing}` : '') +
        (has.rejected.length > 0
          ? `, rejected ${has.rejected.map(({ seq }) => seq).join(', ')}`
          : ''),
    );
  }
  const newest = Object.entries(tail).map(([stream, { seq }]) => `${stream} ${seq}`);
  lines.push(`Newest     ${newest.join(', ') || 'nothing sealed before'}`);
  return lines.join('\n');
}

async function runDiff({ positionals }: CommandArguments): Promise<CommandOutput> {
  const [a, b] = positionals as [string, string];
  const found = await diffBatches(a, b).catch((error: unknown) => {
    if (error instanceof SallyportError) throw error;
    throw new SallyportError('not-found', `${a} or ${b} cannot be read.`, { cause: error });
  });
  if (found.same) return { text: 'Both are the same batch.', data: found };
  const show = (value: unknown) =>
    value === undefined ? '–' : typeof value === 'string' ? value : JSON.stringify(value);
  const lines = found.fields.map((entry) => [entry.field, show(entry.a), show(entry.b)]);
  return { text: formatTable(['FIELD', 'A', 'B'], lines), data: found };
}

function nameOf({ stream, epoch, seq }: Manifest): string {
  return `${stream} ${seq} (epoch ${epoch})`;
}

async function runWatch(args: CommandArguments): Promise<CommandOutput | undefined> {
  const [from, to] = args.positionals as [string, string];
  const json = args.switches.has('json');
  const intervalMs = Number(args.values['interval'] ?? '1000');
  if (!Number.isInteger(intervalMs) || intervalMs < 10 || intervalMs > 86_400_000) {
    throw new SallyportError(
      'usage',
      'The interval is not a number of 10 to 86400000 milliseconds.',
    );
  }
  if ((await placeOf(from)) === (await placeOf(to))) {
    throw new SallyportError('usage', `FROM and TO are the same folder, ${from}.`, {
      next: 'Name the folder to copy from first, then the one to copy to.',
    });
  }
  const carry = carryOptions(args);
  if (args.switches.has('once')) return carryRound(from, to, carry);
  const stop = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => stop.abort());
  await watchFolders(from, to, {
    intervalMs,
    signal: stop.signal,
    carry,
    ...(args.values['state'] === undefined ? {} : { stateFile: args.values['state'] }),
    onEvent: (event) => print(json ? JSON.stringify(event) : eventText(event)),
    onTrouble: (message) =>
      print(json ? JSON.stringify({ event: 'trouble', message }) : `trouble  ${message}`),
  });
  return undefined;
}

/** One name for a folder, however it is written; it may be missing still. */
async function placeOf(path: string): Promise<string> {
  return realpath(path).catch(() => resolve(path));
}

function carryOptions({ values, switches }: CommandArguments): CarryOptions {
  const settle = values['settle'] ?? '0';
  if (!/^[0-9]{1,5}$/.test(settle)) {
    throw new SallyportError('usage', 'The settle time is not a number of 0 to 99999 seconds.');
  }
  if (switches.has('keep') && switches.has('move')) {
    throw new SallyportError('usage', '--keep and --move exclude each other.');
  }
  return { settleMs: Number(settle) * 1_000, move: switches.has('move') };
}

async function carryRound(from: string, to: string, carry: CarryOptions): Promise<CommandOutput> {
  let events: CarryEvent[];
  try {
    events = await carryOnce(from, to, new Map(), carry);
  } catch (error) {
    if (error instanceof SallyportError) throw error;
    throw new Error(describeTrouble(error), { cause: error });
  }
  if (events.some(({ event }) => event === 'failed')) process.exitCode = EXIT.other;
  if (events.some(({ event }) => event === 'refused')) process.exitCode = EXIT.integrity;
  const carried = events.filter(({ event }) => event === 'carried').length;
  return {
    text: [...events.map(eventText), `${carried} file(s) carried.`].join('\n'),
    data: { carried, events },
  };
}

function eventText(event: CarryEvent): string {
  if (event.event === 'carried') return `carried  ${event.file}  ${formatBytes(event.bytes)}`;
  return `${event.event.padEnd(8)} ${event.file}  ${event.code}: ${event.message}`;
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
