import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  copyFile,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { type CarryEvent, carryOnce, readCards, verifyBatch, watchFolders } from './carry.js';
import { runCarry } from '../cli.js';
import { cardText } from '../keys/keys.js';
import { codeOfAsync } from '../test-codes.js';
import {
  makeTestPair,
  requestLine,
  type TestBatch,
  type TestPair,
  writeTestBatch,
} from '../test-batch.js';

const PROGRAM = fileURLToPath(new URL('../../bin/sallyport-carry.js', import.meta.url));

type Ran = { code: number; stdout: string; stderr: string };

/** Runs the command in this process, because a new one takes long to load. */
async function run(...args: string[]): Promise<Ran> {
  const ran: Ran = { code: 0, stdout: '', stderr: '' };
  const before = process.exitCode;
  const restore = [catchOutput('stdout', ran), catchOutput('stderr', ran)];
  process.exitCode = 0;
  try {
    await runCarry(args);
  } finally {
    ran.code = Number(process.exitCode);
    process.exitCode = before;
    for (const undo of restore) undo();
  }
  return ran;
}

function catchOutput(name: 'stdout' | 'stderr', ran: Ran): () => void {
  const stream = process[name];
  const write = stream.write.bind(stream);
  stream.write = (text: string | Uint8Array) => {
    ran[name] += String(text);
    return true;
  };
  return () => {
    stream.write = write;
  };
}

/** Waits until the check holds, at most ten seconds. */
async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  const end = Date.now() + 10_000;
  while (!(await holds())) {
    if (Date.now() > end) throw new Error('It did not come to hold within ten seconds.');
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

describe('sallyport-carry', () => {
  let pair: TestPair;
  let batch: TestBatch;
  let from: string;
  let to: string;

  beforeEach(async () => {
    pair = await makeTestPair();
    batch = await writeTestBatch(pair, [requestLine()]);
    from = join(pair.folder, 'outbox');
    to = join(pair.folder, 'inbox');
    await mkdir(from);
    await mkdir(to);
    await copyFile(batch.path, join(from, batch.name));
  });
  afterEach(() => pair.remove());

  const put = async (name: string, content: Buffer | string) =>
    writeFile(join(from, name), content);
  const eventsOf = (events: CarryEvent[]) => events.map(({ event, file }) => `${event} ${file}`);

  describe('carryOnce', () => {
    it('copies a whole batch once, and leaves the source', async () => {
      const memory = new Map<string, string>();
      expect(eventsOf(await carryOnce(from, to, memory))).to.deep.equal([`carried ${batch.name}`]);
      expect(await readdir(to)).to.deep.equal([batch.name]);
      expect(await readFile(join(to, batch.name))).to.deep.equal(await readFile(batch.path));
      expect(await readdir(from)).to.deep.equal([batch.name]);
      expect(await carryOnce(from, to, memory)).to.deep.equal([]);
    });

    it('does not bring back what the importer took, until it is published again', async () => {
      const memory = new Map<string, string>();
      await carryOnce(from, to, memory);
      await rm(join(to, batch.name));
      expect(await carryOnce(from, to, memory)).to.deep.equal([]);
      await utimes(join(from, batch.name), new Date(), new Date(Date.now() + 60_000));
      expect(await carryOnce(from, to, memory)).to.have.length(1);
      expect(await readdir(to)).to.deep.equal([batch.name]);
    });

    it('forgets what the sender has tidied away', async () => {
      const memory = new Map<string, string>();
      await carryOnce(from, to, memory);
      await rm(join(from, batch.name));
      await carryOnce(from, to, memory);
      expect(memory.size).to.equal(0);
      expect(await readdir(to)).to.deep.equal([batch.name]);
    });

    it('does not copy what is there already', async () => {
      await copyFile(batch.path, join(to, batch.name));
      const { ino } = await stat(join(to, batch.name));
      expect(await carryOnce(from, to, new Map())).to.deep.equal([]);
      expect((await stat(join(to, batch.name))).ino).to.equal(ino);
    });

    it('completes a target that another copy left half done', async () => {
      const whole = await readFile(batch.path);
      await writeFile(join(to, batch.name), whole.subarray(0, 100));
      await carryOnce(from, to, new Map());
      expect(await readFile(join(to, batch.name))).to.deep.equal(whole);
    });

    it('waits for files that are not whole, and names damaged ones once', async () => {
      const whole = await readFile(batch.path);
      await put(batch.name, whole.subarray(0, -1));
      const damaged = Buffer.from(whole);
      damaged[damaged.length - 1] = (damaged.at(-1) as number) ^ 1;
      await put('z-damaged.batch', damaged);
      await put('z-long.batch', Buffer.concat([whole, Buffer.from('\n')]));
      await put('z-empty.batch', '');
      const memory = new Map<string, string>();
      const events = await carryOnce(from, to, memory);
      const codes = events.map((event) =>
        event.event === 'carried' ? '' : `${event.event} ${event.code}`,
      );
      expect(codes).to.deep.equal([
        'waiting INCOMPLETE',
        'refused HASH_MISMATCH',
        'waiting INCOMPLETE',
        'refused TRAILING_DATA',
      ]);
      expect(await readdir(to)).to.deep.equal([]);
      expect(await carryOnce(from, to, memory)).to.have.length(2);
      await put(batch.name, whole);
      expect(eventsOf(await carryOnce(from, to, memory))).to.include(`carried ${batch.name}`);
    });

    it('never touches foreign files, folders and copies under way', async () => {
      await rm(join(from, batch.name));
      for (const name of ['.DS_Store', 'READ-ME.txt', 'x.batch.part', '.x.batch.0.part']) {
        await put(name, 'x');
        await writeFile(join(to, name), 'y');
      }
      await mkdir(join(from, 'folder.batch'));
      const events = await carryOnce(from, to, new Map());
      expect(eventsOf(events)).to.deep.equal(['refused folder.batch']);
      expect(await readdir(to)).to.have.length(4);
      expect(await readFile(join(to, 'READ-ME.txt'), 'utf8')).to.equal('y');
    });

    it('goes on when one file cannot be put in its place', async () => {
      const other = await writeTestBatch(pair, [requestLine()], { change: { seq: 2 } });
      await copyFile(other.path, join(from, other.name));
      await mkdir(join(to, batch.name));
      const memory = new Map<string, string>();
      const events = await carryOnce(from, to, memory);
      expect(eventsOf(events)).to.have.members([`failed ${batch.name}`, `carried ${other.name}`]);
      expect(await carryOnce(from, to, memory)).to.deep.equal(
        events.filter(({ event }) => event === 'failed'),
      );
      await rm(join(to, batch.name), { recursive: true });
      expect(eventsOf(await carryOnce(from, to, memory))).to.deep.equal([`carried ${batch.name}`]);
    });

    it('removes only old temporary files of carriers', async () => {
      const old = `${batch.name}.0123456789abcdef.tmp`;
      const names = [old, `${batch.name}.1123456789abcdef.tmp`, 'notes.tmp', `${batch.name}.x.tmp`];
      for (const name of names) await writeFile(join(to, name), 'x');
      const before = new Date(Date.now() - 3_700_000);
      for (const name of names.filter((_, index) => index !== 1)) {
        await utimes(join(to, name), before, before);
      }
      await carryOnce(from, to, new Map());
      expect(await readdir(to)).to.have.members([batch.name, ...names.slice(1)]);
    });

    it('carries what matters most first', async () => {
      const control = await writeTestBatch(pair, [], {
        stream: 'control',
        change: { kind: 'heartbeat' },
      });
      const urgent = await writeTestBatch(pair, [requestLine()], { stream: 'requests.urgent' });
      for (const { path, name } of [urgent, control]) await copyFile(path, join(from, name));
      const events = await carryOnce(from, to, new Map());
      expect(eventsOf(events)).to.deep.equal(
        [control, urgent, batch].map(({ name }) => `carried ${name}`),
      );
    });
  });

  describe('watchFolders', () => {
    it('tells of a failing file once, and carries what comes later', async () => {
      await mkdir(join(to, batch.name));
      const stop = new AbortController();
      const events: CarryEvent[] = [];
      const done = watchFolders(from, to, {
        intervalMs: 10,
        signal: stop.signal,
        onEvent: (event) => events.push(event),
        onTrouble: (message) => expect.fail(message),
      });
      await until(() => events.length > 0);
      for (const seq of [2, 3]) {
        const other = await writeTestBatch(pair, [requestLine()], { change: { seq } });
        await copyFile(other.path, join(from, '.x.part'));
        await rename(join(from, '.x.part'), join(from, other.name));
        await until(async () => (await readdir(to)).includes(other.name));
      }
      await until(() => events.length > 2);
      stop.abort();
      await done;
      expect(events.map(({ event }) => event)).to.deep.equal(['failed', 'carried', 'carried']);
    });

    it('outlives a missing target and remembers across restarts', async () => {
      const stateFile = join(pair.folder, 'carry.json');
      const events: CarryEvent[] = [];
      const troubles: string[] = [];
      const start = () => {
        const stop = new AbortController();
        const done = watchFolders(from, to, {
          intervalMs: 10,
          signal: stop.signal,
          stateFile,
          onEvent: (event) => events.push(event),
          onTrouble: (message) => troubles.push(message),
        });
        return async () => {
          stop.abort();
          await done;
        };
      };
      await rename(to, `${to}.away`);
      const stop = start();
      await until(() => troubles.length > 0);
      expect(troubles[0]).to.contain(to);
      await rename(`${to}.away`, to);
      await until(async () => (await readdir(to)).includes(batch.name));
      await until(async () =>
        (await readFile(stateFile, 'utf8').catch(() => '')).includes(batch.name),
      );
      await stop();
      await rm(join(to, batch.name));
      const other = await writeTestBatch(pair, [requestLine()], { change: { seq: 2 } });
      const again = start();
      await copyFile(other.path, join(from, '.x.part'));
      await rename(join(from, '.x.part'), join(from, other.name));
      await until(async () => (await readdir(to)).includes(other.name));
      await again();
      expect(await readdir(to)).to.deep.equal([other.name]);
      expect(eventsOf(events)).to.deep.equal([`carried ${batch.name}`, `carried ${other.name}`]);
      expect(new Set(troubles).size).to.equal(troubles.length);
    });
  });

  describe('verifyBatch', () => {
    it('says whether the signature was checked, and by a trusted key', async () => {
      const cards = new Map([[pair.request.kid, pair.request.card]]);
      const checked = await verifyBatch(batch.path, cards);
      expect([checked.ok, checked.signature]).to.deep.equal([true, 'valid']);
      const unchecked = await verifyBatch(batch.path, undefined);
      expect([unchecked.ok, unchecked.signature]).to.deep.equal([true, 'not checked']);
      const stranger = new Map([[pair.response.kid, pair.response.card]]);
      const refused = await verifyBatch(batch.path, stranger);
      expect([refused.ok, refused.fault?.code]).to.deep.equal([false, 'UNKNOWN_KEY']);
      expect(refused.header).to.equal(undefined);
    });

    it('notes a name that does not fit the content', async () => {
      const path = join(pair.folder, 'renamed.batch');
      await copyFile(batch.path, path);
      const verdict = await verifyBatch(path, undefined);
      expect(verdict.ok).to.equal(true);
      expect(verdict.notes.map(({ code }) => code)).to.deep.equal(['NAME_HINT_WRONG']);
    });
  });

  describe('readCards', () => {
    it('takes a card or a folder of cards', async () => {
      const folder = join(pair.folder, 'cards');
      await mkdir(folder);
      expect(await codeOfAsync(readCards(folder))).to.equal('not-found');
      for (const { card } of [pair.request, pair.response]) {
        await writeFile(join(folder, `${card.node}.json`), cardText(card));
      }
      expect([...(await readCards(folder)).keys()]).to.have.members([
        pair.request.kid,
        pair.response.kid,
      ]);
      expect((await readCards(join(folder, 'asker.json'))).size).to.equal(1);
      await writeFile(join(folder, 'bad.json'), '{}');
      expect(await codeOfAsync(readCards(folder))).to.equal('card-invalid');
      expect(await codeOfAsync(readCards(join(folder, 'none')))).to.equal('not-found');
    });
  });

  describe('the command', () => {
    it('verifies with exit code 0, and 7 when a file is not in order', async () => {
      const card = join(pair.folder, 'asker', 'card.json');
      const good = await run('verify', batch.path, '--card', card);
      expect(good).to.deep.include({ code: 0, stderr: '' });
      expect(good.stdout).to.match(/^OK .*\n.*signed by asker/);
      const plain = await run('verify', batch.path);
      expect(plain.stdout).to.contain('No signature was checked');
      const path = join(pair.folder, 'cut.batch');
      await writeFile(path, (await readFile(batch.path)).subarray(0, -1));
      const bad = await run('verify', path, batch.path, '--json');
      expect(bad.code).to.equal(7);
      const { ok, files } = JSON.parse(bad.stdout) as {
        ok: boolean;
        files: { ok: boolean; fault?: { code: string; next: string } }[];
      };
      expect([ok, ...files.map((file) => file.ok)]).to.deep.equal([false, false, true]);
      expect(files[0]?.fault?.code).to.equal('INCOMPLETE');
      expect(files[0]?.fault?.next).to.be.a('string');
      expect((await run('verify', path)).stdout).to.match(/REFUSED .*\n.*\n +INCOMPLETE: /);
      const none = join(pair.folder, 'none');
      expect((await run('verify', batch.path, none)).code).to.equal(6);
      const all = await run('verify', batch.path, path, none, '--json');
      expect(all.code).to.equal(7);
      const told = JSON.parse(all.stdout) as { files: { fault?: { code: string } }[] };
      const codes = told.files.map(({ fault }) => fault?.code);
      expect(codes).to.deep.equal([undefined, 'INCOMPLETE', 'not-found']);
    });

    it('shows in words and as JSON what a manifest states', async () => {
      const text = await run('inspect', batch.path);
      expect(text.stdout).to.contain('requests 1 (epoch 1)').and.contain('NOT checked');
      const json = JSON.parse((await run('inspect', batch.path, '--json')).stdout) as object;
      expect(json).to.deep.include({ digest: batch.digest, complete: true });
      expect(json).to.have.property('manifest').that.deep.equals(batch.manifest);
      await writeFile(join(pair.folder, 'text.batch'), 'hello\n');
      const bad = await run('inspect', join(pair.folder, 'text.batch'));
      expect(bad.code).to.equal(7);
      expect(bad.stderr).to.match(/^NOT_A_BATCH: /);
    });

    it('is a program of its own that stops when it is told', async () => {
      const child = spawn(process.execPath, [PROGRAM, 'watch', from, to, '--interval', '10']);
      const ended = once(child, 'exit');
      await until(async () => (await readdir(to)).includes(batch.name));
      child.kill('SIGTERM');
      expect(await ended).to.deep.equal([0, null]);
    });

    it('carries one round with --once', async () => {
      const first = await run('watch', from, to, '--once', '--json');
      expect(first.code).to.equal(0);
      expect(JSON.parse(first.stdout)).to.have.property('carried', 1);
      expect((await run('watch', from, to, '--once')).stdout).to.equal('0 file(s) carried.\n');
      const missing = await run('watch', from, join(pair.folder, 'none'), '--once');
      expect(missing.code).to.equal(9);
      expect(missing.stderr).to.contain('none');
      const nothing = await run('watch', join(pair.folder, 'none'), to, '--once');
      expect(nothing.stderr).to.contain('none').and.not.contain('tried again');
    });

    it('explains itself and refuses unknown options with exit code 2', async () => {
      const help = await run('--help');
      expect(help.code).to.equal(0);
      for (const name of ['verify', 'inspect', 'watch']) expect(help.stdout).to.contain(name);
      for (const args of [
        ['verify'],
        ['verify', batch.path, '--trust'],
        ['carry'],
        ['watch', from],
        ['watch', from, to, '--interval', 'soon'],
        ['watch', from, `${from}/../outbox/`, '--once'],
      ]) {
        const bad = await run(...args);
        expect(bad.code, args.join(' ')).to.equal(2);
        expect(bad.stderr, args.join(' ')).to.match(/^usage: /);
      }
    });
  });
});
