import { rows, type Database, type Transaction } from './database.js';
import { readPageToken, writePageToken } from './page-token.js';

export const NOTICE_SEVERITIES = ['info', 'warning', 'critical'] as const;
export type NoticeSeverity = (typeof NOTICE_SEVERITIES)[number];

/** Something that people should know, to be written. */
export type NewNotice = {
  /** Null: all admins of this network. */
  userId: string | null;
  /** A noun and what happened: `key.expiring`; people choose channels by the noun. */
  kind: string;
  severity: NoticeSeverity;
  title: string;
  detail: string;
  /** What it is about: an id or a name. */
  subject?: string;
  at: Date;
  /** One notice per (user, kind, key) within the time. */
  dedupe?: { key: string; withinMs: number };
};

/** A notice as its reader sees it. */
export type Notice = {
  id: string;
  kind: string;
  severity: NoticeSeverity;
  title: string;
  detail: string;
  subject: string | null;
  at: Date;
  read_at: Date | null;
};

/** A notice and who it went to; `recipient` is null for all admins. */
export type SentNotice = Notice & { recipient: string | null; read_by: string | null };

/** Who reads: admins see the notices to all admins besides their own. */
export type NoticeReader = { userId: string; login: string; isAdmin: boolean };

export type NoticePage<T> = { items: T[]; next_page_token?: string };
type Paging = { pageSize: number; pageToken?: string | undefined; secret: Buffer };
type Placed = { position: number };

const DAY_MS = 86_400_000;
const PRUNED = 10_000;
/** Longer than any notice asks not to be repeated. */
const MARKED_DAYS = 60;

/** Writes notices; one that its `dedupe` holds back is left out. */
export async function addNotices(tx: Transaction, notices: readonly NewNotice[]): Promise<void> {
  if (notices.length === 0) return;
  const given = notices.map(({ userId, at, dedupe, ...notice }) => ({
    ...notice,
    user_id: userId,
    at: at.toISOString(),
    mark: dedupe?.key ?? null,
    within_s: (dedupe?.withinMs ?? 0) / 1_000,
  }));
  // In one order, so that two writers of the same marks wait for each other instead of for ever.
  await rows(
    tx,
    `select add_notice(n.user_id, n.kind, n.severity, n.title, n.detail, n.subject, n.at, n.mark,
       make_interval(secs => n.within_s))
     from (
       select * from jsonb_to_recordset(?::jsonb) as given (
         user_id uuid, kind text, severity text, title text, detail text, subject text,
         at timestamptz, mark text, within_s double precision)
       order by user_id, kind, mark) n`,
    [JSON.stringify(given)],
  );
}

/**
 * The reader's notices, newest first, without the kinds that they do not want in the application.
 * @throws SallyportError `bad-page-token`.
 */
export async function listNotices(
  db: Database,
  reader: NoticeReader,
  { unread, ...paging }: Paging & { unread: boolean },
): Promise<NoticePage<Notice>> {
  const binding = `notices ${reader.userId} ${unread}`;
  const before = readPageToken(paging.secret, binding, paging.pageToken);
  const found = await rows<Notice & Placed>(
    db,
    `select n.id, n.position, n.kind, n.severity, n.title, n.detail, n.subject, n.at, n.read_at
     from notices n
     where ${MINE} and (n.read_at is null or not :unread)
       and n.position < coalesce(:before::bigint, 9223372036854775807)
     order by n.position desc limit :limit`,
    {
      ...readerValues(reader),
      unread,
      before: before ?? null,
      limit: paging.pageSize + 1,
    },
  );
  return pageOf(found, { ...paging, binding });
}

/**
 * Marks notices of the reader as read, those of the ids or all, and says how many it were. What one
 * admin has read of the notices to all admins is read for all of them.
 */
export async function readNotices(
  db: Database,
  reader: NoticeReader,
  { ids, now }: { ids: readonly string[] | 'all'; now: Date },
): Promise<number> {
  const read = await rows(
    db,
    `update notices n set read_at = :now, read_by = :login
     where ${MINE} and n.read_at is null and (:ids::uuid[] is null or n.id = any(:ids::uuid[]))
     returning n.id`,
    {
      ...readerValues(reader),
      now,
      login: reader.login,
      ids: ids === 'all' ? null : [...ids],
    },
  );
  return read.length;
}

/** What the notices of this network are narrowed to. */
export type NoticeFilter = {
  /** A login name, or `admins`. */
  recipient?: string;
  kind?: string;
  severity?: NoticeSeverity;
  unread?: boolean;
};

/**
 * All notices of this network and who they went to, newest first.
 * @throws SallyportError `bad-page-token`.
 */
export async function listSentNotices(
  db: Database,
  { userId, filter, ...paging }: Paging & { userId: string; filter: NoticeFilter },
): Promise<NoticePage<SentNotice>> {
  const { recipient = null, kind = null, severity = null, unread = false } = filter;
  const binding = `sent-notices ${userId} ${JSON.stringify([recipient, kind, severity, unread])}`;
  const before = readPageToken(paging.secret, binding, paging.pageToken);
  const found = await rows<SentNotice & Placed>(
    db,
    `select n.id, n.position, n.kind, n.severity, n.title, n.detail, n.subject, n.at, n.read_at,
       n.read_by, u.login as recipient
     from notices n left join users u on u.id = n.user_id
     where (:recipient::text is null or u.login = :recipient
         or (:recipient = 'admins' and n.user_id is null))
       and (:kind::text is null or n.kind = :kind)
       and (:severity::text is null or n.severity = :severity)
       and (n.read_at is null or not :unread)
       and n.position < coalesce(:before::bigint, 9223372036854775807)
     order by n.position desc limit :limit`,
    { recipient, kind, severity, unread, before: before ?? null, limit: paging.pageSize + 1 },
  );
  return pageOf(found, { ...paging, binding });
}

/**
 * Drops notices that are older than so many days, and what keeps old ones from being repeated; a
 * bounded number in one run. Answers how many notices went.
 */
export async function pruneNotices(
  db: Database,
  { now, days }: { now: Date; days: number },
): Promise<number> {
  const before = (age: number) => new Date(now.getTime() - age * DAY_MS);
  await rows(
    db,
    `delete from notice_marks where (recipient, kind, key) in (
       select recipient, kind, key from notice_marks where at < ? order by at limit ${PRUNED})`,
    [before(Math.max(days, MARKED_DAYS))],
  );
  const pruned = await rows(
    db,
    `delete from notices where id in (
       select id from notices where at < ? order by at limit ${PRUNED})
     returning id`,
    [before(days)],
  );
  return pruned.length;
}

// A kind that its reader never chose channels for comes in the application.
const MINE = `(
  (n.user_id = :user_id and not exists (
    select 1 from users u where u.id = n.user_id
      and not coalesce(u.notices->split_part(n.kind, '.', 1), '["app"]') @> '["app"]'))
  or (n.user_id is null and :is_admin))`;

function readerValues({ userId, isAdmin }: NoticeReader) {
  return { user_id: userId, is_admin: isAdmin };
}

function pageOf<T extends Placed>(
  found: T[],
  { pageSize, secret, binding }: Paging & { binding: string },
): NoticePage<Omit<T, 'position'>> {
  const shown = found.slice(0, pageSize);
  const items = shown.map(({ position: _position, ...notice }) => notice);
  const last = shown.at(-1);
  if (found.length <= pageSize || !last) return { items };
  return { items, next_page_token: writePageToken(secret, binding, String(last.position)) };
}
