create table requests (
  id uuid primary key,
  user_id uuid not null,
  dataset text not null,
  dataset_version integer not null,
  policy_version integer not null,
  tier text not null,
  -- Canonical JSON (RFC 8785), exactly as it crosses.
  query text not null,
  query_digest text not null,
  cost double precision not null,
  pinned_now timestamptz not null,
  priority text not null,
  custom_id text,
  tags text[] not null,
  traceparent text,
  -- The request's own status: what its batch says (batched, exported, processing) is read there.
  status text not null check (
    status in ('submitted', 'processing', 'held', 'cancelling',
               'delivered', 'failed', 'rejected', 'cancelled', 'expired')
  ),
  stage text,
  reason_code text,
  failure jsonb,
  version integer not null,
  progress_version integer not null,
  known_as_of timestamptz not null,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  finished_at timestamptz,
  -- Where its record stands in the outbox, and through it in which batch.
  outbox_position bigint not null
);
create index requests_user on requests (user_id, id desc);
create index requests_custom on requests (user_id, custom_id) where custom_id is not null;
create index requests_delivered on requests (finished_at desc) where status = 'delivered';
create index requests_expiry on requests (expires_at)
  where status in ('submitted', 'processing', 'held', 'cancelling');

create table request_events (
  request_id uuid not null,
  id bigint generated always as identity,
  at timestamptz not null,
  -- On whose clock `at` was read.
  network text not null,
  event text not null,
  actor text,
  batch_id uuid,
  digest text,
  reason text,
  primary key (request_id, id)
);

-- The first result of a request stays.
create table results (
  request_id uuid primary key,
  status text not null,
  failure jsonb,
  media_type text,
  bytes bigint,
  sha256 text,
  parts integer not null,
  -- Opaque UTF-8, never parsed; null while parts are still on their way, and after a purge.
  text text,
  -- Nothing more of it is awaited: verified, without text, or damaged (then bytes is null).
  complete boolean not null,
  -- It came after the request had ended here; the status stayed.
  late boolean not null,
  disclosure jsonb,
  times jsonb not null,
  batch_id uuid not null,
  imported_at timestamptz not null,
  fetched_at timestamptz,
  purged_at timestamptz
);

create index results_incomplete on results (request_id) where not complete;

create table result_parts (
  request_id uuid not null,
  part integer not null,
  text text not null,
  primary key (request_id, part)
);

create table api_keys (
  id uuid primary key,
  user_id uuid not null,
  name text not null,
  -- HMAC-SHA-256 with the network's key, hexadecimal; the key itself is shown once and not kept.
  hash text not null unique,
  prefix text not null,
  last_four text not null,
  scopes text[] not null,
  created_at timestamptz not null,
  expires_at timestamptz,
  revoked_at timestamptz,
  last_used_at timestamptz
);
create index api_keys_user on api_keys (user_id);

create table idempotency_keys (
  principal uuid not null,
  key text not null,
  fingerprint text not null,
  status integer not null,
  headers jsonb not null,
  body text not null,
  created_at timestamptz not null,
  primary key (principal, key)
);
create index idempotency_keys_age on idempotency_keys (created_at);
