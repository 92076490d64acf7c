-- What every version of a user, profile type, dataset or setting was; without secrets.
create table revisions (
  kind text not null check (kind in ('user', 'profile-type', 'dataset', 'setting')),
  -- The uuid, or the key of a setting.
  id text not null,
  version integer not null,
  at timestamptz not null,
  actor text not null,
  reason text,
  data jsonb not null,
  primary key (kind, id, version)
);

-- A request network may override a setting that the other network never set: then value is null.
alter table settings alter column value drop not null;
alter table settings add column local_version integer not null default 0;
