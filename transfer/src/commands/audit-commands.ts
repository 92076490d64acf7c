import { open } from 'node:fs/promises';
import {
  EXIT,
  SallyportError,
  UserTime,
  compileSchema,
  formatTable,
  listAudit,
  printable,
  type CommandArguments,
  type CommandOutput,
  type Commands,
} from '@sallyport/shared';
import { compareExport, exportAudit, type Comparison } from '../custody/audit-export.js';
import { verifyAuditLog, type AuditReport } from '../custody/audit-heads.js';
import type { OpenedNode, UseNode } from './decision-commands.js';

const DEFAULT_LISTED = 50;
const MAX_LISTED = 1_000;
const MAX_NAMED = 20;
const checkTime = compileSchema(UserTime);

/** The commands by which an auditor reads, checks and takes away the audit log. */
export function auditCommands(use: UseNode): Commands {
  return {
    'audit ls': {
      usage:
        'audit ls [--actor NAME] [--action BEGINNING] [--subject TEXT] [--text TEXT] [--since TIME] [--until TIME] [--limit N]',
      does: 'Lists entries of the audit log, newest first.',
      values: ['actor', 'action', 'subject', 'text', 'since', 'until', 'limit'],
      run: (args) => use((opened) => list(opened, args)),
    },
    'audit verify': {
      usage: 'audit verify [FILE]',
      does:
        'Recomputes the chain of the audit log and looks for every head of it that ever left; with a ' +
        'file that audit export wrote on the far side, also compares what each has of the other.',
      positionals: [0, 1],
      run: ({ positionals: [path] }) =>
        use(async ({ db, node }) => {
          const own = await verifyAuditLog(db, node);
          const far = path === undefined ? null : await compareExport(db, path);
          const sound = own.ok && (far === null || isSound(far));
          const text = [...describeOwn(own), ...(far ? describeFar(far) : [])].join('\n');
          return { text, data: { own, far }, exitCode: sound ? EXIT.ok : EXIT.integrity };
        }),
    },
    'audit export': {
      usage: 'audit export FILE',
      does: 'Writes the whole audit log, signed, to a new file, to be compared on the far side.',
      positionals: [1, 1],
      run: ({ positionals: [path = ''] }) => use((opened) => exportTo(opened, path)),
    },
  };
}

async function list(
  { db }: OpenedNode,
  { values: { since, until, limit, ...filter } }: CommandArguments,
): Promise<CommandOutput> {
  const found = await listAudit(db, {
    filter: { ...filter, since: readTime(since), until: readTime(until) },
    limit: readLimit(limit),
  });
  const lines = found.map(({ position, at, actor, action, subject, details }) => [
    ...[String(position), at.toISOString(), actor, action, subject],
    JSON.stringify(details),
  ]);
  const heading = ['ENTRY', 'AT', 'ACTOR', 'ACTION', 'SUBJECT', 'DETAILS'];
  return { text: formatTable(heading, lines), data: found };
}

async function exportTo({ db, node }: OpenedNode, path: string): Promise<CommandOutput> {
  const file = await open(path, 'wx', 0o600).catch((cause: NodeJS.ErrnoException) => {
    throw new SallyportError('usage', `${path} cannot be made: ${cause.code}.`, {
      cause,
      next: 'Name a file that does not exist yet, in a folder that you may write.',
    });
  });
  try {
    for await (const piece of exportAudit(db, node)) await file.write(piece);
    await file.sync();
    const { size } = await file.stat();
    const next = 'On the far side: audit verify FILE';
    return { text: printable(`Wrote ${path}, ${size} bytes. ${next}`), data: { path, size } };
  } finally {
    await file.close();
  }
}

function isSound({ chain, ours, theirs }: Comparison): boolean {
  return chain.brokenAt === null && ours.missing.length + theirs.missing.length === 0;
}

function describeOwn({ entries, head, brokenAt, told, stored, lost }: AuditReport): string[] {
  return [
    brokenAt === null
      ? `The chain holds: ${entries} entries, head ${head}`
      : `THE CHAIN IS BROKEN at entry ${brokenAt}; ${entries} before it hold.`,
    `${told} heads were told to the far side, ${stored} batches in the store tell theirs; not in the chain: ${lost.length}`,
    ...lost.map(({ head: one, batch, position }) =>
      printable(`  ${one} ${batch ?? `once entry ${position}`}`),
    ),
  ];
}

function describeFar({ node, at, chain, ours, theirs }: Comparison): string[] {
  const restored = ({ restored: count }: { restored: number }) =>
    count > 0 ? ` (${count} more were lost by a restore)` : '';
  const named = (heads: string[]) => heads.slice(0, MAX_NAMED).map((head) => `  ${head}`);
  return [
    chain.brokenAt === null
      ? `Export of ${node}, ${at}: its chain holds, ${chain.entries} entries.`
      : `Export of ${node}, ${at}: ITS CHAIN IS BROKEN at entry ${chain.brokenAt}.`,
    `It has ${ours.heads} heads of ours; not in our chain: ${ours.missing.length}${restored(ours)}`,
    ...named(ours.missing),
    `We have ${theirs.heads} heads of its; not in its chain: ${theirs.missing.length}${restored(theirs)}`,
    ...named(theirs.missing),
  ];
}

function readTime(text: string | undefined): Date | undefined {
  return text === undefined ? undefined : new Date(checkTime(text));
}

function readLimit(text: string | undefined): number {
  if (text === undefined) return DEFAULT_LISTED;
  const limit = Number(text);
  if (Number.isInteger(limit) && limit >= 1 && limit <= MAX_LISTED) return limit;
  throw new SallyportError('usage', `--limit takes 1 to ${MAX_LISTED}, not "${text}".`);
}
