-- What the processes of a network counted and no sample has taken yet.
create table counts (
  minute timestamptz not null,
  metric text not null,
  label text not null,
  value bigint not null,
  primary key (minute, metric, label)
);

-- What happened in a minute (kept for days) and in an hour (kept for a year): metric -> label -> sum.
create table samples (
  grain text not null check (grain in ('minute', 'hour')),
  at timestamptz not null,
  data jsonb not null,
  primary key (grain, at)
);

-- What each process last said of its level of a cache.
create table cache_reports (
  process uuid primary key,
  cache text not null,
  at timestamptz not null,
  entries bigint not null,
  bytes bigint not null,
  hits bigint not null,
  shared_hits bigint not null,
  misses bigint not null,
  evictions bigint not null
);
