-- What the windows of a subject remember: minute, hour and day, in this order. Minute and hour slide
-- over two cells, the day is one cell.
create type limit_state as (
  -- Number of the cell since 1970, and what was charged in it and in the one before.
  cells bigint[],
  current bigint[],
  previous bigint[],
  -- The last episode of grace: over at ends_at, possible again at rearm_at.
  ends_at timestamptz[],
  rearm_at timestamptz[],
  -- The user has been told of the crossing, and use was not below 70 % since.
  warned boolean[],
  warned_at timestamptz[]
);

-- One call judged by the windows of a subject.
create type limit_judgement as (
  cost bigint[],
  quota bigint[],
  warn bigint[],
  ceiling bigint[],
  -- Counted before the call.
  used bigint[],
  -- admit, open (admitted into an episode that opens now), cost, ceiling, grace_spent.
  verdict text[],
  -- The largest cost that would be admitted now.
  most bigint[],
  -- Seconds until the call fits under the quota; until one unit fits, without and after the call.
  wait_s bigint[],
  free_s bigint[],
  free_after_s bigint[],
  ends_in_s bigint[],
  rearms_in_s bigint[],
  -- What the user is to be told if the call is admitted: warning, grace.
  news text[]
);
create type judged_submit as (told limit_judgement, state limit_state);

-- One row per subject (a user, or a key that has limits of its own) and class.
create table rate_limits (
  subject uuid not null,
  class text not null,
  -- Raised by every write, so that a charge knows whether it judged what still stands.
  changes bigint not null default 0,
  seen_at timestamptz not null,
  state limit_state,
  -- At least as many requests as are open, or null: counted again only where it would refuse.
  open_bound bigint,
  refused bigint not null default 0,
  -- By window: {limit | factor, until, reason, by, at}.
  overrides jsonb,
  -- {until, reason, by, at}
  blocked jsonb,
  primary key (subject, class)
) with (fillfactor = 50);

create table limit_episodes (
  subject uuid not null,
  class text not null,
  "window" text not null,
  opened_at timestamptz not null,
  ends_at timestamptz not null,
  rearm_at timestamptz not null,
  primary key (subject, class, "window", opened_at)
);
create index limit_episodes_age on limit_episodes (opened_at);

create index requests_open on requests (user_id)
  where status in ('submitted', 'processing', 'held', 'cancelling');

-- Bytes of the results that are here and not purged, by user.
create table result_usage (
  user_id uuid primary key,
  bytes bigint not null
) with (fillfactor = 50);

create function count_result_bytes() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' then
    insert into result_usage as u (user_id, bytes)
    select r.user_id, sum(n.bytes) from new_rows n join requests r on r.id = n.request_id
    where n.bytes is not null and n.purged_at is null
    group by r.user_id order by r.user_id
    on conflict (user_id) do update set bytes = u.bytes + excluded.bytes;
  elsif tg_op = 'UPDATE' then
    insert into result_usage as u (user_id, bytes)
    select r.user_id, sum(c.bytes) from (
      select n.request_id,
        coalesce(case when n.purged_at is null then n.bytes end, 0)
        - coalesce(case when o.purged_at is null then o.bytes end, 0) as bytes
      from new_rows n join old_rows o using (request_id)
    ) c join requests r on r.id = c.request_id
    where c.bytes <> 0
    group by r.user_id order by r.user_id
    on conflict (user_id) do update set bytes = u.bytes + excluded.bytes;
  else
    insert into result_usage as u (user_id, bytes)
    select r.user_id, -sum(o.bytes) from old_rows o join requests r on r.id = o.request_id
    where o.bytes is not null and o.purged_at is null
    group by r.user_id order by r.user_id
    on conflict (user_id) do update set bytes = u.bytes + excluded.bytes;
  end if;
  return null;
end $$;
create trigger results_inserted after insert on results
  referencing new table as new_rows for each statement execute function count_result_bytes();
create trigger results_updated after update on results
  referencing old table as old_rows new table as new_rows
  for each statement execute function count_result_bytes();
create trigger results_deleted after delete on results
  referencing old table as old_rows for each statement execute function count_result_bytes();
insert into result_usage (user_id, bytes)
select r.user_id, sum(s.bytes) from results s join requests r on r.id = s.request_id
where s.bytes is not null and s.purged_at is null group by r.user_id;

-- A quota as an admin has overridden it.
create function overridden(quota bigint, change jsonb, at timestamptz)
returns bigint language sql immutable as $$
  select case
    when quota is null or change is null or at >= (change->>'until')::timestamptz then quota
    else coalesce((change->>'limit')::bigint,
      greatest(1, floor(quota * (change->>'factor')::numeric)::bigint))
  end
$$;

-- Whole seconds until a cost fits under the quota, grace aside; span and elapsed in microseconds.
create function limit_wait_s(
  current bigint, previous bigint, sliding boolean, span bigint, elapsed bigint, quota bigint, cost bigint
) returns bigint language plpgsql immutable as $$
declare
  fading bigint := previous;
  room bigint := quota - current - cost;
  wait bigint := -elapsed;
begin
  if room < 0 then
    -- Only in the next cell, where what is counted now fades.
    fading := case when sliding then current else 0 end;
    room := quota - cost;
    wait := span - elapsed;
  end if;
  -- The first microsecond of that cell at which floor(fading * (1 - elapsed / span)) <= room.
  if room >= 0 and fading > room then
    wait := wait + span * (fading - room - 1) / fading + 1;
  end if;
  return (greatest(wait, 0) + 999999) / 1000000;
end $$;

-- Judges a call with so many requests by the windows of a subject; a limit that is not given has no
-- window. The minute counts calls, hour and day count requests. `state` is for when all admit it.
create function judge_submit(
  s limit_state, limits jsonb, overrides jsonb, requests bigint, at timestamptz
) returns judged_submit language plpgsql immutable as $$
declare
  spans constant bigint[] := array[60000000, 3600000000, 86400000000];
  at_us constant bigint := (extract(epoch from at) * 1000000)::bigint;
  warn_percent constant bigint := (limits->>'warn_percent')::bigint;
  ceiling_percent constant bigint := (limits->>'ceiling_percent')::bigint;
  grace_s constant bigint := (limits->>'grace_s')::bigint;
  rearm_s constant bigint[] := array[
    (limits->>'rearm_minute_s')::bigint, (limits->>'rearm_hour_s')::bigint,
    (limits->>'rearm_day_s')::bigint];
  quotas bigint[] := array[
    (limits->>'submit_per_minute')::bigint, (limits->>'submit_per_hour')::bigint,
    (limits->>'submit_per_day')::bigint];
  costs constant bigint[] := array[least(requests, 1), requests, requests];
  warns bigint[] := '{null,null,null}';
  ceilings bigint[] := warns;
  useds bigint[] := warns;
  verdicts text[] := '{null,null,null}';
  mosts bigint[] := warns;
  waits bigint[] := '{0,0,0}';
  frees bigint[] := waits;
  frees_after bigint[] := waits;
  ends_in bigint[] := warns;
  rearms_in bigint[] := warns;
  news text[] := verdicts;
  cells bigint[] := coalesce(s.cells, warns);
  currents bigint[] := coalesce(s.current, warns);
  previouses bigint[] := coalesce(s.previous, warns);
  ends timestamptz[] := coalesce(s.ends_at, '{null,null,null}');
  rearms timestamptz[] := coalesce(s.rearm_at, '{null,null,null}');
  warned boolean[] := coalesce(s.warned, '{f,f,f}');
  warned_at timestamptz[] := coalesce(s.warned_at, '{null,null,null}');
  span bigint;
  elapsed bigint;
  cell bigint;
  quota bigint;
  ceiling bigint;
  cost bigint;
  current bigint;
  previous bigint;
  used bigint;
  has_grace boolean;
  verdict text;
begin
  for n in 1..3 loop
    quota := quotas[n];
    continue when quota is null;
    if overrides is not null then
      quota := overridden(quota, overrides->(array['minute', 'hour', 'day'])[n], at);
      quotas[n] := quota;
    end if;
    span := spans[n];
    cell := at_us / span;
    elapsed := at_us - cell * span;
    cost := costs[n];
    ceiling := case when grace_s = 0 then quota else greatest(quota, quota * ceiling_percent / 100) end;
    if cells[n] = cell then
      current := currents[n];
      previous := previouses[n];
    else
      previous := case when n < 3 and cells[n] = cell - 1 then currents[n] else 0 end;
      current := 0;
    end if;
    used := current + previous * (span - elapsed) / span;
    has_grace := rearms[n] is null or at < ends[n] or at >= rearms[n];
    verdict := case
      when cost > quota then 'cost'
      when used + cost <= quota then 'admit'
      when used + cost > ceiling then 'ceiling'
      when at < ends[n] then 'admit'
      when has_grace then 'open'
      else 'grace_spent'
    end;
    warns[n] := (quota * warn_percent + 99) / 100;
    ceilings[n] := ceiling;
    useds[n] := used;
    verdicts[n] := verdict;
    mosts[n] := greatest(0, least(quota, case when has_grace then ceiling else quota end - used));
    if used + cost >= quota and cost <= quota then
      waits[n] := limit_wait_s(current, previous, n < 3, span, elapsed, quota, cost);
      frees[n] := limit_wait_s(current, previous, n < 3, span, elapsed, quota, 1);
      frees_after[n] := limit_wait_s(current + cost, previous, n < 3, span, elapsed, quota, 1);
    end if;
    cells[n] := cell;
    currents[n] := current + cost;
    previouses[n] := previous;
    if verdict = 'open' then
      ends[n] := at + make_interval(secs => grace_s);
      rearms[n] := at + make_interval(secs => rearm_s[n]);
    end if;
    if rearms[n] > at then
      ends_in[n] := greatest(0, ceil(extract(epoch from ends[n] - at)));
      rearms_in[n] := ceil(extract(epoch from rearms[n] - at));
    end if;
    if used * 100 < quota * 70 then
      warned[n] := false;
    end if;
    -- Once per crossing, at most hourly; that grace has opened is told by itself.
    if verdict = 'open' then
      news[n] := 'grace';
    elsif used + cost >= warns[n] and not warned[n]
        and (warned_at[n] is null or at >= warned_at[n] + interval '1 hour') then
      news[n] := 'warning';
    end if;
    if news[n] is not null then
      warned[n] := true;
      warned_at[n] := at;
    end if;
  end loop;
  return row(
    row(costs, quotas, warns, ceilings, useds, verdicts, mosts, waits, frees, frees_after, ends_in,
      rearms_in, news)::limit_judgement,
    row(cells, currents, previouses, ends, rearms, warned, warned_at)::limit_state
  )::judged_submit;
end $$;

-- The state after the clock was set back: counts stay, and no episode outlasts its span from now.
create function re_anchor(s limit_state, limits jsonb, at timestamptz)
returns limit_state language plpgsql immutable as $$
declare
  spans bigint[] := array[60, 3600, 86400];
  names text[] := array['minute', 'hour', 'day'];
begin
  for n in 1..3 loop
    s.cells[n] := extract(epoch from at)::bigint / spans[n];
    s.ends_at[n] := least(s.ends_at[n], at + make_interval(secs => (limits->>'grace_s')::bigint));
    s.rearm_at[n] := least(s.rearm_at[n],
      at + make_interval(secs => (limits->>('rearm_' || names[n] || '_s'))::bigint));
    s.warned_at[n] := least(s.warned_at[n], at);
  end loop;
  return s;
end $$;

-- Keeps the episodes that have opened and tells the user, and of episodes the admins too.
create function tell_limits(
  p_user uuid, p_subject uuid, told limit_judgement, s limit_state, at timestamptz
) returns void language plpgsql as $$
declare
  names text[] := array['minute', 'hour', 'day'];
  limit_of text;
  hard_from text;
begin
  for n in 1..3 loop
    limit_of := format('%s a %s', told.quota[n], names[n])
      || case when p_subject = p_user then '' else ' of one key' end;
    if told.news[n] = 'warning' then
      perform add_notice(p_user, 'limit.warning', 'info', 'Near the limit of ' || limit_of,
        format('%s are used.', told.used[n] + told.cost[n]), p_subject::text, at, null, null);
    elsif told.news[n] = 'grace' then
      hard_from := to_char(s.ends_at[n] at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"');
      insert into limit_episodes (subject, class, "window", opened_at, ends_at, rearm_at)
      values (p_subject, 'submit', names[n], at, s.ends_at[n], s.rearm_at[n])
      on conflict do nothing;
      perform add_notice(p_user, 'limit.grace', 'warning', 'Over the limit of ' || limit_of,
        format('Up to %s are taken until %s; from then on %s is the end.', told.ceiling[n],
          hard_from, told.quota[n]), p_subject::text, at, null, null);
      perform add_notice(null, 'limit.grace', 'info',
        format('%s is over the limit of %s', login, limit_of),
        format('Up to %s are taken until %s.', told.ceiling[n], hard_from), p_subject::text, at,
        null, null)
      from users where id = p_user;
    end if;
  end loop;
end $$;

-- Charges a call with so many requests to the user and, if it has limits of its own, to the key: all
-- windows or none. With 0 requests it only tells. `p_now` is for tests; else the database's clock.
create function charge_submit(
  p_user uuid, p_limits jsonb, p_key uuid, p_key_limits jsonb, p_requests bigint, p_now timestamptz
) returns json language plpgsql volatile as $$
declare
  charges constant boolean := p_requests > 0;
  open_most constant bigint := (p_limits->>'open_requests')::bigint;
  bytes_most constant bigint := (p_limits->>'stored_bytes')::bigint;
  key_limits constant jsonb :=
    (p_limits - array['submit_per_minute', 'submit_per_hour', 'submit_per_day']) || p_key_limits;
  -- Two rows cannot be compared and changed at once.
  locked boolean := charges and p_key_limits is not null;
  l rate_limits;
  k rate_limits;
  user_judged judged_submit;
  key_judged judged_submit;
  at timestamptz;
  stepped_back boolean;
  blocked jsonb;
  verdicts text[];
  refusal text;
  open_count bigint;
  bytes_used bigint;
begin
  select bytes into bytes_used from result_usage where user_id = p_user;
  loop
    if locked then
      insert into rate_limits (subject, class, seen_at)
      select subject, 'submit', coalesce(p_now, clock_timestamp())
      from unnest(array[p_user, case when p_key_limits is not null then p_key end]) subject
      where subject is not null on conflict do nothing;
      select * into l from rate_limits where subject = p_user and class = 'submit' for update;
    else
      select * into l from rate_limits where subject = p_user and class = 'submit';
    end if;
    if p_key_limits is not null and locked then
      select * into k from rate_limits where subject = p_key and class = 'submit' for update;
    elsif p_key_limits is not null then
      select * into k from rate_limits where subject = p_key and class = 'submit';
    end if;
    -- A small step back of the clock is clamped.
    at := coalesce(p_now, clock_timestamp());
    stepped_back := coalesce(at < l.seen_at - interval '120 seconds', false);
    if stepped_back then
      l.state := re_anchor(l.state, p_limits, at);
      k.state := re_anchor(k.state, p_limits, at);
    else
      at := greatest(at, l.seen_at);
    end if;
    blocked := case when coalesce(at < (l.blocked->>'until')::timestamptz, true) then l.blocked end;
    user_judged := judge_submit(l.state, p_limits, l.overrides, p_requests, at);
    verdicts := (user_judged.told).verdict;
    if p_key_limits is not null then
      key_judged := judge_submit(k.state, key_limits, k.overrides, p_requests, at);
      verdicts := verdicts || (key_judged.told).verdict;
    end if;
    refusal := case
      when blocked is not null then 'blocked'
      when 'cost' = any(verdicts) then 'cost-exceeds-limit'
      when 'ceiling' = any(verdicts) or 'grace_spent' = any(verdicts) then 'rate-limited'
    end;
    open_count := l.open_bound;
    if open_count is null or not charges
        or refusal is null and open_count + p_requests > open_most then
      select count(*) into open_count from (
        select from requests where user_id = p_user
          and status in ('submitted', 'processing', 'held', 'cancelling')
        limit open_most + 1) bounded;
    end if;
    if refusal is null and open_count + p_requests > open_most then
      refusal := 'open-requests-limit';
    elsif refusal is null and bytes_used >= bytes_most then
      refusal := 'stored-bytes-limit';
    end if;
    exit when refusal is not null or not charges;
    if l.subject is not null then
      update rate_limits set changes = l.changes + 1, seen_at = at, state = user_judged.state,
        open_bound = open_count + p_requests
      where subject = p_user and class = 'submit' and changes = l.changes;
    end if;
    if l.subject is not null and found then
      if p_key_limits is not null then
        update rate_limits set changes = k.changes + 1, seen_at = at, state = key_judged.state
        where subject = p_key and class = 'submit';
      end if;
      if array_remove((user_judged.told).news, null) <> '{}' then
        perform tell_limits(p_user, p_user, user_judged.told, user_judged.state, at);
      end if;
      if array_remove((key_judged.told).news, null) <> '{}' then
        perform tell_limits(p_user, p_key, key_judged.told, key_judged.state, at);
      end if;
      if stepped_back then
        perform add_notice(null, 'limit.clock', 'critical', 'The clock of the database was set back',
          'Limits go on from the new time with the counts that they had; check the time service.',
          'clock', at, 'clock', interval '1 day');
      end if;
      exit;
    end if;
    -- There was no row, or somebody changed it meanwhile.
    locked := true;
  end loop;
  return json_build_object(
    'refusal', refusal,
    'blocked', blocked,
    'grace_s', p_limits->'grace_s',
    'user', user_judged.told,
    'key', case when p_key_limits is not null then key_judged.told end,
    'open_used', open_count,
    'open_most', open_most,
    'bytes_used', coalesce(bytes_used, 0),
    'bytes_most', bytes_most
  );
end $$;
