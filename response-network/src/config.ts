import { Type, type Static } from 'typebox';
import { NETWORK_VARIABLES, httpPort, readConfig, urlOf } from '@sallyport/shared';

const text = (description: string) => Type.String({ minLength: 1, description });

/** The environment of the response network; `.env.example` and the docs list the same. */
export const ConfigSchema = Type.Object({
  ...NETWORK_VARIABLES,
  HTTP_PORT: httpPort(8_081),
  ELASTICSEARCH_URL: urlOf('https?', 'Elasticsearch, 8.11 or newer'),
  ELASTICSEARCH_API_KEY: Type.Optional(text('API key for Elasticsearch; goes before a user name')),
  ELASTICSEARCH_USERNAME: Type.Optional(text('user name for Elasticsearch')),
  ELASTICSEARCH_PASSWORD: Type.Optional(text('password for Elasticsearch')),
});

export type Config = Readonly<Static<typeof ConfigSchema>>;

/**
 * The configuration from the environment of the process.
 * @throws SallyportError `config-invalid` naming all mistakes.
 */
export function readEnvironment(env: NodeJS.ProcessEnv = process.env): Config {
  return readConfig(ConfigSchema, env);
}
