import { SallyportError } from './errors.js';
import { rows, type Transaction } from './database.js';

/** Tables to which entries are only ever added. */
const APPEND_ONLY = ['audit_log', 'sent_audit_heads', 'far_audit_heads'];
/** Which migrations were applied: the owner alone writes it. */
const MIGRATIONS = 'migrations';

/**
 * Gives a database role what `serve` and `work` need and no more: it reads and writes rows, but it
 * owns nothing, and to the audit log it can only add. For the owner of the tables, after each
 * migration; repeating it does no harm.
 * @throws SallyportError `not-found` for a role that does not exist, `usage` for the owner itself.
 */
export async function grantService(tx: Transaction, role: string): Promise<void> {
  const [found] = await rows<{ owner: boolean }>(
    tx,
    `select pg_has_role(oid, (select relowner from pg_class where oid = 'audit_log'::regclass), 'member')
       or rolsuper as owner
     from pg_roles where rolname = ?`,
    [role],
  );
  if (!found) {
    throw new SallyportError('not-found', `The database has no role ${JSON.stringify(role)}.`, {
      next: `Make it first: create role … login password '…'`,
    });
  }
  if (found.owner) {
    throw new SallyportError('usage', 'This role owns the tables or is a superuser.', {
      next: 'Name a role of its own, which has no other rights.',
    });
  }
  const [{ database } = { database: '' }] = await rows<{ database: string }>(
    tx,
    'select current_database() as database',
  );
  for (const statement of GRANTS) await rows(tx, statement, { role, database });
  for (const table of [...APPEND_ONLY, MIGRATIONS]) {
    const known = await rows(tx, 'select 1 where to_regclass(?) is not null', [table]);
    if (known.length === 0) continue;
    const taken = table === MIGRATIONS ? 'insert, update, delete' : 'update, delete';
    await rows(tx, `revoke ${taken}, truncate on :table: from :role:`, { table, role });
  }
}

const GRANTS = [
  // The queues keep their jobs in a schema of their own, which they make when they open first.
  'grant connect, create, temporary on database :database: to :role:',
  'grant usage on schema public to :role:',
  'grant select, insert, update, delete on all tables in schema public to :role:',
  'grant usage, select on all sequences in schema public to :role:',
];
