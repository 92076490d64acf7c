-- Who may do what: owned by the response network, a replica on the request network.
create table profile_types (
  id uuid primary key,
  version integer not null,
  name text not null,
  description text not null,
  datasets text[] not null,
  tier text not null,
  priorities text[] not null,
  limits jsonb not null,
  retention_days integer not null,
  disabled boolean not null,
  updated_at timestamptz not null,
  -- Deferred, so that one batch may swap two names.
  constraint profile_types_name unique (name) deferrable initially deferred
);

-- No foreign keys between what crosses: an unknown reference means "no right yet".
create table users (
  id uuid primary key,
  version integer not null,
  login text not null,
  profile_type_id uuid not null,
  -- 'network:role', for example 'request:user'.
  roles text[] not null,
  disabled boolean not null,
  must_change_password boolean not null,
  profile_version integer not null,
  display_name text not null,
  email text,
  language text,
  notices jsonb not null,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint users_login unique (login) deferrable initially deferred
);
create index users_profile_type on users (profile_type_id);

-- The lexicographically greater (generation, counter) wins, whatever the order of arrival.
create table credentials (
  user_id uuid primary key,
  generation integer not null,
  counter integer not null,
  verifier text not null,
  updated_at timestamptz not null
);

create table datasets (
  id uuid primary key,
  version integer not null,
  epoch integer not null,
  name text not null,
  title text not null,
  description text not null,
  time_field text,
  fields jsonb not null,
  disabled boolean not null,
  updated_at timestamptz not null,
  constraint datasets_name unique (name) deferrable initially deferred
);

create table settings (
  key text primary key,
  version integer not null,
  value jsonb not null,
  -- Set on a request network for the settings marked local; wins there.
  local_value jsonb,
  updated_at timestamptz not null
);

-- Append-only; hash = SHA-256(prev || canonical(entry)). The head rides in every manifest.
create table audit_log (
  position bigint primary key,
  at timestamptz not null,
  actor text not null,
  action text not null,
  subject text not null,
  details jsonb not null,
  prev text not null,
  hash text not null
);
