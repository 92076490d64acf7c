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
const ImpactSchema = Type.Object({
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
  const { before, after } = await tryOut(db, work, (tx) =>
    requireFound(findProfileType(tx, id), id),
  );
  const users = await countUsers(db, 'u.profile_type_id = ?', id);
  const mine = 'r.user_id in (select u.id from users u where u.profile_type_id = ?)';
  const recent = await readRecent(db, mine, id);
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
      open_requests: await countOpen(db, mine, id),
      recent_requests: recent.length,
      newly_refused: refused.length,
    },
  };
}

/** What a change of a dataset would do; as {@link previewProfileType}. */
export async function previewDataset(db: Database, id: string, work: Work): Promise<Preview> {
  const { before, after } = await tryOut(db, work, async (tx) => {
    const dataset = await requireFound(findDatasetById(tx, id), id);
    const source = viewSource(await readDatasetSource(tx, id));
    const searchable = (await readSearchableDatasets(tx, [dataset.name])).get(dataset.name);
    return { seen: { ...dataset, source }, searchable };
  });
  const { name } = before.seen;
  const recent = await readRecent(db, 'r.dataset = ?', name);
  const refused = recent.filter(
    (one) => passes(one, before.searchable) && !passes(one, after.searchable),
  );
  const entitled = `exists (select 1 from profile_types p
    where p.id = u.profile_type_id and not p.disabled and ? = any(p.datasets))`;
  const users = await countUsers(db, entitled, name);
  return {
    dry_run: true,
    changes: changesOf(before.seen, after.seen),
    impact: {
      users,
      losing_rights: !before.seen.disabled && after.seen.disabled ? users : 0,
      open_requests: await countOpen(db, 'r.dataset = ?', name),
      recent_requests: recent.length,
      newly_refused: refused.length,
    },
  };
}

/** What a change of a setting would do. */
export async function previewSetting(db: Database, key: string, work: Work): Promise<Preview> {
  const { before, after } = await tryOut(db, work, async (tx) => {
    const { value } = await readSettingState(tx, key);
    return { value };
  });
  return { dry_run: true, changes: listChanges(before, after), impact: null };
}

/**
 * What is seen before the work and after it; the work is taken back at once, because until then all
 * who write in the audit log wait.
 */
async function tryOut<T>(
  db: Database,
  work: Work,
  see: (tx: Transaction) => Promise<T>,
): Promise<{ before: T; after: T }> {
  const tx = await db.transaction();
  try {
    const before = await see(tx);
    await work(tx);
    return { before, after: await see(tx) };
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

function passes(request: RecentRequest, searchable: Parameters<typeof judgeRequest>[1]): boolean {
  const rights = { dataset_allowed: true, allowed_tier: request.tier };
  return judgeRequest({ ...request, ...rights }, searchable).ok;
}

async function readRecent(db: Database, which: string, value: string): Promise<RecentRequest[]> {
  return rows<RecentRequest>(
    db,
    `select r.dataset, r.dataset_version, r.policy_version, r.tier, r.query, r.query_digest, r.state
     from requests r where ${which} order by r.id desc limit ${MAX_RECENT}`,
    [value],
  );
}

async function countOpen(db: Database, which: string, value: string): Promise<number> {
  const [found] = await rows<{ count: number }>(
    db,
    `select count(*) as count from requests r where r.state in ('received', 'running') and ${which}`,
    [value],
  );
  return found?.count ?? 0;
}

async function countUsers(db: Database, which: string, value: string): Promise<number> {
  const [found] = await rows<{ count: number }>(
    db,
    `select count(*) as count from users u where not u.disabled and ${which}`,
    [value],
  );
  return found?.count ?? 0;
}

async function requireFound<T>(finding: Promise<T | undefined>, id: string): Promise<T> {
  const found = await finding;
  if (found !== undefined) return found;
  throw new SallyportError('not-found', `There is nothing of the id ${id}.`);
}
