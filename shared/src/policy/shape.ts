import { Ajv, type ErrorObject, type ValidateFunction } from 'ajv';
import type { SallyportError } from '../errors.js';
import { below, type Place, refusal, showName, describeValue } from './refusal.js';
import { POLICY_TABLE, type PlainSchema } from './table.js';

/** An object of a parsed query. */
export type PlainObject = Record<string, unknown>;

/** Whether a parsed value is an object and not a list. */
export function isObject(value: unknown): value is PlainObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

// The first mistake is enough (collecting all of them is how validators are kept busy), and verbose
// errors carry the value and the description of its schema.
const ajv = new Ajv({
  allErrors: false,
  verbose: true,
  strict: true,
  strictRequired: false,
  allowUnionTypes: true,
});
const compiled = new Map<PlainSchema, ValidateFunction>();
const NEVER = new Set(POLICY_TABLE.never);

/**
 * Checks a value against a schema of the table; each schema is compiled once.
 * @throws SallyportError `query-kind-denied`, `unknown-field`, `too-many-values`, `query-invalid`.
 */
export function checkShape(schema: PlainSchema, value: unknown, place: Place): void {
  let validate = compiled.get(schema);
  if (!validate) {
    validate = ajv.compile(schema);
    compiled.set(schema, validate);
  }
  const error = validate(value) ? undefined : validate.errors?.at(-1);
  if (error) throw shapeRefusal(error, place);
}

/** The refusal of a key that the policy refuses at every place, undefined for other keys. */
export function neverRefusal(key: string, place: Place): SallyportError | undefined {
  if (!NEVER.has(key)) return undefined;
  return refusal(place, 'query-kind-denied', `"${key}" is never allowed, in any tier`);
}

function shapeRefusal(error: ErrorObject, root: Place): SallyportError {
  let place = root;
  for (const step of error.instancePath.split('/').slice(1)) {
    place = below(place, step.replaceAll('~1', '/').replaceAll('~0', '~'));
  }
  const extra: unknown = error.params['additionalProperty'];
  if (typeof extra === 'string') {
    const at = below(place, extra);
    return (
      neverRefusal(extra, at) ??
      refusal(at, 'unknown-field', `${showName(extra)} is not an option that may be used here`)
    );
  }
  const limit: unknown = error.params['limit'];
  if (error.keyword === 'maxItems' && typeof limit === 'number') {
    const actual = (error.data as unknown[]).length;
    return refusal(place, 'too-many-values', `it has ${actual} values, at most ${limit} may be`, {
      limit,
      actual,
    });
  }
  const described: unknown = (error.parentSchema as { description?: unknown }).description;
  const rule = typeof described === 'string' ? described : (error.message ?? 'is not valid');
  const allowed: unknown = error.params['allowedValues'];
  const choice = Array.isArray(allowed) ? ` (${allowed.join(', ')})` : '';
  return refusal(
    place,
    'query-invalid',
    `it ${rule}${choice}, found ${describeValue(error.data)}`,
    {
      ...(typeof limit === 'number' ? { limit } : {}),
      ...(typeof error.data === 'number' ? { actual: error.data } : {}),
    },
  );
}
