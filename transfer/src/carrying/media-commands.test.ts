import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { copyFile, mkdir, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { batchName } from '../format/batch-file.js';
import { carryOnce, verifyBatch } from './carry.js';
import { runCarry } from '../cli.js';
import { signManifest } from '../format/manifest.js';
import {
  makeTestPair,
  requestLine,
  type TestBatch,
  type TestPair,
  testManifest,
  writeTestBatch,
} from '../test-batch.js';

const PROGRAM = fileURLToPath(new URL('../../bin/sallyport-carry.js', import.meta.url));

type Ran = { code: number; stdout: string; stderr: string };

/** Runs the command in this process, because a new one takes long to load. */
async function run(...args: string[]): Promise<Ran> {
  const ran: Ran = { code: 0, stdout: '', stderr: '' };
  const before = process.exitCode;
  const undo = (['stdout', 'stderr'] as const).map((name) => {
    const stream = process[name];
    const write = stream.write.bind(stream);
    stream.write = (text: string | Uint8Array) => {
      ran[name] += String(text);
      return true;
    };
    return () => {
      stream.write = write;
    };
  });
  process.exitCode = 0;
  try {
    await runCarry(args);
  } finally {
    ran.code = Number(process.exitCode);
    process.exitCode = before;
    for (const restore of undo) restore();
  }
  return ran;
}

describe('sallyport-carry with media', () => {
  let pair: TestPair;
  let batch: TestBatch;
  let outbox: string;
  let inbox: string;
  let stick: string;

  beforeEach(async () => {
    pair = await makeTestPair();
    [outbox, inbox, stick] = ['outbox', 'inbox', 'stick'].map((name) =>
      join(pair.folder, name),
    ) as [string, string, string];
    for (const path of [outbox, inbox, stick]) await mkdir(path);
    batch = await writeTestBatch(pair, [requestLine()]);
    await copyFile(batch.path, join(outbox, batch.name));
  });
  afterEach(() => pair.remove());

  const state = () => ['--state', join(pair.folder, 'state')];
  const write = (...args: string[]) => run('write', '--from', outbox, ...state(), ...args);
  const read = (...args: string[]) => run('read', '--into', inbox, ...state(), ...args);

  describe('write', () => {
    it('says SAFE TO REMOVE and prints a slip that fits a page', async () => {
      const { code, stdout } = await write(stick, '--print', '--carrier', 'Ada Walker');
      expect(code).to.equal(0);
      expect(stdout).to.contain('SAFE TO REMOVE').and.contain('CUSTODY SLIP');
      expect(stdout).to.contain('by Ada Walker');
      const json = JSON.parse((await write(stick, '--json')).stdout) as {
        set: { from: string };
        media: { state: string; there: number }[];
      };
      expect(json.set.from).to.equal('asker');
      expect(json.media.map(({ state: found, there }) => [found, there])).to.deep.equal([
        ['safe', 1],
      ]);
    });

    it('says that nothing is ready, and ends well', async () => {
      await rm(join(outbox, batch.name));
      const { code, stdout } = await write(stick);
      expect([code, stdout]).to.deep.equal([0, 'Nothing is ready to be written.\n']);
    });

    it('ends with 7 when a batch of the outbox is damaged', async () => {
      const bytes = await readFile(batch.path);
      bytes[bytes.length - 1] = (bytes.at(-1) as number) ^ 1;
      await writeFile(join(outbox, batch.name), bytes);
      const { code, stdout } = await write(stick);
      expect(code).to.equal(7);
      expect(stdout).to.contain('HASH_MISMATCH');
    });

    it('signs with the key of a node where one is given', async () => {
      await write(stick, '--key', join(pair.folder, 'asker'));
      const { stdout } = await read(stick, '--card', join(pair.folder, 'asker', 'card.json'));
      expect(stdout).to.contain('INDEX signed by the node asker');
    });

    it('leaves only names of its own when it is killed half-way, and resumes', async function () {
      this.timeout(120_000);
      const large = await writeLarge(pair, outbox, 160 * 1024 * 1024);
      const child = spawn(process.execPath, [
        PROGRAM,
        'write',
        stick,
        '--from',
        outbox,
        ...state(),
      ]);
      const ended = once(child, 'exit');
      const folder = join(stick, 'SALLYPORT', 'answerer');
      const part = join(folder, `${large}.part`);
      const end = Date.now() + 60_000;
      while ((await stat(part).catch(() => ({ size: 0 }))).size === 0) {
        if (Date.now() > end) throw new Error('The copy did not begin within a minute.');
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
      child.kill('SIGTERM');
      expect(await ended).to.deep.equal([null, 'SIGTERM']);
      const names = await readdir(folder);
      expect(names).to.have.members([batch.name, `${large}.part`]);
      expect((await verifyBatch(join(folder, batch.name), undefined)).ok).to.equal(true);
      expect((await readdir(join(stick, 'SALLYPORT'))).join()).to.not.contain('INDEX');
      const again = await write(stick);
      expect(again.code).to.equal(0);
      expect(again.stdout).to.contain('1 copied, 1 there before');
      expect(await readdir(folder)).to.have.members([batch.name, large]);
    });
  });

  describe('read', () => {
    it('says what came and what is missing', async () => {
      const second = join(pair.folder, 'second');
      await mkdir(second);
      const other = await writeTestBatch(pair, [requestLine()], { change: { seq: 2 } });
      await copyFile(other.path, join(outbox, other.name));
      await write(stick, second);
      const first = await read(stick);
      expect(first.code).to.equal(0);
      expect(first.stdout).to.match(/1 of 2 batch\(es\) are here\n +BRING medium .*\(second\)/);
      const last = await read(second, '--json');
      expect(JSON.parse(last.stdout)).to.have.property('complete', true);
      await writeFile(join(stick, 'SALLYPORT', 'answerer', batch.name), 'x');
      expect((await read(stick)).code).to.equal(7);
      expect((await read(join(pair.folder, 'none'))).code).to.equal(9);
    });

    it('reads nothing into an outbox, and clears nothing for it', async () => {
      await write(stick);
      const refused = await run('read', stick, '--into', outbox, ...state(), '--clear');
      expect(refused.code).to.equal(2);
      expect(refused.stderr).to.contain('is an outbox');
      const away = ['--state', join(pair.folder, 'elsewhere')];
      await mkdir(join(pair.folder, 'store'));
      expect((await run('read', stick, '--into', outbox, ...away, '--clear')).code).to.equal(2);
      await writeFile(join(inbox, batch.name.replace('answerer.', 'other.')), 'x');
      expect((await run('read', stick, '--into', inbox, ...away)).stderr).to.contain(
        'another node',
      );
      const left = await readdir(join(stick, 'SALLYPORT', 'answerer'));
      expect(left).to.deep.equal([batch.name]);
    });

    it('takes the texts away with the batches that they name', async () => {
      await write(stick);
      expect((await read(stick, '--clear')).code).to.equal(0);
      expect(await readdir(stick)).to.deep.equal(['SALLYPORT']);
    });

    it('says that nothing lies in an empty folder, and ends with 6', async () => {
      const { code, stdout } = await read(stick);
      expect(code).to.equal(6);
      expect(stdout).to.contain('Nothing of Sallyport lies here');
    });

    it('does not ask for a medium that is plugged in', async () => {
      await write(stick);
      const card = ['--card', join(pair.folder, 'answerer', 'card.json')];
      const { code, stdout } = await read(stick, ...card);
      expect(code).to.equal(7);
      expect(stdout).to.contain('UNKNOWN_KEY').and.contain('NOT TAKEN from medium');
      expect(stdout).to.not.contain('BRING');
    });
  });

  describe('status', () => {
    it('says what lies where, and ends with 7 when a byte is wrong', async () => {
      await write(stick);
      const fine = await run('status', stick, outbox, '--verify', ...state());
      expect(fine.code).to.equal(0);
      expect(fine.stdout).to.contain('every byte is right').and.contain('requests');
      const path = join(stick, 'SALLYPORT', 'answerer', batch.name);
      const bytes = await readFile(path);
      bytes[bytes.length - 1] = (bytes.at(-1) as number) ^ 1;
      await writeFile(path, bytes);
      expect((await run('status', stick, '--verify', ...state())).code).to.equal(7);
      expect((await run('status', join(pair.folder, 'none'), ...state())).code).to.equal(6);
      expect((await run('status', ...state())).code).to.equal(0);
    });
  });

  describe('diff', () => {
    it('names the fields that differ', async () => {
      const other = await writeTestBatch(pair, [requestLine(), requestLine()], {
        change: { seq: 2, ack: batch.manifest.ack },
      });
      const { code, stdout } = await run('diff', batch.path, other.path, '--json');
      expect(code).to.equal(0);
      const { same, fields } = JSON.parse(stdout) as { same: boolean; fields: { field: string }[] };
      expect(same).to.equal(false);
      expect(fields).to.deep.include({ field: 'seq', a: 1, b: 2 });
      expect(fields).to.deep.include({ field: 'types.request', a: 1, b: 2 });
      expect(fields.map(({ field }) => field)).to.not.include('ack.no');
      expect((await run('diff', batch.path, batch.path)).stdout).to.contain('the same batch');
      expect((await run('diff', batch.path, outbox)).code).to.equal(7);
      expect((await run('diff', batch.path, join(pair.folder, 'none'))).code).to.equal(6);
    });
  });

  describe('watch', () => {
    it('leaves what was touched lately for a later round', async () => {
      const path = join(outbox, batch.name);
      expect(await carryOnce(outbox, inbox, new Map(), { settleMs: 3_600_000 })).to.deep.equal([]);
      const old = new Date(Date.now() - 7_200_000);
      await utimes(path, old, old);
      // The time of the last change of the file itself cannot be set back.
      expect(await carryOnce(outbox, inbox, new Map(), { settleMs: 3_600_000 })).to.deep.equal([]);
      expect(await carryOnce(outbox, inbox, new Map(), { settleMs: 0 })).to.have.length(1);
    });

    it('removes from the source only what is whole in the target', async () => {
      const bytes = await readFile(batch.path);
      await writeFile(join(inbox, batch.name), Buffer.concat([batch.line, Buffer.from('\n')]));
      await carryOnce(outbox, inbox, new Map(), { move: true });
      expect(await readdir(outbox)).to.deep.equal([]);
      expect(await readFile(join(inbox, batch.name))).to.deep.equal(bytes);
      await copyFile(batch.path, join(outbox, batch.name));
      const zeroed = Buffer.concat([batch.line, Buffer.from('\n')], bytes.length);
      await writeFile(join(inbox, batch.name), zeroed);
      await carryOnce(outbox, inbox, new Map(), { move: true });
      expect(await readdir(outbox)).to.deep.equal([batch.name]);
    });
  });

  it('refuses what it cannot make sense of with exit code 2', async () => {
    for (const args of [
      ['write', stick, '--from', outbox, '--set-size', 'two'],
      ['write', stick, inbox, '--from', outbox, '--set-size', '1'],
      ['write', '--from', outbox],
      ['write', outbox, '--from', outbox],
      ['write', stick, '--from', outbox, '--carrier', 'a\nb'],
      ['read', inbox, '--into', inbox],
      ['diff', batch.path],
      ['watch', outbox, inbox, '--settle', 'soon', '--once'],
      ['watch', outbox, inbox, '--keep', '--move', '--once'],
    ]) {
      const more = args[0] === 'write' || args[0] === 'read' ? state() : [];
      const { code, stderr } = await run(...args, ...more);
      expect(code, args.join(' ')).to.equal(2);
      expect(stderr, args.join(' ')).to.match(/^usage: /);
    }
  });
});

/** A signed batch of any size; nobody could open its body. */
async function writeLarge(pair: TestPair, folder: string, bytes: number): Promise<string> {
  const body = Buffer.alloc(bytes, 'x');
  const sha256 = createHash('sha256').update(body).digest('hex');
  const manifest = testManifest(pair, {
    seq: 2,
    body: { bytes, sha256, rawBytes: bytes, enc: 'none', crypt: 'none' },
  });
  const { line, digest } = await signManifest(manifest, pair.request);
  const name = batchName(manifest, digest);
  await writeFile(join(folder, name), Buffer.concat([line, Buffer.from('\n'), body]));
  return name;
}
