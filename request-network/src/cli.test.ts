import { expect } from 'chai';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { eventually } from '@sallyport/shared/testing';
import { applyResults } from './results.js';
import { PASSWORD, QUERY, openTestNetwork, type TestNetwork } from './testing.js';

const BIN = fileURLToPath(new URL('../bin/sallyport.js', import.meta.url));
let network: TestNetwork;
let folder: string;

type Outcome = { code: number; stdout: string; stderr: string };
type RunOptions = { input?: string; env?: Record<string, string> };

/** Runs the user's tool as its own process, with a home of its own. */
function run(args: string[], { input, env = {} }: RunOptions = {}): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = execFile(
      process.execPath,
      [BIN, ...args],
      { env: { XDG_CONFIG_HOME: folder, SALLYPORT_URL: network.url, ...env } },
      (error, stdout, stderr) => {
        resolve({ code: error ? Number(error.code) : 0, stdout, stderr });
      },
    );
    child.stdin?.end(input ?? '');
  });
}

before(async () => {
  network = await openTestNetwork();
  folder = await mkdtemp(join(tmpdir(), 'sallyport-cli-'));
});
after(async () => {
  await network.stop();
  await rm(folder, { recursive: true, force: true });
});

async function deliver(id: string, text: string): Promise<void> {
  const at = network.time.now.toISOString();
  await network.apply(
    [applyResults],
    [
      {
        t: 'result',
        id,
        d: {
          status: 'delivered',
          failure: null,
          media_type: 'application/json',
          bytes: Buffer.byteLength(text),
          sha256: createHash('sha256').update(text).digest('hex'),
          parts: 0,
          text,
          disclosure: null,
          dataset_version: 3,
          policy_version: 1,
          times: { received_at: at, started_at: at, finished_at: at, took_ms: 1 },
        },
      },
    ],
  );
}

describe('sallyport', () => {
  it('asks to log in first, exit 3', async () => {
    const { code, stderr } = await run(['ls']);
    expect(code).to.equal(3);
    expect(stderr).to.match(/^unauthenticated: .*\n.*sallyport login/);
  });

  it('refuses a wrong password, exit 3, and keeps a session for this account alone', async () => {
    expect((await run(['login', '--user', 'ada'], { input: 'wrong\n' })).code).to.equal(3);
    const { code } = await run(['login'], { input: `ada\n${PASSWORD}\n` });
    expect(code).to.equal(0);
    const { mode } = await stat(join(folder, 'sallyport', 'session.json'));
    expect(mode & 0o777).to.equal(0o600);
    const me = await run(['me', '--json']);
    expect(JSON.parse(me.stdout)).to.include({ login: 'ada' });
  });

  it('refreshes a session that ran out, changes the password, and logs out', async () => {
    network.time.now = new Date(network.time.now.getTime() + 16 * 60_000);
    expect((await run(['me'])).code).to.equal(0);
    const wanted = 'a new horse battery staple';
    expect((await run(['passwd'], { input: `wrong\n${wanted}\n` })).code).to.equal(4);
    expect((await run(['passwd'], { input: `${PASSWORD}\n${wanted}\n` })).code).to.equal(0);
    expect((await run(['logout'])).code).to.equal(0);
    expect((await run(['me'])).code).to.equal(3);
    expect((await run(['login'], { input: `ada\n${wanted}\n` })).code).to.equal(0);
  });

  it('submits, follows to the end, and writes the result to a file', async () => {
    const file = join(folder, 'q.json');
    await writeFile(file, JSON.stringify(QUERY));
    const following = run([
      'submit',
      '-f',
      file,
      '--dataset',
      'claims',
      '--custom-id',
      'cli',
      '--wait',
      '1m',
      '--json',
    ]);
    const id = await eventually(async () => {
      const { body } = await network.call('/v1/requests?custom_id=cli');
      return (body['items'] as { id: string }[])[0]?.id;
    });
    await deliver(id, '{"n":9007199254740993}');
    const { code, stdout, stderr } = await following;
    expect(code).to.equal(0);
    expect(JSON.parse(stdout)).to.include({ id, status: 'delivered' });
    expect(stderr).to.contain('submitted');
    const output = join(folder, 'answer.json');
    expect((await run(['result', id, '-o', output])).code).to.equal(0);
    expect(await readFile(output, 'utf8')).to.equal('{"n":9007199254740993}');
    expect((await readdir(folder)).filter((name) => name.includes('part'))).to.deep.equal([]);
    expect((await run(['result', id])).stdout).to.equal('{"n":9007199254740993}\n');
    expect((await run(['timeline', id])).stdout).to.contain('delivered');
    expect((await run(['watch', id])).code).to.equal(0);
  });

  it('reads the whole body from standard input with an API key, lists and cancels', async () => {
    const env = { SALLYPORT_API_KEY: network.users.bob.key };
    const input = JSON.stringify({ dataset: 'claims', query: QUERY });
    const submitted = await run(['submit', '-f', '-', '--ttl', '2h', '--priority', 'low'], {
      input,
      env,
    });
    expect(submitted.code).to.equal(0);
    const id = submitted.stdout.trim();
    expect((await run(['ls', '--status', 'submitted'], { env })).stdout).to.contain(id);
    expect((await run(['cancel', id, '--json'], { env })).stdout).to.contain('"cancelled"');
    expect((await run(['watch', id], { env })).code).to.equal(9);
    expect((await run(['get', id])).code).to.equal(6);
  });

  it('says by its exit code what kind of failure it was', async () => {
    const refused = await run(['submit', '-f', '-', '--dataset', 'claims'], {
      input: '{"query":{"script":{}}}',
    });
    expect(refused.code).to.equal(4);
    expect(refused.stderr).to.contain('/query/query');
    expect((await run(['submit'])).code).to.equal(2);
    expect((await run(['submit', '-f', '-'], { input: '{' })).code).to.equal(2);
    expect((await run(['get', 'nonsense'])).code).to.equal(2);
    expect((await run(['nonsense'])).code).to.equal(2);
    const dead = await run(['me'], { env: { SALLYPORT_URL: 'http://127.0.0.1:9' } });
    expect(dead.code).to.equal(9);
    const input = JSON.stringify({ dataset: 'claims', query: QUERY });
    const waiting = await run(['submit', '-f', '-', '--wait', '0s'], { input });
    expect(waiting.code).to.equal(8);
  });

  it('shows what may still be submitted', async () => {
    const { code, stdout } = await run(['limits']);
    expect(code).to.equal(0);
    expect(stdout).to.match(/^minute +normal +\d+ +1000 +1100 +armed$/m);
  });

  it('makes, lists, rotates and revokes keys', async () => {
    type Made = { id: string; key: string; limits: object; overlap_s: number };
    const make = async (...args: string[]) =>
      JSON.parse((await run(['keys', ...args, '--json'])).stdout) as Made;
    const made = await make('create', 'cron', '--per-hour', '9');
    expect(made.limits).to.deep.equal({ submit_per_hour: 9 });
    const next = await make('rotate', made.id, '--overlap', '0s');
    expect(next).to.deep.include({ limits: { submit_per_hour: 9 }, overlap_s: 0 });
    expect((await run(['keys', 'ls'])).stdout).to.match(new RegExp(`${made.id}.* rotated `));
    const env = (key: string) => ({ env: { SALLYPORT_API_KEY: key } });
    expect((await run(['datasets'], env(next.key))).stdout).to.contain('claims');
    expect((await run(['datasets'], env(made.key))).code).to.equal(3);
    expect((await run(['keys', 'revoke', next.id])).code).to.equal(0);
    expect((await run(['datasets'], env(next.key))).code).to.equal(3);
    expect((await run(['keys', 'create', 'x', '--per-day', 'many'])).code).to.equal(2);
  });
});
