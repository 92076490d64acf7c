import type { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { errors } from '@elastic/elasticsearch';
import { shorten } from '@sallyport/shared';
import type { Elastic } from './client.js';

export type SearchTimeouts = {
  /** Elasticsearch stops collecting. */
  searchMs: number;
  /** We close the socket, which cancels the search. */
  socketMs: number;
  /** What still runs is cancelled by its task. */
  cancelMs: number;
};

export type SearchOptions = {
  index: string;
  /** The body as JSON text. */
  body: string;
} & CallOptions;

/** Searches of one index and one tier, asked together. */
export type GroupOptions = {
  index: string;
  /** The bodies as JSON texts, each without a line end. */
  bodies: string[];
} & CallOptions;

type CallOptions = {
  timeouts: SearchTimeouts;
  /** `X-Opaque-Id`: names the search in Elasticsearch's task list and slow log. */
  opaqueId: string;
  /** Aborted by the caller when the answer is not wanted any more; belongs to this call alone. */
  stopper: AbortController;
  maxBytes: number;
  /** Told of every piece that came, in bytes; false when there is no room for it. */
  admit?: (bytes: number) => boolean;
};

/**
 * `unavailable`: nothing answered, or nothing that was Elasticsearch in working order; `aborted`: the
 * caller's signal fired.
 */
export type SearchFault =
  'query' | 'capacity' | 'timeout' | 'internal' | 'too-large' | 'unavailable' | 'aborted';

/** The whole answer as text, exactly as sent, or why there is none. Never a partial one. */
export type SearchOutcome =
  | { ok: true; text: string; tookMs: number }
  | { ok: false; fault: SearchFault; code: string; detail: string };

/** What the client sends by itself with its named methods: major versions 8 and 9 answer alike. */
const MEDIA_TYPE = 'application/vnd.elasticsearch+json; compatible-with=8';
const LINES_TYPE = 'application/vnd.elasticsearch+x-ndjson; compatible-with=8';
/** Of a search in a group; the index stands in the path, so that explicit ones may be forbidden. */
const GROUP_HEADER = '{"allow_partial_search_results":false}\n';
const MAX_DETAIL = 1_000;
const TASK_CALL_LIMIT_MS = 5_000;
const CLUSTER_AWAY = ['master_not_discovered_exception', 'node_closed_exception'];
/** How the members before the hits are written; other orders are parsed. */
const HEAD =
  /^\{"took":(\d+),"timed_out":(true|false),(?:"terminated_early":(?:true|false),)?(?:"num_reduce_phases":\d+,)?"_shards":\{"total":\d+,"successful":\d+,"skipped":\d+,"failed":(\d+)[,}]/;

/** What JSON has nowhere, not even between tokens (RFC 8259). */
// eslint-disable-next-line no-control-regex
const CONTROL = /[\x00-\x08\x0b\x0c\x0e-\x1f]/;

/** Runs one search within its three time limits. Never rejects for what Elasticsearch does. */
export async function searchText(elastic: Elastic, options: SearchOptions): Promise<SearchOutcome> {
  const answer = await call(elastic, options, {
    path: `/${encodeURIComponent(options.index)}/_search`,
    // Where documents are is this network's own business.
    querystring: 'allow_partial_search_results=false&filter_path=-hits.hits._index',
    body: options.body,
    type: MEDIA_TYPE,
  });
  if ('ok' in answer) return answer;
  const { status, text } = answer;
  return status === 200 ? judgeAnswer(text) : classifyAnswer(status, text);
}

/**
 * Runs small searches in one call, within the time and the bytes of a single one. One that has no
 * clean answer of its own is undefined, whatever the reason: ask it alone, to learn it. The only
 * outcome besides is `aborted`, for all of them.
 */
export async function searchGroup(
  elastic: Elastic,
  options: GroupOptions,
): Promise<(SearchOutcome | undefined)[]> {
  const { index, bodies } = options;
  const answer = await call(elastic, options, {
    path: `/${encodeURIComponent(index)}/_msearch`,
    querystring: 'filter_path=-responses.hits.hits._index,-responses.status',
    body: bodies.map((body) => `${GROUP_HEADER}${body}\n`).join(''),
    type: LINES_TYPE,
  });
  if ('ok' in answer) {
    const aborted = !answer.ok && answer.fault === 'aborted';
    return bodies.map(() => (aborted ? answer : undefined));
  }
  const texts = answer.status === 200 ? splitResponses(answer.text) : [];
  if (texts.length !== bodies.length) return bodies.map(() => undefined);
  return texts.map((text) => {
    const outcome = judgeAnswer(text);
    return outcome.ok ? outcome : undefined;
  });
}

type Call = { path: string; querystring: string; body: string; type: string };

/** The answer as text, or why there is none. */
async function call(
  elastic: Elastic,
  options: CallOptions,
  { type, ...params }: Call,
): Promise<{ status: number; text: string } | SearchOutcome> {
  const { timeouts, opaqueId, stopper } = options;
  let overdue = false;
  const timer = setTimeout(() => {
    overdue = !stopper.signal.aborted;
    stopper.abort();
  }, timeouts.socketMs);
  try {
    const { statusCode, body: stream } = await elastic.client.transport.request<Readable>(
      { method: 'POST', ...params },
      {
        meta: true,
        // The client's own limit on sizes ends the process (an error event that nobody can hear).
        asStream: true,
        headers: { accept: MEDIA_TYPE, 'content-type': type },
        maxRetries: 0,
        opaqueId,
        // The signal decides; this one only must not be earlier.
        requestTimeout: timeouts.cancelMs,
        signal: stopper.signal,
      },
    );
    const text = await readText(stream, options);
    return typeof text === 'string' ? { status: statusCode ?? 0, text } : text;
  } catch (error) {
    if (!stopper.signal.aborted) return classify(error);
    cancelLater(elastic, opaqueId, Math.max(0, timeouts.cancelMs - timeouts.socketMs));
    if (overdue) return timeout(timeouts.socketMs);
    return fault('aborted', 'aborted', 'The search was stopped.');
  } finally {
    clearTimeout(timer);
  }
}

/** The whole stream as text, or what it means that it is longer than allowed. */
async function readText(
  stream: Readable,
  { maxBytes, admit }: CallOptions,
): Promise<string | SearchOutcome> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  stream.on('error', () => undefined);
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    // Leaving the loop destroys the stream, and with it the search's connection.
    if (bytes > maxBytes) return tooLarge(maxBytes);
    if (admit?.(chunk.length) === false) return noRoom();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

const RESPONSES = /^\{"took":\d+,"responses":\[/;

/** The answers of a group, each cut out as it was written; none when the text is not such a list. */
function splitResponses(text: string): string[] {
  const start = RESPONSES.exec(text)?.[0].length;
  if (start === undefined) return [];
  const texts: string[] = [];
  let depth = 0;
  let from = start;
  for (let at = start; at < text.length; at += 1) {
    const character = text.charCodeAt(at);
    if (character === QUOTE) {
      at = endOfString(text, at);
    } else if (character === OPEN || character === OPEN_LIST) {
      if (depth === 0) from = at;
      depth += 1;
    } else if (character === CLOSE || character === CLOSE_LIST) {
      if (depth === 0) return text.slice(at) === ']}' ? texts : [];
      depth -= 1;
      if (depth === 0) texts.push(text.slice(from, at + 1));
    }
  }
  return [];
}

const [QUOTE, BACKSLASH, OPEN, CLOSE, OPEN_LIST, CLOSE_LIST] = [0x22, 0x5c, 0x7b, 0x7d, 0x5b, 0x5d];

/** Where the quote stands that ends the string which begins at `start`. */
function endOfString(text: string, start: number): number {
  let end = start;
  for (;;) {
    end = text.indexOf('"', end + 1);
    if (end === -1) return text.length;
    let escapes = 0;
    while (text.charCodeAt(end - 1 - escapes) === BACKSLASH) escapes += 1;
    if (escapes % 2 === 0) return end;
  }
}

function judgeAnswer(text: string): SearchOutcome {
  if (CONTROL.test(text)) return malformed();
  const head = HEAD.exec(text.slice(0, 300));
  const found = head
    ? { took: Number(head[1]), timedOut: head[2] === 'true', failed: Number(head[3]) }
    : parseHead(text);
  if (!found) return malformed();
  if (found.timedOut) return fault('timeout', 'search-timeout', 'The search ran out of time.');
  if (found.failed > 0) {
    return fault('timeout', 'shards-failed', `${found.failed} shard(s) gave no answer.`);
  }
  return { ok: true, text, tookMs: found.took };
}

function parseHead(text: string) {
  try {
    const answer = JSON.parse(text) as {
      took: number;
      timed_out: boolean;
      _shards: { failed: number };
    };
    return { took: answer.took, timedOut: answer.timed_out, failed: answer._shards.failed };
  } catch {
    return undefined;
  }
}

function classify(error: unknown): SearchOutcome {
  if (error instanceof errors.TimeoutError) return timeout(undefined);
  const { message, code } = error as Error & { code?: unknown };
  // A connection that breaks while the body is read shows as an error of the socket.
  if (error instanceof errors.ElasticsearchClientError || typeof code === 'string') {
    return fault('unavailable', 'elasticsearch-unavailable', message);
  }
  throw error;
}

type ErrorBody = {
  type?: string;
  reason?: string;
  root_cause?: ErrorBody[];
  caused_by?: ErrorBody;
  failed_shards?: { reason?: ErrorBody }[];
};

function classifyAnswer(status: number, text: string): SearchOutcome {
  const top = parseError(text);
  const causes = top ? listCauses(top) : [];
  const types = causes.map((cause) => cause.type ?? '').join(' ');
  const reason = causes.find((cause) => cause.reason)?.reason ?? `HTTP ${status}`;
  if (/timeout_exception|time_exceeded|task_cancelled/.test(types)) {
    return fault('timeout', 'search-timeout', reason);
  }
  if (/too_many_buckets|too_many_clauses/.test(types))
    return fault('query', 'query-too-large', reason);
  if (status === 429 || /rejected_execution|circuit_breaking/.test(types)) {
    return fault('capacity', 'elasticsearch-busy', reason);
  }
  if (status === 404) return fault('internal', 'index-missing', reason);
  if (status === 401 || status === 403) {
    return fault('internal', 'elasticsearch-denied', 'Elasticsearch refuses our account.');
  }
  if (status >= 400 && status < 500) return fault('query', 'query-refused', reason);
  if (status === 502 || status === 503) {
    if (isClusterAway(top)) return fault('unavailable', 'elasticsearch-unavailable', reason);
    return fault('capacity', 'index-unavailable', reason);
  }
  return fault('internal', 'elasticsearch-error', reason);
}

/** Whether nothing can be searched now: other 503s are about the shards of one index. */
function isClusterAway(top: ErrorBody | undefined): boolean {
  if (top?.type === undefined) return true;
  if (top.type === 'cluster_block_exception') return !top.reason?.startsWith('index [');
  return CLUSTER_AWAY.includes(top.type);
}

function parseError(text: string): ErrorBody | undefined {
  try {
    const error = (JSON.parse(text) as { error?: ErrorBody | string | null } | null)?.error;
    return typeof error === 'object' && error !== null ? error : undefined;
  } catch {
    return undefined;
  }
}

function listCauses(top: ErrorBody): ErrorBody[] {
  const shards = (top.failed_shards ?? []).flatMap((shard) => (shard.reason ? [shard.reason] : []));
  const roots = [...(top.root_cause ?? []), ...shards, top];
  return roots.flatMap((cause) => (cause.caused_by ? [cause, cause.caused_by] : [cause]));
}

/** Cancels what of a search is left after a while; closing its socket normally ended it already. */
function cancelLater(elastic: Elastic, opaqueId: string, waitMs: number): void {
  const run = async () => {
    await delay(waitMs, undefined, { signal: elastic.closing }).catch(() => undefined);
    const limit = { requestTimeout: TASK_CALL_LIMIT_MS };
    const list = await elastic.client.tasks.list(
      { actions: 'indices:data/read/search', detailed: false },
      limit,
    );
    const tasks = Object.values(list.nodes ?? {}).flatMap((node) => Object.values(node.tasks));
    for (const task of tasks) {
      if (task.headers['X-Opaque-Id'] !== opaqueId) continue;
      await elastic.client.tasks.cancel({ task_id: `${task.node}:${task.id}` }, limit);
    }
  };
  const done = run()
    .catch(() => undefined)
    .finally(() => elastic.background.delete(done));
  elastic.background.add(done);
}

function timeout(limitMs: number | undefined): SearchOutcome {
  const within = limitMs === undefined ? 'in time' : `within ${limitMs / 1_000} s`;
  return fault('timeout', 'search-timeout', `Elasticsearch gave no answer ${within}.`);
}

function malformed(): SearchOutcome {
  return fault('internal', 'answer-malformed', 'The answer is not that of a search.');
}

function tooLarge(maxBytes: number): SearchOutcome {
  return fault('too-large', 'result-too-large', `The answer is larger than ${maxBytes} bytes.`);
}

function noRoom(): SearchOutcome {
  return fault('capacity', 'memory-full', 'The answers under way take too much memory.');
}

function fault(kind: SearchFault, code: string, detail: string): SearchOutcome {
  return { ok: false, fault: kind, code, detail: shorten(detail, MAX_DETAIL) };
}
