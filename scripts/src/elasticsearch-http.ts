import { SallyportError } from '@sallyport/shared';

type Call = { method?: string; body?: string; contentType?: string; timeoutMs?: number };

/**
 * One HTTP call to Elasticsearch, the answer as text; user and password may stand in the URL.
 * `elasticsearch-unavailable` when nothing answers within `timeoutMs` (default 60 s).
 */
export async function callElasticsearch(
  baseUrl: string,
  path: string,
  call: Call = {},
): Promise<{ status: number; text: string }> {
  if (!URL.canParse(baseUrl))
    throw new SallyportError('elasticsearch-unavailable', `ELASTICSEARCH_URL is not a URL`, {
      next: 'It looks like http://127.0.0.1:9200.',
    });
  const base = new URL(baseUrl);
  const headers = new Headers({ 'content-type': call.contentType ?? 'application/json' });
  if (base.username !== '') {
    const pair = `${decodeURIComponent(base.username)}:${decodeURIComponent(base.password)}`;
    headers.set('authorization', `Basic ${Buffer.from(pair).toString('base64')}`);
    // fetch refuses a URL with a password in it.
    base.username = '';
    base.password = '';
  }
  if (!base.pathname.endsWith('/')) base.pathname += '/';
  try {
    const response = await fetch(new URL(path, base), {
      method: call.method ?? 'GET',
      headers,
      ...(call.body === undefined ? {} : { body: call.body }),
      signal: AbortSignal.timeout(call.timeoutMs ?? 60_000),
    });
    return { status: response.status, text: await response.text() };
  } catch (error) {
    const reason = ((error as Error).cause as NodeJS.ErrnoException | undefined)?.code;
    throw new SallyportError(
      'elasticsearch-unavailable',
      `no Elasticsearch answers at ${base.host} (${reason ?? (error as Error).name})`,
      { cause: error, next: 'Start it, or correct ELASTICSEARCH_URL, or leave that out.' },
    );
  }
}

/** Refuses an ELASTICSEARCH_URL where no cluster answers. */
export async function checkElasticsearchUrl(url: string): Promise<void> {
  const next = 'Correct ELASTICSEARCH_URL, or leave it out to get one for development.';
  // Not `GET /`: a distribution with few modules does not have it.
  const { status } = await callElasticsearch(url, '_cluster/health', { timeoutMs: 5_000 });
  if (status !== 200)
    throw new SallyportError(
      'elasticsearch-unavailable',
      `ELASTICSEARCH_URL: ${new URL(url).host} answers ${status} to _cluster/health`,
      { next },
    );
}
