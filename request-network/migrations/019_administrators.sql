-- Since when somebody administers this network, as far as it saw: who came lately keeps nobody else's
-- place.
create table administrators (
  user_id uuid primary key,
  since timestamptz not null
);
insert into administrators (user_id, since)
select id, created_at from users where not disabled and 'request:admin' = any(roles);
