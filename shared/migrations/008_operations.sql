-- What is known of each worker beyond its queue: whether its schedule rests, and how it last went.
create table worker_states (
  name text primary key,
  -- Nothing ticks while it is; a wake still runs the worker.
  schedule_paused boolean not null default false,
  runs bigint not null default 0,
  -- In a row.
  failures integer not null default 0,
  started_at timestamptz,
  ended_at timestamptz,
  succeeded_at timestamptz,
  -- Of the last run, when it failed.
  error text,
  process text
);

-- The processes that run workers, and when each was last seen alive.
create table worker_processes (
  name text primary key,
  workers text[] not null,
  started_at timestamptz not null,
  seen_at timestamptz not null
);
