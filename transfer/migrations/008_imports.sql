-- Files that were sent over HTTP into the inbox, and what became of each.
create table imports (
  id uuid primary key,
  actor text not null,
  -- What the sender said that it will be, if it did.
  total_bytes bigint,
  received_bytes bigint not null,
  state text not null check (state in ('receiving', 'received')),
  -- Of the whole file, and of the signed line 1 where it has one.
  sha256 text,
  digest text,
  -- What the newest import run said of it; null until one has looked.
  verdict jsonb,
  created_at timestamptz not null,
  updated_at timestamptz not null
);
create index imports_open on imports (updated_at) where state = 'receiving';
create index imports_old on imports (created_at);

-- The lines of applied batches that were refused alone.
create table inbound_faults (
  batch_id uuid not null references inbound_batches,
  line integer not null,
  type text not null,
  record_id uuid not null,
  code text not null,
  detail text not null,
  primary key (batch_id, line)
);
