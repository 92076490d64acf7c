import { expect } from 'chai';
import { execFile, spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { newId, rows, storeUsers, type User } from '@sallyport/shared';
import { createTestDatabase, eventually, type TestDatabase } from '@sallyport/shared/testing';
import { ConfigSchema } from './config.js';

const BIN = fileURLToPath(new URL('../bin/sallyport-request.js', import.meta.url));
const EXAMPLE = fileURLToPath(new URL('../.env.example', import.meta.url));
const ADA: User = {
  id: newId(),
  version: 1,
  login: 'ada',
  profile_type_id: newId(),
  roles: [{ network: 'request', role: 'user' }],
  disabled: false,
  must_change_password: false,
  profile_version: 0,
  display_name: 'Ada',
  email: null,
  language: null,
  notices: {},
};
let test: TestDatabase;
let folder: string;

type Outcome = { code: number; stdout: string; stderr: string };

const environment = () => ({
  DATABASE_URL: test.url,
  STATE_DIR: join(folder, 'state of red'),
  NODE_NAME: 'red',
  HTTP_PORT: '0',
});

function run(args: string[], env: Record<string, string> = environment()): Promise<Outcome> {
  return new Promise((resolve) => {
    execFile(process.execPath, [BIN, ...args], { env }, (error, stdout, stderr) => {
      resolve({ code: error ? Number(error.code) : 0, stdout, stderr });
    });
  });
}

before(async () => {
  test = await createTestDatabase([]);
  folder = await mkdtemp(join(tmpdir(), 'sallyport-main-'));
});
after(async () => {
  await test.drop();
  await rm(folder, { recursive: true, force: true });
});

describe('sallyport-request', () => {
  it('names all mistakes of the environment together, exit 2', async () => {
    const { code, stderr } = await run(['migrate'], { HTTP_PORT: 'x' });
    expect(code).to.equal(2);
    expect(stderr).to.match(/^config-invalid: /);
    for (const name of ['DATABASE_URL', 'STATE_DIR', 'HTTP_PORT']) expect(stderr).to.contain(name);
  });

  it('explains itself without any configuration', async () => {
    const { code, stdout } = await run(['--help'], {});
    expect(code).to.equal(0);
    expect(stdout).to.contain('sallyport-request init');
    expect((await run(['nonsense'], {})).code).to.equal(2);
  });

  it('refuses to serve before init, and says what to do', async () => {
    const { code, stderr } = await run(['serve']);
    expect(code).to.equal(9);
    expect(stderr).to.match(/^migrations-pending: .*\n.*init/);
  });

  it('makes everything at the first init and nothing new at the second', async () => {
    const first = await run(['init', '--json']);
    expect(first.code).to.equal(0);
    const keys = join(environment().STATE_DIR, 'keys');
    const before = await readFile(join(keys, 'api-keys.key'), 'utf8');
    expect((await stat(join(keys, 'session.jwk'))).mode & 0o777).to.equal(0o600);
    const second = await run(['init', '--json']);
    expect(second.stdout).to.equal(first.stdout);
    expect(await readFile(join(keys, 'api-keys.key'), 'utf8')).to.equal(before);
  });

  it('says that a card to trust is not there, exit 6', async () => {
    const { code, stderr } = await run(['keys', 'trust', join(folder, 'nope.json')]);
    expect([code, stderr]).to.deep.equal([
      6,
      `not-found: There is no file ${join(folder, 'nope.json')}.\n`,
    ]);
  });

  it('refuses a key for a user nobody knows, exit 6', async () => {
    const { code, stderr } = await run(['api-key', 'create', 'nobody']);
    expect(code).to.equal(6);
    expect(stderr).to.match(/^not-found: /);
  });

  it('makes, lists and revokes API keys, with a reason', async () => {
    await test.db.transaction((tx) => storeUsers(tx, [ADA], new Date()));
    const json = async (...args: string[]) =>
      JSON.parse((await run(['api-key', ...args, '--json'])).stdout) as Record<string, unknown>;
    const made = await json('create', 'ada', '--scopes', 'requests:read', '--days', '30');
    expect(made['key']).to.match(/^sp_live_/);
    expect(made['scopes']).to.deep.equal(['requests:read']);
    const id = String(made['id']);
    expect((await run(['api-key', 'revoke', id])).code).to.equal(2);
    const { items } = await json('ls', '--login', 'ada', '--state', 'active');
    expect((items as object[])[0]).to.include({ id, login: 'ada' });
    const revoked = await run(['api-key', 'revoke', id, '--reason', 'lost']);
    expect(revoked.stdout).to.contain(' revoked ');
    const [entry] = await rows<{ actor: string; details: object }>(
      test.db,
      'select * from audit_log where subject = ? order by position desc limit 1',
      [id],
    );
    expect(entry?.actor).to.match(/^cli:/);
    expect(entry?.details).to.include({ login: 'ada', reason: 'lost' });
  });

  it('serves and works until it is told to stop, and then ends clean', async () => {
    const child = spawn(process.execPath, [BIN, 'up'], { env: environment() });
    let log = '';
    child.stderr.on('data', (chunk: Buffer) => (log += chunk.toString()));
    const ended = new Promise<number | null>((resolve) => child.on('exit', resolve));
    try {
      const url = await eventually(() => /"url":"([^"]+)"/.exec(log)?.[1]);
      const ready = await fetch(`${url}/readyz`);
      expect(ready.status).to.equal(200);
      await eventually(() => log.includes('"msg":"started"'));
      child.kill('SIGTERM');
      expect(await ended).to.equal(0);
    } finally {
      child.kill('SIGKILL');
    }
  });

  it('documents every variable in .env.example', async () => {
    const example = await readFile(EXAMPLE, 'utf8');
    const documented = [...example.matchAll(/^#?([A-Z_]+)=/gm)].map((match) => match[1]);
    expect(documented).to.have.members(Object.keys(ConfigSchema.properties));
  });
});
