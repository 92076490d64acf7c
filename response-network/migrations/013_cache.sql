-- For the samples of a minute; rows come in the order of time.
create index results_finished on results using brin (finished_at)
  with (pages_per_range = 16, autosummarize = on);
