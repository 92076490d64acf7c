-- Heads of our audit chain that manifests took to the far side: each must stand in the chain for ever.
create table sent_audit_heads (
  link text not null references links,
  position bigint not null,
  head text not null,
  -- ack.no of the first manifest that told it.
  manifest_no bigint not null,
  sent_at timestamptz not null,
  primary key (link, position, head)
);
create trigger sent_audit_heads_append_only before update or delete or truncate on sent_audit_heads
  for each statement execute function refuse_change();

-- Heads of the far side's chain as its manifests told them, kept where it cannot reach.
create table far_audit_heads (
  link text not null references links,
  head text not null,
  -- ack.no, incarnation and digest of the first manifest that told it.
  manifest_no bigint not null,
  incarnation uuid not null,
  digest text not null,
  seen_at timestamptz not null,
  primary key (link, head)
);
create trigger far_audit_heads_append_only before update or delete or truncate on far_audit_heads
  for each statement execute function refuse_change();
