-- A batch whose records a person of this network must let in first waits for an approval too.
alter table approvals drop constraint approvals_act_check;
alter table approvals add constraint approvals_act_check
  check (act in ('withdraw', 'release', 'jump', 'apply'));
create index approvals_subject on approvals (act, subject);
