import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'chai';
import { eventually } from '@sallyport/shared/testing';
import { loadClaims } from './dataset.js';
import { claimsFields, openSite, type Site } from './demo-site.js';
import { startServices, type Services } from './development-services.js';
import { query } from './services/database.js';

const REQUESTS = 120;
const KILLS = 12;
const INDEX = 'sallyport-kill-claims';

/** The whole system as the demo runs it, with processes killed while questions go round. */
describe('both networks, killed at any moment', function () {
  this.timeout(240_000);
  const state = mkdtempSync(join(tmpdir(), 'sallyport kill '));
  let services: Services;
  let site: Site;
  let key: string;

  before(async () => {
    services = await startServices();
    await loadClaims(services.elasticsearchUrl, INDEX, 500);
    const database = `sallyport_kill_${randomUUID().slice(0, 8)}`;
    site = await openSite(services, () => undefined, { fresh: true, place: { state, database } });
    await prepare(site);
    site.start(services.elasticsearchUrl, () => undefined);
    key = await eventually(async () => {
      const made = await site
        .command('request', ['api-key', 'create', 'asker'])
        .catch(() => undefined);
      return made?.['key'] as string | undefined;
    }, 60_000);
  });

  after(async () => {
    await site.stop();
    for (const network of ['request', 'response'] as const) {
      const name = new URL(site.databaseUrl(network)).pathname.slice(1);
      const drop = `drop database if exists ${name} with (force)`;
      await query(services.databaseUrl('postgres'), drop);
    }
    await services.stop();
    rmSync(state, { recursive: true, force: true });
  });

  it('answers every request exactly once', async () => {
    const accepted = new Set<string>();
    let killing = true;
    const killer = killProcesses(site, KILLS).finally(() => (killing = false));
    while (killing || accepted.size < REQUESTS) {
      const id = await submit(site, key, accepted.size);
      if (id) accepted.add(id);
      if (accepted.size >= REQUESTS * 5) break;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await killer;
    const ids = [...accepted];
    await eventually(async () => {
      const [left] = await query<{ open: number }>(
        site.databaseUrl('request'),
        `select count(*) as open from requests where status <> 'delivered'`,
      );
      return left?.open === 0;
    }, 150_000);

    const [asked] = await query<{ requests: number; results: number; delivered: number }>(
      site.databaseUrl('request'),
      `select (select count(*) from requests) as requests,
              (select count(*) from results where complete) as results,
              (select count(*) from request_events where event = 'delivered') as delivered`,
    );
    // A submit whose answer was lost with the process may have been accepted all the same.
    expect(asked?.requests).to.be.at.least(ids.length);
    expect(asked?.results).to.equal(asked?.requests);
    expect(asked?.delivered).to.equal(asked?.requests);
    const [answered] = await query<{ requests: number; results: number; sent: number }>(
      site.databaseUrl('response'),
      `select (select count(*) from requests where state = 'done') as requests,
              (select count(*) from results) as results,
              (select count(*) from outbox_records where type = 'result') as sent`,
    );
    expect(answered).to.deep.equal({
      requests: asked?.requests,
      results: asked?.requests,
      sent: asked?.requests,
    });
    const found = await query<{ id: string }>(
      site.databaseUrl('request'),
      'select id from requests',
    );
    expect(found.map(({ id }) => id)).to.include.members(ids);
  });
});

/** Kills one process after the other, without a word, and waits until it has been started again. */
async function killProcesses(site: Site, kills: number): Promise<void> {
  for (let count = 0; count < kills; count += 1) {
    const victim = site.processes()[count % 4];
    const pid = victim?.pid();
    if (pid) process.kill(pid, 'SIGKILL');
    await eventually(() => victim?.pid() !== undefined && victim.pid() !== pid);
    // Long enough for some to die in the middle of their work, and for some to finish it.
    await new Promise((resolve) => setTimeout(resolve, 700 + ((count * 617) % 1_900)));
  }
}

async function submit(site: Site, key: string, count: number): Promise<string | undefined> {
  const from = `2025-0${1 + (count % 9)}-01`;
  const query = {
    size: 1,
    query: { range: { submitted_at: { gte: from, lt: '2025-12-31' } } },
  };
  try {
    const answer = await fetch(`${site.apiUrl}/v1/requests`, {
      method: 'POST',
      headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
      body: JSON.stringify({ dataset: 'claims', query }),
      signal: AbortSignal.timeout(5_000),
    });
    if (answer.status !== 202) return undefined;
    return ((await answer.json()) as { id: string }).id;
  } catch {
    return undefined;
  }
}

async function prepare(site: Site): Promise<void> {
  const cards: [network: 'request' | 'response', card: string, fingerprint: string][] = [];
  for (const network of ['request', 'response'] as const) {
    const made = await site.command(network, ['init']);
    const path = join(site.folder(network), 'card.json');
    writeFileSync(path, JSON.stringify(made['card']));
    cards.push([network, path, String(made['fingerprint'])]);
  }
  for (const [network, path, fingerprint] of cards) {
    const far = network === 'request' ? 'response' : 'request';
    await site.command(far, ['keys', 'trust', path, '--fingerprint', fingerprint]);
  }
  const fields = join(site.folder('response'), 'fields.json');
  writeFileSync(fields, JSON.stringify(claimsFields()));
  const about = ['--index', INDEX, '--time-field', 'submitted_at', '--fields', fields];
  await site.command('response', ['dataset', 'create', 'claims', '--title', 'Claims', ...about]);
  await site.command('response', [
    'profile-type',
    'set',
    'default',
    '--datasets',
    'claims',
    '--tier',
    'B',
    '--limits',
    JSON.stringify({ submit_per_minute: 10_000, submit_per_hour: 10_000 }),
  ]);
  await site.command('response', ['user', 'create', 'asker']);
  const schedules = ['import-batches', 'export-requests', 'export-results', 'execute-queries'];
  const everySecond = [...schedules, 'export-identity', 'export-settings', 'export-control'];
  await site.command('response', [
    ...['settings', 'set'],
    ...everySecond.flatMap((worker) => [`schedule.${worker}`, '1']),
  ]);
}
