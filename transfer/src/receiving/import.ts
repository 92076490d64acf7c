import { readdir, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import {
  batchCodeKind,
  isConnectionError,
  rows,
  withAdvisoryLock,
  type Database,
} from '@sallyport/shared';
import type { ApplyTable } from './apply.js';
import { batchName, readHeaderLine } from '../format/batch-file.js';
import { controlApplies } from './control-records.js';
import { importFile } from './import-file.js';
import { discardGroup, importGroup, makeGroups, prepareGroup } from './import-group.js';
import { emptyReport, note, type FileReport, type ImportReport } from './import-report.js';
import { moveFile, type Importer } from './importer.js';
import { forgetGone, listInbox, readSeen, wasDecided } from './inbox.js';
import { findLink, readFarKeys } from '../keys/links.js';
import { readHeader } from '../format/manifest.js';
import type { Node } from '../node.js';
import { refreshKeys } from '../keys/own-keys.js';
import { importReleased } from './releases.js';
import { resendMissing } from '../sending/resend.js';
import { takeSlips } from '../custody/slips.js';
import { tidyOutbox } from '../sending/store.js';
import { noteVerdicts } from './uploads.js';
import { removeDrained } from './waiting.js';

export type { FileReport, ImportReport } from './import-report.js';

const LOOK_AGAIN_MS = 2_000;
const LOCK_WAIT_MS = 2_000;
const LOCK_AGAIN_MS = 50;

/**
 * Imports what lies in the inbox, or the one file given, each batch in one transaction, then what
 * waited for it. Safe to kill at any moment, and to run from several processes: one works, the others
 * report WAIT_LOCK. A file that is refused never stops the next. The signal ends it between two files.
 */
export async function importBatches(
  db: Database,
  node: Node,
  applies: ApplyTable,
  { path, signal }: { path?: string; signal?: AbortSignal | undefined } = {},
): Promise<ImportReport> {
  const report: ImportReport = emptyReport();
  const link = await findLink(db);
  if (!link) {
    const paths = path === undefined ? (await listInbox(node.folders.inbox)).paths : [path];
    const wait = { sentence: 'No far side is trusted yet.', next: 'Run keys trust CARD.' };
    for (const file of paths) note(report, { file: basename(file), outcome: 'WAIT_KEY', ...wait });
    await noteVerdicts(db, report.files, node.clock.now());
    return report;
  }
  const held = await whileImporting(db, async () => {
    await refreshKeys(db, node);
    const importer = {
      db,
      node,
      applies: { ...controlApplies, ...applies },
      link,
      keys: await readFarKeys(db, link.link),
    };
    await tidyStaging(importer);
    await importReleased(importer, report);
    await drainWaiting(importer, report);
    if (path === undefined) await importInbox(importer, report, signal);
    else note(report, await importFile(importer, path, false));
    await drainWaiting(importer, report);
    // Last: a slip may tell of batches that have only just come in.
    report.foreign.push(...(await takeSlips(db, node)).strange);
    await forgetGone(db, [node.folders.inbox, node.folders.outbox]);
    if (report.applied > 0) await tidyOutbox(db, node);
    // What was imported may name what is missing there; that it cannot be sent spoils no import.
    await resendMissing(db, node).catch((error: unknown) => {
      if (isConnectionError(error)) throw error;
      node.log.error({ err: error }, 'missing batches could not be published again');
    });
  });
  if (!held) {
    const sentence = 'Another importer of this network is at work; it takes the files.';
    note(report, { file: basename(node.folders.inbox), outcome: 'WAIT_LOCK', sentence });
  }
  await noteVerdicts(db, report.files, node.clock.now());
  return report;
}

/** Waits a moment for the lock: one that was killed may hold it until the server notices. */
async function whileImporting(
  db: Database,
  work: () => Promise<void>,
): Promise<{ done: void } | undefined> {
  for (const giveUpAt = Date.now() + LOCK_WAIT_MS; ; await setTimeout(LOCK_AGAIN_MS)) {
    const held = await withAdvisoryLock(db, 'sallyport import', work);
    if (held || Date.now() > giveUpAt) return held;
  }
}

/** Looks again from time to time: what is carried first must not wait for a long list. */
async function importInbox(
  importer: Importer,
  report: ImportReport,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { db, node } = importer;
  const looked = new Set<string>();
  for (;;) {
    const { paths, foreign } = await listInbox(node.folders.inbox);
    report.foreign = foreign;
    const fresh = paths.filter((path) => !looked.has(path));
    if (fresh.length === 0) return;
    const lookAgainAt = Date.now() + LOOK_AGAIN_MS;
    // They may have been revoked, or rotated, meanwhile.
    importer.keys = await readFarKeys(db, importer.link.link);
    const seen = await readSeen(db);
    for await (const [group, reports] of importGroups(importer, makeGroups(fresh, seen))) {
      for (const path of group) looked.add(path);
      for (const one of reports ?? []) note(report, one);
      for (const path of reports ? [] : group) {
        if (signal?.aborted) return;
        if (await wasDecided(seen.get(basename(path)), node.clock, path)) continue;
        note(report, await importFile(importer, path, true));
      }
      if (signal?.aborted) return;
      if (Date.now() > lookAgainAt) break;
    }
  }
}

/** Imports one group after the other, and prepares the next one while one is applied. */
async function* importGroups(
  importer: Importer,
  groups: string[][],
): AsyncGenerator<[string[], FileReport[] | undefined]> {
  let ahead = prepareGroup(importer, groups[0] ?? []);
  try {
    for (const [at, group] of groups.entries()) {
      const prepared = await ahead;
      ahead = prepareGroup(importer, groups[at + 1] ?? []);
      yield [group, prepared && (await importGroup(importer, prepared))];
    }
  } finally {
    await discardGroup(await ahead);
  }
}

/** Applies what waited in ordered streams, as far as the numbers follow each other now. */
async function drainWaiting(importer: Importer, report: ImportReport): Promise<void> {
  const { db, node, link } = importer;
  const stuck: string[] = [];
  for (;;) {
    const [next] = await rows<{ stream: string; fileName: string }>(
      db,
      `select b.stream, b.file_name as "fileName" from inbound_batches b
       join inbound_streams s on s.link = b.link and s.stream = b.stream and s.epoch = b.epoch
       where b.link = ? and b.state = 'waiting' and b.seq = s.contiguous + 1
         and s.frozen_code is null and b.stream <> all(?) limit 1`,
      [link.link, stuck],
    );
    if (!next) break;
    const outcome = await importFile(importer, join(node.folders.waiting, next.fileName), false);
    note(report, outcome);
    if (outcome.outcome === 'APPLIED') continue;
    stuck.push(next.stream);
    // A copy that was damaged here is asked for again; a refused content has closed its number.
    const refused = outcome.outcome !== 'FAILED' && batchCodeKind(outcome.outcome) === 'reject';
    // A revoked key freezes nothing: the file would be refused again each time.
    if (refused || outcome.outcome === 'KEY_REVOKED') {
      await db.raw(`delete from inbound_batches where state = 'waiting' and file_name = ?`, [
        next.fileName,
      ]);
    }
  }
  await removeDrained(importer);
}

/** Removes what a killed importer left; a copy whose batch was applied belongs to the archive. */
async function tidyStaging({ db, node }: Importer): Promise<void> {
  for (const name of await readdir(node.folders.staging)) {
    if (!name.startsWith('import-')) continue;
    const path = join(node.folders.staging, name);
    const digest = /^import-([0-9a-f]{64})\.batch$/.exec(name)?.[1];
    const [applied] = digest
      ? await rows(db, `select 1 from inbound_batches where digest = ? and state = 'applied'`, [
          digest,
        ])
      : [];
    if (!digest || !applied) {
      await rm(path, { force: true });
      continue;
    }
    try {
      const { manifest } = readHeader((await readHeaderLine(path)).line);
      await moveFile(path, join(node.folders.archive, batchName(manifest, digest)));
    } catch (err) {
      // It was applied; a copy that cannot be read any more is worth no archive.
      node.log.warn({ err, file: name }, 'staged copy could not be archived');
      await rm(path, { force: true });
    }
  }
}
