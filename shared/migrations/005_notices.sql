-- What people are told in the application, on each network by itself.
create table notices (
  id uuid primary key default gen_random_uuid(),
  -- The order in which they were written, for pages.
  position bigint generated always as identity unique,
  -- Null: for everybody who is admin of this network.
  user_id uuid,
  kind text not null,
  severity text not null check (severity in ('info', 'warning', 'critical')),
  title text not null,
  detail text not null,
  -- What it is about: an id or a name.
  subject text,
  at timestamptz not null,
  read_at timestamptz,
  read_by text
);
create index notices_user on notices (user_id, position desc);
create index notices_unread on notices (user_id, position desc) where read_at is null;
create index notices_age on notices (at);

-- When a notice was last written that must not be repeated for a while.
create table notice_marks (
  -- The user's id, or 'admins'.
  recipient text not null,
  kind text not null,
  key text not null,
  at timestamptz not null,
  primary key (recipient, kind, key)
);
create index notice_marks_age on notice_marks (at);

-- Writes one notice and says whether it did: with a key, only one within the time since the last.
create function add_notice(
  to_user uuid, kind text, severity text, title text, detail text, subject text, at timestamptz,
  mark text, within interval
) returns boolean language plpgsql as $$
begin
  if mark is not null then
    insert into notice_marks as m (recipient, kind, key, at)
    values (coalesce(to_user::text, 'admins'), $2, mark, $7)
    on conflict on constraint notice_marks_pkey do update set at = excluded.at
    where m.at <= excluded.at - within;
    if not found then return false; end if;
  end if;
  insert into notices (user_id, kind, severity, title, detail, subject, at)
  values (to_user, $2, $3, $4, $5, $6, $7);
  return true;
end $$;
