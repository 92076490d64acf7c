import { execFile } from 'node:child_process';
import {
  appendFile,
  link,
  mkdir,
  open,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect } from 'chai';
import {
  batchName,
  checkLength,
  claimBatch,
  isBatchFileName,
  isForeign,
  isTemporaryName,
  readHeaderLine,
  verifyBytes,
} from './batch-file.js';
import { writeFileDurably } from './durable-file.js';
import { verifyHeader } from './manifest.js';
import { codeOfAsync } from '../test-codes.js';
import {
  makeTestPair,
  requestLine,
  type TestBatch,
  testManifest,
  type TestPair,
  writeTestBatch,
} from '../test-batch.js';

describe('batch files', () => {
  let pair: TestPair;
  let batch: TestBatch;
  let bytes: Buffer;
  let copy: string;

  before(async () => {
    pair = await makeTestPair();
    batch = await writeTestBatch(pair, [requestLine()]);
    bytes = await readFile(batch.path);
    copy = join(pair.folder, 'copy.batch');
  });
  after(() => pair.remove());
  afterEach(() => rm(copy, { recursive: true, force: true }));

  /** What an importer does up to the claim; the code it stops with, or 'short', or 'claimed'. */
  async function examine(path: string): Promise<string> {
    const target = join(pair.folder, 'claimed');
    const examining = (async () => {
      const { line, size } = await readHeaderLine(path);
      const { manifest } = await verifyHeader(line, pair.cardOf);
      if (checkLength(size, line, manifest) === 'short') return 'short';
      await claimBatch(path, target, { line, manifest });
      return 'claimed';
    })();
    const code = await codeOfAsync(examining);
    await rm(target, { force: true });
    return code ?? (await examining);
  }

  async function examineBytes(content: Buffer): Promise<string> {
    await writeFile(copy, content);
    return examine(copy);
  }

  it('claims a whole file, and leaves the source', async () => {
    const target = join(pair.folder, 'claimed');
    const { line, manifest } = batch;
    await claimBatch(batch.path, target, { line, manifest });
    expect(await readFile(target)).to.deep.equal(bytes);
    expect((await stat(target)).mode & 0o777).to.equal(0o600);
    expect(await readFile(batch.path)).to.deep.equal(bytes);
    await rm(target);
    expect((await readdir(pair.folder)).filter(isTemporaryName)).to.deep.equal([]);
  });

  it('never takes a file that was cut, wherever the cut is', async () => {
    for (let length = 0; length < bytes.length; length++) {
      const found = await examineBytes(bytes.subarray(0, length));
      expect(found, `${length} bytes`).to.equal(
        length <= batch.line.length ? 'INCOMPLETE' : 'short',
      );
    }
    expect(await examineBytes(bytes)).to.equal('claimed');
  });

  it('reports a file that is cut between look and copy', async () => {
    const { line, manifest } = batch;
    await writeFile(copy, bytes.subarray(0, -1));
    const claiming = claimBatch(copy, join(pair.folder, 'claimed'), { line, manifest });
    expect(await codeOfAsync(claiming)).to.equal('TRUNCATED');
    await appendFile(copy, Buffer.from([1, 2]));
    const again = verifyBytes(copy, { line, manifest });
    expect(await codeOfAsync(again)).to.equal('TRAILING_DATA');
    expect((await readdir(pair.folder)).filter((name) => /claimed/.test(name))).to.deep.equal([]);
  });

  it('reports a file whose line 1 is swapped between look and copy', async () => {
    const { line, manifest } = batch;
    const swapped = Buffer.from(bytes);
    swapped[100] = (swapped[100] as number) ^ 1;
    await writeFile(copy, swapped);
    const code = await codeOfAsync(verifyBytes(copy, { line, manifest }));
    expect(code).to.equal('HASH_MISMATCH');
  });

  it('finds every flipped bit of the body', async () => {
    const start = batch.line.length + 1;
    for (let bit = start * 8; bit < bytes.length * 8; bit += 37) {
      const flipped = Buffer.from(bytes);
      flipped[bit >> 3] = (flipped[bit >> 3] as number) ^ (1 << (bit & 7));
      expect(await examineBytes(flipped), `bit ${bit}`).to.equal('HASH_MISMATCH');
    }
  });

  it('finds a body of zeros of the right length', async () => {
    const zeros = Buffer.from(bytes).fill(0, batch.line.length + 1);
    expect(await examineBytes(zeros)).to.equal('HASH_MISMATCH');
    expect(await examineBytes(Buffer.alloc(bytes.length))).to.equal('NOT_A_BATCH');
  });

  it('refuses anything after the end', async () => {
    for (const extra of [Buffer.from('\n'), Buffer.from([0]), bytes]) {
      expect(await examineBytes(Buffer.concat([bytes, extra]))).to.equal('TRAILING_DATA');
    }
  });

  it('refuses copies in text mode and with a byte order mark', async () => {
    const text = bytes.toString('latin1').replaceAll('\n', '\r\n');
    expect(await examineBytes(Buffer.from(text, 'latin1'))).to.equal('BAD_HEADER');
    const bom = Buffer.concat([Buffer.from([0xef, 0xbb, 0xbf]), bytes]);
    expect(await examineBytes(bom)).to.equal('BAD_HEADER');
  });

  it('refuses an endless line 1 after 64 KiB', async () => {
    await writeFile(copy, '{');
    await truncate(copy, 1024 ** 3);
    const before = process.memoryUsage().rss;
    expect(await examine(copy)).to.equal('HEADER_TOO_BIG');
    expect(process.memoryUsage().rss - before).to.be.lessThan(64 * 1024 ** 2);
  });

  it('accepts a line 1 of exactly 64 KiB and refuses one byte more', async () => {
    const line = (length: number) => Buffer.from(`{${' '.repeat(length - 1)}\n`);
    await writeFile(copy, line(65_536));
    expect((await readHeaderLine(copy)).line).to.have.length(65_536);
    await writeFile(copy, line(65_537));
    expect(await codeOfAsync(readHeaderLine(copy))).to.equal('HEADER_TOO_BIG');
  });

  it('opens regular files only, and never waits for a pipe', async () => {
    await symlink(batch.path, copy);
    expect(await examine(copy)).to.equal('NOT_REGULAR_FILE');
    await rm(copy);
    await mkdir(copy);
    expect(await examine(copy)).to.equal('NOT_REGULAR_FILE');
    await rm(copy, { recursive: true });
    await promisify(execFile)('mkfifo', [copy]);
    expect(await examine(copy)).to.equal('NOT_REGULAR_FILE');
    expect(await examine('/dev/null')).to.equal('NOT_REGULAR_FILE');
    await rm(copy);
    await link(batch.path, copy);
    expect(await examine(copy)).to.equal('claimed');
  });

  it('refuses a stated size over 3.9 GiB', () => {
    const manifest = testManifest(pair);
    const body = { ...manifest.body, bytes: Math.floor(3.9 * 1024 ** 3) };
    const call = () => checkLength(0, batch.line, { ...manifest, body });
    expect(call).to.throw().with.property('code', 'TOO_BIG');
  });

  describe('batchName', () => {
    it('is lower case, sorts by number and stays under 100 characters', () => {
      const manifest = testManifest(pair, { seq: 1234, stream: 'requests.urgent' });
      const digest = 'ab'.repeat(32);
      expect(batchName(manifest, digest)).to.equal(
        'answerer.asker.requests.urgent.e0001.s000000001234.abababababab.batch',
      );
      const long = { ...manifest, from: 'a'.repeat(16), to: 'b'.repeat(16), seq: 2 ** 53 - 1 };
      expect(batchName(long, digest)).to.match(/^[a-z0-9.-]{1,99}$/);
    });
  });

  describe('isBatchFileName, isTemporaryName and isForeign', () => {
    it('tell our files, copies under way and foreign files apart', () => {
      const ours = ['a.batch', 'A.BATCH', '..x.batch'.slice(2)];
      const temporary = [
        'a.batch.part',
        '.a.batch.0f.part',
        'a.batch.tmp',
        '.syncthing.a.batch.tmp',
      ];
      const foreign = [
        '.DS_Store',
        'Thumbs.db',
        'autorun.inf',
        '.Trash',
        '.hidden.batch',
        '~$a.batch',
        'a.sync-conflict-20250601-101010-ABCDEFG.batch',
        '.batch',
        'a.batch.txt',
      ];
      expect(ours.filter(isBatchFileName)).to.deep.equal(ours);
      expect([...ours, ...temporary].filter(isForeign)).to.deep.equal([]);
      expect(temporary.filter(isTemporaryName)).to.deep.equal(temporary);
      expect(foreign.filter(isForeign)).to.deep.equal(foreign);
      expect([...temporary, ...foreign].filter(isBatchFileName)).to.deep.equal([]);
    });
  });

  describe('writeFileDurably', () => {
    it('replaces a file as a whole, or not at all when the content fails', async () => {
      await writeFileDurably(copy, Buffer.from('one'));
      await writeFileDurably(copy, { copyFrom: batch.path });
      expect(await readFile(copy)).to.deep.equal(bytes);
      const failing = async function* () {
        yield Buffer.from('half');
        throw new Error('pulled');
      };
      let message = '';
      await writeFileDurably(copy, failing()).catch((error: Error) => (message = error.message));
      expect(message).to.equal('pulled');
      expect(await readFile(copy)).to.deep.equal(bytes);
      expect((await readdir(pair.folder)).filter(isTemporaryName)).to.deep.equal([]);
    });

    it('does not replace when told so', async () => {
      await writeFileDurably(copy, Buffer.from('one'), { replace: false });
      let code = '';
      await writeFileDurably(copy, Buffer.from('two'), { replace: false }).catch(
        (error: NodeJS.ErrnoException) => (code = error.code ?? ''),
      );
      expect(code).to.equal('EEXIST');
      expect(await readFile(copy, 'utf8')).to.equal('one');
      expect((await readdir(pair.folder)).filter(isTemporaryName)).to.deep.equal([]);
    });

    it('says WAIT_DISK when the file system is full', async () => {
      const full = await open('/dev/full', 'r+');
      const failed = await full.write('x').then(
        () => undefined,
        (error: NodeJS.ErrnoException) => error,
      );
      await full.close();
      const content = async function* () {
        yield Buffer.from('x');
        throw failed;
      };
      expect(await codeOfAsync(writeFileDurably(copy, content()))).to.equal('WAIT_DISK');
      expect(await readdir(pair.folder)).not.to.include('copy.batch');
    });
  });
});
