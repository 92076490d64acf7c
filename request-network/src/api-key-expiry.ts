import { addNotices, rows, type Database } from '@sallyport/shared';

/** How many days ahead a user is warned that a key ends. */
const WARNED_DAYS = [30, 14, 7, 1] as const;

const PAGE = 1_000;
const KEPT_DAYS = 90;

/**
 * Tells users which of their keys end soon: once at each of {@link WARNED_DAYS} that is shorter than
 * the life of the key, and not for a key whose successor is in use. Answers how many were warned of.
 */
export async function warnOfExpiry(db: Database, now: Date): Promise<number> {
  let warned = 0;
  for (;;) {
    const count = await db.transaction(async (tx) => {
      const due = await rows<DueKey>(tx, MARK_DUE, { now, days: [...WARNED_DAYS] });
      await addNotices(
        tx,
        due.map((key) => ({
          userId: key.user_id,
          kind: 'key.expiring',
          severity: key.days <= 7 ? ('warning' as const) : ('info' as const),
          title: `Your key "${key.name}" ends within ${key.days === 1 ? 'a day' : `${key.days} days`}`,
          detail:
            `The key ${key.prefix}…${key.last_four} ends at ${key.expires_at.toISOString()}. ` +
            'Rotate it before then.',
          subject: key.id,
          at: now,
        })),
      );
      return due.length;
    });
    warned += count;
    if (count < PAGE) return warned;
  }
}

/** Forgets keys that ended long ago; the audit log keeps what was done with them. */
export async function dropEndedKeys(db: Database, now: Date): Promise<number> {
  const dropped = await rows(
    db,
    `delete from api_keys where id in (
       select id from api_keys
       where least(revoked_at, expires_at) < :now::timestamptz - make_interval(days => ${KEPT_DAYS})
       limit ${PAGE})
     returning id`,
    { now },
  );
  return dropped.length;
}

type DueKey = {
  id: string;
  user_id: string;
  name: string;
  prefix: string;
  last_four: string;
  expires_at: Date;
  days: number;
};

const MARK_DUE = `
  update api_keys k set warned_days = due.days
  from (
    select c.id, min(d.days) as days
    from api_keys c join unnest(:days::integer[]) as d (days)
      on c.expires_at <= :now::timestamptz + make_interval(days => d.days)
        and c.expires_at - c.created_at > make_interval(days => d.days)
    where c.revoked_at is null and c.expires_at > :now
      and not exists (
        select 1 from api_keys s where s.rotated_from = c.id and s.first_used_at is not null)
    group by c.id
    having c.warned_days is null or c.warned_days > min(d.days)
    order by c.expires_at limit ${PAGE}
  ) due
  where due.id = k.id
  returning k.id, k.user_id, k.name, k.prefix, k.last_four, k.expires_at, due.days`;
