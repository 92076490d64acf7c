import { createHash } from 'node:crypto';
import {
  copyFile,
  cp,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { execFileSync } from 'node:child_process';
import { basename, join } from 'node:path';
import { expect } from 'chai';
import fc from 'fast-check';
import { compileSchema, type StreamName } from '@sallyport/shared';
import { listBadMedia } from './carrier.js';
import type { MediaAccess } from './fill-medium.js';
import { type CustodySlip, CustodySlipSchema, writeCustodySlips } from '../custody/custody-slip.js';
import { signIndex, verifyIndex } from './media-index.js';
import { reserveBytes, spread, type Load } from './media-plan.js';
import { readMedia, type ReadOptions } from './media-read.js';
import { mediaStatus } from './media-status.js';
import { writeMedia, type WriteOptions } from './media-write.js';
import { MEDIA_FOLDER, readMedium, spaceOf } from './medium.js';
import { readBack } from './read-back.js';
import { codeOfAsync } from '../test-codes.js';
import {
  makeTestPair,
  requestLine,
  type TestBatch,
  type TestPair,
  testManifest,
  writeTestBatch,
} from '../test-batch.js';

const checkSlip = compileSchema(CustodySlipSchema);
const real: MediaAccess = { spaceOf, readBack };

describe('media', () => {
  let pair: TestPair;
  let outbox: string;
  let inbox: string;
  let state: string;

  beforeEach(async () => {
    pair = await makeTestPair();
    outbox = await folder('outbox');
    inbox = await folder('inbox');
    state = join(pair.folder, 'state');
  });
  afterEach(() => pair.remove());

  async function folder(name: string): Promise<string> {
    const path = join(pair.folder, name);
    await mkdir(path, { recursive: true });
    return path;
  }

  async function ready(seq: number, stream: StreamName = 'requests'): Promise<TestBatch> {
    const lines = stream === 'control' ? [] : [requestLine()];
    const kind = stream === 'control' ? 'heartbeat' : 'delta';
    const batch = await writeTestBatch(pair, lines, { stream, change: { seq, kind } });
    await rename(batch.path, join(outbox, batch.name));
    return { ...batch, path: join(outbox, batch.name) };
  }

  const carrier = () => ({ name: 'walker', folder: state });
  const write = (roots: string[], more: Partial<WriteOptions> = {}) =>
    writeMedia({ from: outbox, roots, carrier: carrier(), ...more });
  const read = (roots: string[], more: Partial<ReadOptions> = {}) =>
    readMedia({
      roots,
      into: inbox,
      carrier: { name: 'reader', folder: `${state}-far` },
      ...more,
    });
  const onStick = (root: string, ...names: string[]) =>
    join(root, MEDIA_FOLDER, pair.response.node, ...names);
  const batchesIn = async (path: string) =>
    (await readdir(path)).filter((name) => name.endsWith('.batch')).sort();
  const slipsIn = async (path: string): Promise<CustodySlip[]> => {
    const names = (await readdir(path)).filter((name) => name.endsWith('.slip.json'));
    return Promise.all(
      names.map(async (name) => checkSlip(JSON.parse(await readFile(join(path, name), 'utf8')))),
    );
  };
  const flip = async (path: string) => {
    const bytes = await readFile(path);
    bytes[bytes.length - 1] = (bytes.at(-1) as number) ^ 1;
    await writeFile(path, bytes);
  };
  /** Media that have room for so many bytes of batches. */
  const withRoom = (bytes: number, count: number): MediaAccess => ({
    ...real,
    spaceOf: () => Promise.resolve({ freeBytes: bytes + reserveBytes(count), blockBytes: 512 }),
  });

  describe('writeMedia', () => {
    it('writes what is ready, proves it, and leaves the outbox as it is', async () => {
      const batches = [await ready(2), await ready(1), await ready(1, 'control')];
      const stick = await folder('stick');
      const report = await write([stick], { handOver: true });
      expect(report.media.map((medium) => medium.state)).to.deep.equal(['safe']);
      expect(report.media[0]?.files.map(({ stream, seq }) => `${stream} ${seq}`)).to.deep.equal([
        'control 1',
        'requests 1',
        'requests 2',
      ]);
      for (const { name, path } of batches) {
        expect(await readFile(onStick(stick, name))).to.deep.equal(await readFile(path));
      }
      const all = await readdir(stick, { recursive: true });
      expect(all.filter((name) => name.endsWith('.part'))).to.deep.equal([]);
      for (const name of all) {
        expect(basename(name)).to.match(/^[A-Za-z0-9.-]{1,99}$/);
        expect(basename(name)).to.not.match(/[. ]$/);
      }
      expect(await readdir(stick)).to.have.members([MEDIA_FOLDER, 'READ-ME.txt', 'SLIP.txt']);
    });

    it('signs an INDEX that names every file by hash, medium and number', async () => {
      const batch = await ready(7);
      const stick = await folder('stick');
      const { set } = await write([stick], { keys: pair.request });
      const path = join(stick, MEDIA_FOLDER, `INDEX.${set?.id}.jws`);
      const { index, kid, sha256 } = await verifyIndex(await readFile(path));
      expect(kid).to.equal(pair.request.kid);
      expect(sha256).to.equal(set?.sha256);
      expect([index.from, index.to]).to.deep.equal(['asker', 'answerer']);
      const bytes = await readFile(batch.path);
      expect(index.media).to.deep.equal([
        {
          id: (await readMedium(stick))?.id,
          label: 'stick',
          files: [
            {
              name: batch.name,
              bytes: bytes.length,
              sha256: createHash('sha256').update(bytes).digest('hex'),
              digest: batch.digest,
              stream: 'requests',
              epoch: 1,
              seq: 7,
            },
          ],
        },
      ]);
    });

    it('leaves a custody slip and a paper slip that fits a page', async () => {
      const batch = await ready(1);
      const stick = await folder('stick');
      const { set, media } = await write([stick], { handOver: true });
      const [slip, ...more] = await slipsIn(outbox);
      expect(more).to.deep.equal([]);
      expect(slip).to.deep.include({ medium: media[0]?.id, carrier: 'walker' });
      expect(slip?.events.map(({ step, digest }) => `${step} ${digest}`)).to.deep.equal(
        ['written', 'read_back', 'handed_over'].map((step) => `${step} ${batch.digest}`),
      );
      const text = await readFile(join(stick, 'SLIP.txt'), 'utf8');
      const lines = text.split('\n');
      expect(lines.length).to.be.lessThan(60);
      expect(Math.max(...lines.map((line) => [...line].length))).to.be.at.most(80);
      const groups = set?.sha256.match(/.{4}/g) ?? [];
      expect(text).to.contain(groups.slice(0, 8).join(' '));
      expect(text).to.contain(groups.slice(8).join(' '));
      await write([stick]);
      expect(await slipsIn(outbox)).to.have.length(2);
    });

    it('copies nothing twice, mends what is wrong, and removes rests of copies', async () => {
      const first = await ready(1);
      const second = await ready(2);
      const stick = await folder('stick');
      await write([stick]);
      const { ino } = await stat(onStick(stick, first.name));
      await flip(onStick(stick, second.name));
      await writeFile(onStick(stick, 'rest.batch.part'), 'x');
      const report = await write([stick]);
      expect(report.media[0]).to.deep.include({ state: 'safe', copied: 1, there: 1 });
      expect((await stat(onStick(stick, first.name))).ino).to.equal(ino);
      expect(await readFile(onStick(stick, second.name))).to.deep.equal(
        await readFile(second.path),
      );
      expect(await readdir(onStick(stick))).to.have.members([first.name, second.name]);
      const top = await readdir(join(stick, MEDIA_FOLDER));
      expect(top.filter((name) => name.startsWith('INDEX'))).to.have.length(1);
    });

    it('does nothing to a medium when nothing is ready', async () => {
      const stick = await folder('stick');
      await writeFile(join(outbox, 'growing.batch'), '{');
      const report = await write([stick]);
      expect(report.media).to.deep.equal([]);
      expect(report.waiting.map(({ code }) => code)).to.deep.equal(['INCOMPLETE']);
      expect(await readdir(stick)).to.deep.equal([]);
    });

    it('leaves damaged batches and those of strangers where they are', async () => {
      const good = await ready(1);
      const bad = await ready(2);
      await flip(bad.path);
      const stick = await folder('stick');
      const report = await write([stick]);
      expect(report.refused.map(({ code }) => code)).to.deep.equal(['HASH_MISMATCH']);
      expect(report.media[0]?.state).to.equal('safe');
      expect(await readdir(onStick(stick))).to.deep.equal([good.name]);
      const cards = new Map([[pair.response.kid, pair.response.card]]);
      const strict = await write([await folder('other')], { cards });
      expect(strict.media).to.deep.equal([]);
      expect(strict.refused.map(({ code }) => code)).to.deep.equal(['UNKNOWN_KEY', 'UNKNOWN_KEY']);
    });

    it('refuses a folder with batches of several pairs', async () => {
      await ready(1);
      const other = await makeTestPair();
      const foreign = await writeTestBatch(
        { ...other, response: { ...other.response, node: 'third' } },
        [requestLine()],
      );
      await copyFile(foreign.path, join(outbox, foreign.name));
      expect(await codeOfAsync(write([await folder('stick')]))).to.equal('usage');
      await other.remove();
    });

    it('says full as full before the first byte', async () => {
      const batch = await ready(1);
      const stick = await folder('stick');
      const none = withRoom(batch.line.length, 1);
      expect(await codeOfAsync(write([stick], { access: none }))).to.equal('medium-full');
      expect(await batchesIn(onStick(stick))).to.deep.equal([]);
      const { size } = await stat(batch.path);
      await ready(2);
      const room = Math.ceil(size / 512) * 512;
      const report = await write([stick], { access: withRoom(room, 2) });
      expect(report.media[0]?.state).to.equal('safe');
      expect(report.left.map(({ seq }) => seq)).to.deep.equal([2]);
      expect(await batchesIn(onStick(stick))).to.deep.equal([batch.name]);
    });

    it('calls a medium that gives back other bytes bad for ever', async () => {
      const batch = await ready(1);
      const stick = await folder('stick');
      const lying: MediaAccess = {
        ...real,
        readBack: async (path, options) => {
          await flip(path);
          return readBack(path, options);
        },
      };
      const report = await write([stick], { access: lying });
      expect(report.media[0]?.state).to.equal('not-safe');
      expect(report.media[0]?.fault?.code).to.equal('read-back-differs');
      expect(report.left.map(({ name }) => name)).to.deep.equal([batch.name]);
      expect(report.set).to.equal(undefined);
      expect(await readdir(outbox)).to.deep.equal([batch.name]);
      expect(await listBadMedia(carrier())).to.have.length(1);
      expect(await codeOfAsync(write([stick]))).to.equal('medium-bad');
      const { places } = await mediaStatus({ paths: [stick], carrier: carrier() });
      expect(places[0]?.bad?.file).to.equal(batch.name);
      expect((await write([await folder('other')])).media[0]?.state).to.equal('safe');
    });

    it('never calls a medium proven that could only be read from memory', async () => {
      await ready(1);
      const cached: MediaAccess = {
        ...real,
        readBack: (path, options) => readBack(path, { ...options, program: 'no-such-program' }),
      };
      const report = await write([await folder('stick')], { access: cached });
      expect(report.media[0]).to.deep.include({ state: 'unproven', way: 'cached' });
      const [slip] = await slipsIn(outbox);
      expect(slip?.events.map(({ step }) => step)).to.deep.equal(['written']);
    });

    for (const seen of [1, 2, 3, 4, 5, 6]) {
      it(`never takes a stick pulled at read ${seen} for success, and resumes`, async () => {
        for (const seq of [1, 2, 3]) await ready(seq);
        const stick = await folder('stick');
        let reads = 0;
        const pulled: MediaAccess = {
          ...real,
          readBack: async (path, options) => {
            reads += 1;
            if (reads === seen) await rename(stick, `${stick}.away`);
            return readBack(path, options);
          },
        };
        const report = await write([stick], { access: pulled });
        expect(report.media[0]?.state).to.equal('not-safe');
        expect(report.media[0]?.fault?.code).to.equal('medium-gone');
        expect(report.left).to.have.length(3);
        expect(await slipsIn(outbox)).to.deep.equal([]);
        expect(await listBadMedia(carrier())).to.deep.equal([]);
        await rename(`${stick}.away`, stick);
        const again = await write([stick]);
        expect(again.media[0]).to.deep.include({ state: 'safe' });
        expect(again.media[0]?.files).to.have.length(3);
      });
    }

    it('notices that another medium was plugged in meanwhile', async () => {
      await ready(1);
      const stick = await folder('stick');
      const swapped: MediaAccess = {
        ...real,
        readBack: async (path, options) => {
          const back = await readBack(path, options);
          if (path.endsWith('.batch')) {
            await rename(stick, `${stick}.away`);
            await cp(`${stick}.away`, stick, { recursive: true });
            const mark = join(stick, MEDIA_FOLDER, 'MEDIUM.json');
            const text = await readFile(mark, 'utf8');
            await writeFile(mark, text.replace(/"id":"......../, '"id":"00000000'));
          }
          return back;
        },
      };
      const report = await write([stick], { access: swapped });
      expect(report.media[0]?.fault?.code).to.equal('medium-gone');
    });

    it('notices that a twin with the same mark was plugged in at the very end', async () => {
      await ready(1);
      const swapping = (stick: string, twin: () => Promise<void>): MediaAccess => ({
        ...real,
        readBack: async (path, options) => {
          const back = await readBack(path, options);
          if (basename(path) !== 'SLIP.txt') return back;
          await rename(stick, `${stick}.away`);
          await twin();
          return back;
        },
      });
      const empty = await folder('empty');
      const bare = swapping(empty, async () => {
        await mkdir(join(empty, MEDIA_FOLDER), { recursive: true });
        const mark = join(MEDIA_FOLDER, 'MEDIUM.json');
        await copyFile(join(`${empty}.away`, mark), join(empty, mark));
      });
      const one = await write([empty], { access: bare });
      expect(one.media[0]).to.include({ state: 'not-safe' });
      expect(one.media[0]?.fault?.code).to.equal('medium-gone');
      const full = await folder('full');
      const whole = swapping(full, () => cp(`${full}.away`, full, { recursive: true }));
      const other = await write([full], { access: whole });
      expect(other.media[0]).to.include({ state: 'not-safe' });
      expect(other.media[0]?.fault?.code).to.equal('medium-gone');
    });

    it('says what lies in the way of a batch', async () => {
      const batch = await ready(1);
      const linked = await folder('linked');
      await mkdir(onStick(linked), { recursive: true });
      await symlink(join(pair.folder, 'away'), onStick(linked, `${batch.name}.part`));
      const taken = await folder('taken');
      await mkdir(onStick(taken, batch.name), { recursive: true });
      for (const stick of [linked, taken]) {
        const { media } = await write([stick]);
        expect(media[0]?.fault?.code).to.equal('medium-invalid');
        expect(media[0]?.fault?.message).to.contain(onStick(stick, batch.name));
      }
      expect(await readdir(pair.folder)).to.not.include('away');
    });

    it('lists foreign files and leaves them untouched, also where its texts would go', async () => {
      await ready(1);
      const stick = await folder('stick');
      await mkdir(join(stick, MEDIA_FOLDER));
      await writeFile(join(stick, 'READ-ME.txt'), 'mine');
      await writeFile(join(stick, 'autorun.inf'), 'x');
      await writeFile(join(stick, MEDIA_FOLDER, 'Thumbs.db'), 'x');
      await symlink('/etc/passwd', join(stick, MEDIA_FOLDER, 'INDEX.link.jws'));
      const report = await write([stick]);
      expect(report.media[0]?.state).to.equal('safe');
      expect(report.media[0]?.foreign).to.include.members([
        'autorun.inf',
        join(MEDIA_FOLDER, 'Thumbs.db'),
        join(MEDIA_FOLDER, 'INDEX.link.jws'),
      ]);
      expect(await readFile(join(stick, 'READ-ME.txt'), 'utf8')).to.equal('mine');
      expect(await readFile(join(stick, MEDIA_FOLDER, 'READ-ME.txt'), 'utf8')).to.contain(
        'answerer',
      );
    });

    it('refuses what is no medium, and one that is named twice', async () => {
      await ready(1);
      const stick = await folder('stick');
      expect(await codeOfAsync(write([join(pair.folder, 'none')]))).to.equal('not-found');
      expect(await codeOfAsync(write([outbox]))).to.equal('usage');
      expect(await codeOfAsync(write([stick, stick]))).to.equal('usage');
      await writeFile(join(pair.folder, 'file'), 'x');
      expect(await codeOfAsync(write([join(pair.folder, 'file')]))).to.equal('medium-invalid');
      const linked = await folder('linked');
      await symlink(stick, join(linked, MEDIA_FOLDER));
      expect(await codeOfAsync(write([linked]))).to.equal('medium-invalid');
      const inside = await folder('inside');
      await mkdir(join(inside, MEDIA_FOLDER));
      const away = await folder('away');
      await symlink(away, join(inside, MEDIA_FOLDER, pair.response.node));
      expect(await codeOfAsync(write([inside]))).to.equal('medium-invalid');
      expect(await readdir(away)).to.deep.equal([]);
      const broken = await folder('broken');
      await mkdir(join(broken, MEDIA_FOLDER));
      await writeFile(join(broken, MEDIA_FOLDER, 'MEDIUM.json'), '{"id":"../x"}');
      expect(await codeOfAsync(write([broken]))).to.equal('medium-invalid');
    });
  });

  describe('several media', () => {
    it('carry the whole INDEX each, and may be read in any order, each as often as one likes', async () => {
      for (const seq of [1, 2, 3, 4, 5, 6]) await ready(seq);
      const sticks = [await folder('a'), await folder('b'), await folder('c')];
      const written = await write(sticks);
      expect(written.media.map(({ files }) => files.length)).to.deep.equal([2, 2, 2]);
      const orders = [
        [0, 1, 2],
        [2, 1, 0],
        [1, 1, 0, 2, 0],
      ];
      for (const [number, order] of orders.entries()) {
        const into = await folder(`inbox-${number}`);
        const far = { name: 'reader', folder: join(pair.folder, `far-${number}`) };
        const seen = new Set<number>();
        for (const at of order) {
          const report = await read([sticks[at] as string], { into, carrier: far });
          expect(report.media[0]?.copied).to.have.length(seen.has(at) ? 0 : 2);
          seen.add(at);
          expect(report.sets[0]?.missing).to.have.length(6 - 2 * seen.size);
          const labels = report.sets[0]?.missing.map(({ label }) => label);
          for (const [other, label] of ['a', 'b', 'c'].entries()) {
            expect(labels?.includes(label)).to.equal(!seen.has(other));
          }
        }
        expect(await batchesIn(into)).to.deep.equal(await batchesIn(outbox));
      }
    });

    it('are written one after the other with a set size', async () => {
      for (const seq of [1, 2, 3, 4]) await ready(seq);
      const [a, b] = [await folder('a'), await folder('b')];
      const first = await write([a], { setSize: 2 });
      expect(first.media[0]).to.deep.include({ state: 'safe', copied: 2 });
      expect(first.toDo).to.have.length(1);
      expect(first.left).to.deep.equal([]);
      const early = await read([a]);
      expect(early.sets[0]?.missing.map(({ medium }) => medium)).to.deep.equal(
        Array(2).fill(first.toDo[0]?.id),
      );
      await ready(5);
      const second = await write([b], { setSize: 2 });
      expect(second.set?.id).to.equal(first.set?.id);
      expect(second.media[0]).to.deep.include({ state: 'safe', copied: 2, id: first.toDo[0]?.id });
      expect(second.toDo).to.deep.equal([]);
      expect(second.left.map(({ seq }) => seq)).to.deep.equal([5]);
      const late = await read([b]);
      expect(late.sets.map(({ missing }) => missing)).to.deep.equal([[]]);
      expect((await write([await folder('c')], { setSize: 2 })).set?.id).to.not.equal(
        first.set?.id,
      );
    });

    it('are spread so that no medium is overfull and nothing is lost', () => {
      const sizes = fc.array(fc.integer({ min: 1, max: 50_000 }), { maxLength: 60 });
      const rooms = fc.array(fc.integer({ min: 0, max: 300_000 }), { minLength: 1, maxLength: 5 });
      fc.assert(
        fc.property(sizes, rooms, (bytes, free) => {
          const batches = bytes.map((size, index) => ({
            path: '',
            name: `${index}`,
            digest: `${index}`,
            from: 'a',
            to: 'b',
            stream: 'requests' as const,
            epoch: 1,
            seq: index + 1,
            bytes: size,
          }));
          const reserve = reserveBytes(bytes.length);
          const loads = free.map((room, index): Load => ({
            medium: { root: `${index}`, id: `${index}` },
            space: { freeBytes: room + reserve, blockBytes: 512 },
            present: new Map(),
            batches: [],
          }));
          const left = spread(batches, loads);
          const placed = loads.flatMap((load) => load.batches);
          expect([...placed, ...left].map(({ seq }) => seq).sort((a, b) => a - b)).to.deep.equal(
            batches.map(({ seq }) => seq),
          );
          for (const [index, load] of loads.entries()) {
            const used = load.batches.map((batch) => Math.ceil(batch.bytes / 512) * 512);
            const sum = used.reduce((total, size) => total + size, 0);
            expect(sum).to.be.at.most(free[index] as number);
            for (const batch of left) {
              expect(sum + Math.ceil(batch.bytes / 512) * 512).to.be.greaterThan(
                free[index] as number,
              );
            }
          }
        }),
      );
    });
  });

  describe('readMedia', () => {
    let stick: string;
    let batches: TestBatch[];

    beforeEach(async () => {
      batches = [await ready(1), await ready(2)];
      stick = await folder('stick');
      await write([stick], { keys: pair.request });
    });

    it('brings every byte, leaves a slip, and does nothing the second time', async () => {
      const report = await read([stick], {
        cards: new Map([[pair.request.kid, pair.request.card]]),
      });
      expect(report.media[0]).to.deep.include({ faults: [], lost: [], unlisted: [] });
      expect(report.sets[0]?.missing).to.deep.equal([]);
      expect(report.sets[0]?.signer).to.contain('the node asker');
      for (const { name, path } of batches) {
        expect(await readFile(join(inbox, name))).to.deep.equal(await readFile(path));
      }
      const [slip] = await slipsIn(inbox);
      expect(slip?.events.map(({ step, seq }) => `${step} ${seq}`)).to.deep.equal([
        'received 1',
        'received 2',
      ]);
      const { ino } = await stat(join(inbox, batches[0]?.name ?? ''));
      await rm(join(inbox, batches[1]?.name ?? ''));
      const again = await read([stick]);
      expect(again.media[0]?.copied).to.deep.equal([]);
      expect(again.media[0]?.before).to.deep.equal([batches[1]?.name]);
      expect(again.sets[0]?.missing).to.deep.equal([]);
      expect((await stat(join(inbox, batches[0]?.name ?? ''))).ino).to.equal(ino);
      expect(await slipsIn(inbox)).to.have.length(1);
      const more = await read([stick], { again: true });
      expect(more.media[0]?.copied).to.deep.equal([batches[1]?.name]);
    });

    it('mends a copy in the inbox that is not right', async () => {
      await read([stick]);
      await flip(join(inbox, batches[0]?.name ?? ''));
      const report = await read([stick], { again: true });
      expect(report.media[0]?.copied).to.deep.equal([batches[0]?.name]);
    });

    it('copies again what was copied with other bytes of the signature', async () => {
      await rm(join(stick, MEDIA_FOLDER), { recursive: true });
      const [{ name, path }] = batches as [TestBatch];
      await mkdir(onStick(stick), { recursive: true });
      const good = await readFile(path, 'latin1');
      const bad = good.replace(/("signature":")(.)/, (_, key: string, first: string) => {
        return key + (first === 'A' ? 'B' : 'A');
      });
      expect(bad).to.not.equal(good);
      await writeFile(onStick(stick, name), bad, 'latin1');
      expect((await read([stick])).media[0]?.copied).to.deep.equal([name]);
      await writeFile(onStick(stick, name), good, 'latin1');
      const beside = await read([stick], { clear: true });
      expect(beside.media[0]?.copied).to.deep.equal([name]);
      expect(await readFile(join(inbox, name), 'latin1')).to.equal(good);
      await writeFile(onStick(stick, name), bad, 'latin1');
      await rm(join(inbox, name));
      await read([stick]);
      await rm(join(inbox, name));
      await writeFile(onStick(stick, name), good, 'latin1');
      expect((await read([stick])).media[0]?.copied).to.deep.equal([name]);
    });

    it('copies again after four hours what the inbox lost, and calls nothing complete before', async () => {
      const [first, second] = batches as [TestBatch, TestBatch];
      const clock = { now: () => now };
      let now = new Date('2026-03-01T12:00:00.000Z');
      await read([stick], { clock });
      await rm(join(inbox, first.name));
      const soon = await read([stick], { clock });
      expect(soon.media[0]).to.deep.include({ copied: [], before: [first.name] });
      expect(soon.sets[0]).to.deep.include({ missing: [], remembered: 1, files: 2 });
      now = new Date('2026-03-01T16:00:01.000Z');
      const late = await read([stick], { clock });
      expect(late.media[0]).to.deep.include({ copied: [first.name], there: [second.name] });
      expect(late.sets[0]).to.deep.include({ missing: [], remembered: 0 });
    });

    it('removes from the medium only what lies proven in the inbox', async () => {
      await flip(onStick(stick, batches[1]?.name ?? ''));
      const report = await read([stick], { clear: true });
      expect(report.media[0]?.cleared).to.deep.equal([batches[0]?.name]);
      expect(report.media[0]?.faults.map(({ code }) => code)).to.deep.equal(['HASH_MISMATCH']);
      expect(await readdir(onStick(stick))).to.deep.equal([batches[1]?.name]);
      await copyFile(batches[1]?.path ?? '', onStick(stick, batches[1]?.name ?? ''));
      await read([stick], { clear: true });
      expect(await readdir(onStick(stick))).to.deep.equal([]);
      expect(await readdir(join(stick, MEDIA_FOLDER))).to.have.members(['MEDIUM.json', 'answerer']);
    });

    it('takes nothing that a card did not sign', async () => {
      const cards = new Map([[pair.response.kid, pair.response.card]]);
      const report = await read([stick], { cards });
      expect(report.media[0]?.faults.map(({ code }) => code)).to.deep.equal([
        'UNKNOWN_KEY',
        'UNKNOWN_KEY',
      ]);
      expect(await batchesIn(inbox)).to.deep.equal([]);
      expect(report.sets[0]?.signer).to.contain('unknown carrier who calls itself walker');
    });

    it('refuses an INDEX that was edited, and still takes batches that are good', async () => {
      const [path] = (await readdir(join(stick, MEDIA_FOLDER)))
        .filter((name) => name.startsWith('INDEX'))
        .map((name) => join(stick, MEDIA_FOLDER, name));
      const text = await readFile(path as string, 'utf8');
      const { payload, ...rest } = JSON.parse(text) as { payload: string };
      const plain = Buffer.from(payload, 'base64url').toString().replace('"seq":2', '"seq":3');
      const edited = Buffer.from(plain).toString('base64url');
      await writeFile(path as string, JSON.stringify({ payload: edited, ...rest }));
      const report = await read([stick]);
      expect(report.media[0]?.faults.map(({ code }) => code)).to.deep.equal(['index-invalid']);
      expect(report.media[0]?.copied).to.have.length(2);
      expect(report.media[0]?.unlisted).to.have.length(2);
      expect(report.sets).to.deep.equal([]);
    });

    it('refuses an INDEX of another pair or by another node', async () => {
      const other = await makeTestPair();
      const [name = ''] = (await readdir(join(stick, MEDIA_FOLDER))).filter((entry) =>
        entry.startsWith('INDEX'),
      );
      const path = join(stick, MEDIA_FOLDER, name);
      const { index } = await verifyIndex(await readFile(path));
      const signer = { ...other.request, sign: other.request.card.sign };
      const carried = { ...index.carrier, sign: signer.sign };
      const away = { ...index, to: 'elsewhere', carrier: carried };
      await writeFile(path, await signIndex(away, signer));
      const report = await read([stick]);
      expect(report.media[0]?.faults.map(({ code }) => code)).to.include('index-mismatch');
      const forged = { ...index, from: 'answerer', carrier: carried };
      await writeFile(path, await signIndex(forged, signer));
      const cards = new Map([
        [other.request.kid, other.request.card],
        [pair.request.kid, pair.request.card],
      ]);
      const checked = await read([stick], { cards });
      expect(checked.media[0]?.faults.map(({ code }) => code)).to.deep.equal(['index-mismatch']);
      await other.remove();
    });

    it('refuses a file that was exchanged for another good batch', async () => {
      const other = await writeTestBatch(pair, [requestLine()], { change: { seq: 9 } });
      await copyFile(other.path, onStick(stick, batches[0]?.name ?? ''));
      const report = await read([stick]);
      expect(report.media[0]?.faults.map(({ code }) => code)).to.deep.equal(['index-mismatch']);
      expect(await batchesIn(inbox)).to.deep.equal([batches[1]?.name]);
      expect(report.sets[0]?.missing.map(({ name }) => name)).to.deep.equal([batches[0]?.name]);
    });

    it('names what is lost, cut or zeroed on the medium, and brings the rest', async () => {
      const third = await ready(3);
      await write([stick]);
      const [first, second] = batches as [TestBatch, TestBatch];
      await rm(onStick(stick, first.name));
      const { size } = await stat(onStick(stick, second.name));
      await truncate(onStick(stick, second.name), size - 1);
      const report = await read([stick]);
      expect(report.media[0]?.lost).to.deep.equal([first.name]);
      expect(report.media[0]?.faults.map(({ code }) => code)).to.deep.equal(['INCOMPLETE']);
      expect(report.media[0]?.copied).to.deep.equal([third.name]);
      await truncate(onStick(stick, second.name), 0);
      await truncate(onStick(stick, second.name), size);
      const zeroed = await read([stick]);
      expect(zeroed.media[0]?.faults.map(({ code }) => code)).to.deep.equal(['NOT_A_BATCH']);
    });

    it('lists links, pipes, folders and strange names as foreign and does not open them', async () => {
      const names = ['link.batch', 'pipe.batch', 'folder.batch', 'space.batch ', '.DS_Store'];
      await symlink('/dev/zero', onStick(stick, 'link.batch'));
      execFileSync('mkfifo', [onStick(stick, 'pipe.batch')]);
      await mkdir(onStick(stick, 'folder.batch'));
      await copyFile(batches[0]?.path ?? '', onStick(stick, 'space.batch '));
      await writeFile(onStick(stick, '.DS_Store'), 'x');
      const report = await read([stick]);
      expect(report.media[0]?.foreign).to.have.members(
        names.map((name) => join(MEDIA_FOLDER, pair.response.node, name)),
      );
      expect(report.media[0]?.copied).to.have.length(2);
      expect(await batchesIn(inbox)).to.have.length(2);
    });

    it('names a file by its content, never by its name on the medium', async () => {
      const other = await writeTestBatch(pair, [requestLine()], { change: { seq: 9 } });
      await copyFile(other.path, onStick(stick, 'CON.BATCH'));
      const report = await read([stick]);
      expect(report.media[0]?.unlisted).to.deep.equal(['CON.BATCH']);
      expect(await batchesIn(inbox)).to.include(other.name);
    });

    it('keeps what it has when the medium is pulled, and goes on later', async () => {
      const report = await read([stick], {
        startProgress: () => () => void rename(stick, `${stick}.away`).catch(() => undefined),
      });
      expect(report.media[0]?.failure?.code).to.equal('medium-gone');
      for (const name of await batchesIn(inbox)) {
        expect(await readFile(join(inbox, name))).to.deep.equal(await readFile(join(outbox, name)));
      }
      await rename(`${stick}.away`, stick);
      const again = await read([stick]);
      expect(again.media[0]?.failure).to.equal(undefined);
      expect(await batchesIn(inbox)).to.have.length(2);
      expect((await read([join(pair.folder, 'none')])).media[0]?.failure?.code).to.equal(
        'not-found',
      );
    });

    it('goes on when one file of a medium cannot be read', async () => {
      const [first, second] = batches as [TestBatch, TestBatch];
      const report = await read([stick], {
        startProgress: () => () => void rm(onStick(stick, second.name), { force: true }),
      });
      expect(report.media[0]?.copied).to.deep.equal([first.name]);
      expect(report.media[0]?.faults.map(({ file, code }) => `${file} ${code}`)).to.deep.equal([
        `${second.name} ENOENT`,
      ]);
      expect(report.media[0]?.failure).to.equal(undefined);
    });

    it('reads a folder of batches without any mark', async () => {
      const plain = await folder('plain');
      await mkdir(onStick(plain), { recursive: true });
      await copyFile(batches[0]?.path ?? '', onStick(plain, 'renamed.batch'));
      const report = await read([plain]);
      expect(report.media[0]?.id).to.equal(undefined);
      expect(report.media[0]?.copied).to.deep.equal([batches[0]?.name]);
    });
  });

  describe('mediaStatus', () => {
    it('says what lies where, and with verify whether every byte is right', async () => {
      const batch = await ready(3);
      const stick = await folder('stick');
      await write([stick]);
      await writeFile(join(stick, 'photo.jpg'), 'x');
      const paths = [stick, outbox];
      const fine = await mediaStatus({ paths, carrier: carrier(), verify: true });
      expect(fine.places.map(({ kind, batches }) => `${kind} ${batches}`)).to.deep.equal([
        'medium 1',
        'folder 1',
      ]);
      expect(fine.places[0]?.foreign).to.deep.equal(['photo.jpg']);
      expect(fine.places[0]?.byStream).to.have.property('requests').that.includes({ first: 3 });
      expect(fine.places.flatMap(({ faults }) => faults)).to.deep.equal([]);
      expect(fine.sets[0]?.missing).to.deep.equal([]);
      await flip(onStick(stick, batch.name));
      const quick = await mediaStatus({ paths: [stick], carrier: carrier() });
      expect(quick.places[0]?.faults).to.deep.equal([]);
      const bad = await mediaStatus({ paths: [stick], carrier: carrier(), verify: true });
      expect(bad.places[0]?.faults).to.have.length(1);
      await rm(onStick(stick, batch.name));
      const lost = await mediaStatus({ paths: [stick], carrier: carrier() });
      expect(lost.places[0]?.faults.map(({ code }) => code)).to.deep.equal(['not-found']);
      expect(lost.sets[0]?.missing).to.have.length(1);
    });
  });

  describe('verifyIndex', () => {
    it('refuses every changed byte', async () => {
      await ready(1);
      const stick = await folder('stick');
      const { set } = await write([stick]);
      const bytes = await readFile(join(stick, MEDIA_FOLDER, `INDEX.${set?.id}.jws`));
      for (let at = 0; at < bytes.length - 1; at += 7) {
        const changed = Buffer.from(bytes);
        changed[at] = (changed[at] as number) ^ 1;
        expect(await codeOfAsync(verifyIndex(changed)), `byte ${at}`).to.equal('index-invalid');
      }
      expect(await codeOfAsync(verifyIndex(Buffer.alloc(0)))).to.equal('index-invalid');
    });
  });

  describe('readBack', () => {
    it('gives the hash of the file whichever way it is read', async () => {
      const path = join(pair.folder, 'file');
      for (const length of [0, 1, 511, 4_096, 5_000_001]) {
        const bytes = Buffer.alloc(length, 7);
        await writeFile(path, bytes);
        const sha256 = createHash('sha256').update(bytes).digest('hex');
        expect(await readBack(path)).to.deep.include({ sha256, bytes: length });
        const cached = await readBack(path, { program: 'no-such-program' });
        expect(cached).to.deep.equal({ sha256, bytes: length, way: 'cached' });
      }
    });

    it('falls back to a dropped cache where it may not read past it', async () => {
      const program = join(pair.folder, 'dd-without-direct');
      await writeFile(
        program,
        '#!/bin/sh\nfor a in "$@"; do [ "$a" = iflag=direct ] && exit 1; done\nexec dd "$@"\n',
        { mode: 0o755 },
      );
      const path = join(pair.folder, 'file');
      await writeFile(path, 'text');
      expect(await readBack(path, { program })).to.deep.include({ way: 'dropped', bytes: 4 });
    });

    it('tells a medium that fails half-way from one that is right', async () => {
      const program = join(pair.folder, 'dd-that-fails');
      await writeFile(program, '#!/bin/sh\nprintf x\nexit 1\n', { mode: 0o755 });
      const path = join(pair.folder, 'file');
      await writeFile(path, 'text');
      const error: unknown = await readBack(path, { program }).catch((thrown: unknown) => thrown);
      expect(error).to.have.property('code', 'EIO');
    });
  });

  it('gives slips that other tools can read, whatever the number of batches', async () => {
    const events = Array.from({ length: 7_000 }, (_, index) => ({
      digest: createHash('sha256').update(`${index}`).digest('hex'),
      stream: 'requests' as const,
      epoch: 1,
      seq: index + 1,
      step: 'written' as const,
      at: testManifest(pair).createdAt,
    }));
    const medium = '00000000-0000-4000-8000-000000000000';
    const slip = { medium, carrier: 'walker', step: 'written' } as const;
    const names = await writeCustodySlips(outbox, slip, events);
    expect(names[0]).to.equal(`${medium}-written.slip.json`);
    const slips = await slipsIn(outbox);
    expect(slips.flatMap((found) => found.events)).to.have.length(events.length);
    for (const name of names) {
      expect((await stat(join(outbox, name))).size).to.be.at.most(1024 * 1024);
    }
  });
});
