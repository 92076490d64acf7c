import { rows, STREAMS, type Database, type StreamName } from '@sallyport/shared';
import type { Manifest } from '@sallyport/transfer';
import type { Carrier } from './carrier.js';
import { farOf, SIDES, type Side } from './sides.js';
import type { Site } from './site.js';

type Numbered = { stream: StreamName; epoch: number; seq: number };

/** Numbers that were sealed here in the present epoch and are not closed on the other side. */
export async function findGaps(site: Site): Promise<string[]> {
  const gaps: string[] = [];
  for (const side of SIDES) {
    const sealed = await rows<Numbered>(
      site.open(side).db,
      `select b.stream, b.epoch, b.seq from outbound_batches b
       join links l on l.link = b.link and l.epoch = b.epoch
       where b.digest is not null order by b.stream, b.seq`,
    );
    const closed = await readClosed(site.open(farOf(side)).db);
    for (const number of sealed) {
      if (!closed(number)) gaps.push(`${side} ${nameOf(number)} is not closed on the other side`);
    }
  }
  return gaps;
}

/** Numbers that count as applied on the other side and are not. */
export async function findFalseReceipts(site: Site): Promise<string[]> {
  const found: string[] = [];
  for (const side of SIDES) {
    const acked = await rows<Numbered>(
      site.open(side).db,
      `select b.stream, b.epoch, b.seq from outbound_batches b
       join links l on l.link = b.link and l.epoch = b.epoch where b.state = 'acked'`,
    );
    const applied = await readClosed(site.open(farOf(side)).db, ['applied']);
    for (const number of acked) {
      if (!applied(number)) found.push(`${side} ${nameOf(number)} is acked and not applied`);
    }
  }
  return found;
}

/** What a manifest claims to have closed of the other side and its own sender has not. */
export async function findFalseClaims(db: Database, manifest: Manifest): Promise<string[]> {
  const { no, incarnation, streams } = manifest.ack;
  const [current] = await rows<{ id: string }>(
    db,
    'select id from incarnations order by made_at desc limit 1',
  );
  if (current?.id !== incarnation) return [];
  const epochs = await rows<{ stream: string; epoch: number }>(
    db,
    'select stream, epoch from inbound_streams',
  );
  const closed = await readClosed(db);
  const found: string[] = [];
  for (const [name, told] of Object.entries(streams)) {
    const stream = name as StreamName;
    // It may have been sealed before the sender of these numbers began another epoch.
    if (!epochs.some((one) => one.stream === stream && one.epoch === told.epoch)) continue;
    for (const [first, last] of [[1, told.contiguous] as const, ...told.extra]) {
      for (let seq = first; seq <= last; seq += 1) {
        const number = { stream, epoch: told.epoch, seq };
        if (!closed(number)) found.push(`ack ${no} claims ${nameOf(number)}, which is not closed`);
      }
    }
  }
  return found;
}

/** What both sides must know alike. */
export async function findDifferences(site: Site): Promise<string[]> {
  const found: string[] = [];
  for (const [what, sql] of Object.entries(SHARED)) {
    const [here, there] = await Promise.all(
      SIDES.map(async (side) => {
        const all = await rows<Record<string, unknown>>(site.open(side).db, sql);
        return new Map(all.map((row) => [String(row['key']), JSON.stringify(row)]));
      }),
    );
    for (const key of new Set([...(here?.keys() ?? []), ...(there?.keys() ?? [])])) {
      if (here?.get(key) === there?.get(key)) continue;
      found.push(`${what}: request has ${here?.get(key)}, response ${there?.get(key)}`);
    }
  }
  return found;
}

/** Requests with more than one end, and answers that left with different contents. */
export async function findDoubled(site: Site): Promise<string[]> {
  const ends = await rows<{ id: string; ends: string }>(
    site.open('request').db,
    `select request_id as id, string_agg(event, ' ' order by id) as ends from request_events
     where event in ('delivered', 'failed', 'rejected', 'cancelled', 'expired')
     group by request_id having count(*) > 1`,
  );
  const answers = await rows<{ id: string; contents: number }>(
    site.open('response').db,
    `select record_id as id, count(distinct line::jsonb->'d') as contents from outbox_records
     where type = 'result' group by record_id having count(distinct line::jsonb->'d') > 1`,
  );
  return [
    ...ends.map(({ id, ends: all }) => `${id} has ended more than once: ${all}`),
    ...answers.map(({ id, contents }) => `${id} left with ${contents} different answers`),
  ];
}

/** Files in quarantine that nothing has damaged and that were not too late, and frozen streams. */
export async function findUndeserved(
  site: Site,
  carrier: Carrier,
  revoked: ReadonlySet<string>,
): Promise<string[]> {
  const found: string[] = [];
  for (const side of SIDES) {
    const { db, node } = site.open(side);
    const files = await rows<{ code: string; digest: string | null; file_name: string; at: Date }>(
      db,
      'select code, digest, file_name, created_at as at from quarantine',
    );
    for (const { code, digest, file_name: file, at } of files) {
      if (digest !== null && carrier.isDamaged(digest)) continue;
      const manifest = digest === null ? undefined : carrier.manifestOf(digest);
      const late = manifest?.notAfter !== undefined && new Date(manifest.notAfter) < at;
      if (code === 'EXPIRED' && late) continue;
      if (code === 'OLD_EPOCH' && manifest && manifest.epoch < (await epochOf(site, side)))
        continue;
      if (code === 'KEY_REVOKED' && revoked.size > 0) continue;
      found.push(`${side} refused ${file}, which is in order: ${code}`);
    }
    const frozen = await rows<{ stream: string; code: string }>(
      db,
      `select stream, frozen_code as code from inbound_streams where frozen_code is not null
       union all
       select f.stream, f.code || ' ' || f.sentence from outbound_freezes f
       join links l on l.link = f.link and l.epoch = f.epoch`,
    );
    for (const { stream, code } of frozen) {
      found.push(`${stream} is frozen at ${node.name}: ${code}`);
    }
  }
  return found;
}

/** The epoch that this side knows of the other one. */
async function epochOf(site: Site, side: Side): Promise<number> {
  const [link] = await rows<{ epoch: number }>(
    site.open(side).db,
    'select far_epoch as epoch from links',
  );
  return link?.epoch ?? 1;
}

/**
 * Which numbers of the far side are closed here. Of an ordered stream everything up to the cursor is:
 * a snapshot stands for the numbers before it.
 */
async function readClosed(
  db: Database,
  states: readonly string[] = ['applied', 'rejected', 'withdrawn', 'superseded'],
): Promise<(number: Numbered) => boolean> {
  const known = await rows<Numbered>(
    db,
    'select stream, epoch, seq from inbound_batches where state = any(?)',
    [[...states]],
  );
  const cursors = await rows<{ stream: StreamName; epoch: number; contiguous: number }>(
    db,
    'select stream, epoch, contiguous from inbound_streams',
  );
  const closed = new Set(known.map(nameOf));
  return (number) =>
    closed.has(nameOf(number)) ||
    (STREAMS[number.stream].order === 'ordered' &&
      cursors.some(
        ({ stream, epoch, contiguous }) =>
          stream === number.stream && epoch === number.epoch && number.seq <= contiguous,
      ));
}

function nameOf({ stream, epoch, seq }: Numbered): string {
  return `${stream} epoch ${epoch} number ${seq}`;
}

const SHARED: Readonly<Record<string, string>> = {
  users: `select id as key, version, login, profile_type_id, roles, disabled, must_change_password,
      profile_version, display_name, email, language, notices from users`,
  credentials: 'select user_id as key, generation, counter, verifier from credentials',
  'profile types': `select id as key, version, name, description, datasets, tier, priorities, limits,
      retention_days, disabled from profile_types`,
  datasets: `select id as key, version, epoch, name, title, description, time_field, fields, disabled
      from datasets`,
  settings: 'select key, version, value from settings',
};
