import { Type, type Static } from 'typebox';
import { LoginName, Uuid, rows, type Database } from '@sallyport/shared';
import { RequestListSchema, RequestViewSchema } from './request-schemas.js';
import { REQUEST_SELECT, conditionsOf, toView, type RequestRow } from './request-views.js';
import { notFound } from './requests.js';

const { page_size: _size, page_token: _token, ...FILTERS } = RequestListSchema.properties;

/** What a search over everybody's requests may be narrowed to. */
export const RequestSearchFilter = {
  ...FILTERS,
  login: Type.Optional(LoginName),
  user_id: Type.Optional(Uuid),
  /** `sha256:` and the digest of the canonical query. */
  digest: Type.Optional(Type.String({ pattern: '^sha256:[0-9a-f]{64}$' })),
  batch: Type.Optional(Uuid),
};

/** A request with whose it is; never its result. */
export const FoundRequestSchema = Type.Object(
  {
    ...RequestViewSchema.properties,
    user: Type.Object(
      { id: Uuid, login: Type.Union([Type.String(), Type.Null()]) },
      { additionalProperties: false },
    ),
  },
  { additionalProperties: false },
);
export type FoundRequest = Static<typeof FoundRequestSchema>;

export type RequestSearch = {
  [Key in keyof typeof RequestSearchFilter]?: Static<(typeof RequestSearchFilter)[Key]> | undefined;
};

/** Requests of all users, newest first; `after` is the id of the last one seen. */
export async function searchRequests(
  db: Database,
  { filter, limit, after }: { filter: RequestSearch; limit: number; after?: string | undefined },
): Promise<FoundRequest[]> {
  const conditions = conditionsOf(filter);
  if (after) conditions.push(['r.id < ?::uuid', after]);
  if (filter.user_id) conditions.push(['r.user_id = ?', filter.user_id]);
  if (filter.digest) conditions.push(['r.query_digest = ?', filter.digest]);
  if (filter.batch) conditions.push(['b.id = ?', filter.batch]);
  if (filter.login) {
    conditions.push(['r.user_id = (select id from users where login = ?)', filter.login]);
  }
  const found = await rows<RequestRow>(
    db,
    `${REQUEST_SELECT} where ${['true', ...conditions.map(([sql]) => sql)].join(' and ')}
     order by r.id desc limit ${limit}`,
    conditions.map(([, value]) => value as string),
  );
  return withUsers(db, found);
}

/**
 * One request, of whoever it is.
 * @throws SallyportError `not-found`.
 */
export async function findRequest(db: Database, id: string): Promise<FoundRequest> {
  const [found] = await withUsers(
    db,
    await rows<RequestRow>(db, `${REQUEST_SELECT} where r.id = ?`, [id]),
  );
  if (!found) throw notFound(id);
  return found;
}

async function withUsers(db: Database, found: RequestRow[]): Promise<FoundRequest[]> {
  const owners = await rows<{ request: string; id: string; login: string | null }>(
    db,
    `select r.id as request, r.user_id as id, u.login
     from requests r left join users u on u.id = r.user_id where r.id = any(?)`,
    [found.map(({ id }) => id)],
  );
  const byRequest = new Map(owners.map(({ request, ...user }) => [request, user]));
  return found.flatMap((row) => {
    const user = byRequest.get(row.id);
    return user ? [{ ...toView(row), user }] : [];
  });
}
