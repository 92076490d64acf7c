import { lstat } from 'node:fs/promises';
import { join } from 'node:path';
import {
  SallyportError,
  formatTable,
  printable,
  type CommandArguments,
  type CommandOutput,
  type Commands,
  type Database,
} from '@sallyport/shared';
import {
  askApproval,
  decideApproval,
  listApprovals,
  numberSubject,
  type Approval,
} from './approvals.js';
import { findInboundStream, listFrozen, unfreezeStream, type FrozenStream } from './freezes.js';
import type { Node } from './node.js';
import { identifyPerson } from './people.js';
import {
  findQuarantined,
  keptPath,
  listQuarantine,
  readQuarantined,
  rejectQuarantined,
  requireReleasable,
  type QuarantineDetails,
} from './quarantine.js';

/** What these commands work with; `importAll` imports what lies ready and says what became of it. */
export type OpenedNode = { db: Database; node: Node; importAll(): Promise<CommandOutput> };
/** Opens the network for a command and closes it whatever happens. */
export type UseNode = (
  use: (opened: OpenedNode) => Promise<CommandOutput>,
) => Promise<CommandOutput>;

const MAX_REASON = 500;

/** The commands by which people decide: on quarantined files, frozen streams, and what needs two. */
export function decisionCommands(use: UseNode): Commands {
  return { ...quarantineCommands(use), ...approvalCommands(use), ...freezeCommands(use) };
}

/** Who acts: `--as LOGIN`, or the account of the operating system. */
export function personOf({ db, node }: OpenedNode, { values }: CommandArguments): Promise<string> {
  return identifyPerson(db, { as: values['as'], network: node.role });
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
          const reason = reasonOf(args);
          const file = await findQuarantined(db, args.positionals[0] ?? '');
          await requireReleasable(node, file);
          const by = await personOf(opened, args);
          const { code, stream, seq, batch, sentence } = file.report;
          const details = { file: file.file_name, code, stream, seq, batch, sentence };
          const ask = { act: 'release', subject: file.id, details, reason, by } as const;
          const asked = await db.transaction((tx) =>
            askApproval(tx, { ...ask, at: node.clock.now() }),
          );
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
          return { text: printable(text), data: file };
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
            one.act,
            one.subject,
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
          const said = `Approved: ${approval.act} ${approval.subject}.`;
          if (approval.act === 'withdraw') return { text: said, data: { approval } };
          return andImport(opened, said, { approval });
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
          return { text: `Declined: ${approval.act} ${approval.subject}.`, data: { approval } };
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
          const by = await personOf(opened, args);
          const at = node.clock.now();
          const { codes } = await unfreezeStream(db, { stream, reason, by, at });
          return andImport(opened, `${stream} goes on (it was stopped by ${codes.join(', ')}).`, {
            stream,
            codes,
          });
        }),
    },
    'link allow': {
      usage: 'link allow STREAM NUMBER --reason TEXT [--as LOGIN]',
      does: 'Asks to let the numbers of a stream jump up to one; a second person approves.',
      positionals: [2, 2],
      values: ['reason', 'as'],
      run: (args) =>
        use(async (opened) => {
          const { db, node } = opened;
          const [name = '', number] = args.positionals;
          const [seq, reason] = [readNumber(number), reasonOf(args)];
          const { stream, epoch, newest } = await findInboundStream(db, name);
          const by = await personOf(opened, args);
          const subject = numberSubject({ stream, epoch, seq });
          const details = { stream, epoch, seq, newest };
          const ask = { act: 'jump', subject, details, reason, by } as const;
          const asked = await db.transaction((tx) =>
            askApproval(tx, { ...ask, at: node.clock.now() }),
          );
          return describeAsked(asked);
        }),
    },
  };
}

/** What was decided may let files in at once; a worker that is at it takes them as well. */
async function andImport(
  { importAll }: OpenedNode,
  said: string,
  data: Record<string, unknown>,
): Promise<CommandOutput> {
  const imported = await importAll();
  return {
    ...imported,
    text: `${printable(said)}\n${imported.text}`,
    data: { ...data, import: imported.data },
  };
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
