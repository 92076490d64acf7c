-- Rotation, limits and the states of API keys.
alter table api_keys
  -- A subset of submit_per_minute, submit_per_hour and submit_per_day; null: its user's alone.
  add column limits jsonb,
  add column disabled_at timestamptz,
  add column first_used_at timestamptz,
  -- The key that this one takes the place of, and for how long that one works beside it.
  add column rotated_from uuid references api_keys (id) on delete set null,
  add column overlap_s integer,
  -- The last warning: so many days before its end.
  add column warned_days integer;
create index api_keys_rotated_from on api_keys (rotated_from);
create index api_keys_expiry on api_keys (expires_at) where revoked_at is null;

update api_keys set first_used_at = last_used_at;
-- Reading results has a scope of its own now; keys keep what they could do.
update api_keys set scopes = scopes || '{results:read}'
where 'requests:read' = any (scopes);
