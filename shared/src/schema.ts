import { Ajv, type ErrorObject, type ValidateFunction } from 'ajv';
import formats from 'ajv-formats';
import { Type, type Static, type TSchema } from 'typebox';
import { SallyportError, type ErrorCode, type ErrorDetail } from './errors.js';
import { pointerToken } from './json.js';

/** Returns the value, typed, or throws when it does not fit the schema. */
export type Check<Schema extends TSchema> = (value: unknown) => Static<Schema>;

/**
 * A time that a user writes: RFC 3339 without what PostgreSQL or `Date` refuse (the year 0000, leap
 * seconds, offsets beyond 14 hours, endless fractions).
 */
export const UserTime = Type.String({
  format: 'date-time',
  pattern:
    '^(?!0000)[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9](?:[.][0-9]{1,9})?' +
    '(?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])$',
  description: 'a time such as 2026-01-31T09:30:00Z, in the years 0001 to 9999',
});

/** Why somebody does what needs a reason; it goes into the audit log. */
export const ReasonText = Type.String({
  minLength: 1,
  maxLength: 500,
  pattern: '\\S',
  description: 'a sentence of 1 to 500 characters that says why',
});

const MAX_ERRORS = 20;

const strictAjv = formats.default(new Ajv({ strict: true, allowUnionTypes: true, verbose: true }));
const queryAjv = formats.default(
  new Ajv({
    strict: true,
    allowUnionTypes: true,
    verbose: true,
    coerceTypes: 'array',
    useDefaults: true,
  }),
);
const checks = new WeakMap<TSchema, Check<TSchema>>();
const queryChecks = new WeakMap<TSchema, Check<TSchema>>();

/**
 * Compiles a JSON Schema, once for each schema object. Nothing is coerced, filled in or removed.
 * @throws SallyportError (from the check) `unknown-field` or `bad-field`, with JSON Pointers in
 * `errors`; it stops at the first fault.
 */
export function compileSchema<Schema extends TSchema>(schema: Schema): Check<Schema> {
  return compileOnce(strictAjv, checks, schema);
}

/** As {@link compileSchema} for values that arrive as text: numbers, booleans and lists are read
 * from it, defaults are filled in; the value itself is changed. Texts with NUL are refused. */
export function compileQuerySchema<Schema extends TSchema>(schema: Schema): Check<Schema> {
  const check = compileOnce(queryAjv, queryChecks, schema);
  return (value) => {
    refuseNul(value);
    return check(value);
  };
}

/** PostgreSQL has no text with NUL; a JSON body with one is refused when it is parsed. */
function refuseNul(value: unknown): void {
  if (typeof value !== 'object' || value === null) return;
  for (const [name, given] of Object.entries(value)) {
    const texts: unknown[] = Array.isArray(given) ? given : [given];
    if (!texts.some((text) => typeof text === 'string' && text.includes('\0'))) continue;
    const pointer = `/${pointerToken(name)}`;
    const detail = 'has the character NUL';
    throw new SallyportError('bad-field', `${pointer} ${detail}.`, {
      errors: [{ pointer, code: 'bad-field', detail }],
    });
  }
}

function compileOnce<Schema extends TSchema>(
  ajv: Ajv,
  known: WeakMap<TSchema, Check<TSchema>>,
  schema: Schema,
): Check<Schema> {
  const found = known.get(schema);
  if (found) return found;
  // Compiled when it is first needed: a command line needs few of all the schemas.
  let validate: ValidateFunction | undefined;
  const check: Check<Schema> = (value) => {
    validate ??= ajv.compile(schema);
    if (validate(value)) return value as Static<Schema>;
    throw schemaError(validate.errors ?? []);
  };
  known.set(schema, check);
  return check;
}

function schemaError(faults: ErrorObject[]): SallyportError {
  const errors = faults.slice(0, MAX_ERRORS).map(describeFault);
  const first = errors[0] as ErrorDetail;
  const place = first.pointer === '' ? 'The value' : first.pointer;
  return new SallyportError(first.code as ErrorCode, `${place} ${first.detail}.`, { errors });
}

function describeFault(fault: ErrorObject): ErrorDetail {
  const params: Record<string, unknown> = fault.params;
  const at = (key: unknown) => `${fault.instancePath}/${pointerToken(String(key))}`;
  switch (fault.keyword) {
    case 'additionalProperties':
    case 'unevaluatedProperties': {
      const pointer = at(params['additionalProperty'] ?? params['unevaluatedProperty']);
      return { pointer, code: 'unknown-field', detail: 'is not known here' };
    }
    case 'required':
      return { pointer: at(params['missingProperty']), code: 'bad-field', detail: 'is missing' };
    case 'enum':
      return describe(fault, `must be one of ${(params['allowedValues'] as unknown[]).join(', ')}`);
    case 'pattern':
    case 'format': {
      const described: unknown = (fault.parentSchema as { description?: unknown }).description;
      const rule = typeof described === 'string' ? `must be ${described}` : fault.message;
      return describe(fault, rule ?? 'is not valid');
    }
    case 'const':
      return describe(fault, `must be ${JSON.stringify(params['allowedValue'])}`);
    default:
      return describe(fault, fault.message ?? 'is not valid');
  }
}

/** Values themselves are not repeated, they may be secret; their size is. */
function describe(fault: ErrorObject, detail: string): ErrorDetail {
  const described: ErrorDetail = { pointer: fault.instancePath, code: 'bad-field', detail };
  const limit: unknown = (fault.params as Record<string, unknown>)['limit'];
  if (typeof limit !== 'number') return described;
  const value: unknown = fault.data;
  if (typeof value === 'number') return { ...described, limit, actual: value };
  if (typeof value === 'string') return { ...described, limit, actual: Array.from(value).length };
  if (Array.isArray(value)) return { ...described, limit, actual: value.length };
  return { ...described, limit };
}
