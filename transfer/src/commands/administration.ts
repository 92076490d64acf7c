import { lstat, readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { createInterface } from 'node:readline/promises';
import {
  appendAudit,
  EXIT,
  formatTable,
  grantService,
  migrate,
  onShutdown,
  printable,
  openDatabase,
  SallyportError,
  systemClock,
  type ClosingStep,
  type CommandArguments,
  type CommandOutput,
  type Commands,
  type Database,
  type Log,
  type NetworkName,
  type QueueAdmin,
} from '@sallyport/shared';
import type { ApplyTable } from '../receiving/apply.js';
import { auditCommands } from './audit-commands.js';
import { batchCommands } from './batch-commands.js';
import { auditCommand, decisionCommands, describeFile, type UseNode } from './decision-commands.js';
import { queueCommands } from './queue-commands.js';
import { sealNow } from '../sending/seal-now.js';
import { importBatches, type ImportReport } from '../receiving/import.js';
import { keyCommands, requireName } from './key-commands.js';
import { cardFingerprint, loadCard, makeKeys, parseCard, type Card } from '../keys/keys.js';
import { healingCommands } from './link-commands.js';
import { trustCard } from '../keys/links.js';
import { makeFolders, type Folders, type Node } from '../node.js';
import { commandLineActor } from '../open-node.js';

/** What a network has open while it runs. */
export type OpenNetwork = {
  db: Database;
  node: Node;
  queueAdmin: QueueAdmin;
  close(): Promise<void>;
};

/** What the commands that both networks share need to know of one; `Opened` is what it works with. */
export type Installation<Opened extends OpenNetwork> = {
  role: NetworkName;
  /** `sallyport-request`, `sallyport-response`. */
  program: string;
  databaseUrl: string;
  /** Folders of `.sql` files, in order. */
  migrations: string[];
  folders: Folders;
  nodeName?: string | undefined;
  /** Where the passphrase of the keys is, if they have one. */
  passphraseFile?: string | undefined;
  log: Log;
  /** Opens everything once; refuses a database that lacks migrations and a node without keys. */
  open(): Promise<Opened>;
  applies(opened: Opened): ApplyTable;
  /** Runs once, after the far card was adopted. */
  afterTrust?(opened: Opened): Promise<void>;
  serve(opened: Opened): Promise<ClosingStep>;
  work(opened: Opened): Promise<ClosingStep>;
};

/**
 * The commands that are the same on both networks: keys, link, seal, import, quarantine, migrate, and
 * the life of the processes. The installation is asked for when a command runs, so that help needs
 * no configuration.
 */
export function administrationCommands<Opened extends OpenNetwork>(
  installation: () => Installation<Opened>,
): Commands {
  const opened = <T>(use: (opened: Opened, from: Installation<Opened>) => Promise<T>) => {
    const from = installation();
    return withNetwork(from, (network) => use(network, from));
  };
  const used: UseNode = (use) =>
    opened((network, from) => {
      const { db, node } = network;
      const importAll = () => importQuietly(network, from.applies(network));
      return use({ db, node, importAll });
    });
  return {
    serve: {
      usage: 'serve',
      does: 'Answers HTTP until it is told to stop.',
      run: () => runProcess(installation(), ['serve']),
    },
    work: {
      usage: 'work',
      does: 'Runs the workers and their schedules until it is told to stop.',
      run: () => runProcess(installation(), ['work']),
    },
    up: {
      usage: 'up',
      does: 'Migrates, then serves and works in one process, for a small site.',
      async run() {
        const from = installation();
        await migrateNetwork(from);
        return runProcess(from, ['work', 'serve']);
      },
    },
    migrate: {
      usage: 'migrate [--grant ROLE]',
      does:
        'Brings the database up to date; with --grant gives another role of the database what serve ' +
        'and work need, without the right to change the audit log.',
      values: ['grant'],
      async run({ values: { grant } }) {
        const applied = await migrateNetwork(installation(), grant);
        const text = applied.length ? `Applied ${applied.join(', ')}.` : 'Nothing to apply.';
        const granted = grant === undefined ? '' : ` ${grant} may serve and work.`;
        return { text: `${text}${granted}`, data: { applied, granted: grant ?? null } };
      },
    },
    ...keyCommands(installation, used),
    'keys trust': {
      usage: 'keys trust CARD-FILE [--fingerprint TEXT]',
      does: 'Adopts the far card once its fingerprint is confirmed.',
      positionals: [1, 1],
      values: ['fingerprint'],
      run: (args) => opened((network, from) => trust(network, from, args)),
    },
    seal: {
      usage: 'seal [STREAM]',
      does: 'Seals what waits in one stream, or in all, into batches now.',
      positionals: [0, 1],
      run: ({ positionals }) => opened((network) => seal(network, positionals[0])),
    },
    import: {
      usage: 'import [FILE]',
      does: 'Verifies and applies one batch file, or everything in the inbox.',
      positionals: [0, 1],
      run: ({ positionals }) =>
        opened(async (network, from) => {
          const [path] = positionals;
          if (path !== undefined) await requireFile(path);
          const where = path === undefined ? {} : { path };
          const report = await importBatches(
            network.db,
            network.node,
            from.applies(network),
            where,
          );
          const { files, foreign, ...counts } = report;
          if (files.length + foreign.length > 0) {
            const subject = path === undefined ? 'inbox' : basename(path);
            await auditCommand(network, { action: 'batch.import', subject, details: counts });
          }
          return describeImport(report);
        }),
    },
    ...healingCommands(used),
    ...decisionCommands(used),
    ...batchCommands(used),
    ...queueCommands((use) => opened(({ queueAdmin }) => use(queueAdmin))),
    ...auditCommands(used),
  };
}

/** Imports for a command that says itself what became of the files it is about. */
async function importQuietly(
  { db, node }: OpenNetwork,
  applies: ApplyTable,
): Promise<ImportReport> {
  const { level } = node.log;
  node.log.level = 'silent';
  try {
    return await importBatches(db, node, applies);
  } finally {
    node.log.level = level;
  }
}

/** Opens a network, uses it, and closes it whatever happens. */
export async function withNetwork<Opened extends OpenNetwork, T>(
  installation: Installation<Opened>,
  use: (opened: Opened) => Promise<T>,
): Promise<T> {
  // One-shot commands say what they did; only what went wrong is worth a log line beside it.
  if (installation.log.level === 'info') installation.log.level = 'warn';
  const opened = await installation.open();
  try {
    return await use(opened);
  } finally {
    await opened.close();
  }
}

/**
 * Applies the migrations that the database lacks and returns their names; then gives `role`, where
 * there is one, what a running network needs.
 */
export async function migrateNetwork(
  installation: { databaseUrl: string; migrations: string[] },
  role?: string,
): Promise<string[]> {
  const db = openDatabase(installation.databaseUrl, { poolMax: 2 });
  try {
    const applied = await migrate(db, installation.migrations);
    await db.transaction(async (tx) => {
      if (role !== undefined) await grantService(tx, role);
      else if (applied.length === 0) return;
      await appendAudit(tx, {
        at: systemClock.now(),
        actor: commandLineActor(),
        action: 'database.migrate',
        subject: applied.at(-1) ?? 'grants',
        details: { applied, granted: role ?? null },
      });
    });
    return applied;
  } finally {
    await db.destroy();
  }
}

/** The part of `init` that both networks share; safe to repeat. Returns the node's card. */
export async function prepareNode(
  installation: Pick<
    Installation<OpenNetwork>,
    'databaseUrl' | 'migrations' | 'folders' | 'nodeName' | 'role'
  >,
): Promise<{ node: string; card: Card }> {
  await migrateNetwork(installation);
  await makeFolders(installation.folders);
  try {
    const card = await loadCard(installation.folders.keys);
    return { node: card.node, card };
  } catch (error) {
    if (!(error instanceof SallyportError && error.code === 'keys-missing')) throw error;
  }
  const { folders, nodeName, role } = installation;
  return makeKeys(folders.keys, requireName(nodeName), role);
}

async function runProcess<Opened extends OpenNetwork>(
  installation: Installation<Opened>,
  parts: ('serve' | 'work')[],
): Promise<undefined> {
  const { log } = installation;
  const opened = await installation.open();
  const steps: ClosingStep[] = [{ name: 'database', close: () => opened.close() }];
  onShutdown(steps, log);
  try {
    for (const part of parts) steps.push(await installation[part](opened));
  } catch (error) {
    // Half a process would look alive and do half the work.
    for (const { close } of steps.toReversed()) await close().catch(() => undefined);
    throw error;
  }
  log.info({ parts, node: opened.node.name }, 'started');
  return undefined;
}

async function trust<Opened extends OpenNetwork>(
  network: Opened,
  installation: Installation<Opened>,
  { positionals, values }: CommandArguments,
): Promise<CommandOutput> {
  const path = positionals[0] ?? '';
  await requireFile(path);
  const card = parseCard(await readFile(path, 'utf8'));
  const fingerprint = cardFingerprint(card);
  await confirmFingerprint(card.node, fingerprint, values['fingerprint']);
  const { db, node } = network;
  const by = commandLineActor();
  const link = await db.transaction(async (tx) => {
    const adopted = await trustCard(tx, node, card, by);
    if (!adopted.fresh && !adopted.replaced) return adopted;
    await appendAudit(tx, {
      at: node.clock.now(),
      actor: by,
      action: 'keys.trust',
      subject: card.node,
      details: { kid: card.kid, fingerprint, link: adopted.link },
    });
    return adopted;
  });
  if (link.fresh) await installation.afterTrust?.(network);
  const text = link.fresh
    ? `Trusts ${card.node}; this pair of networks is link ${link.link}.`
    : link.replaced
      ? `Trusts the new key of ${card.node}; link ${link.link} stays.`
      : `${card.node} was trusted already; link ${link.link}.`;
  return { text, data: { ...link, fingerprint } };
}

async function confirmFingerprint(node: string, found: string, given?: string): Promise<void> {
  const same = (text: string) =>
    text.toLowerCase().replace(/[^0-9a-f]/g, '') === found.replace(/[^0-9a-f]/g, '');
  if (given !== undefined) {
    if (same(given)) return;
    throw new SallyportError(
      'card-invalid',
      `The card's fingerprint is ${found}, not the one given.`,
      {
        next: 'Compare with what `keys card` prints on the far side; somebody may have swapped it.',
      },
    );
  }
  if (!process.stdin.isTTY) {
    throw new SallyportError('usage', 'Nobody is there to confirm the fingerprint.', {
      next: `Compare it with the far side, then add --fingerprint "${found}".`,
    });
  }
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  const answer = await terminal.question(
    `Card of ${node}\n  ${found}\nDoes the far side read out the same fingerprint? (yes/no) `,
  );
  terminal.close();
  if (answer.trim().toLowerCase() === 'yes') return;
  throw new SallyportError('card-invalid', 'The fingerprint was not confirmed; nothing changed.');
}

async function requireFile(path: string): Promise<void> {
  const found = await lstat(path).catch(() => undefined);
  if (found) return;
  throw new SallyportError('not-found', `There is no file ${path}.`);
}

function describeImport(report: ImportReport): CommandOutput {
  const files = report.files.map(describeFile);
  const foreign = report.foreign.map((name) => printable(`FOREIGN_FILE ${name}`));
  const total = `${report.applied} applied, ${report.records} records; ${report.duplicates} seen before, ${report.waiting} waiting, ${report.quarantined} quarantined`;
  const bad = report.quarantined > 0 ? EXIT.integrity : report.failed > 0 ? EXIT.other : EXIT.ok;
  return { text: [...files, ...foreign, total].join('\n'), data: report, exitCode: bad };
}

async function seal({ db, node }: OpenNetwork, only?: string): Promise<CommandOutput> {
  const sealed = await sealNow(db, node, { only, by: commandLineActor() });
  const lines = sealed.map((one) => [one.stream, String(one.sealed), String(one.records)]);
  return { text: formatTable(['STREAM', 'BATCHES', 'RECORDS'], lines), data: sealed };
}
