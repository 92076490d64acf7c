import {
  IDENTITY_CHANGED,
  PRINCIPAL_COLUMNS,
  actorOf,
  appendAudit,
  hashApiKey,
  notifyChanged,
  parseApiKey,
  rows,
  runPrepared,
  toPrincipal,
  unauthenticated,
  type Clock,
  type Database,
  type KeyLookup,
  type Principal,
  type PrincipalRow,
} from '@sallyport/shared';

/** How the API keys of this network say who calls. A mistyped key costs no look-up. */
export function lookUpKeys(db: Database, secret: Buffer, clock: Clock): KeyLookup {
  return {
    async find(key) {
      if (!parseApiKey(key)) throw unauthenticated();
      const values = [hashApiKey(key, secret), clock.now()];
      const found = await runPrepared<PrincipalRow & { first_used_at: Date | null }>(
        db,
        FIND_BY_KEY,
        values,
      );
      const who = toPrincipal('request', found);
      if (found[0]?.first_used_at === null) await noteFirstUse(db, who.principal, clock.now());
      return who;
    },
    noteUsed: (used) => noteKeysUsed(db, used),
  };
}

/** Once in the life of a key: the keys that it takes the place of end after its overlap. */
async function noteFirstUse(db: Database, { keyId, login }: Principal, at: Date): Promise<void> {
  const replaced = await db.transaction(async (tx) => {
    const ending = await rows<{ id: string; expires_at: Date }>(tx, NOTE_FIRST_USE, {
      id: keyId,
      at,
    });
    for (const { id, expires_at } of ending) {
      const details = { login, reason: 'rotated', after: { expires_at, replaced_by: keyId } };
      const entry = { at, actor: actorOf({ login }), action: 'key.replace', subject: id, details };
      await appendAudit(tx, entry);
    }
    return ending.length;
  });
  // Whoever remembers an old key remembers an end that it no longer has.
  if (replaced > 0) await notifyChanged(db, IDENTITY_CHANGED);
}

async function noteKeysUsed(db: Database, used: ReadonlyMap<string, Date>): Promise<void> {
  await rows(
    db,
    `update api_keys k set last_used_at = greatest(k.last_used_at, used.at)
     from unnest(?::uuid[], ?::timestamptz[]) as used (id, at) where k.id = used.id`,
    [[...used.keys()], [...used.values()].map((at) => at.toISOString())],
  );
}

const FIND_BY_KEY = {
  name: 'find_principal_by_key',
  text: `
    select ${PRINCIPAL_COLUMNS}, k.id as key_id, k.scopes, k.expires_at,
      k.first_used_at
    from api_keys k join users u on u.id = k.user_id
    where k.hash = $1 and k.revoked_at is null and k.disabled_at is null
      and (k.expires_at is null or k.expires_at > $2) and not u.disabled`,
};

// Not only the key before it: that one may have been rotated without ever being used.
const NOTE_FIRST_USE = `
  with recursive used as (
    update api_keys set first_used_at = :at
    where id = :id and first_used_at is null and revoked_at is null
    returning rotated_from, overlap_s
  ), replaced as (
    select rotated_from as id, overlap_s, 1 as depth from used where rotated_from is not null
    union all
    select k.rotated_from, r.overlap_s, r.depth + 1
    from replaced r join api_keys k on k.id = r.id
    where k.rotated_from is not null and r.depth < 50
  )
  update api_keys k
  set expires_at = least(k.expires_at, :at::timestamptz + make_interval(secs => r.overlap_s))
  from replaced r where k.id = r.id and k.revoked_at is null
    and (k.expires_at is null or k.expires_at > :at::timestamptz + make_interval(secs => r.overlap_s))
  returning k.id, k.expires_at`;
