-- Who is logged in on this network; sessions never cross.
create table sessions (
  id uuid primary key,
  user_id uuid not null,
  -- Of the credential it was opened with; with another one it is over.
  generation integer not null,
  counter integer not null,
  address text not null,
  client text not null,
  created_at timestamptz not null,
  refreshed_at timestamptz not null,
  -- Moves on with each refresh, never past the end that the first log-in set.
  expires_at timestamptz not null,
  ends_at timestamptz not null,
  ended_at timestamptz
);
create index sessions_user on sessions (user_id);
create index sessions_expiry on sessions (expires_at);

-- SHA-256 of every refresh token of a session; the used ones tell a stolen one.
create table refresh_tokens (
  hash text primary key,
  session_id uuid not null references sessions on delete cascade,
  used_at timestamptz
);
create index refresh_tokens_session on refresh_tokens (session_id);

-- How often somebody tried to log in, as rate-limiter-flexible keeps it.
create table login_attempts (
  key text primary key,
  points integer not null default 0,
  -- Milliseconds since 1970.
  expire bigint
);
