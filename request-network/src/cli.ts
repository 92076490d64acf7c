import { createWriteStream } from 'node:fs';
import { readFile, rename, rm } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import {
  EXIT,
  SallyportError,
  formatTable,
  runCommandLine,
  type CommandArguments,
  type CommandOutput,
  type Commands,
} from '@sallyport/shared';
import { parseDuration, requireId, usage } from './cli-arguments.js';
import { callApi, callJson } from './cli-client.js';
import {
  currentSession,
  dropSession,
  loginUrl,
  saveSession,
  type CliSession,
} from './cli-config.js';
import { keyCommands } from './cli-keys.js';
import { ask, describeProgress, endProgress, readInput, showProgress } from './cli-terminal.js';
import type { LimitsView } from './limit-reads.js';
import { windowTable } from './limit-tables.js';
import type { RequestPage, RequestView } from './request-schemas.js';

const WAIT_S = 20;
const DOWNLOAD_LIMIT_MS = 3_600_000;
const FINAL = ['delivered', 'failed', 'rejected', 'cancelled', 'expired'];

/** Runs one command of the user's tool; sets the exit code of the process. */
export async function runUserCli(argv: string[] = process.argv.slice(2)): Promise<void> {
  const short: Record<string, string> = { '-f': '--file', '-o': '--output' };
  await runCommandLine(
    'sallyport',
    commands,
    argv.map((word) => short[word] ?? word),
  );
}

const commands: Commands = {
  login: {
    usage: 'login [--url URL] [--user LOGIN]',
    does: 'Logs in; the password is asked for, or read from standard input.',
    values: ['url', 'user'],
    run: login,
  },
  logout: {
    usage: 'logout [--everywhere]',
    does: 'Ends your session, or with --everywhere all of them on this network.',
    switches: ['everywhere'],
    async run({ switches }) {
      const everywhere = switches.has('everywhere');
      const path = everywhere ? '/v1/sessions' : '/v1/sessions/current';
      const session = await currentSession();
      const { status } = await callApi(session, path, { method: 'DELETE', allow: [401] });
      await dropSession();
      const text = status === 401 ? 'You were logged out already.' : 'Logged out.';
      return { text, data: { everywhere, ended: status !== 401 } };
    },
  },
  passwd: {
    usage: 'passwd',
    does: 'Changes your password; it is asked for, or read from standard input: the old, the new.',
    async run() {
      const session = await currentSession();
      const current = await ask('Password of now: ', { secret: true });
      const wanted = await ask('New password: ', { secret: true });
      const body = { current, new: wanted };
      await callApi(session, '/v1/me/password', { method: 'POST', body });
      return { text: 'Changed. Every other session has ended.', data: { changed: true } };
    },
  },
  submit: {
    usage:
      'submit -f FILE|- [--dataset NAME] [--priority P] [--ttl 72h] [--custom-id ID] [--idempotency-key KEY] [--wait 10m]',
    does: 'Submits a query: the whole body of a submit, or with --dataset the query alone.',
    values: ['file', 'dataset', 'priority', 'ttl', 'custom-id', 'wait', 'idempotency-key'],
    run: submit,
  },
  ls: {
    usage: 'ls [--status STATUS] [--limit 50]',
    does: 'Lists your requests, newest first.',
    values: ['status', 'limit'],
    run: list,
  },
  get: {
    usage: 'get ID',
    does: 'Says where a request stands.',
    positionals: [1, 1],
    async run({ positionals }) {
      const session = await currentSession();
      const view = await callJson<RequestView>(session, requestPath(positionals[0]));
      return { text: describeProgress(view), data: view };
    },
  },
  watch: {
    usage: 'watch ID… [--wait 10m]',
    does: 'Follows requests until they have ended.',
    positionals: [1, 100],
    values: ['wait'],
    async run({ positionals, values }) {
      const session = await currentSession();
      const limitMs = parseDuration(values['wait'] ?? '14d');
      const views = await Promise.all(
        positionals.map(async (id) => {
          const view = await callJson<RequestView>(session, requestPath(id));
          return waitUntilFinal(session, { view, limitMs });
        }),
      );
      endProgress();
      return finish(views);
    },
  },
  timeline: {
    usage: 'timeline ID',
    does: 'Shows what happened to a request on both networks.',
    positionals: [1, 1],
    async run({ positionals }) {
      type Event = { at: string; network: string; event: string; reason: string | null };
      const session = await currentSession();
      const path = `${requestPath(positionals[0])}/timeline`;
      const found = await callJson<{ events: Event[] }>(session, path);
      const lines = found.events.map((one) => [one.at, one.network, one.event, one.reason ?? '']);
      return { text: formatTable(['WHEN', 'NETWORK', 'WHAT', 'WHY'], lines), data: found };
    },
  },
  result: {
    usage: 'result ID [-o FILE] [--lines]',
    does: 'Fetches the answer; --lines gives one hit per line.',
    positionals: [1, 1],
    values: ['output'],
    switches: ['lines'],
    run: fetchResult,
  },
  cancel: {
    usage: 'cancel ID',
    does: 'Cancels a request; may be repeated.',
    positionals: [1, 1],
    async run({ positionals }) {
      const session = await currentSession();
      const path = `${requestPath(positionals[0])}:cancel`;
      const view = await callJson<RequestView>(session, path, { method: 'POST' });
      return { text: describeProgress(view), data: view };
    },
  },
  me: {
    usage: 'me',
    does: 'Says who you are and what you may do.',
    async run() {
      type Me = {
        login: string;
        roles: string[];
        profile_type: { name: string; tier: string; datasets: string[] } | null;
      };
      const me = await callJson<Me>(await currentSession(), '/v1/me');
      const rights = me.profile_type
        ? `${me.profile_type.name}, tier ${me.profile_type.tier}, datasets: ${me.profile_type.datasets.join(', ') || 'none'}`
        : 'no rights yet';
      return { text: `${me.login} (${me.roles.join(', ')}): ${rights}`, data: me };
    },
  },
  limits: {
    usage: 'limits',
    does: 'Shows what you may still submit.',
    async run() {
      const view = await callJson<LimitsView>(await currentSession(), '/v1/me/limits');
      const { open_requests: open, stored_bytes: stored, blocked } = view;
      const lines = [
        windowTable(view.windows),
        `${open.used} of ${open.limit} requests open, ${stored.used} of ${stored.limit} bytes kept`,
        ...(blocked ? [`Blocked by an administrator: ${blocked.reason}`] : []),
      ];
      return { text: lines.join('\n'), data: view };
    },
  },
  datasets: {
    usage: 'datasets',
    does: 'Lists what you may query.',
    async run() {
      type Item = { name: string; title: string; time_field: string | null; fields: unknown[] };
      const found = await callJson<{ items: Item[] }>(await currentSession(), '/v1/datasets');
      const lines = found.items.map((one) => [
        one.name,
        one.title,
        one.time_field ?? '',
        String(one.fields.length),
      ]);
      return { text: formatTable(['NAME', 'TITLE', 'TIME', 'FIELDS'], lines), data: found };
    },
  },
  ...keyCommands,
};

async function login({ values }: CommandArguments): Promise<CommandOutput> {
  const url = await loginUrl(values['url']);
  const login = values['user'] ?? (await ask('Login: '));
  const password = await ask('Password: ', { secret: true });
  const response = await callApi({ url }, '/v1/sessions', {
    method: 'POST',
    body: { login, password },
  });
  const {
    token,
    refresh_token: refreshToken,
    ...session
  } = (await response.json()) as {
    token: string;
    refresh_token: string;
    expires_at: string;
    must_change_password: boolean;
  };
  await saveSession({ url, token, refreshToken });
  const notice = session.must_change_password
    ? '\nChange your password first: sallyport passwd.'
    : '';
  return {
    text: `Logged in at ${url} until ${session.expires_at}.${notice}`,
    data: { url, ...session },
  };
}

async function submit({ values }: CommandArguments): Promise<CommandOutput> {
  const limitMs = values['wait'] === undefined ? undefined : parseDuration(values['wait']);
  const body = await readSubmission(values);
  const session = await currentSession();
  const key = values['idempotency-key'];
  const view = await callJson<RequestView>(session, '/v1/requests', {
    method: 'POST',
    body,
    headers: key === undefined ? {} : { 'idempotency-key': key },
  });
  if (limitMs === undefined) return { text: view.id, data: view };
  const last = await waitUntilFinal(session, { view, limitMs });
  endProgress();
  return finish([last]);
}

async function readSubmission(
  values: CommandArguments['values'],
): Promise<Record<string, unknown>> {
  const { file, dataset, priority, ttl } = values;
  if (file === undefined) {
    throw usage('Nothing to submit.', 'Give a file with -f FILE, or -f - for standard input.');
  }
  const text = file === '-' ? await readInput() : await readFileFor(file);
  let given: unknown;
  try {
    given = JSON.parse(text);
  } catch (cause) {
    throw usage(`${file} is not JSON: ${(cause as Error).message}.`, 'Correct it and try again.');
  }
  const body =
    dataset === undefined ? (given as Record<string, unknown>) : { dataset, query: given };
  return {
    ...body,
    ...(priority === undefined ? {} : { priority }),
    ...(ttl === undefined ? {} : { ttl_s: Math.round(parseDuration(ttl) / 1_000) }),
    ...(values['custom-id'] === undefined ? {} : { custom_id: values['custom-id'] }),
  };
}

async function readFileFor(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    throw usage(`${path} cannot be read: ${(cause as Error).message}.`, 'Check the name.');
  }
}

async function list({ values }: CommandArguments): Promise<CommandOutput> {
  const session = await currentSession();
  const wanted = Number(values['limit'] ?? 50);
  if (!Number.isInteger(wanted) || wanted < 1 || wanted > 500) {
    throw usage('--limit must be 1 to 500.', 'Leave it out for 50.');
  }
  const query = new URLSearchParams({ page_size: String(wanted) });
  if (values['status']) query.set('status', values['status']);
  const page = await callJson<RequestPage>(session, `/v1/requests?${query.toString()}`);
  const lines = page.items.map((one) => [
    one.id,
    one.status,
    one.dataset,
    one.created_at,
    one.reason_code ?? '',
    one.custom_id ?? '',
  ]);
  const heading = ['ID', 'STATUS', 'DATASET', 'SUBMITTED', 'WHY', 'CUSTOM ID'];
  return { text: formatTable(heading, lines), data: page };
}

async function waitUntilFinal(
  session: CliSession,
  { view: first, limitMs }: { view: RequestView; limitMs: number },
): Promise<RequestView> {
  const path = requestPath(first.id);
  const endsAt = performance.now() + limitMs;
  let view = first;
  showProgress(view);
  while (!FINAL.includes(view.status)) {
    const leftS = Math.floor((endsAt - performance.now()) / 1_000);
    if (leftS < 1) return view;
    const response = await callApi(session, `${path}?wait=${Math.min(WAIT_S, leftS)}`, {
      headers: { 'if-none-match': `"${view.version}"` },
      allow: [304],
    });
    if (response.status === 304) {
      await response.body?.cancel();
      continue;
    }
    view = (await response.json()) as RequestView;
    showProgress(view);
  }
  return view;
}

/** What the command says at last; how the worst of the requests ended is the exit code. */
function finish(views: RequestView[]): CommandOutput {
  const codes = views.map(({ status }) => {
    if (status === 'delivered') return EXIT.ok;
    if (status === 'rejected') return EXIT.policy;
    return FINAL.includes(status) ? EXIT.other : EXIT.timeout;
  });
  process.exitCode = Math.max(...codes);
  return {
    text: views.map(describeProgress).join('\n'),
    data: views.length === 1 ? views[0] : views,
  };
}

async function fetchResult({
  positionals,
  values,
  switches,
}: CommandArguments): Promise<CommandOutput | undefined> {
  const session = await currentSession();
  const accept = switches.has('lines') ? 'application/x-ndjson' : 'application/json';
  const response = await callApi(session, `${requestPath(positionals[0])}/result`, {
    headers: { accept },
    timeLimitMs: DOWNLOAD_LIMIT_MS,
  });
  const body = Readable.fromWeb(response.body as Parameters<typeof Readable.fromWeb>[0]);
  const { output } = values;
  if (output === undefined) {
    // The answer itself is what a program reads; it is not wrapped, whatever --json says.
    await pipeline(body, process.stdout, { end: false });
    if (!switches.has('lines')) process.stdout.write('\n');
    return undefined;
  }
  const temporary = `${output}.part-${process.pid}`;
  try {
    await pipeline(body, createWriteStream(temporary, { flags: 'wx' }));
    await rename(temporary, output);
  } catch (cause) {
    await rm(temporary, { force: true });
    throw new SallyportError('internal', `${output} could not be written completely.`, {
      cause,
      next: 'Fetch it again.',
    });
  }
  const bytes = Number(response.headers.get('content-length')) || null;
  return { text: `Wrote ${output}.`, data: { file: output, bytes } };
}

function requestPath(id: string | undefined): string {
  return `/v1/requests/${requireId(id)}`;
}
