import { Client } from '@elastic/elasticsearch';
import { SallyportError, type DatasetRecord } from '@sallyport/shared';

export type ElasticOptions = {
  url: string;
  apiKey?: string | undefined;
  username?: string | undefined;
  password?: string | undefined;
};

/** A connection to Elasticsearch; only this folder looks inside. */
export type Elastic = {
  readonly client: Client;
  /** Cancellations under way that nobody waits for. */
  readonly background: Set<Promise<unknown>>;
  readonly closing: AbortSignal;
  close(): Promise<void>;
};

export type FieldDescription = DatasetRecord['fields'][number];

const HEALTH_LIMIT_MS = 5_000;

/** Makes the client; nothing is connected until the first call. */
export function openElastic({ url, apiKey, username, password }: ElasticOptions): Elastic {
  const options = {
    node: url,
    maxRetries: 0,
    ...(apiKey ? { auth: { apiKey } } : {}),
    ...(!apiKey && username ? { auth: { username, password: password ?? '' } } : {}),
  };
  const client = new Client(options);
  const background = new Set<Promise<unknown>>();
  const closing = new AbortController();
  return {
    client,
    background,
    closing: closing.signal,
    async close() {
      closing.abort();
      await Promise.allSettled(background);
      await client.close();
    },
  };
}

/** @throws SallyportError `elasticsearch-unavailable` unless the cluster answers within 5 s. */
export async function checkElastic({ client }: Elastic): Promise<void> {
  try {
    await client.cluster.health({}, { requestTimeout: HEALTH_LIMIT_MS });
  } catch (cause) {
    throw new SallyportError('elasticsearch-unavailable', 'Elasticsearch does not answer.', {
      cause,
      next: 'Check ELASTICSEARCH_URL and the cluster; requests wait meanwhile.',
    });
  }
}

const FIELD_TYPES: Readonly<Record<string, FieldDescription['type']>> = {
  keyword: 'keyword',
  constant_keyword: 'keyword',
  ip: 'keyword',
  text: 'text',
  match_only_text: 'text',
  date: 'date',
  date_nanos: 'date',
  long: 'long',
  unsigned_long: 'long',
  integer: 'integer',
  short: 'integer',
  byte: 'integer',
  double: 'double',
  float: 'double',
  half_float: 'double',
  scaled_float: 'double',
  boolean: 'boolean',
  geo_point: 'geo_point',
  nested: 'nested',
};

/**
 * The fields of an index or alias that a dataset may have, by name; others are left out.
 * @throws SallyportError `not-found` for an unknown index, `elasticsearch-unavailable`.
 */
export async function describeIndex(elastic: Elastic, index: string): Promise<FieldDescription[]> {
  let caps;
  try {
    caps = await elastic.client.fieldCaps(
      { index, fields: '*', filters: '-metadata' },
      { requestTimeout: HEALTH_LIMIT_MS },
    );
  } catch (cause) {
    if ((cause as { statusCode?: number }).statusCode === 404) {
      throw new SallyportError('not-found', `Elasticsearch has no index or alias "${index}".`);
    }
    throw new SallyportError(
      'elasticsearch-unavailable',
      'Elasticsearch does not tell the fields.',
      {
        cause,
      },
    );
  }
  return Object.entries(caps.fields).flatMap(([name, types]) => {
    const [only, ...others] = Object.keys(types);
    const type = FIELD_TYPES[only ?? ''];
    return type && others.length === 0 ? [{ name, type }] : [];
  });
}
