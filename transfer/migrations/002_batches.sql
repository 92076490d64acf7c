-- Renewed by re-adopt after a restore; a new one replaces all acknowledgements told under the old.
create table incarnations (
  id uuid primary key default gen_random_uuid(),
  made_at timestamptz not null default now()
);
insert into incarnations default values;

-- The pairs of networks that this node belongs to; every sequence is keyed by link.
create table links (
  link text primary key,
  far_node text not null,
  -- Our sending epoch, and the far side's as we last learned it.
  epoch integer not null,
  far_epoch integer not null,
  -- The highest epoch of ours that the far side told: after a restore it may know more than we do.
  far_told_epoch integer not null default 0,
  -- An epoch further on than the next that two people allowed the far side to announce.
  far_epoch_allowed integer,
  -- A far key adopted by hand that has announced nothing yet: its first batch may name any epoch.
  adopted_kid text,
  -- Rises with every manifest that this node signs (ack.no).
  manifest_no bigint not null,
  -- Rises whenever what we would acknowledge of a stream other than control changes.
  ack_version bigint not null,
  -- The highest ack.no that came from the far side, within its incarnation.
  far_no bigint not null default 0,
  far_incarnation uuid,
  created_at timestamptz not null
);

create table far_keys (
  link text not null references links,
  kid text not null,
  card jsonb not null,
  fingerprint text not null,
  -- Per stream the last number this key may sign, in the epoch in which it ended; null: not retired.
  retire jsonb,
  retire_epoch integer,
  revoked_at timestamptz,
  trusted_at timestamptz not null,
  trusted_by text not null,
  primary key (link, kid)
);

-- Every key this node has signed with; exactly one is current. Public halves only.
create table own_keys (
  kid text primary key,
  card jsonb not null,
  state text not null check (state in ('next', 'current', 'retired', 'revoked')),
  -- Per stream the last number it signs; null until its end was announced.
  retire jsonb,
  made_at timestamptz not null,
  ended_at timestamptz
);
create unique index own_keys_current on own_keys (state) where state in ('next', 'current');

-- Ordered streams that need a snapshot before the far side can go on.
create table owed_snapshots (
  link text not null references links,
  stream text not null,
  reason text not null,
  since timestamptz not null,
  primary key (link, stream)
);

create table outbound_batches (
  id uuid primary key,
  link text not null references links,
  stream text not null,
  epoch integer not null,
  seq bigint not null,
  kind text not null check (kind in ('delta', 'snapshot', 'heartbeat')),
  state text not null check (
    state in ('building', 'sealed', 'ready', 'handed_over', 'acked', 'rejected', 'withdrawn')
  ),
  -- Changes with every attempt to build; only the holder of the newest may seal.
  build_token uuid not null,
  -- Raised with every change that a request in it can show; part of a request's ETag.
  version integer not null,
  prev text,
  digest text,
  file_name text,
  file_bytes bigint,
  raw_bytes bigint,
  records integer not null,
  types jsonb,
  -- ack.no of its manifest, and the links.ack_version that it told.
  manifest_no bigint,
  ack_version bigint,
  far_code text,
  created_at timestamptz not null,
  sealed_at timestamptz,
  ready_at timestamptz,
  -- How often its bytes were put into the outbox, and when last.
  publications integer not null default 0,
  published_at timestamptz,
  handed_over_at timestamptz,
  handed_over_by text,
  medium text,
  acked_at timestamptz,
  -- When it was acknowledged, refused or written off.
  closed_at timestamptz,
  unique (link, stream, epoch, seq)
);
-- Which of our manifests the far side is known to have read.
create index outbound_batches_heard on outbound_batches (link, manifest_no) where state = 'acked';
create index outbound_batches_digest on outbound_batches (digest) where digest is not null;
create index outbound_batches_open on outbound_batches (stream, seq)
  where state in ('building', 'sealed', 'ready', 'handed_over');

-- The transactional outbox. A null link waits for trust, a null batch for the next export.
create table outbox_records (
  position bigint generated always as identity primary key,
  link text,
  stream text not null,
  type text not null,
  record_id uuid not null,
  line text not null,
  batch_id uuid references outbound_batches,
  batch_line integer
);
create index outbox_records_waiting on outbox_records (stream, position) where batch_id is null;
create index outbox_records_batch on outbox_records (batch_id, batch_line)
  where batch_id is not null;

create table inbound_streams (
  link text not null references links,
  stream text not null,
  epoch integer not null,
  -- Every number up to here is closed: applied, withdrawn, or rejected for its content.
  contiguous bigint not null,
  contiguous_digest text not null,
  -- The newest number the far side says it sealed.
  tail_seq bigint not null,
  tail_digest text,
  frozen_code text,
  frozen_at timestamptz,
  -- A jump up to this number was allowed by two people (FAST_FORWARD).
  jump_allowed_to bigint,
  primary key (link, stream)
);

create table inbound_batches (
  id uuid primary key,
  link text not null references links,
  stream text not null,
  epoch integer not null,
  seq bigint not null,
  digest text not null,
  -- Null while a written-off number has not come.
  prev text,
  kind text not null,
  state text not null check (
    state in ('waiting', 'applied', 'rejected', 'withdrawn', 'superseded')
  ),
  code text,
  file_name text not null,
  file_bytes bigint not null,
  records integer not null,
  types jsonb not null,
  duplicates integer not null,
  created_at timestamptz not null,
  seen_at timestamptz not null,
  applied_at timestamptz,
  -- ack.no of the first manifest that told its refusal.
  told_no bigint,
  unique (link, stream, epoch, seq)
);
create index inbound_batches_seen on inbound_batches (seen_at);
create index inbound_batches_rejected on inbound_batches (link, stream, epoch, seq)
  where state = 'rejected';
create index inbound_batches_digest on inbound_batches (digest);

-- Streams that we send and that the far side acknowledges as we never sent them (ACK_FORK): nothing
-- is sealed in that epoch until a person decides.
create table outbound_freezes (
  link text not null references links,
  stream text not null,
  epoch integer not null,
  code text not null,
  sentence text not null,
  at timestamptz not null,
  primary key (link, stream)
);

-- Those that the far side had before its present one: what they told counts no more.
create table far_incarnations (
  link text not null references links,
  incarnation uuid not null,
  ended_at timestamptz not null,
  primary key (link, incarnation)
);

-- What the far side said it has of ours. Merged monotonically within one incarnation.
create table far_acks (
  link text not null references links,
  stream text not null,
  incarnation uuid not null,
  no bigint not null,
  epoch integer not null,
  contiguous bigint not null,
  applied int8multirange not null,
  missing jsonb not null,
  rejected jsonb not null,
  -- SHA-256 of what the acknowledgement with the highest `no` told of the stream.
  told_digest text,
  updated_at timestamptz not null,
  primary key (link, stream)
);

-- Files in the inbox that need no second look: ours to remember where we may not unlink.
create table inbox_seen (
  name text primary key,
  bytes bigint not null,
  mtime_ms double precision not null,
  -- A file put in its place with the same size and time differs in these.
  ctime_ms double precision not null,
  inode text not null,
  digest text,
  code text not null,
  detail text not null,
  first_seen_at timestamptz not null,
  last_seen_at timestamptz not null
);

create table quarantine (
  id uuid primary key,
  code text not null,
  -- Of the bytes that were kept; null for what was never opened (a link, a folder, a giant).
  digest text,
  file_name text not null,
  file_bytes bigint not null,
  report jsonb not null,
  created_at timestamptz not null,
  decided_at timestamptz,
  decision text check (decision in ('released', 'rejected')),
  decided_by text,
  -- Set while a release that two people wanted waits for the next import.
  release_approval uuid,
  unique (code, digest)
);
create unique index quarantine_unopened on quarantine (code, file_name) where digest is null;
create index quarantine_open on quarantine (created_at) where decided_at is null;

-- Acts that need two different people: asked for by one, decided by another.
create table approvals (
  id uuid primary key,
  act text not null check (act in ('withdraw', 'release', 'jump')),
  -- What it is about, one text per thing: "requests 1 7" or the id of a quarantined file.
  subject text not null,
  details jsonb not null,
  reason text not null,
  asked_by text not null,
  asked_at timestamptz not null,
  decision text check (decision in ('approved', 'declined')),
  decided_by text,
  decided_at timestamptz,
  -- Why it was declined.
  answer text,
  check (decision is distinct from 'approved' or decided_by <> asked_by)
);
create unique index approvals_open on approvals (act, subject) where decision is null;

-- Who had a batch in hands, when, on what; a batch is named by the digest of its manifest.
create table custody_events (
  id uuid primary key,
  link text not null,
  stream text not null,
  epoch integer not null,
  seq bigint not null,
  digest text not null,
  step text not null check (step in ('sealed', 'written', 'read_back', 'handed_over', 'received',
    'verified', 'applied', 'receipt')),
  who text not null,
  at timestamptz not null,
  medium text,
  -- This node, the far node (by a control record), or a carrier (by a slip in inbox or outbox).
  source text not null check (source in ('own', 'far', 'carrier')),
  recorded_at timestamptz not null
);
-- Of one step, told by one source about one medium, the first one stays.
create unique index custody_events_once on custody_events (digest, step, source, medium)
  nulls not distinct;
create index custody_events_old on custody_events using brin (recorded_at);

-- Results of requests nobody here knows: parked, tried again, then dropped with an audit entry.
create table orphans (
  type text not null,
  record_id uuid not null,
  part integer not null,
  data jsonb not null,
  text text,
  batch_id uuid not null references inbound_batches,
  parked_at timestamptz not null,
  primary key (type, record_id, part)
);
create index orphans_batch on orphans (batch_id);
create index orphans_parked on orphans (parked_at);
