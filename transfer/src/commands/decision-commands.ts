import { lstat } from 'node:fs/promises';
import { join } from 'node:path';
import {
  EXIT,
  SallyportError,
  STREAM_NAMES,
  appendAudit,
  batchCodeKind,
  formatTable,
  printable,
  type AuditEntry,
  type CommandArguments,
  type CommandOutput,
  type Commands,
  type Database,
} from '@sallyport/shared';
import {
  askApproval,
  askRelease,
  decideApproval,
  describeAct,
  listApprovals,
  numberSubject,
  type Approval,
} from '../custody/approvals.js';
import {
  findInboundStream,
  listFrozen,
  requireOpenNumber,
  unfreezeStream,
  type FrozenStream,
} from '../receiving/freezes.js';
import type { FileReport, ImportReport } from '../receiving/import.js';
import { findLink } from '../keys/links.js';
import type { Node } from '../node.js';
import { commandLineActor } from '../open-node.js';
import { identifyPerson } from '../custody/people.js';
import {
  findQuarantined,
  keptPath,
  listQuarantine,
  readQuarantined,
  rejectQuarantined,
  type QuarantineDetails,
} from '../receiving/quarantine.js';
import { tidyOutbox } from '../sending/store.js';

/** What these commands work with; `importAll` imports what lies ready, without a word in the log. */
export type OpenedNode = {
  db: Database;
  node: Node;
  importAll(): Promise<ImportReport>;
  /** Who acts without --as: that of the operating system, unless set. */
  account?: string;
};
/** Opens the network for a command and closes it whatever happens. */
export type UseNode = (
  use: (opened: OpenedNode) => Promise<CommandOutput>,
) => Promise<CommandOutput>;

const MAX_REASON = 500;
const WRITTEN_OFF =
  'Its file leaves the outbox; its bytes stay in the store for transfer.keep_days, and the far side is told with the next batch.';

/** The commands by which people decide: on quarantined files, frozen streams, and what needs two. */
export function decisionCommands(use: UseNode): Commands {
  return { ...quarantineCommands(use), ...approvalCommands(use), ...freezeCommands(use) };
}

/** Who acts: `--as LOGIN`, or the account of the operating system. */
export function personOf(
  { db, node, account }: OpenedNode,
  { values }: CommandArguments,
): Promise<string> {
  return identifyPerson(db, { as: values['as'], network: node.role, account });
}

/** Notes in the audit log what somebody did at the command line that no other entry tells. */
export async function auditCommand(
  { db, node }: Pick<OpenedNode, 'db' | 'node'>,
  entry: Pick<AuditEntry, 'action' | 'subject' | 'details'>,
): Promise<void> {
  const [at, actor] = [node.clock.now(), commandLineActor()];
  await db.transaction((tx) => appendAudit(tx, { at, actor, ...entry }));
}

/**
 * Why somebody acts: the option `--reason`, 1 to 500 characters.
 * @throws SallyportError `usage`.
 */
export function reasonOf({ values }: CommandArguments): string {
  const reason = values['reason']?.trim() ?? '';
  if (reason.length > 0 && reason.length <= MAX_REASON) return reason;
  throw new SallyportError('usage', `--reason takes 1 to ${MAX_REASON} characters.`, {
    next: 'Say in a sentence why; it is kept in the audit log.',
  });
}

/**
 * A positive whole number that a person typed.
 * @throws SallyportError `usage`.
 */
export function readNumber(text: string | undefined): number {
  const number = Number(text);
  if (/^\d{1,16}$/.test(text ?? '') && Number.isSafeInteger(number) && number > 0) return number;
  throw new SallyportError('usage', `"${text ?? ''}" is no number of a batch: 1 or more.`);
}

/** What is said after an act was asked for that a second person must approve. */
export function describeAsked(approval: Approval & { fresh: boolean }): CommandOutput {
  const text = approval.fresh
    ? `Asked, as ${approval.id}. A second person now runs: approvals approve ${approval.id}`
    : `Asked already by ${approval.asked_by}, as ${approval.id}; it waits for a second person.`;
  return { text: printable(text), data: approval };
}

function quarantineCommands(use: UseNode): Commands {
  return {
    'quarantine ls': {
      usage: 'quarantine ls [--code CODE] [--stream STREAM] [--all]',
      does: 'Lists the files that were refused and why; with --all, those decided on too.',
      values: ['code', 'stream'],
      switches: ['all'],
      run: ({ values, switches }) =>
        use(async ({ db }) => {
          const { code, stream } = values;
          const found = await listQuarantine(db, {
            ...(code !== undefined && { code }),
            ...(stream !== undefined && { stream }),
            all: switches.has('all'),
          });
          const lines = found.map((one) => [
            one.id,
            one.created_at.toISOString(),
            one.report.code,
            one.file_name,
            one.decision ?? (one.release_approval ? 'release approved' : 'undecided'),
            one.report.sentence,
          ]);
          const heading = ['ID', 'WHEN', 'CODE', 'FILE', 'DECISION', 'WHY'];
          return { text: formatTable(heading, lines), data: found };
        }),
    },
    'quarantine show': {
      usage: 'quarantine show ID',
      does: 'Shows all that is known of a refused file, never its content.',
      positionals: [1, 1],
      run: ({ positionals }) =>
        use(async ({ db, node }) => {
          const details = await readQuarantined(db, node, positionals[0] ?? '');
          return { text: describeQuarantined(node, details), data: details };
        }),
    },
    'quarantine release': {
      usage: 'quarantine release ID --reason TEXT [--as LOGIN]',
      does: 'Asks to import a refused file after all; a second person approves, nothing is skipped.',
      positionals: [1, 1],
      values: ['reason', 'as'],
      run: (args) =>
        use(async (opened) => {
          const { db, node } = opened;
          const [id = '', reason] = [args.positionals[0], reasonOf(args)];
          const by = await personOf(opened, args);
          const asked = await askRelease(db, node, { id, reason, by });
          return describeAsked(asked);
        }),
    },
    'quarantine reject': {
      usage: 'quarantine reject ID --reason TEXT [--as LOGIN]',
      does: 'Rejects a refused file for good: its bytes are deleted, its report is kept.',
      positionals: [1, 1],
      values: ['reason', 'as'],
      run: (args) =>
        use(async (opened) => {
          const { db, node } = opened;
          const [id = '', reason] = [args.positionals[0], reasonOf(args)];
          await findQuarantined(db, id);
          const by = await personOf(opened, args);
          const file = await rejectQuarantined(db, node, { id, reason, by });
          const text = `${file.file_name} is rejected; its bytes are deleted, its report stays.`;
          const withdrawn = file.declined.map(
            (ask) => `The release asked for as ${ask} is declined.`,
          );
          return { text: [printable(text), ...withdrawn].join('\n'), data: file };
        }),
    },
  };
}

function approvalCommands(use: UseNode): Commands {
  return {
    'approvals ls': {
      usage: 'approvals ls [--all]',
      does: 'Lists what waits for a second person; with --all, what was decided too.',
      switches: ['all'],
      run: ({ switches }) =>
        use(async ({ db }) => {
          const found = await listApprovals(db, { all: switches.has('all') });
          const lines = found.map((one) => [
            one.id,
            one.asked_at.toISOString(),
            one.asked_by,
            ...describeAct(one),
            one.decision ? `${one.decision} by ${one.decided_by ?? ''}` : 'waits',
            one.reason,
          ]);
          const heading = ['ID', 'ASKED', 'BY', 'ACT', 'ABOUT', 'DECISION', 'WHY'];
          return { text: formatTable(heading, lines), data: found };
        }),
    },
    'approvals approve': {
      usage: 'approvals approve ID [--as LOGIN]',
      does: 'Approves what somebody else asked for, and does it.',
      positionals: [1, 1],
      values: ['as'],
      run: (args) =>
        use(async (opened) => {
          const by = await personOf(opened, args);
          const decided = { id: args.positionals[0] ?? '', by, decision: 'approved' } as const;
          const approval = await decideApproval(opened.db, opened.node, decided);
          const said = `Approved: ${describeAct(approval).join(', ')}.`;
          if (approval.act === 'withdraw') {
            // It is decided; where its file cannot be removed now, the next import tries again.
            await tidyOutbox(opened.db, opened.node).catch((err: unknown) => {
              opened.node.log.warn({ err }, 'outbox could not be tidied');
            });
            return { text: `${said}\n${WRITTEN_OFF}`, data: { approval } };
          }
          // An epoch begins with a batch of control.
          const { file, stream = 'control' } = approval.details;
          const about = approval.act === 'release' ? { file } : { stream };
          return andImport(opened, said, { about, data: { approval } });
        }),
    },
    'approvals decline': {
      usage: 'approvals decline ID --reason TEXT [--as LOGIN]',
      does: 'Declines what somebody asked for; whoever asked may take it back so.',
      positionals: [1, 1],
      values: ['reason', 'as'],
      run: (args) =>
        use(async (opened) => {
          const reason = reasonOf(args);
          const by = await personOf(opened, args);
          const decided = { id: args.positionals[0] ?? '', by, decision: 'declined' } as const;
          const approval = await decideApproval(opened.db, opened.node, { ...decided, reason });
          const said = `Declined: ${describeAct(approval).join(', ')}.`;
          return { text: said, data: { approval } };
        }),
    },
  };
}

function freezeCommands(use: UseNode): Commands {
  return {
    'link frozen': {
      usage: 'link frozen',
      does: 'Shows the streams that alarms have stopped, the evidence, and what to ask the far side.',
      run: () => use(showFrozen),
    },
    'link unfreeze': {
      usage: 'link unfreeze STREAM --reason TEXT [--as LOGIN]',
      does: 'Lets a frozen stream go on, and imports what waits of it.',
      positionals: [1, 1],
      values: ['reason', 'as'],
      run: (args) =>
        use(async (opened) => {
          const { db, node } = opened;
          const [stream = '', reason] = [args.positionals[0], reasonOf(args)];
          requireStream(stream);
          const by = await personOf(opened, args);
          const at = node.clock.now();
          const { codes } = await unfreezeStream(db, { stream, reason, by, at });
          const said = `${stream} goes on (it was stopped by ${codes.join(', ')}).`;
          return andImport(opened, said, { about: { stream }, data: { stream, codes } });
        }),
    },
    'link allow': {
      usage: 'link allow STREAM NUMBER | epoch NUMBER --reason TEXT [--as LOGIN]',
      does: 'Asks to let the numbers of a stream, or the epoch, jump to one; a second person approves.',
      positionals: [2, 2],
      values: ['reason', 'as'],
      run: (args) =>
        use(async (opened) => {
          const { db, node } = opened;
          const [name = '', number] = args.positionals;
          const [seq, reason] = [readNumber(number), reasonOf(args)];
          const { subject, details } = await findJump(db, name, seq);
          const by = await personOf(opened, args);
          const ask = { act: 'jump', subject, details, reason, by } as const;
          const asked = await db.transaction((tx) =>
            askApproval(tx, { ...ask, at: node.clock.now() }),
          );
          return describeAsked(asked);
        }),
    },
  };
}

async function findJump(
  db: Database,
  name: string,
  seq: number,
): Promise<{ subject: string; details: Record<string, unknown> }> {
  if (name === 'epoch') {
    const present = (await findLink(db))?.farEpoch ?? null;
    return { subject: `epoch ${seq}`, details: { stream: 'control', epoch: seq, present } };
  }
  const { stream, epoch, newest } = await findInboundStream(db, name);
  await requireOpenNumber(db, { stream, epoch, seq });
  const details = { stream, epoch, seq, newest };
  return { subject: numberSubject({ stream, epoch, seq }), details };
}

/** One line on a file that was imported, or why it was not. */
export function describeFile({ outcome, file, sentence, next }: FileReport): string {
  const why = [sentence, next].filter((text) => text).join(' ');
  return printable(`${outcome} ${file}${why ? `: ${why}` : ''}`);
}

/**
 * What was decided may let files in at once; a worker that is at it takes them as well. Only what the
 * decision was about is shown, and only a released file that is refused again is bad news.
 */
async function andImport(
  { importAll }: OpenedNode,
  said: string,
  { about, data }: { about: { file?: unknown; stream?: unknown }; data: Record<string, unknown> },
): Promise<CommandOutput> {
  const { files } = await importAll();
  const shown = files.filter(
    ({ outcome, file, stream }) =>
      outcome === 'WAIT_LOCK' ||
      (about.file === undefined
        ? stream !== undefined && stream === about.stream
        : file === about.file),
  );
  const refused = shown.some(
    ({ outcome }) =>
      outcome !== 'APPLIED' &&
      outcome !== 'FAILED' &&
      ['reject', 'alarm'].includes(batchCodeKind(outcome)),
  );
  return {
    text: [printable(said), ...shown.map(describeFile)].join('\n'),
    data: { ...data, files: shown },
    ...(refused && about.file !== undefined && { exitCode: EXIT.integrity }),
  };
}

/** @throws SallyportError `usage` when there is no such stream at all. */
function requireStream(name: string): void {
  if (STREAM_NAMES.some((known) => known === name)) return;
  throw new SallyportError('usage', `There is no stream "${name}".`, {
    next: `The streams are ${STREAM_NAMES.join(', ')}.`,
  });
}

async function showFrozen({ db, node }: OpenedNode): Promise<CommandOutput> {
  const { streams, waiting: noted } = await listFrozen(db);
  const waiting: typeof noted = [];
  for (const one of noted) {
    // What a carrier has taken away again waits no more.
    const there = await lstat(join(node.folders.inbox, one.file)).catch(() => undefined);
    if (there) waiting.push(one);
  }
  const parts = streams.map(describeFrozen);
  if (waiting.length > 0) {
    const lines = waiting.map(({ since, file, sentence }) => {
      return [since.toISOString(), file, sentence];
    });
    parts.push(formatTable(['SINCE', 'FILE THAT WAITS FOR A PERSON', 'WHY'], lines));
  }
  const text = parts.join('\n\n') || 'No stream is frozen, and no file waits for a person.';
  return { text, data: { streams, waiting } };
}

function describeFrozen({ stream, direction, code, since, evidence, ask }: FrozenStream): string {
  const what = direction === 'in' ? 'nothing is imported' : 'nothing is sealed';
  const found = evidence.flatMap((one) => [
    `  ${printable(one.sentence)}`,
    ...(one.quarantine
      ? [`    file   ${printable(one.file ?? '')} (quarantine show ${one.quarantine})`]
      : []),
    ...(one.found ? [`    found  ${one.found}`] : []),
    ...(one.known ? [`    known  ${one.known}`] : []),
    ...(one.decision ? [`    it was ${one.decision}`] : []),
  ]);
  return [
    `${stream}: ${code} since ${since.toISOString()}, ${what}`,
    ...found,
    `  Ask the far side: ${ask}`,
    `  Then: quarantine reject ID for a file that is not theirs, link unfreeze ${stream} --reason TEXT`,
  ].join('\n');
}

function describeQuarantined(node: Node, details: QuarantineDetails): string {
  const { file, bytes, sequence, siblings, known } = details;
  const { report } = file;
  const place = keptPath(node, file);
  const kept = {
    whole: `whole, in ${place ?? ''}`,
    beginning: `its first ${report.kept} bytes, in ${place ?? ''}`,
    gone: 'gone: somebody emptied quarantine/',
    none: 'nothing: it was never opened',
  }[bytes];
  const facts: [string, string | number | null | undefined][] = [
    ['id', file.id],
    ['code', report.code === file.code ? file.code : `${report.code}, at first ${file.code}`],
    ['why', report.sentence],
    ['next', report.next],
    ['file', file.file_name],
    ['bytes', file.file_bytes],
    ['kept', kept],
    ['sha256', file.digest],
    ['batch', report.batch],
    ['number', report.seq && `${report.stream} ${report.seq}, epoch ${report.epoch ?? 1}`],
    ['key', report.kid],
    ['when', file.created_at.toISOString()],
    ['by', report.by],
    ['sequence', sequence],
    ['known', known && `${known.state} ${known.code ?? ''} ${known.digest}`],
    ['decision', file.decision && `${file.decision} by ${file.decided_by}`],
    ['release', file.release_approval && `approved (${file.release_approval}), not done yet`],
  ];
  const lines = facts.flatMap(([name, value]) =>
    value === null || value === undefined ? [] : [`${name.padEnd(9)} ${printable(String(value))}`],
  );
  const others = siblings.map((one) =>
    printable(`other     ${one.id} ${one.code} ${one.batch ?? ''} ${one.decision ?? 'undecided'}`),
  );
  return [...lines, ...others].join('\n');
}
