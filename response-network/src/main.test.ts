import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import {
  createTestDatabase,
  requireEnvironment,
  type TestDatabase,
} from '@sallyport/shared/testing';
import { cardFingerprint, cardText, makeKeys, type Card } from '@sallyport/transfer';

const PROGRAM = fileURLToPath(new URL('../bin/sallyport-response.js', import.meta.url));

describe('sallyport-response', () => {
  let test: TestDatabase;
  let root: string;
  let env: NodeJS.ProcessEnv;
  let started: ChildProcess | undefined;
  before(async () => {
    test = await createTestDatabase([]);
    root = await mkdtemp(join(tmpdir(), 'sallyport response '));
    env = {
      ...process.env,
      DATABASE_URL: test.url,
      REDIS_URL: '',
      STATE_DIR: root,
      NODE_NAME: 'blue',
      ELASTICSEARCH_URL: requireEnvironment('ELASTICSEARCH_URL'),
      HTTP_PORT: '0',
      LOG_LEVEL: 'info',
    };
  });
  after(async () => {
    started?.kill('SIGKILL');
    await test.drop();
    await rm(root, { recursive: true, force: true });
  });

  it('says which variables are missing', async () => {
    const said = await run(['link'], { PATH: process.env['PATH'] });
    expect(said.code).to.equal(2);
    expect(said.err).to.include('DATABASE_URL is missing').and.include('STATE_DIR is missing');
  });

  it('asks for the first start before anything else', async () => {
    const said = await run(['link']);
    expect(said.code).to.equal(9);
    expect(said.err).to.match(/^migrations-pending: .*\n.*init/);
  });

  it('does the whole first start, and nothing the second time', async () => {
    const first = JSON.parse((await run(['init', '--json'])).out) as Record<string, unknown>;
    expect(first['node']).to.equal('blue');
    expect(first['admin_password']).to.match(/^[a-z2-9-]{23}$/);
    const again = JSON.parse((await run(['init', '--json'])).out) as Record<string, unknown>;
    expect(again).to.deep.equal({ ...first, admin_password: null });
    const key = await stat(join(root, 'keys', 'session.jwk'));
    expect(key.mode & 0o777).to.equal(0o600);
  });

  it('makes accounts and lists them', async () => {
    const made = await run(['user', 'create', 'Ann', '--password-stdin'], env, 'a long password\n');
    expect(made).to.include({ code: 0, err: '' });
    const list = await run(['user', 'ls']);
    expect(list.out).to.match(/^ann +default +request:user +enabled$/m);
    expect((await run(['user', 'create', 'ann'])).err).to.match(/^already-exists: /);
    expect((await run(['user', 'disable', 'nobody'])).code).to.equal(6);
  });

  it('refuses settings out of range', async () => {
    expect((await run(['settings', 'set', 'session.minutes', '0'])).code).to.equal(4);
    expect((await run(['settings', 'set', 'session.minutes', '10'])).code).to.equal(0);
    expect((await run(['settings', 'ls'])).out).to.match(/^session.minutes +10 /m);
  });

  it('trusts a card only with its fingerprint, and then sends all it has', async () => {
    const card = await farCard();
    const path = join(root, 'far card.json');
    await writeFile(path, `${cardText(card)}\n`);
    expect((await run(['keys', 'trust', path])).code).to.equal(2);
    const wrong = await run(['keys', 'trust', path, '--fingerprint', '0000']);
    expect(wrong.err).to.match(/^card-invalid: /);
    expect(await readdir(join(root, 'outbox'))).to.deep.equal([]);
    const fingerprint = cardFingerprint(card);
    const said = await run(['keys', 'trust', path, '--fingerprint', fingerprint]);
    expect(said.out).to.match(/^Trusts red; .* link [a-z2-7]{16}\.$/m);
    const names = await readdir(join(root, 'outbox'));
    expect(names.map((name) => name.split('.')[2]).sort()).to.deep.equal(['identity', 'settings']);
    const [line = ''] = (await readFile(join(root, 'outbox', names[0] ?? ''), 'utf8')).split('\n');
    const { payload } = JSON.parse(line) as { payload: string };
    expect(JSON.parse(Buffer.from(payload, 'base64url').toString())).to.include({
      kind: 'snapshot',
      to: 'red',
    });
    expect((await run(['link'])).out).to.include('with red');
  });

  it('serves and works until it is told to stop', async () => {
    const child = spawn(process.execPath, [PROGRAM, 'up'], {
      env,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let log = '';
    const url = await new Promise<string>((resolve, reject) => {
      started = child;
      child.once('exit', () => reject(new Error(`it ended: ${log}`)));
      child.stderr.setEncoding('utf8').on('data', (text: string) => {
        log += text;
        const found = /"url":"([^"]+)"/.exec(log);
        if (found?.[1]) resolve(found[1]);
      });
    });
    const ready = await fetch(`${url}/readyz`);
    expect(await ready.json()).to.deep.include({ status: 'ok' });
    expect((await fetch(`${url}/livez`)).status).to.equal(200);
    const ended = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGTERM');
    expect(await ended, log).to.equal(0);
  });

  async function farCard(): Promise<Card> {
    return (await makeKeys(join(root, 'far keys'), 'red', 'request')).card;
  }

  function run(argv: string[], environment = env, input?: string) {
    return new Promise<{ code: number; out: string; err: string }>((resolve) => {
      const child = execFile(
        process.execPath,
        [PROGRAM, ...argv],
        { env: environment },
        (error, out, err) => resolve({ code: Number(error?.code ?? 0), out, err }),
      );
      child.stdin?.end(input);
    });
  }
});
