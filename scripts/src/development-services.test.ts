import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SallyportError } from '@sallyport/shared';
import { expect } from 'chai';
import { processStamp } from '../process-lock.mjs';
import { startServices, type Services } from './development-services.js';
import { callElasticsearch } from './elasticsearch-http.js';
import { query } from './services/database.js';
import { isAlive, waitUntil } from './services/daemon.js';
import { openPlace } from './services/place.js';
import { readState, writeState, type State } from './services/state.js';

const DEAD_PORT = 'postgres://ann:hidden@127.0.0.1:1/x';

describe('startServices', function () {
  this.timeout(400_000);
  const {
    DATABASE_URL: _database,
    ELASTICSEARCH_URL: _elastic,
    REDIS_URL: _redis,
    ...env
  } = process.env;
  let clone: string;
  let first: Services;
  const start = () =>
    startServices({ env, clone, elasticsearchHeapMb: 256, report: () => undefined });
  const state = (): State => readState(openPlace(clone));

  before(async () => {
    clone = mkdtempSync(join(tmpdir(), 'sallyport clone '));
    chmodSync(clone, 0o755);
    first = await start();
  });
  after(async () => {
    await first.stop();
    rmSync(openPlace(clone).folder, { recursive: true, force: true });
    rmSync(clone, { recursive: true, force: true });
  });

  it('gives a database and an Elasticsearch that answer', async () => {
    const url = await first.createDatabase('kept');
    expect(await first.createDatabase('kept')).to.equal(url);
    expect(first.databaseUrl('kept')).to.equal(url);
    const settings = `select current_setting('fsync') as fsync, current_setting('max_connections') as n`;
    expect(await query(url, settings)).to.deep.equal([{ fsync: 'on', n: '200' }]);
    await query(url, 'create table fact as select 7 as n');
    const { status } = await callElasticsearch(first.elasticsearchUrl, '_cluster/health');
    expect(status).to.equal(200);
  });

  it('lets nobody in without the password', async () => {
    const url = new URL(first.databaseUrl('postgres'));
    url.password = 'guessed';
    const error = await query(url.href, 'select 1').catch((reason: Error) => reason.message);
    expect(error).to.include('password authentication failed');
  });

  it('uses what runs, and leaves it running for the others', async () => {
    const before = state();
    const second = await start();
    expect(second.elasticsearchUrl).to.equal(first.elasticsearchUrl);
    expect(second.databaseUrl('x')).to.equal(first.databaseUrl('x'));
    expect(state().users).to.have.length(2);
    await second.stop();
    await second.stop();
    expect(state()).to.deep.equal(before);
    expect(await query(first.databaseUrl('kept'), 'select n from fact')).to.have.length(1);
  });

  it('repairs killed servers, with the same data and URLs', async () => {
    const before = state();
    for (const running of [before.postgres, before.elasticsearch])
      process.kill(running?.process.pid as number, 'SIGKILL');
    const second = await start();
    expect(second.databaseUrl('x')).to.equal(first.databaseUrl('x'));
    expect(second.elasticsearchUrl).to.equal(first.elasticsearchUrl);
    expect(await query(second.databaseUrl('kept'), 'select n from fact')).to.deep.equal([{ n: 7 }]);
    await second.stop();
  });

  it('uses a lost state anew: the old server ends, a pid that is not ours stays', async () => {
    const place = openPlace(clone);
    const before = state();
    const own = { pid: process.pid, stamp: processStamp(process.pid) as string };
    // As after a restart of the machine: the number now belongs to somebody else.
    const strange = {
      process: { pid: own.pid, stamp: 'before the restart' },
      port: before.postgres?.port ?? 1,
    };
    writeState(place, { ...before, postgres: strange });
    const second = await start();
    expect(await query(second.databaseUrl('kept'), 'select n from fact')).to.have.length(1);
    expect(state().postgres?.process.pid).not.to.equal(own.pid);
    if (process.platform === 'linux')
      expect(isAlive(before.postgres?.process ?? own)).to.equal(false);
    await second.stop();
  });

  it('does not count users that were killed; the last one ends all', async () => {
    const place = openPlace(clone);
    const file = join(place.folder, 'state.json');
    const text = JSON.parse(readFileSync(file, 'utf8')) as State;
    text.users.push({ id: 'killed', process: { pid: process.pid, stamp: 'another' } });
    writeFileSync(file, JSON.stringify(text));
    const { postgres, elasticsearch } = state();
    await first.stop();
    for (const running of [postgres, elasticsearch]) {
      expect(running).not.to.equal(undefined);
      expect(
        await waitUntil(() => running !== undefined && !isAlive(running.process), 5_000),
      ).to.equal(true);
    }
  });
});

describe('startServices with given URLs', () => {
  it('says where no PostgreSQL answers, without the password', async () => {
    const error = await failureOf({ DATABASE_URL: DEAD_PORT });
    expect(error.code).to.equal('store-unavailable');
    expect(error.message).to.include('127.0.0.1:1').and.to.include('ECONNREFUSED');
    expect(error.message).not.to.include('hidden');
  });

  it('says where no Elasticsearch answers, without the password', async () => {
    const error = await failureOf({ ELASTICSEARCH_URL: 'http://ann:hidden@127.0.0.1:1' });
    expect(error.code).to.equal('elasticsearch-unavailable');
    expect(error.message).to.include('127.0.0.1:1');
    expect(error.message).not.to.include('hidden');
  });

  it('says where no Redis answers', async () => {
    const error = await failureOf({ REDIS_URL: 'redis://127.0.0.1:1' });
    expect(error.code).to.equal('services-unavailable');
    expect(error.message).to.include('127.0.0.1:1');
  });

  it('refuses what is no URL', async () => {
    expect((await failureOf({ DATABASE_URL: 'nonsense' })).code).to.equal('store-unavailable');
    expect((await failureOf({ ELASTICSEARCH_URL: 'nonsense' })).code).to.equal(
      'elasticsearch-unavailable',
    );
  });
});

async function failureOf(env: NodeJS.ProcessEnv): Promise<SallyportError> {
  const error = await startServices({ env, report: () => undefined }).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).to.be.instanceOf(SallyportError);
  return error as SallyportError;
}
