import { Ajv } from 'ajv';
import { Type, type Static, type TObject } from 'typebox';
import { SallyportError } from './errors.js';
import type { LogLevel } from './log.js';

/**
 * Reads settings from the environment by their schema (names are the environment variables), reports
 * all mistakes together, and freezes the result. Numbers and booleans are read from text. Unknown
 * variables are ignored; an empty one counts as missing.
 * @throws SallyportError `config-invalid` naming every variable that is missing or wrong.
 */
export function readConfig<Schema extends TObject>(
  schema: Schema,
  env: Record<string, string | undefined>,
): Readonly<Static<Schema>> {
  const known = Object.keys(schema.properties);
  const given = known.flatMap((name) => (env[name] ? [[name, env[name]] as const] : []));
  const values: Record<string, unknown> = Object.fromEntries(given);
  const ajv = new Ajv({ allErrors: true, coerceTypes: true, useDefaults: true, strict: false });
  const validate = ajv.compile(schema);
  if (!validate(values)) {
    const mistakes = (validate.errors ?? []).map((error) => {
      const missing: unknown = error.params['missingProperty'];
      const name = typeof missing === 'string' ? missing : error.instancePath.slice(1);
      const property: { description?: string } | undefined = schema.properties[name];
      const meaning = property?.description;
      const found = name in values ? ' (its value is not repeated here)' : '';
      return `${name} ${typeof missing === 'string' ? 'is missing' : error.message}${found}${meaning ? `: ${meaning}` : ''}`;
    });
    throw new SallyportError(
      'config-invalid',
      `The environment has ${mistakes.length} mistake(s):\n  ${mistakes.join('\n  ')}`,
      { next: 'Set these variables; .env.example lists all of them.' },
    );
  }
  return Object.freeze(values) as Readonly<Static<Schema>>;
}

const text = (description: string) => Type.String({ minLength: 1, description });
/** A URL of one of the schemes. */
export const urlOf = (schemes: string, description: string) =>
  Type.String({ pattern: `^(?:${schemes})://[^\\s]+$`, description });

/** The variables that both networks read; each adds its own. */
export const NETWORK_VARIABLES = {
  DATABASE_URL: urlOf('postgres(ql)?', 'PostgreSQL of this network, 15 or newer'),
  REDIS_URL: Type.Optional(
    urlOf(
      'rediss?',
      'Redis for the queues, else in PostgreSQL, and for caches that processes share',
    ),
  ),
  STATE_DIR: text('folder for keys, inbox, outbox and kept batches'),
  INBOX_DIR: Type.Optional(text('where batches arrive, unless in STATE_DIR/inbox')),
  OUTBOX_DIR: Type.Optional(text('where batches leave, unless in STATE_DIR/outbox')),
  NODE_NAME: Type.Optional(
    Type.String({
      pattern: '^[a-z0-9-]{1,16}$',
      description: 'name of this node, 1 to 16 of a-z, 0-9 and -; read by init and keys init',
    }),
  ),
  KEYS_PASSPHRASE_FILE: Type.Optional(
    text('file with the passphrase of the keys; readable by its owner only'),
  ),
  ESCROW_RECIPIENT: Type.Optional(
    Type.String({
      pattern: '^age1[02-9ac-hj-np-z]{58}$',
      description: 'age recipient that can open every encrypted batch made here, too',
    }),
  ),
  HTTP_HOST: Type.String({ default: '127.0.0.1', description: 'address to listen on' }),
  TRUSTED_PROXIES: Type.Optional(
    text('addresses or networks of the proxies in front, comma-separated: they name the caller'),
  ),
  CORS_ORIGINS: Type.Optional(
    Type.String({
      pattern: '^https?://[^\\s/,]+(,https?://[^\\s/,]+)*$',
      description: 'origins whose pages may call the API, comma-separated; never with cookies',
    }),
  ),
  BREACHED_PASSWORDS_FILE: Type.Optional(
    text('sorted list of passwords that nobody may choose: SHA-1 in hexadecimal, or plain'),
  ),
  LOG_LEVEL: Type.Unsafe<LogLevel>({
    type: 'string',
    enum: ['debug', 'info', 'warn', 'error', 'silent'],
    default: 'info',
    description: 'least severe log lines to write',
  }),
};

/** The port of a network's HTTP side. */
export const httpPort = (usual: number) =>
  Type.Integer({
    default: usual,
    minimum: 0,
    maximum: 65_535,
    description: 'port to listen on; 0 takes a free one',
  });

/** The account that called sudo, as sudo says it; undefined without sudo. */
export function sudoAccount(
  env: Record<string, string | undefined> = process.env,
): string | undefined {
  return env['SUDO_USER'] || undefined;
}
