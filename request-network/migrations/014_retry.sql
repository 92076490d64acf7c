-- The request of which this one is a repetition.
alter table requests add column retry_of uuid;

-- For the samples of a minute; rows come in the order of time.
create index request_events_at on request_events using brin (at)
  with (pages_per_range = 16, autosummarize = on);
