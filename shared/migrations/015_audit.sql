-- The audit log grows at its end and changes nowhere else. A trigger, because it binds the owner of
-- the table too, whom no grant binds; who drops it and edits the log breaks the chain.
create function refuse_change() returns trigger language plpgsql as $$
begin
  raise exception 'what stands in % is never changed or removed', tg_table_name
    using errcode = 'insufficient_privilege';
end $$;
create trigger audit_log_append_only before update or delete or truncate on audit_log
  for each statement execute function refuse_change();
revoke update, delete, truncate on audit_log from public;

-- No entry has two successors, whatever its writers agreed on.
alter table audit_log
  add constraint audit_log_position check (position > 0),
  add constraint audit_log_prev unique (prev),
  add constraint audit_log_hash unique (hash);
create index audit_log_at on audit_log (at);
create index audit_log_actor on audit_log (actor, position);
create index audit_log_subject on audit_log (subject, position);

-- How far the chain was recomputed, and what was found: one row.
create table audit_checks (
  one boolean primary key default true check (one),
  position bigint not null,
  head text not null,
  -- Where it breaks first; null while it holds.
  broken_at bigint,
  checked_at timestamptz not null,
  -- When it was last recomputed from its first entry.
  full_at timestamptz not null
);
