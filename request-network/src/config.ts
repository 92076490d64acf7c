import { Type, type Static } from 'typebox';
import { NETWORK_VARIABLES, httpPort, readConfig } from '@sallyport/shared';

/** The environment of the request network; `.env.example` and the docs list the same. */
export const ConfigSchema = Type.Object({
  ...NETWORK_VARIABLES,
  HTTP_PORT: httpPort(8_080),
  API_KEY_ENVIRONMENT: Type.String({
    pattern: '^[a-z0-9]{1,16}$',
    default: 'live',
    description: 'second part of new API keys (sp_live_…): 1 to 16 of a-z and 0-9',
  }),
});

export type Config = Readonly<Static<typeof ConfigSchema>>;

/**
 * The configuration from the environment of the process.
 * @throws SallyportError `config-invalid` naming all mistakes.
 */
export function readEnvironment(env: NodeJS.ProcessEnv = process.env): Config {
  return readConfig(ConfigSchema, env);
}
