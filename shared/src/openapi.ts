import type { TSchema } from 'typebox';
import type { RouteSummary } from './http-routes.js';

type ApiInfo = { title: string; version: string; description?: string };

const PROBLEM = {
  type: 'object',
  description: 'RFC 9457. The codes are listed at /problems.',
  required: ['type', 'title', 'status', 'detail', 'instance', 'code', 'request_id', 'retryable'],
  properties: {
    type: { type: 'string', format: 'uri-reference' },
    title: { type: 'string' },
    status: { type: 'integer' },
    detail: { type: 'string' },
    instance: { type: 'string', format: 'uri-reference' },
    code: { type: 'string' },
    request_id: { type: 'string' },
    retryable: { type: 'boolean' },
    retry_after_s: { type: 'integer' },
    errors: {
      type: 'array',
      maxItems: 20,
      items: {
        type: 'object',
        required: ['pointer', 'code', 'detail'],
        properties: {
          pointer: { type: 'string', description: 'JSON Pointer (RFC 6901) into the body' },
          code: { type: 'string' },
          detail: { type: 'string' },
          limit: { type: ['number', 'string'] },
          actual: { type: ['number', 'string'] },
          hint: { type: 'string' },
        },
      },
    },
  },
};

/** The OpenAPI 3.1 document of the routes, generated from the very schemas that check the calls. */
export function buildOpenApi(info: ApiInfo, routes: readonly RouteSummary[]) {
  const paths: Record<string, Record<string, unknown>> = {};
  for (const route of routes) {
    const operations = (paths[route.path] ??= {});
    operations[route.method] = describeRoute(route);
  }
  return {
    openapi: '3.1.0',
    info,
    servers: [{ url: '/' }],
    paths,
    components: {
      schemas: { Problem: PROBLEM },
      responses: {
        Problem: {
          description: 'The call was refused or failed.',
          content: {
            'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } },
          },
        },
      },
      securitySchemes: {
        session: { type: 'http', scheme: 'bearer', bearerFormat: 'JWT' },
        console: { type: 'apiKey', in: 'cookie', name: '__Host-sallyport' },
        apiKey: {
          type: 'http',
          scheme: 'bearer',
          bearerFormat: 'sp_<env>_<22 base62>_<6 checksum>',
        },
      },
    },
  };
}

function describeRoute(route: RouteSummary) {
  const responses = Object.entries(route.responses).map(([status, answer]) => {
    const { description, schema, mediaType = 'application/json' } = answer;
    return [
      status,
      schema ? { description, content: { [mediaType]: { schema } } } : { description },
    ];
  });
  return {
    operationId: `${route.method}${route.path.replaceAll(/[^a-z0-9]+/gi, '_')}`,
    summary: route.summary,
    ...(route.roles === 'public' ? {} : { description: `For: ${route.roles.join(', ')}.` }),
    security: describeSecurity(route),
    parameters: [...describePath(route), ...describeQuery(route.query)],
    ...describeBody(route),
    responses: {
      ...(Object.fromEntries(responses) as Record<string, unknown>),
      default: { $ref: '#/components/responses/Problem' },
    },
  };
}

function describeSecurity({ roles, scope }: RouteSummary): Record<string, string[]>[] {
  if (roles === 'public') return [];
  const sessions = [{ session: [] }, { console: [] }];
  return scope === undefined ? sessions : [...sessions, { apiKey: [scope] }];
}

function describePath({ path, params }: RouteSummary) {
  return [...path.matchAll(/\{([a-z_]+)\}/g)].map(([, name = '']) => {
    const pattern = params?.[name]?.source;
    const schema = pattern === undefined ? { format: 'uuid' } : { pattern };
    return { name, in: 'path', required: true, schema: { type: 'string', ...schema } };
  });
}

function describeQuery(query: TSchema | undefined) {
  const { properties = {}, required = [] } = (query ?? {}) as {
    properties?: Record<string, TSchema>;
    required?: string[];
  };
  return Object.entries(properties).map(([name, schema]) => ({
    name,
    in: 'query',
    required: required.includes(name),
    schema,
  }));
}

function describeBody({ body, rawBody }: RouteSummary) {
  if (!body && rawBody === undefined) return {};
  const content = body ? { 'application/json': { schema: body } } : { [rawBody as string]: {} };
  return { requestBody: { required: true, content } };
}
