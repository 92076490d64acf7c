import { Router, type Request, type Response } from 'express';
import { Type, type Static, type TSchema } from 'typebox';
import { SallyportError } from './errors.js';
import { jsonReader, JSON_BODY_LIMITS, type BodyLimits } from './http-body.js';
import { callState, sendText } from './http-problems.js';
import { isId } from './ids.js';
import type { JsonLimits } from './json.js';
import type { Role } from './records.js';
import { compileQuerySchema } from './schema.js';

/** Who calls: what a route may know of a user, however they proved who they are. */
export type Actor = {
  /** What the access log shows. */
  id: string;
  roles: readonly Role[];
  /** What an API key was made for; a session may do all that its user may. */
  scopes: readonly string[] | 'all';
  /** Until they have, they may do nothing else. */
  mustChangePassword?: boolean;
};

/** What a route answers; without one it has written the answer itself (streams). */
export type Answer = {
  status: number;
  headers?: Record<string, string>;
  /** Sent as JSON; nothing is sent when it is missing. */
  body?: unknown;
  /** Sent as it is, as JSON, instead of `body`. */
  json?: string;
};

export type Call<A, Query, Body> = {
  req: Request;
  res: Response;
  /** Parts of the path by name; ids are known to be UUIDs. */
  params: Record<string, string>;
  query: Query;
  body: Body;
  actor: A;
  requestId: string;
};

/** Leave to read: told in the headers of an answer, and counted once it is given. */
export type ReadTicket = { headers: Record<string, string>; count(): void };

type AnswerSpec = { description: string; schema?: TSchema; mediaType?: string };

export type RouteSpec<A, Query extends TSchema, Body extends TSchema> = {
  method: 'get' | 'post' | 'put' | 'patch' | 'delete';
  /** As OpenAPI writes it: `/v1/requests/{id}:cancel`. */
  path: string;
  summary: string;
  /** The roles that may call it. */
  roles: readonly Role[];
  /** What an API key must have been made for. */
  scope?: string;
  /** Also for somebody who must change the password first. */
  beforePasswordChange?: boolean;
  /** Without one, query parameters are refused. */
  query?: Query;
  /** The JSON body. */
  body?: Body;
  limits?: BodyLimits & { json: JsonLimits };
  /** The media type of a body that the handler reads by itself. */
  rawBody?: string;
  /** Reading it is never counted. */
  uncounted?: boolean;
  /** Parts of the path that are no UUIDs, and what they look like. */
  params?: Record<string, RegExp>;
  responses: Record<number, AnswerSpec>;
  handler: (call: Call<A, Static<Query>, Static<Body>>) => Promise<Answer | undefined>;
};

/** What the OpenAPI document and the 405 answer need to know of a route. */
export type RouteSummary = Omit<
  RouteSpec<unknown, TSchema, TSchema>,
  'handler' | 'limits' | 'roles' | 'beforePasswordChange'
> & { roles: readonly Role[] | 'public'; pattern: RegExp };

type Public<Query extends TSchema, Body extends TSchema> = Omit<
  RouteSpec<undefined, Query, Body>,
  'roles' | 'scope'
>;

export type Routes<A extends Actor> = {
  readonly router: Router;
  readonly summaries: readonly RouteSummary[];
  /** Adds a route for callers with one of its roles. */
  add<Query extends TSchema = TSchema, Body extends TSchema = TSchema>(
    spec: RouteSpec<A, Query, Body>,
  ): void;
  /** Adds a route for everybody. */
  addPublic<Query extends TSchema = TSchema, Body extends TSchema = TSchema>(
    spec: Public<Query, Body>,
  ): void;
};

const NO_QUERY = Type.Object({}, { additionalProperties: false });
const NO_PARAMS: Record<string, string> = Object.freeze({});

/**
 * An empty set of routes. `authenticate` says who calls or throws `unauthenticated`; it runs before
 * anything else of the call is looked at. `enterRead` lets a caller read, or throws `rate-limited`;
 * only what was answered, and not with 304, is counted.
 */
export function createRoutes<A extends Actor>(
  authenticate: (req: Request) => A | Promise<A>,
  enterRead?: (actor: A) => ReadTicket | Promise<ReadTicket>,
): Routes<A> {
  const router = Router({ caseSensitive: true, strict: true });
  const summaries: RouteSummary[] = [];
  const register = <Caller, Query extends TSchema, Body extends TSchema>(
    spec: Omit<RouteSpec<Caller, Query, Body>, 'roles'> & { roles: readonly Role[] | 'public' },
    findActor: (req: Request, res: Response) => Caller | Promise<Caller>,
    enter?: (actor: Caller) => ReadTicket | Promise<ReadTicket>,
  ) => {
    const { handler, limits, ...rest } = spec;
    const pattern = pathPattern(spec.path);
    summaries.push({ ...rest, pattern });
    const checkQuery = compileQuerySchema(spec.query ?? NO_QUERY);
    const readJson = spec.body ? jsonReader(spec.body, limits ?? JSON_BODY_LIMITS) : undefined;
    router[spec.method](pattern, async (req, res) => {
      const state = callState(res);
      state.route = spec.path;
      const actor = await findActor(req, res);
      const params = checkParams(req.params, spec.params);
      const query = checkQuery(req.url.includes('?') ? { ...req.query } : {}) as Static<Query>;
      const body = (readJson ? await readJson(req) : undefined) as Static<Body>;
      const call = { req, res, params, query, body, actor, requestId: state.requestId };
      const ticket = enter && (await enter(actor));
      const answer = ticket
        ? await answerRead(res, ticket, () => handler(call))
        : await handler(call);
      if (answer) sendAnswer(res, answer);
    });
  };
  return {
    router,
    summaries,
    add(spec) {
      register(
        spec,
        async (req, res) => {
          const actor = await authenticate(req);
          callState(res).actor = actor.id;
          requireAccess(actor, spec);
          return actor;
        },
        spec.method === 'get' && !spec.uncounted ? enterRead : undefined,
      );
    },
    addPublic(spec) {
      register({ ...spec, roles: 'public' }, () => undefined);
    },
  };
}

/**
 * That somebody may call what is for these roles.
 * @throws SallyportError `password-change-required`, `role-missing`, `scope-missing`.
 */
export function requireAccess(
  actor: Actor,
  {
    roles,
    scope,
    beforePasswordChange,
  }: { roles: readonly Role[]; scope?: string; beforePasswordChange?: boolean },
): void {
  if (actor.mustChangePassword && !beforePasswordChange) {
    throw new SallyportError('password-change-required', 'The password was set by somebody else.', {
      next: 'Change it with POST /v1/me/password, then call again.',
    });
  }
  if (!roles.some((role) => actor.roles.includes(role))) {
    throw new SallyportError('role-missing', `This is for: ${roles.join(', ')}.`);
  }
  if (actor.scopes === 'all' || (scope !== undefined && actor.scopes.includes(scope))) return;
  const needed = scope === undefined ? 'no API key may do this' : `it needs ${scope}`;
  throw new SallyportError('scope-missing', `The key was not made for this: ${needed}.`);
}

async function answerRead(
  res: Response,
  ticket: ReadTicket,
  answer: () => Promise<Answer | undefined>,
): Promise<Answer | undefined> {
  // Before the answer, because a stream begins it by itself.
  for (const name in ticket.headers) res.setHeader(name, ticket.headers[name] as string);
  const uncounted = () => {
    if (!res.headersSent) for (const name in ticket.headers) res.removeHeader(name);
  };
  try {
    const given = await answer();
    if (given?.status === 304) uncounted();
    else ticket.count();
    return given;
  } catch (error) {
    uncounted();
    throw error;
  }
}

/** A path template as an exact pattern; a part in braces never spans a slash or a colon. */
function pathPattern(path: string): RegExp {
  const source = path.split(/(\{[a-z_]+\})/).map((part) => {
    if (part.startsWith('{')) return `(?<${part.slice(1, -1)}>[^/:]+)`;
    return part.replaceAll(/[.*+?^${}()|[\]\\/]/g, '\\$&');
  });
  return new RegExp(`^${source.join('')}$`);
}

function checkParams(
  params: Record<string, string>,
  patterns: Record<string, RegExp> | undefined,
): Record<string, string> {
  const names = Object.keys(params);
  if (names.length === 0) return NO_PARAMS;
  for (const name of names) {
    const value = params[name] as string;
    const pattern = patterns?.[name];
    if (pattern ? !pattern.test(value) : !isId(value)) {
      throw new SallyportError('not-found', 'Nothing is here.');
    }
  }
  return params;
}

function sendAnswer(res: Response, answer: Answer): void {
  for (const name in answer.headers) res.setHeader(name, answer.headers[name] as string);
  const text = answer.json ?? (answer.body === undefined ? undefined : JSON.stringify(answer.body));
  if (text !== undefined) {
    sendText(res, answer.status, 'application/json', text);
    return;
  }
  res.statusCode = answer.status;
  res.end();
}
