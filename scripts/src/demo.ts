import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { SallyportError } from '@sallyport/shared';
import { generateClaims, loadClaims, type Claim } from './dataset.js';
import {
  DEMO_DATASET,
  DEMO_INDEX,
  DEMO_PLACE,
  DEMO_USER,
  claimsFields,
  openSite,
  type Network,
  type Site,
} from './demo-site.js';
import { keepServices, startServices, type Databases } from './development-services.js';
import { QUESTIONS, answersAgree, type Question } from './questions.js';

/**
 * `npm run demo`: two networks on this machine that share no connection, and one question after the
 * other all the way round. Stays up until Ctrl-C unless `--once` is given; `--json` ends with one line
 * of JSON on standard output; `--fresh` forgets what earlier starts left.
 */
const CLAIMS = 100_000;
const WAIT_MS = 120_000;
const REFUSED = {
  query: { script: { script: "doc['amount'].value > 1000" } },
};

const FINAL = ['delivered', 'failed', 'rejected', 'cancelled', 'expired'];
/** Workers that run every second here, so that nobody waits for the demo. */
const SCHEDULES = [
  'import-batches',
  'export-requests',
  'export-results',
  'export-identity',
  'export-settings',
  'export-control',
];

const { values: options } = parseArgs({
  options: {
    once: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
    fresh: { type: 'boolean', default: false },
  },
});

type Summary = {
  ok: boolean;
  submitted: number;
  delivered: number;
  rejected: number;
  elapsed_ms: number;
};

const startedAt = Date.now();
// Ctrl-C at any time stops what was started.
const interrupted = new Promise<void>((resolve) => {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.once(signal, () => resolve());
});

try {
  process.exitCode = await main();
} catch (error) {
  if (!(error instanceof SallyportError)) throw error;
  say(`\n${error.code}: ${error.message}`);
  if (error.next !== undefined) say(error.next);
  process.exitCode = 9;
}

async function main(): Promise<number> {
  step('Starting PostgreSQL and Elasticsearch, meanwhile the first start of both networks');
  const report = (line: string) => say(`   ${line}`);
  let prepared: Promise<Site> | undefined;
  const services = keepServices(
    await startServices({
      report,
      onDatabases(databases) {
        prepared ??= prepareSite(databases, report);
        // Whoever awaits it below hears of a failure; until then it must not end the process.
        prepared.catch(() => undefined);
      },
    }),
    { report },
  );
  let site: Site | undefined;
  try {
    const told = await Promise.race([
      (async () => {
        site = await prepared;
        return site && roundTrip(site, services.elasticsearchUrl);
      })(),
      interrupted,
    ]);
    if (!told || !site) return 130;
    if (options.json) process.stdout.write(`${JSON.stringify(told)}\n`);
    if (!options.once) await stayUp(site);
    return told.ok ? 0 : 1;
  } finally {
    say('\nStopping the processes of the demo');
    await site?.stop();
    await services.stop();
  }
}

/** All that needs no Elasticsearch yet: keys, trust, dataset, account, settings. */
async function prepareSite(databases: Databases, report: (line: string) => void): Promise<Site> {
  const site = await openSite(databases, report, { fresh: options.fresh, place: DEMO_PLACE });
  await introduce(site);
  await publish(site);
  report(`dataset "${DEMO_DATASET}" and account "${DEMO_USER}" are published`);
  return site;
}

async function roundTrip(site: Site, elasticsearchUrl: string): Promise<Summary> {
  step('Starting both networks and two carriers between their folders');
  site.start(elasticsearchUrl, (line) => say(`   ${line}`));
  for (const { name, pid } of site.processes()) say(`   ${name}: process ${pid()}`);
  step(
    `Loading ${CLAIMS.toLocaleString('en')} documents into Elasticsearch on the response network`,
  );
  const { loaded } = await loadClaims(elasticsearchUrl, DEMO_INDEX, CLAIMS);
  say(loaded ? `   ${loaded.toLocaleString('en')} documents loaded` : '   they were loaded before');

  step('Waiting for accounts, settings and datasets to cross, then logging in');
  const api = await logIn(site);
  sayBatches(site, 'request', 'archive', 'imported on the request network');

  step(`Asking ${QUESTIONS.length} questions, and one that the policy refuses`);
  const asked: { question: Question; id: string }[] = [];
  for (const question of QUESTIONS) {
    const { id } = await api.submit(question.query);
    say(`   ${id}  ${question.title}`);
    asked.push({ question, id });
  }
  const refusal = await api.refusal(REFUSED);
  say(`   refused with ${refusal}: a query with a script`);

  step('Waiting for the answers');
  const claims: Claim[] = [...generateClaims(CLAIMS)];
  let right = 0;
  let delivered = 0;
  for (const { question, id } of asked) {
    const ended = await api.waitFor(id);
    const out = batchName(site, 'request', 'store', ended.batch);
    if (ended.status !== 'delivered') {
      say(`\n   ${question.title}\n     ${ended.status}: ${JSON.stringify(ended.failure ?? null)}`);
      continue;
    }
    delivered += 1;
    const answer = question.read(await api.result(id));
    const agrees = answersAgree(answer, question.expected(claims));
    if (agrees) right += 1;
    say(`\n   ${question.title}\n     went out in ${out}`);
    for (const row of answer.slice(0, 6)) say(`     ${row.join('  ')}`);
    if (answer.length > 6) say(`     … ${answer.length - 6} more`);
    say(agrees ? '     right: the same as computed from the documents' : '     WRONG');
  }
  say('');
  sayBatches(site, 'request', 'archive', 'imported on the request network');
  const summary: Summary = {
    ok: right === QUESTIONS.length && refusal === 'query-kind-denied',
    submitted: asked.length,
    delivered,
    rejected: refusal === 'query-kind-denied' ? 1 : 0,
    elapsed_ms: Date.now() - startedAt,
  };
  const seconds = (summary.elapsed_ms / 1000).toFixed(1);
  say(`\n${summary.ok ? 'All answers are right' : 'NOT all answers are right'} (${seconds} s).`);
  return summary;
}

/** Keys on both sides, and each one's card carried to the other and confirmed. */
async function introduce(site: Site): Promise<void> {
  const cards = await Promise.all(
    (['request', 'response'] as const).map(async (network) => {
      const made = await site.command(network, ['init']);
      const path = join(site.folder(network), 'card.json');
      writeFileSync(path, `${JSON.stringify(made['card'])}\n`);
      return { network, path, fingerprint: String(made['fingerprint']) };
    }),
  );
  await Promise.all(
    cards.map(({ network, path, fingerprint }) => {
      say(`   ${network} network: fingerprint ${fingerprint}`);
      const far: Network = network === 'request' ? 'response' : 'request';
      return site.command(far, ['keys', 'trust', path, '--fingerprint', fingerprint]);
    }),
  );
}

async function publish(site: Site): Promise<void> {
  const fields = join(site.folder('response'), 'claims-fields.json');
  writeFileSync(fields, JSON.stringify(claimsFields()));
  const about = ['--index', DEMO_INDEX, '--time-field', 'submitted_at', '--fields', fields];
  const dataset = ['dataset', 'create', DEMO_DATASET, '--title', 'Claims', ...about];
  const rights = ['profile-type', 'set', 'default', '--datasets', DEMO_DATASET, '--tier', 'B'];
  const user = ['user', 'create', DEMO_USER, '--name', 'Demo User', '--password-stdin'];
  const everySecond = SCHEDULES.flatMap((worker) => [`schedule.${worker}`, '1']);
  await Promise.all([
    unlessThere(site.command('response', dataset)),
    site.command('response', rights),
    unlessThere(site.command('response', user, `${site.password}\n`)),
    site.command('response', ['settings', 'set', ...everySecond]),
  ]);
}

async function unlessThere(command: Promise<unknown>): Promise<void> {
  try {
    await command;
  } catch (error) {
    const { stderr } = error as { stderr?: string };
    if (!stderr?.includes('already-exists')) throw error;
  }
}

type RequestView = {
  id: string;
  status: string;
  failure?: unknown;
  batch: { stream: string; seq: number } | null;
};

type Api = {
  submit(query: unknown): Promise<RequestView>;
  /** The code of the problem that a submit is answered with. */
  refusal(query: unknown): Promise<string>;
  waitFor(id: string): Promise<RequestView>;
  result(id: string): Promise<string>;
};

async function logIn(site: Site): Promise<Api> {
  let token = '';
  await within('the account to arrive', async () => {
    const answer = await call(site, '/v1/sessions', {
      method: 'POST',
      body: JSON.stringify({ login: DEMO_USER, password: site.password }),
    }).catch(() => undefined);
    if (!answer?.ok) return false;
    token = ((await answer.json()) as { token: string }).token;
    return true;
  });
  const authorised = (path: string, init: RequestInit = {}) =>
    call(site, path, { ...init, headers: { authorization: `Bearer ${token}` } });
  const post = (query: unknown) =>
    authorised('/v1/requests', {
      method: 'POST',
      body: JSON.stringify({ dataset: DEMO_DATASET, query }),
    });
  await within('the dataset to arrive', async () => {
    const { items = [] } = (await (await authorised('/v1/datasets')).json()) as {
      items?: { name: string }[];
    };
    return items.some(({ name }) => name === DEMO_DATASET);
  });
  return {
    async submit(query) {
      const answer = await post(query);
      if (answer.status !== 202) throw new Error(`submit: ${answer.status} ${await answer.text()}`);
      return (await answer.json()) as RequestView;
    },
    async refusal(query) {
      return ((await (await post(query)).json()) as { code: string }).code;
    },
    async waitFor(id) {
      let view: RequestView | undefined;
      await within(`request ${id} to end`, async () => {
        const answer = await authorised(`/v1/requests/${id}`).catch(() => undefined);
        if (!answer?.ok) return false;
        view = (await answer.json()) as RequestView;
        return FINAL.includes(view.status);
      });
      return view as RequestView;
    },
    async result(id) {
      const answer = await authorised(`/v1/requests/${id}/result`);
      if (!answer.ok) throw new Error(`result: ${answer.status} ${await answer.text()}`);
      return answer.text();
    },
  };
}

function call(site: Site, path: string, init: RequestInit): Promise<Response> {
  const headers = { 'content-type': 'application/json', ...(init.headers as object) };
  return fetch(`${site.apiUrl}${path}`, { ...init, headers, signal: AbortSignal.timeout(10_000) });
}

async function within(what: string, check: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + WAIT_MS;
  while (!(await check())) {
    if (Date.now() > deadline) {
      throw new SallyportError('in-flight', `Waited ${WAIT_MS / 1000} s for ${what}, in vain.`, {
        next: 'Look into the .log files under .sallyport/.',
      });
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

async function stayUp(site: Site): Promise<void> {
  const [folder] = [site.folder('request')];
  say(`
The system stays up: every second what waits is sealed, carried and answered.
  API           ${site.apiUrl}   (its description: ${site.apiUrl}/openapi.json)
  user          ${DEMO_USER}
  password      ${site.password}
  folders       ${join(folder, '..', '{request,response}', '{outbox,inbox,store,archive,…}')}
Try it from another terminal:
  npx sallyport login --url ${site.apiUrl} --user ${DEMO_USER}
  echo '{"query":{"range":{"submitted_at":{"gte":"2025-03-01","lt":"2025-04-01"}}},"size":3}' |
    npx sallyport submit -f - --dataset ${DEMO_DATASET} --wait 1m
  npx sallyport ls
  npx sallyport result ID
  (set -a; . .sallyport/request.env; npx sallyport-request link)
docs/tutorial.md follows one question across. Any process may be killed: it is started again and nothing is lost. Ctrl-C ends the demo.`);
  await interrupted;
}

function sayBatches(site: Site, network: Network, folder: string, what: string): void {
  const names = readdirSync(join(site.folder(network), folder)).filter((name) =>
    name.endsWith('.batch'),
  );
  for (const name of names.slice(-6)) {
    const bytes = readFileSync(join(site.folder(network), folder, name)).length;
    say(`   ${what}: ${name} (${bytes.toLocaleString('en')} bytes)`);
  }
}

function batchName(
  site: Site,
  network: Network,
  folder: string,
  batch: RequestView['batch'],
): string {
  if (!batch) return 'no batch';
  const number = `.${batch.stream}.e0001.s${String(batch.seq).padStart(12, '0')}.`;
  return (
    readdirSync(join(site.folder(network), folder)).find((name) => name.includes(number)) ?? number
  );
}

function step(text: string): void {
  const seconds = ((Date.now() - startedAt) / 1000).toFixed(1).padStart(5);
  say(`\n${seconds} s  ${text}`);
}

/** People read standard output; with --json it belongs to the one line at the end. */
function say(line: string): void {
  (options.json ? process.stderr : process.stdout).write(`${line}\n`);
}
