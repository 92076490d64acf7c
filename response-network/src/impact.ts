import {
  findDatasetById,
  findProfileType,
  listChanges,
  MemberChangeSchema,
  readSettingState,
  rows,
  SallyportError,
  TIERS,
  type Database,
  type MemberChange,
  type ProfileType,
  type Transaction,
} from '@sallyport/shared';
import { Type, type Static } from 'typebox';
import { readDatasetSource, readSearchableDatasets, viewSource } from './dataset-sources.js';
import { judgeRequest, type JudgedRequest } from './judge.js';

const Count = Type.Integer({ minimum: 0 });

/** Whom a change of rights or of a dataset would touch. */
export const ImpactSchema = Type.Object({
  /** Enabled users whom it concerns. */
  users: Count,
  /** Those of them who would lose a right. */
  losing_rights: Count,
  /** Requests of theirs that have not ended here. */
  open_requests: Count,
  /** The newest requests that were judged again, at most 1,000. */
  recent_requests: Count,
  /** Those of them that would be refused, and would not be now. */
  newly_refused: Count,
});
export type Impact = Static<typeof ImpactSchema>;

/** What a change would do; nothing of it was done. */
export const PreviewSchema = Type.Object({
  dry_run: Type.Literal(true),
  changes: Type.Array(MemberChangeSchema),
  impact: Type.Union([ImpactSchema, Type.Null()]),
});
export type Preview = { dry_run: true; changes: MemberChange[]; impact: Impact | null };

type RecentRequest = Omit<JudgedRequest, 'dataset_allowed' | 'allowed_tier'> & { state: string };
type Work = (tx: Transaction) => Promise<unknown>;

const MAX_RECENT = 1_000;

/**
 * What a change of a profile type would do: it is made, looked at, and taken back, so that it is
 * refused for whatever would refuse it.
 */
export async function previewProfileType(db: Database, id: string, work: Work): Promise<Preview> {
  return tryOut(db, async (tx) => {
    const before = await findProfileType(tx, id);
    await work(tx);
    const after = await findProfileType(tx, id);
    if (!before || !after) throw nothingThere(id);
    const users = await countUsers(tx, 'u.profile_type_id = ?', id);
    const mine = 'r.user_id in (select u.id from users u where u.profile_type_id = ?)';
    const recent = await readRecent(tx, mine, id);
    const loses =
      (!before.disabled && after.disabled) ||
      TIERS.indexOf(after.tier) < TIERS.indexOf(before.tier) ||
      before.datasets.some((name) => !after.datasets.includes(name)) ||
      before.priorities.some((priority) => !after.priorities.includes(priority));
    const refused = recent.filter((one) => allows(before, one) && !allows(after, one));
    return {
      dry_run: true,
      changes: changesOf(before, after),
      impact: {
        users,
        losing_rights: loses ? users : 0,
        open_requests: await countOpen(tx, mine, id),
        recent_requests: recent.length,
        newly_refused: refused.length,
      },
    };
  });
}

/** What a change of a dataset would do; as {@link previewProfileType}. */
export async function previewDataset(db: Database, id: string, work: Work): Promise<Preview> {
  return tryOut(db, async (tx) => {
    const before = await findDatasetById(tx, id);
    if (!before) throw nothingThere(id);
    const { name } = before;
    const source = viewSource(await readDatasetSource(tx, id));
    const recent = await readRecent(tx, 'r.dataset = ?', name);
    const passedBefore = await listPassing(tx, name, recent);
    await work(tx);
    const after = await findDatasetById(tx, id);
    if (!after) throw nothingThere(id);
    const passesNow = new Set(await listPassing(tx, name, recent));
    const entitled = `exists (select 1 from profile_types p
      where p.id = u.profile_type_id and not p.disabled and ? = any(p.datasets))`;
    const users = await countUsers(tx, entitled, name);
    const moved = { source: viewSource(await readDatasetSource(tx, id)) };
    return {
      dry_run: true,
      changes: changesOf({ ...before, source }, { ...after, ...moved }),
      impact: {
        users,
        losing_rights: !before.disabled && after.disabled ? users : 0,
        open_requests: await countOpen(tx, 'r.dataset = ?', name),
        recent_requests: recent.length,
        newly_refused: passedBefore.filter((one) => !passesNow.has(one)).length,
      },
    };
  });
}

/** What a change of a setting would do. */
export async function previewSetting(db: Database, key: string, work: Work): Promise<Preview> {
  return tryOut(db, async (tx) => {
    const { value: before } = await readSettingState(tx, key);
    await work(tx);
    const { value: after } = await readSettingState(tx, key);
    return {
      dry_run: true,
      changes: listChanges({ value: before }, { value: after }),
      impact: null,
    };
  });
}

/** Does the work in a transaction that is taken back, and gives what it found. */
async function tryOut<T>(db: Database, work: (tx: Transaction) => Promise<T>): Promise<T> {
  const tx = await db.transaction();
  try {
    return await work(tx);
  } finally {
    await tx.rollback();
  }
}

function changesOf(before: object, after: object): MemberChange[] {
  return listChanges(before, after).filter(({ path }) => path !== '/version');
}

function allows({ disabled, datasets, tier }: ProfileType, request: RecentRequest): boolean {
  const rich = TIERS.indexOf(request.tier) <= TIERS.indexOf(tier);
  return !disabled && rich && datasets.includes(request.dataset);
}

async function listPassing(
  tx: Transaction,
  name: string,
  recent: RecentRequest[],
): Promise<RecentRequest[]> {
  const searchable = (await readSearchableDatasets(tx, [name])).get(name);
  return recent.filter((request) => {
    const rights = { dataset_allowed: true, allowed_tier: request.tier };
    return judgeRequest({ ...request, ...rights }, searchable).ok;
  });
}

async function readRecent(tx: Transaction, which: string, value: string): Promise<RecentRequest[]> {
  return rows<RecentRequest>(
    tx,
    `select r.dataset, r.dataset_version, r.policy_version, r.tier, r.query, r.query_digest, r.state
     from requests r where ${which} order by r.id desc limit ${MAX_RECENT}`,
    [value],
  );
}

async function countOpen(tx: Transaction, which: string, value: string): Promise<number> {
  const [found] = await rows<{ count: number }>(
    tx,
    `select count(*) as count from requests r where r.state in ('received', 'running') and ${which}`,
    [value],
  );
  return found?.count ?? 0;
}

async function countUsers(tx: Transaction, which: string, value: string): Promise<number> {
  const [found] = await rows<{ count: number }>(
    tx,
    `select count(*) as count from users u where not u.disabled and ${which}`,
    [value],
  );
  return found?.count ?? 0;
}

function nothingThere(id: string): SallyportError {
  return new SallyportError('not-found', `There is nothing of the id ${id}.`);
}
