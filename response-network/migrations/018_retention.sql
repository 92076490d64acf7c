-- When the text of an answer was deleted for its age.
alter table results add column purged_at timestamptz;
create index results_kept on results (finished_at) where purged_at is null and sha256 is not null;
