import { newId } from './ids.js';
import { ROLES, type Role } from './records.js';
import type { CallOptions, TestAnswer } from './testing.js';

/** Who may call a route. */
export type Access = {
  roles: readonly Role[] | 'everybody';
  /** What an API key must have been made for; without one no key may call it. */
  scope?: string;
  /** Whose id stands in the path: other users get 404 for it. */
  own?: 'request' | 'key';
  /** It ends the caller's sessions: called last, once by each. */
  last?: true;
};

/** Routes as `GET /v1/me`, and who may call each. */
export type AccessTable = Readonly<Record<string, Access>>;

export const EVERYBODY: Access = { roles: 'everybody' };
export const ANY_ROLE: Access = { roles: ROLES };
export const USER: Access = { roles: ['user'] };
/** What an operator sees of the running of a network; an auditor sees it too. */
export const RUNNING: Access = { roles: ['operator', 'admin', 'auditor'] };
export const OPERATE: Access = { roles: ['operator', 'admin'] };
/** What only admins see; an auditor sees it too. */
export const OVERSEE: Access = { roles: ['admin', 'auditor'] };
export const ADMINISTER: Access = { roles: ['admin'] };

/** The routes that both networks have. */
export const COMMON_ROUTES: AccessTable = {
  'POST /v1/sessions': EVERYBODY,
  'POST /v1/sessions:refresh': EVERYBODY,
  'GET /v1/sessions': ANY_ROLE,
  'DELETE /v1/sessions': { ...ANY_ROLE, last: true },
  'DELETE /v1/sessions/current': { ...ANY_ROLE, last: true },
  'GET /v1/me': { ...ANY_ROLE, scope: 'requests:read' },
  'PATCH /v1/me': ANY_ROLE,
  'POST /v1/me/password': ANY_ROLE,
  'GET /v1/me/notices': ANY_ROLE,
  'POST /v1/me/notices:read': ANY_ROLE,
  'GET /v1/admin/notices': OVERSEE,
  'GET /v1/admin/audit': OVERSEE,
  // It changes nothing but what is known of the log.
  'POST /v1/admin/audit:verify': OVERSEE,
  'GET /v1/admin/audit:export': OVERSEE,
  'GET /v1/admin/users': RUNNING,
  'GET /v1/admin/users/{id}': RUNNING,
  'GET /v1/admin/users/{id}/versions': RUNNING,
  'GET /v1/admin/users/{id}/diff': RUNNING,
  'GET /v1/admin/profile-types': RUNNING,
  'GET /v1/admin/profile-types/{id}': RUNNING,
  'GET /v1/admin/profile-types/{id}/versions': RUNNING,
  'GET /v1/admin/profile-types/{id}/diff': RUNNING,
  'GET /v1/admin/datasets': RUNNING,
  'GET /v1/admin/datasets/{id}': RUNNING,
  'GET /v1/admin/datasets/{id}/versions': RUNNING,
  'GET /v1/admin/datasets/{id}/diff': RUNNING,
  'GET /v1/admin/settings': RUNNING,
  'GET /v1/admin/settings/{key}': RUNNING,
  'GET /v1/admin/settings/{key}/versions': RUNNING,
  'GET /v1/admin/settings/{key}/diff': RUNNING,
  'GET /v1/admin/cache': RUNNING,
  'POST /v1/admin/cache:clear': ADMINISTER,
  'POST /v1/admin/cache:optimise': ADMINISTER,
  'GET /v1/admin/stats': RUNNING,
  'GET /v1/admin/queues': RUNNING,
  'POST /v1/admin/queues/{worker}:pause': ADMINISTER,
  'POST /v1/admin/queues/{worker}:resume': ADMINISTER,
  'POST /v1/admin/queues/{worker}:retry': ADMINISTER,
  'POST /v1/admin/queues/{worker}:drain': ADMINISTER,
  'POST /v1/admin/queues/{worker}:discard': ADMINISTER,
  'GET /v1/admin/schedules': RUNNING,
  'POST /v1/admin/schedules/{worker}:run': ADMINISTER,
  'POST /v1/admin/schedules/{worker}:pause': ADMINISTER,
  'POST /v1/admin/schedules/{worker}:resume': ADMINISTER,
  'PUT /v1/admin/schedules/{worker}/cadence': ADMINISTER,
  'GET /v1/batches': RUNNING,
  'POST /v1/batches:seal': OPERATE,
  'GET /v1/batches/{id}': RUNNING,
  'GET /v1/batches/{id}/file': RUNNING,
  'GET /v1/batches/{id}/records': RUNNING,
  'POST /v1/batches/{id}:confirm-handover': OPERATE,
  'POST /v1/batches/{id}:resend': OPERATE,
  'POST /v1/batches/{id}:write-off': OPERATE,
  'GET /v1/imports': RUNNING,
  'POST /v1/imports': OPERATE,
  'GET /v1/imports/{id}': RUNNING,
  'PATCH /v1/imports/{id}': OPERATE,
  'DELETE /v1/imports/{id}': OPERATE,
  'GET /v1/quarantine': RUNNING,
  'GET /v1/quarantine/{id}': RUNNING,
  'POST /v1/quarantine/{id}:release': OPERATE,
  'POST /v1/quarantine/{id}:reject': OPERATE,
  'GET /v1/approvals': RUNNING,
  'POST /v1/approvals/{id}:approve': OPERATE,
  'POST /v1/approvals/{id}:decline': OPERATE,
  'GET /v1/link': RUNNING,
  'GET /healthz': RUNNING,
};

export type AccessTest = {
  table: AccessTable;
  call(path: string, options: CallOptions): Promise<TestAnswer>;
  /** A new session of somebody who has this role alone. */
  tokenOf(role: Role): Promise<string>;
};

/** Every operation of the OpenAPI document, as the table names them. */
export async function listOperations(call: AccessTest['call']): Promise<string[]> {
  const { body } = await call('/openapi.json', { as: null });
  const paths = Object.entries(body['paths'] as Record<string, object>);
  return paths.flatMap(([path, operations]) =>
    Object.keys(operations).map((method) => `${method.toUpperCase()} ${path}`),
  );
}

/**
 * Calls every route of the table with each role alone, without a token and with one that nobody gave,
 * and answers what is not as the table says. Ids are of nothing and bodies are empty objects: who is
 * let in gets another error, and nothing is done.
 */
export async function findWrongAccess(test: AccessTest): Promise<string[]> {
  const lines = Object.entries(test.table);
  const wrong: string[] = [];
  for (const last of [false, true]) {
    const now = lines.filter(([, access]) => (access.last ?? false) === last);
    for (const role of ROLES) {
      const shared = await test.tokenOf(role);
      const found = await inGroups(now, last ? 1 : AT_ONCE, async ([route, { roles }]) => {
        const as = last ? await test.tokenOf(role) : shared;
        const mayCall = roles === 'everybody' || roles.includes(role);
        const outcome = describeAccess(await callRoute(test, route, { as }));
        return outcome === (mayCall ? 'let in' : 'role-missing')
          ? []
          : `${route} ${role}: ${outcome}`;
      });
      wrong.push(...found.flat());
    }
  }
  for (const [who, as] of [
    ['nobody', null],
    ['a forged token', 'eyJhbGciOiJub25lIn0.e30.'],
  ] as const) {
    const found = await inGroups(lines, AT_ONCE, async ([route, { roles }]) => {
      const { status } = await callRoute(test, route, { as });
      // Who may be nobody is refused for the empty body, or as a page that has no cookie.
      const isRight = roles === 'everybody' ? status === 422 || status === 403 : status === 401;
      return isRight ? [] : `${route} ${who}: ${status}`;
    });
    wrong.push(...found.flat());
  }
  return wrong;
}

/** Calls a route of the table; `{id}` is that of nothing unless it is given. */
export function callRoute(
  { call }: Pick<AccessTest, 'call'>,
  route: string,
  { as, id = newId() }: { as: string | null; id?: string },
): Promise<TestAnswer> {
  const [method = '', template = ''] = route.split(' ');
  const path = template.replaceAll(/\{([a-z_]+)\}/g, (_, name: string) => PARAMS[name] ?? id);
  const hasBody = ['POST', 'PUT', 'PATCH'].includes(method);
  return call(path, { as, method, ...(hasBody && { body: {} }) });
}

/** `let in`, or the code with which the caller was turned away; other codes are the route's own. */
export function describeAccess({ status, text }: TestAnswer): string {
  const refused = status === 401 || status === 403;
  const code = refused ? (JSON.parse(text) as { code: string }).code : '';
  if (status === 401) return code;
  if (status === 403 && (code === 'role-missing' || code === 'scope-missing')) return code;
  return status >= 500 && status !== 503 ? `failed with ${status}` : 'let in';
}

const AT_ONCE = 8;
/** What stands for parts of paths that are no ids, by name. */
const PARAMS: Readonly<Record<string, string>> = {
  key: 'session.minutes',
  worker: 'housekeeping',
};

async function inGroups<T, R>(
  items: readonly T[],
  size: number,
  work: (item: T) => Promise<R>,
): Promise<R[]> {
  const results: R[] = [];
  for (let at = 0; at < items.length; at += size) {
    results.push(...(await Promise.all(items.slice(at, at + size).map(work))));
  }
  return results;
}
