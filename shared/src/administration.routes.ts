import { Type, type Static, type TSchema } from 'typebox';
import { listChanges, MemberChangeSchema } from './changes.js';
import type { Database } from './database.js';
import { findDatasetById, searchDatasets, type Dataset } from './datasets.js';
import { SallyportError } from './errors.js';
import { etagOf } from './etags.js';
import type { Answer, Routes } from './http-routes.js';
import { PageQuery, readPage, type Page, type PageCall } from './page-token.js';
import type { Principal } from './principals.js';
import { findProfileType, searchProfileTypes } from './profile-types.js';
import {
  DatasetSchema,
  NETWORKS,
  NoticesSchema,
  ProfileTypeSchema,
  ROLES,
  Timestamp,
  Uuid,
} from './records.js';
import { READERS } from './role-sets.js';
import { listRevisions, readRevision, type RevisionKind } from './revisions.js';
import { SETTINGS } from './settings.js';
import { listSettingStates, readSettingState, type SettingState } from './stored-settings.js';
import { searchUsers, type ListedUser } from './users.js';

/** What the routes of administration work with. */
export type AdministrationContext = {
  db: Database;
  pageSecret: Buffer;
  /** Where the documents of a dataset are, on the network that knows it. */
  sourceOf?: (dataset: Dataset) => Promise<object | null>;
};

const object = <T extends Record<string, TSchema>>(properties: T) =>
  Type.Object(properties, { additionalProperties: false });
const nullable = (schema: TSchema) => Type.Union([schema, Type.Null()]);
const pageSchema = (item: TSchema) =>
  Type.Object({ items: Type.Array(item), next_page_token: Type.Optional(Type.String()) });

/** A role on a network, as `request:user`. */
export const GrantText = Type.Unsafe<`${(typeof NETWORKS)[number]}:${(typeof ROLES)[number]}`>({
  type: 'string',
  enum: NETWORKS.flatMap((network) => ROLES.map((role) => `${network}:${role}`)),
});
/** The key of a setting in a path. */
export const SETTING_KEY = { key: /^[a-z0-9][a-z0-9._-]{0,62}$/ };

export const AdminUserSchema = Type.Object({
  id: Uuid,
  version: Type.Integer(),
  login: Type.String(),
  display_name: Type.String(),
  email: nullable(Type.String()),
  language: nullable(Type.String()),
  notices: NoticesSchema,
  profile_type: nullable(Type.String()),
  roles: Type.Array(GrantText),
  disabled: Type.Boolean(),
  must_change_password: Type.Boolean(),
  created_at: Timestamp,
  updated_at: Timestamp,
});
export const AdminProfileTypeSchema = Type.Object({ id: Uuid, ...ProfileTypeSchema.properties });
export const AdminDatasetSchema = Type.Object({
  id: Uuid,
  ...DatasetSchema.properties,
  source: Type.Optional(
    nullable(Type.Object({ index_name: Type.String(), row_filter: nullable(Type.Object({})) })),
  ),
});
export const AdminSettingSchema = Type.Object({
  key: Type.String(),
  value: Type.Unknown(),
  source: Type.Unsafe<SettingState['source']>({
    type: 'string',
    enum: ['default', 'synced', 'local'],
  }),
  synced_value: Type.Unknown(),
  local_value: Type.Unknown(),
  default: Type.Unknown(),
  version: Type.Integer(),
  updated_at: nullable(Timestamp),
  local: Type.Boolean(),
  description: Type.String(),
  /** JSON Schema of the value. */
  schema: Type.Unknown(),
});
const RevisionSchema = Type.Object({
  version: Type.Integer(),
  at: Timestamp,
  actor: Type.String(),
  reason: nullable(Type.String()),
});
const VersionNumber = Type.Integer({ minimum: 1, maximum: 2_147_483_647 });
const SearchText = Type.Optional(Type.String({ minLength: 1, maxLength: 200 }));

/** What administrators look at, the same on both networks; each says what it is narrowed to. */
export function addAdministrationRoutes(
  routes: Routes<Principal>,
  { db, pageSecret, sourceOf }: AdministrationContext,
): void {
  const viewPlaced = async (dataset: Dataset) => viewDataset(dataset, await sourceOf?.(dataset));

  addThing(routes, { db, pageSecret }, 'users', 'user', {
    item: AdminUserSchema,
    filter: object({
      ...PageQuery,
      text: SearchText,
      disabled: Type.Optional(Type.Boolean()),
      role: Type.Optional(GrantText),
      profile_type: Type.Optional(Type.String({ maxLength: 63 })),
    }),
    list: (call, { profile_type: profileType, ...filter }) =>
      readPage(
        call,
        (limit, after) => searchUsers(db, { ...filter, profileType }, { after, limit }),
        { cursorOf: ({ login }) => login, view: viewUser },
      ),
    async find(id) {
      const user = await readListedUser(db, id);
      return { version: user.version, body: viewUser(user) };
    },
  });
  addThing(routes, { db, pageSecret }, 'profile-types', 'profile-type', {
    item: AdminProfileTypeSchema,
    filter: object({
      ...PageQuery,
      text: SearchText,
      disabled: Type.Optional(Type.Boolean()),
    }),
    list: (call, filter) =>
      readPage(call, (limit, after) => searchProfileTypes(db, filter, { after, limit }), {
        cursorOf: ({ name }) => name,
        view: (found) => found,
      }),
    async find(id) {
      const found = await findProfileType(db, id);
      if (!found) throw nothingThere('profile type', id);
      return { version: found.version, body: found };
    },
  });
  addThing(routes, { db, pageSecret }, 'datasets', 'dataset', {
    item: AdminDatasetSchema,
    filter: object({
      ...PageQuery,
      text: SearchText,
      disabled: Type.Optional(Type.Boolean()),
    }),
    list: (call, filter) =>
      readPage(call, (limit, after) => searchDatasets(db, filter, { after, limit }), {
        cursorOf: ({ name }) => name,
        view: (found) => found,
      }),
    async find(id) {
      const found = await findDatasetById(db, id);
      if (!found) throw nothingThere('dataset', id);
      return { version: found.version, body: await viewPlaced(found) };
    },
  });
  addThing(routes, { db, pageSecret }, 'settings', 'setting', {
    item: AdminSettingSchema,
    filter: object({
      ...PageQuery,
      text: SearchText,
      local: Type.Optional(Type.Boolean()),
      source: Type.Optional(AdminSettingSchema.properties.source),
    }),
    list: (call, filter) =>
      readPage(
        call,
        async (limit, after) => (await searchSettings(db, filter, after)).slice(0, limit),
        { cursorOf: ({ key }) => key, view: viewSetting },
      ),
    async find(key) {
      const state = await readSettingState(db, key);
      return { version: state.revision, body: viewSetting(state) };
    },
  });
}

type Thing<Query extends TSchema> = {
  item: TSchema;
  filter: Query;
  list(call: PageCall, filter: Static<Query>): Promise<Page<unknown>>;
  find(id: string): Promise<{ version: number; body: unknown }>;
};

/** The list of a kind of thing, one of them, its versions, and what differs between two. */
function addThing<Query extends TSchema>(
  routes: Routes<Principal>,
  { db, pageSecret }: { db: Database; pageSecret: Buffer },
  plural: string,
  kind: RevisionKind,
  thing: Thing<Query>,
): void {
  const base = `/v1/admin/${plural}`;
  const isSetting = kind === 'setting';
  const one = isSetting ? `${base}/{key}` : `${base}/{id}`;
  const params = isSetting ? { params: SETTING_KEY } : {};
  const idOf = (given: Record<string, string>) => given[isSetting ? 'key' : 'id'] ?? '';
  const common = { method: 'get', roles: READERS, ...params } as const;
  const missing = { 404: { description: 'There is none of this id.' } };

  routes.add({
    ...common,
    path: base,
    summary: `All ${plural}, page by page`,
    query: thing.filter,
    responses: { 200: { description: 'A page.', schema: pageSchema(thing.item) } },
    async handler({ query, actor }) {
      const call = { secret: pageSecret, list: plural, actor, query: query as PageCall['query'] };
      return { status: 200, body: await thing.list(call, query) };
    },
  });
  routes.add({
    ...common,
    path: one,
    summary: `One of the ${plural}, with its version as ETag`,
    responses: { 200: { description: 'It.', schema: thing.item }, ...missing },
    async handler({ params: given }) {
      return answerVersioned(await thing.find(idOf(given)));
    },
  });
  routes.add({
    ...common,
    path: `${one}/versions`,
    summary: 'The versions that were kept, newest first',
    query: object(PageQuery),
    responses: { 200: { description: 'A page.', schema: pageSchema(RevisionSchema) }, ...missing },
    async handler({ params: given, query, actor }) {
      const id = idOf(given);
      await thing.find(id);
      const page = await readPage(
        { secret: pageSecret, list: `versions ${kind} ${id}`, actor, query },
        (limit, after) => {
          const before = after === undefined ? Number.MAX_SAFE_INTEGER : Number(after);
          return listRevisions(db, { kind, id }, { before, limit });
        },
        {
          cursorOf: ({ version }) => String(version),
          view: ({ at, ...rest }) => ({ ...rest, at: at.toISOString() }),
        },
      );
      return { status: 200, body: page };
    },
  });
  routes.add({
    ...common,
    path: `${one}/diff`,
    summary: 'What differs between two versions',
    query: object({ from: VersionNumber, to: VersionNumber }),
    responses: {
      200: {
        description: 'The members that differ.',
        schema: Type.Object({ changes: Type.Array(MemberChangeSchema) }),
      },
      ...missing,
    },
    async handler({ params: given, query: { from, to } }) {
      const about = { kind, id: idOf(given) };
      const [before, after] = await Promise.all([
        readRevision(db, about, from),
        readRevision(db, about, to),
      ]);
      const changes = listChanges({ ...before, version: null }, { ...after, version: null });
      return { status: 200, body: { changes } };
    },
  });
}

/** A thing as it is answered, with its version as ETag. */
export function answerVersioned(
  { version, body }: { version: number; body: unknown },
  status = 200,
): Answer {
  return { status, headers: { ETag: etagOf(version) }, body };
}

/**
 * A user with everything that administrators see.
 * @throws SallyportError `not-found`.
 */
export async function readListedUser(db: Database, id: string): Promise<ListedUser> {
  const [user] = await searchUsers(db, { id }, { limit: 1 });
  if (user) return user;
  throw nothingThere('user', id);
}

/** A user as {@link AdminUserSchema}; nothing of the password. */
export function viewUser(user: ListedUser) {
  const { id, version, login, display_name, email, language, notices } = user;
  return {
    ...{ id, version, login, display_name, email, language, notices },
    profile_type: user.profileType,
    roles: user.roles.map(({ network, role }) => `${network}:${role}`),
    disabled: user.disabled,
    must_change_password: user.must_change_password,
    created_at: user.createdAt.toISOString(),
    updated_at: user.updatedAt.toISOString(),
  };
}

/** A dataset as {@link AdminDatasetSchema}. */
export function viewDataset(dataset: Dataset, source?: object | null): object {
  return source === undefined ? dataset : { ...dataset, source };
}

/** A setting as {@link AdminSettingSchema}. */
export function viewSetting(state: SettingState) {
  const { schema, default: fallback, description, local } = SETTINGS[state.key];
  const { key, value, source } = state;
  return {
    ...{ key, value, source },
    synced_value: state.syncedValue,
    local_value: state.localValue,
    default: fallback,
    version: state.revision,
    updated_at: state.updatedAt?.toISOString() ?? null,
    ...{ local, description, schema },
  };
}

async function searchSettings(
  db: Database,
  filter: { text?: string; local?: boolean; source?: string },
  after: string | undefined,
): Promise<SettingState[]> {
  const text = filter.text?.toLowerCase() ?? '';
  const states = await listSettingStates(db);
  return states.filter(({ key, source }) => {
    const { description, local } = SETTINGS[key];
    return (
      (after === undefined || key > after) &&
      `${key} ${description}`.toLowerCase().includes(text) &&
      (filter.local === undefined || filter.local === local) &&
      (filter.source === undefined || filter.source === source)
    );
  });
}

function nothingThere(what: string, id: string): SallyportError {
  return new SallyportError('not-found', `There is no ${what} ${id}.`);
}
