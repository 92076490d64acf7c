-- The results whose text is still here, by age.
create index results_kept on results (imported_at) where complete and purged_at is null;
