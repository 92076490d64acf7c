-- Where a dataset's documents are; never crosses.
create table dataset_sources (
  dataset_id uuid primary key references datasets,
  index_name text not null,
  row_filter jsonb
);

create table requests (
  id uuid primary key,
  user_id uuid not null,
  dataset text not null,
  dataset_version integer not null,
  policy_version integer not null,
  tier text not null,
  pinned_now timestamptz not null,
  expires_at timestamptz not null,
  -- 0 urgent, 1 normal, 2 low.
  priority smallint not null,
  query text not null,
  query_digest text not null,
  traceparent text,
  state text not null check (state in ('received', 'running', 'done')),
  -- Raised with every change; told_version is the last one that a progress record told.
  version integer not null,
  told_version integer not null default 0,
  cancel_asked_at timestamptz,
  attempts integer not null,
  not_before timestamptz not null,
  lease_token uuid,
  lease_until timestamptz,
  batch_id uuid not null,
  batch_line integer not null,
  received_at timestamptz not null,
  started_at timestamptz,
  finished_at timestamptz
);
-- The claim walks from one (priority, user) to the next and takes the oldest of each.
create index requests_waiting on requests (priority, user_id, id) where state = 'received';
create index requests_running on requests (lease_until) where state = 'running';
create index requests_held_up on requests (id) where state = 'received' and attempts > 0;
create index requests_batch on requests (batch_id);

-- One answer per request, whatever crashes: the primary key is the request.
create table results (
  request_id uuid primary key,
  status text not null,
  failure jsonb,
  media_type text,
  bytes bigint,
  sha256 text,
  parts integer not null,
  text text,
  dataset_version integer,
  policy_version integer,
  received_at timestamptz not null,
  started_at timestamptz,
  finished_at timestamptz not null,
  took_ms integer
);
create table result_parts (
  request_id uuid not null references results,
  part integer not null,
  text text not null,
  primary key (request_id, part)
);

-- A cancel that overtook its request, kept until the deadline.
create table cancellations (
  request_id uuid primary key,
  user_id uuid not null,
  expires_at timestamptz not null,
  received_at timestamptz not null
);
create index cancellations_expiry on cancellations (expires_at);
