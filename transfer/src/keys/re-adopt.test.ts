import { mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import pg from 'pg';
import { newId, openDatabase, rows, settingRecordId } from '@sallyport/shared';
import { requireEnvironment } from '@sallyport/shared/testing';
import { exportControl, exportStream, sealUnfinished } from '../sending/export.js';
import { importBatches } from '../receiving/import.js';
import { locked } from './key-files.js';
import { announceRotation, rotateKeys } from './key-rotation.js';
import { findLink } from './links.js';
import { makeNextKeys } from './next-keys.js';
import { sendRecords } from '../sending/outbox.js';
import { reAdopt } from './re-adopt.js';
import { resendMissing } from '../sending/resend.js';
import { codeOfAsync } from '../test-codes.js';
import {
  appliedIds,
  carryAll,
  makeTestPair,
  recordingApplies,
  requestRecord,
  settingRecord,
  type TestNode,
} from '../testing.js';

const importInto = (node: TestNode) => importBatches(node.test.db, node, recordingApplies);

/** Copies the node's database while nobody is connected to it. */
async function copyDatabase(node: TestNode, from: string, to: string): Promise<void> {
  await node.test.db.destroy();
  const client = new pg.Client({ connectionString: requireEnvironment('DATABASE_URL') });
  await client.connect();
  await client.query(`drop database if exists ${to} with (force)`);
  await client.query(`create database ${to} template ${from}`);
  await client.end();
  node.test.db = openDatabase(node.test.url);
}

const nameOf = (node: TestNode) => new URL(node.test.url).pathname.slice(1);
const backUp = (node: TestNode) => copyDatabase(node, nameOf(node), `${nameOf(node)}_copy`);
const restore = (node: TestNode) => copyDatabase(node, `${nameOf(node)}_copy`, nameOf(node));

async function dropCopy(node: TestNode): Promise<void> {
  await node.test.db.raw(`drop database if exists ${nameOf(node)}_copy with (force)`);
  await node.test.db.destroy();
}

async function askOne(node: TestNode): Promise<string> {
  const id = newId();
  await sendRecords(node.test.db, 'requests', [requestRecord(id)], node.clock.now());
  await exportStream(node.test.db, node, 'requests');
  return id;
}

async function setOne(node: TestNode, key: string): Promise<string> {
  const id = settingRecordId(key);
  await sendRecords(node.test.db, 'settings', [settingRecord(id, key, 1)], node.clock.now());
  await exportStream(node.test.db, node, 'settings');
  return id;
}

/** Both sides work and carriers go, for some rounds. */
async function exchange(red: TestNode, blue: TestNode): Promise<void> {
  for (let round = 0; round < 5; round += 1) {
    for (const [from, to, stream] of [
      [red, blue, 'requests'],
      [blue, red, 'settings'],
    ] as const) {
      to.time.now = from.time.now = new Date(from.time.now.getTime() + 11 * 60_000);
      await exportStream(from.test.db, from, stream);
      await exportControl(from.test.db, from);
      await resendMissing(from.test.db, from);
      await carryAll(from, to);
      await importInto(to);
    }
  }
}

async function unacknowledged(node: TestNode): Promise<number> {
  const [count] = await rows<{ count: number }>(
    node.test.db,
    `select count(*) as count from outbound_batches
     where stream <> 'control' and state not in ('acked', 'withdrawn')`,
  );
  return count?.count ?? -1;
}

describe('reAdopt', () => {
  let red: TestNode;
  let blue: TestNode;
  let remove: () => Promise<void>;

  beforeEach(async () => {
    ({ red, blue, remove } = await makeTestPair());
    blue.snapshots = {
      identity: () => Promise.resolve([]),
      settings: async (tx) =>
        (
          await rows<{ key: string }>(
            tx,
            `select distinct (line::jsonb)->'d'->>'key' as key
           from outbox_records where type = 'setting'`,
          )
        ).map(({ key }) => settingRecord(settingRecordId(key), key, 1)),
    };
  });
  afterEach(async () => {
    for (const node of [red, blue]) await dropCopy(node);
    await remove();
  });

  it('leads the request network on after its database was restored', async () => {
    const before = await askOne(red);
    const unread = await askOne(red);
    await exchange(red, blue);
    await backUp(red);
    const after = await askOne(red);
    const setting = await setOne(blue, 'news');
    await exchange(red, blue);
    await restore(red);
    expect(await appliedIds(blue)).to.have.members([before, unread, after]);

    const fresh = newId();
    await sendRecords(red.test.db, 'requests', [requestRecord(fresh)], red.clock.now());
    expect(await codeOfAsync(exportStream(red.test.db, red, 'requests'))).to.equal('store-ahead');
    const adopted = await reAdopt(red.test.db, red, { by: 'test' });
    expect(adopted.epoch).to.equal(2);
    expect(adopted.new_card).to.equal(null);
    const kept = await readdir(join(red.folders.store, adopted.folder ?? ''));
    expect(kept.sort()).to.deep.equal(adopted.kept_aside.sort());
    expect(kept.some((name) => name.includes('.requests.'))).to.equal(true);
    expect((await readdir(red.folders.outbox)).filter((name) => !name.includes('.e0002.'))).to.be
      .empty;

    await exchange(red, blue);
    expect(await appliedIds(blue)).to.have.members([before, unread, after, fresh]);
    // What came after the backup is sent again by the far side.
    expect(await appliedIds(red)).to.deep.equal([setting]);
    expect([await unacknowledged(red), await unacknowledged(blue)]).to.deep.equal([0, 0]);
    const doubled = await rows(blue.test.db, `select 1 from applied where times > 1`);
    expect(doubled).to.be.empty;
  });

  it('leads the response network on, with a snapshot of what it knows', async () => {
    await setOne(blue, 'old');
    await exchange(red, blue);
    await backUp(blue);
    await setOne(blue, 'lost');
    const asked = await askOne(red);
    await exchange(red, blue);
    await restore(blue);
    expect(await appliedIds(blue)).to.deep.equal([]);
    await reAdopt(blue.test.db, blue, { by: 'test' });
    await exchange(red, blue);
    expect(await appliedIds(blue)).to.deep.equal([asked]);
    const [settings] = await rows<{ epoch: number; contiguous: number }>(
      red.test.db,
      `select epoch, contiguous from inbound_streams where stream = 'settings'`,
    );
    expect(settings).to.deep.equal({ epoch: 2, contiguous: 1 });
    expect([await unacknowledged(red), await unacknowledged(blue)]).to.deep.equal([0, 0]);
  });

  it('leaves the store guarded when it is cut off before it has decided', async () => {
    await backUp(red);
    await askOne(red);
    await restore(red);
    const power = new Error('power cut');
    const cut = { ...red, network: { afterRestore: () => Promise.reject(power) } };
    const failed = reAdopt(red.test.db, cut, { by: 'test' });
    expect(await failed.catch((error: unknown) => error)).to.equal(power);
    expect(await codeOfAsync(askOne(red))).to.equal('store-ahead');
    const adopted = await reAdopt(red.test.db, red, { by: 'test' });
    expect(adopted.kept_aside).to.have.lengthOf(1);
    expect((await readdir(red.folders.store)).filter((name) => name.includes('.e0001.'))).to.be
      .empty;
  });

  it('finishes a rotation that was announced before', async () => {
    const link = await findLink(red.test.db);
    if (!link) throw new Error('no link');
    const card = await makeNextKeys(red.folders.keys, red.keys, locked);
    await red.test.db.transaction((tx) => announceRotation(tx, red, link, { card, by: 'test' }));
    await sealUnfinished(red.test.db, red, link, 'control');
    await carryAll(red, blue);
    await importInto(blue);
    await reAdopt(red.test.db, red, { by: 'test' });
    expect(red.keys.kid).to.equal(card.kid);
    const id = await askOne(red);
    await exchange(red, blue);
    expect(await appliedIds(blue)).to.deep.equal([id]);
  });

  it('goes above the epoch that the far side told', async () => {
    await backUp(red);
    await reAdopt(red.test.db, red, { by: 'test' });
    await exchange(red, blue);
    await restore(red);
    await rm(red.folders.store, { recursive: true });
    await mkdir(red.folders.store);
    await setOne(blue, 'news');
    await carryAll(blue, red);
    await importInto(red);
    expect((await reAdopt(red.test.db, red, { by: 'test' })).epoch).to.equal(3);
  });

  it('goes above every epoch known, here or by the operator', async () => {
    await backUp(red);
    expect((await reAdopt(red.test.db, red, { by: 'test' })).epoch).to.equal(2);
    expect((await reAdopt(red.test.db, red, { by: 'test', above: 7 })).epoch).to.equal(8);
    await restore(red);
    expect((await reAdopt(red.test.db, red, { by: 'test' })).epoch).to.equal(9);
    await blue.test.db.raw('update links set far_epoch_allowed = 9');
    const id = await askOne(red);
    await exchange(red, blue);
    expect(await appliedIds(blue)).to.deep.equal([id]);
  });

  it('takes the keys of the folder for the current ones', async () => {
    await askOne(red);
    await backUp(red);
    const { card } = await rotateKeys(red.test.db, red, 'test');
    await carryAll(red, blue);
    await importInto(blue);
    await restore(red);
    expect(await codeOfAsync(exportStream(red.test.db, red, 'requests'))).to.equal('store-ahead');
    const adopted = await reAdopt(red.test.db, red, { by: 'test' });
    expect(adopted.new_card).to.deep.equal(card);
    const id = await askOne(red);
    await exchange(red, blue);
    expect(await appliedIds(blue)).to.include(id);
  });
});
