import { rows, type Database, type Transaction } from './database.js';
import { SallyportError } from './errors.js';
import type { RecordType } from './records.js';

/** What has versions that are kept. */
export type RevisionKind = 'user' | 'profile-type' | 'dataset' | 'setting';

/** Which thing; the id is its uuid, or the key of a setting. */
export type Revised = { kind: RevisionKind; id: string };

/** Who made a version, when and why; what it was is in `data`. */
export type Revision = {
  version: number;
  at: Date;
  actor: string;
  reason: string | null;
};

/** Keeps a version of a thing in the transaction that makes it. `data` is free of secrets. */
export async function keepRevision(
  tx: Transaction,
  { kind, id }: Revised,
  { version, at, actor, reason, data }: Revision & { data: object },
): Promise<void> {
  await tx('revisions').insert({
    ...{ kind, id, version, at, actor, reason },
    data: JSON.stringify(data),
  });
}

/**
 * Keeps what the records of one type in `incoming` say, as versions of things, before they are
 * applied. A setting that a restore forgot begins again at version 1: what comes into force then
 * takes the place of what had that version before.
 */
export async function keepArrived(
  tx: Transaction,
  { type, kind, snapshot }: { type: RecordType; kind: RevisionKind; snapshot: boolean },
  now: Date,
): Promise<void> {
  const [id, data] =
    kind === 'setting'
      ? [`d->>'key'`, `jsonb_build_object('value', d->'value')`]
      : ['id::text', 'd'];
  await rows(
    tx,
    `insert into revisions (kind, id, version, at, actor, reason, data)
     select distinct on (2, 3) ?, ${id}, (d->>'version')::integer, ?::timestamptz,
       'worker:import-batches', null, ${data}
     from incoming where t = ? order by 2, 3, line
     on conflict (kind, id, version) do update set
       at = excluded.at, actor = excluded.actor, reason = null, data = excluded.data
     where excluded.kind = 'setting' and excluded.data <> revisions.data
       and (? or excluded.version > coalesce(
         (select s.version from settings s where s.key = excluded.id), 0))`,
    [kind, now, type, snapshot],
  );
}

/** The versions of a thing below `before`, newest first. */
export async function listRevisions(
  db: Database,
  { kind, id }: Revised,
  { before, limit }: { before: number; limit: number },
): Promise<Revision[]> {
  return rows<Revision>(
    db,
    `select version, at, actor, reason from revisions
     where kind = ? and id = ? and version < cast(? as bigint)
     order by version desc limit ?`,
    [kind, id, before, limit],
  );
}

/**
 * What a thing was in one of its versions.
 * @throws SallyportError `not-found` when that version was not kept.
 */
export async function readRevision(
  db: Database,
  { kind, id }: Revised,
  version: number,
): Promise<Record<string, unknown>> {
  const [found] = await rows<{ data: Record<string, unknown> }>(
    db,
    'select data from revisions where kind = ? and id = ? and version = ?',
    [kind, id, version],
  );
  if (found) return found.data;
  throw new SallyportError('not-found', `Version ${version} was not kept.`, {
    next: 'List the versions to see which there are.',
  });
}
