import {
  EXIT,
  SallyportError,
  formatTable,
  type CommandArguments,
  type CommandOutput,
  type Commands,
  type Database,
} from '@sallyport/shared';
import { askWriteOff } from '../custody/approvals.js';
import {
  auditCommand,
  describeAsked,
  personOf,
  readNumber,
  reasonOf,
  type OpenedNode,
  type UseNode,
} from './decision-commands.js';
import { listFrozen } from '../receiving/freezes.js';
import { readGapCode } from '../format/gap-code.js';
import {
  readGapCodes,
  readLinkStatus,
  type LinkStatus,
  type ReceivingStatus,
  type SendingStatus,
} from '../custody/link-status.js';
import { findLink } from '../keys/links.js';
import { rangesText, toRanges, type Range } from '../format/ranges.js';
import { requireOwnStream, resendNumbers, type Resent } from '../sending/resend.js';

// With # a column shows the newest such number, without a count.
const SENDING = [
  'SENDING',
  'RECORDS WAITING',
  'SEALED #',
  'HANDED OVER #',
  'ACKED #',
  'BATCHES OPEN',
];
const RECEIVING = [
  'RECEIVING',
  'COMPLETE TO #',
  'NEWEST #',
  'MISSING',
  'BATCHES WAITING',
  'FROZEN',
];

/** The commands that show what is missing on either side, and that heal it. */
export function healingCommands(use: UseNode): Commands {
  return {
    link: {
      usage: 'link',
      does: 'Shows what has left, what has arrived and what is missing, on both sides.',
      run: () => use(showLink),
    },
    'link gaps': {
      usage: 'link gaps',
      does: 'Lists what is missing here, with a short code per stream to read to the sender.',
      run: () => use(showGapCodes),
    },
    resend: {
      usage: 'resend STREAM [FROM[-TO]] | resend --code CODE',
      does:
        'Publishes numbers again, the same bytes: those named, those of a code that link gaps shows ' +
        'on the far side, or those that the far side is known to miss.',
      positionals: [0, 2],
      values: ['code'],
      run: (args) => use((opened) => resend(opened, args)),
    },
    'write-off': {
      usage: 'write-off STREAM NUMBER --reason TEXT [--as LOGIN]',
      does:
        'Asks to give a sealed number up for good; once a second person approves, its records leave ' +
        'again under another number.',
      positionals: [2, 2],
      values: ['reason', 'as'],
      run: (args) => use((opened) => writeOff(opened, args)),
    },
  };
}

async function writeOff(opened: OpenedNode, args: CommandArguments): Promise<CommandOutput> {
  const { db, node } = opened;
  const [name = '', number] = args.positionals;
  const [seq, reason] = [readNumber(number), reasonOf(args)];
  const stream = requireOwnStream(node, name);
  const by = await personOf(opened, args);
  const asked = await askWriteOff(db, node, { stream, seq, reason, by });
  const said = describeAsked(asked);
  const stays = 'Its bytes stay in the store whatever is decided; only its file leaves the outbox.';
  return { ...said, text: `${said.text}\n${stays}` };
}

async function showLink({ db, node }: OpenedNode): Promise<CommandOutput> {
  const status = await readLinkStatus(db, node);
  if (!status.link) {
    return { text: 'No far side is trusted yet; bring its card and run keys trust.', data: status };
  }
  const sending = status.sending.map((one) =>
    [one.stream, one.waiting, one.sealed, one.handed_over, one.acked, one.open].map(String),
  );
  const receiving = status.receiving.map((one) =>
    [one.stream, one.contiguous, one.newest, one.missing, one.waiting, one.frozen_code ?? ''].map(
      String,
    ),
  );
  const text = [
    `link ${status.link.link} with ${status.link.farNode}; we send in epoch ${status.link.epoch}, they in ${status.link.farEpoch}`,
    formatTable(SENDING, sending),
    ...describeLost(status.sending),
    ...(await describeStopped(db)),
    formatTable(RECEIVING, receiving),
    ...describeGaps(status.receiving),
    describeFiles(status),
  ].join('\n\n');
  return { text, data: status };
}

/** What the far side misses, and what a person has to do about it. */
function describeLost(sending: SendingStatus[]): string[] {
  const lines = sending.flatMap(({ stream, missing, gone, owes_snapshot: owes }) => [
    ...(missing.length > 0 ? [`${stream}: the far side misses ${rangesText(missing)}`] : []),
    ...(gone.length > 0
      ? [
          `${stream}: the bytes of ${rangesText(gone)} are gone from the store; restore them, or give a number up with write-off ${stream} ${gone[0]?.[0] ?? ''} --reason TEXT`,
        ]
      : []),
    ...(owes
      ? [`${stream}: the far side needs a snapshot (${owes}); the next export makes it`]
      : []),
  ]);
  return lines.length > 0 ? [lines.join('\n')] : [];
}

/** What lies in the inbox or in quarantine, and whether anything can be taken at all. */
function describeFiles({ link, inbox, far_key: key, quarantined }: LinkStatus): string {
  return [
    ...(key
      ? []
      : [
          `No valid key of ${link?.farNode ?? 'the far side'} is known: nothing is sealed or taken until keys trust with its new card.`,
        ]),
    ...inbox.map(({ code, files }) => `${files} file(s) wait in the inbox: ${code}`),
    `${quarantined} file(s) in quarantine`,
  ].join('\n');
}

/** The streams that may not be sealed until a person decides. */
async function describeStopped(db: Database): Promise<string[]> {
  const { streams } = await listFrozen(db);
  const lines = streams
    .filter(({ direction }) => direction === 'out')
    .map(({ stream, code }) => `${stream}: ${code}, nothing is sealed; link frozen shows why`);
  return lines.length > 0 ? [lines.join('\n')] : [];
}

function describeGaps(receiving: ReceivingStatus[]): string[] {
  const lines = receiving
    .filter(({ gaps }) => gaps.length > 0)
    .map(({ stream, gaps }) => `${stream}: ${rangesText(gaps)} missing here`);
  return lines.length > 0 ? [lines.join('\n')] : [];
}

async function showGapCodes({ db, node }: OpenedNode): Promise<CommandOutput> {
  const codes = await readGapCodes(db, node);
  if (codes.length === 0) return { text: 'Nothing is missing here.', data: codes };
  const lines = codes.map(({ stream, ranges, code }) => [stream, rangesText(ranges), code]);
  const text = `${formatTable(['STREAM', 'MISSING', 'CODE'], lines)}\nOn the far side: resend --code CODE`;
  return { text, data: codes };
}

async function resend(
  { db, node }: OpenedNode,
  { positionals: [stream, numbers], values: { code } }: CommandArguments,
): Promise<CommandOutput> {
  if ((stream === undefined) === (code === undefined)) {
    throw new SallyportError('usage', 'Either a stream or a code is needed.', {
      next: 'resend STREAM, resend STREAM 7-9, or resend --code CODE.',
    });
  }
  const wanted =
    code === undefined
      ? { stream: stream ?? '', ranges: readRange(numbers) }
      : await readCode({ db, node }, code);
  const resent = await resendNumbers(db, node, wanted);
  const { stream: subject, published, gone } = resent;
  if (published.length + gone.length > 0) {
    const details = { published: toRanges(published), gone: toRanges(gone) };
    await auditCommand({ db, node }, { action: 'batch.resend', subject, details });
  }
  return describeResent(resent);
}

function describeResent(resent: Resent): CommandOutput {
  const { stream, published, gone } = resent;
  const lines: string[] = [];
  if (published.length > 0) {
    lines.push(`${stream}: ${rangesText(toRanges(published))} in the outbox again`);
  }
  if (gone.length > 0) {
    lines.push(`${stream}: the bytes of ${rangesText(toRanges(gone))} are gone from the store`);
  }
  if (lines.length === 0) lines.push(`As far as it has told, the far side misses no ${stream}.`);
  return {
    text: lines.join('\n'),
    data: resent,
    exitCode: gone.length > 0 ? EXIT.integrity : EXIT.ok,
  };
}

async function readCode(
  { db, node }: Pick<OpenedNode, 'db' | 'node'>,
  code: string,
): Promise<{ stream: string; ranges: Range[] }> {
  const link = await findLink(db);
  const gaps = readGapCode(link?.link ?? '', node.role, code);
  if (gaps.epoch === link?.epoch) return gaps;
  throw new SallyportError(
    'gap-code-wrong',
    `The code is about epoch ${gaps.epoch}; this network is in epoch ${link?.epoch ?? 0}.`,
    { next: 'Send control first: resend control 1. The far side cannot know our epoch yet.' },
  );
}

function readRange(text: string | undefined): Range[] | 'missing' {
  if (text === undefined) return 'missing';
  const [, first, last = first] = /^(\d{1,15})(?:-(\d{1,15}))?$/.exec(text) ?? [];
  const range: Range = [Number(first), Number(last)];
  if (first !== undefined && range[0] >= 1 && range[0] <= range[1]) return [range];
  throw new SallyportError('usage', `"${text}" is no number and no range of numbers.`, {
    next: 'Write 7 or 7-12.',
  });
}
