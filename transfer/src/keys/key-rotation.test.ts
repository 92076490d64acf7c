import { copyFile, cp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { Decrypter, generateX25519Identity, identityToRecipient } from 'age-encryption';
import { expect } from 'chai';
import { SallyportError, newId, rows, settingRecordId, type Database } from '@sallyport/shared';
import { batchName, readHeaderLine } from '../format/batch-file.js';
import { exportControl, exportStream, readyStream, sealUnfinished } from '../sending/export.js';
import { freezeOutbound } from '../receiving/freezes.js';
import { importBatches, type ImportReport } from '../receiving/import.js';
import { locked } from './key-files.js';
import {
  announceRotation,
  decideRevocation,
  revokeFarKey,
  revokeOwnKeys,
  rotateKeys,
} from './key-rotation.js';
import { loadKeys } from './keys.js';
import { findLink, trustCard, type Link } from './links.js';
import { readHeader, signManifest, type Manifest } from '../format/manifest.js';
import { makeNextKeys } from './next-keys.js';
import { sendRecords } from '../sending/outbox.js';
import { listOwnKeys } from './own-keys.js';
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

const outcomes = (report: ImportReport) => report.files.map(({ outcome }) => outcome);
const importInto = (node: TestNode) => importBatches(node.test.db, node, recordingApplies);

async function sealRequest(node: TestNode, id = newId()): Promise<{ id: string; name: string }> {
  const before = new Set(await readdir(node.folders.outbox));
  await sendRecords(node.test.db, 'requests', [requestRecord(id)], node.clock.now());
  await exportStream(node.test.db, node, 'requests');
  const fresh = (await readdir(node.folders.outbox)).filter((name) => !before.has(name));
  return { id, name: fresh.find((name) => name.includes('.requests.')) ?? '' };
}

async function sealSetting(node: TestNode, version: number): Promise<void> {
  const record = settingRecord(settingRecordId('late'), 'late', version);
  await sendRecords(node.test.db, 'settings', [record], node.clock.now());
  await exportStream(node.test.db, node, 'settings');
}

const deliver = (from: TestNode, to: TestNode, name: string) =>
  copyFile(join(from.folders.outbox, name), join(to.folders.inbox, name));

/** Carries everything there and back until neither side has anything new to say. */
async function exchange(red: TestNode, blue: TestNode): Promise<void> {
  for (let round = 0; round < 4; round += 1) {
    for (const [from, to] of [
      [red, blue],
      [blue, red],
    ] as const) {
      from.time.now = new Date(from.time.now.getTime() + 11 * 60_000);
      to.time.now = from.time.now;
      const streams = from === red ? (['requests'] as const) : (['settings'] as const);
      for (const stream of streams) await exportStream(from.test.db, from, stream);
      await exportControl(from.test.db, from);
      await carryAll(from, to);
      await importInto(to);
    }
  }
}

async function openBatches(node: TestNode): Promise<number> {
  const [count] = await rows<{ count: number }>(
    node.test.db,
    `select count(*) as count from outbound_batches
     where stream <> 'control' and state not in ('acked', 'withdrawn')`,
  );
  return count?.count ?? -1;
}

async function linkOf(db: Database): Promise<Link> {
  const link = await findLink(db);
  if (!link) throw new Error('no link');
  return link;
}

async function retiredKid(node: TestNode): Promise<string> {
  const keys = await listOwnKeys(node.test.db);
  return keys.find(({ state }) => state === 'retired')?.kid ?? '';
}

/** The same node in a process that was started anew. */
async function restart(node: TestNode): Promise<TestNode> {
  return { ...node, keys: await loadKeys(node.folders.keys) };
}

async function signerOf(path: string): Promise<string> {
  return readHeader((await readHeaderLine(path)).line).kid;
}

describe('rotateKeys', () => {
  let red: TestNode;
  let blue: TestNode;
  let remove: () => Promise<void>;

  beforeEach(async () => {
    ({ red, blue, remove } = await makeTestPair());
  });
  afterEach(() => remove());

  it('signs with the new key, which the far side takes once it was announced', async () => {
    const old = red.keys.kid;
    const first = await sealRequest(red);
    const { card, retire } = await rotateKeys(red.test.db, red, 'test');
    expect(red.keys.kid).to.equal(card.kid).and.not.to.equal(old);
    expect(retire).to.deep.equal({ control: 1, accounts: 0, 'requests.urgent': 0, requests: 1 });
    const second = await sealRequest(red);
    expect(await signerOf(join(red.folders.outbox, second.name))).to.equal(card.kid);
    await deliver(red, blue, second.name);
    expect(outcomes(await importInto(blue))).to.deep.equal(['WAIT_KEY']);
    await carryAll(red, blue);
    expect((await importInto(blue)).applied).to.equal(3);
    expect(await appliedIds(blue)).to.have.members([first.id, second.id]);
  });

  it('lets batches of the old key in late up to the retire point, whatever the order', async () => {
    const before = [await sealRequest(red), await sealRequest(red)];
    await rotateKeys(red.test.db, red, 'test');
    const after = await sealRequest(red);
    const [announcement = ''] = (await readdir(red.folders.outbox)).filter((name) =>
      name.includes('.control.'),
    );
    for (const name of [announcement, after.name, before[1]?.name ?? '', before[0]?.name ?? '']) {
      await deliver(red, blue, name);
      expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
    }
    expect(await appliedIds(blue)).to.have.members([...before, after].map(({ id }) => id));
  });

  it('makes the far side refuse what the old key signs beyond it', async () => {
    const thief = { ...red.keys };
    const first = await sealRequest(red);
    await rotateKeys(red.test.db, red, 'test');
    await carryAll(red, blue);
    await importInto(blue);
    const { line } = await readHeaderLine(join(red.folders.store, first.name));
    const { manifest, digest } = readHeader(line);
    const forged: Manifest = {
      ...manifest,
      seq: 2,
      prev: digest,
      kind: 'heartbeat',
      records: 0,
      types: {},
    };
    const signed = await signManifest(
      { ...forged, body: { ...manifest.body, bytes: 0, rawBytes: 0, enc: 'none', crypt: 'none' } },
      thief,
    );
    const name = batchName(forged, signed.digest);
    await writeFile(
      join(blue.folders.inbox, name),
      Buffer.concat([signed.line, Buffer.from('\n')]),
    );
    expect(outcomes(await importInto(blue))).to.deep.equal(['KEY_RETIRED']);
  });

  it('is not followed when another key announces it', async () => {
    await rotateKeys(red.test.db, red, 'test');
    await carryAll(red, blue);
    await importInto(blue);
    const link = await linkOf(red.test.db);
    const card = await makeNextKeys(red.folders.keys, red.keys, locked);
    await red.test.db.transaction((tx) => announceRotation(tx, red, link, { card, by: 'test' }));
    await red.test.db.raw(
      `update outbox_records set line = replace(line, '"kid":"' || ?, '"kid":"' || ?)
       where type = 'key.change' and batch_id in (select id from outbound_batches where state = 'building')`,
      [red.keys.kid, await retiredKid(red)],
    );
    await sealUnfinished(red.test.db, red, link, 'control');
    await carryAll(red, blue);
    expect(outcomes(await importInto(blue))).to.include('SCHEMA');
    const known = await rows(blue.test.db, 'select 1 from far_keys');
    expect(known).to.have.length(2);
  });

  it('encrypts to the new key at once, and opens late batches with the old one', async () => {
    await sealSetting(blue, 1);
    await rotateKeys(red.test.db, red, 'test');
    await carryAll(blue, red);
    expect((await importInto(red)).applied).to.equal(1);
    await carryAll(red, blue);
    await importInto(blue);
    await sealSetting(blue, 2);
    await carryAll(blue, red);
    expect((await importInto(red)).applied).to.equal(1);
    const again = await loadKeys(red.folders.keys);
    expect(again.ageIdentities).to.have.length(2);
  });

  it('keeps every former age identity, and no former signing key', async () => {
    const first = red.keys.ageIdentities[0];
    await rotateKeys(red.test.db, red, 'test');
    const second = red.keys.ageIdentities[0];
    await rotateKeys(red.test.db, red, 'test');
    const { ageIdentities, kid } = await loadKeys(red.folders.keys);
    expect(ageIdentities.slice(1)).to.have.members([first, second]);
    expect(kid).to.equal(red.keys.kid);
    const files = (await readdir(red.folders.keys, { recursive: true })).filter((name) =>
      name.endsWith('sign.jwk'),
    );
    expect(files).to.deep.equal(['sign.jwk']);
  });

  it('is noticed by a process that was running before', async () => {
    const running = { ...red };
    const { card } = await rotateKeys(red.test.db, red, 'test');
    const { name } = await sealRequest(running);
    expect(await signerOf(join(red.folders.outbox, name))).to.equal(card.kid);
  });

  it('waits while control is frozen, with the keys as they were', async () => {
    const { kid } = red.keys;
    const alarm = new SallyportError('ACK_FORK', 'The far side acknowledges what is not ours.');
    const { link } = (await findLink(red.test.db)) as Link;
    await red.test.db.transaction((tx) =>
      freezeOutbound(tx, red, { link, stream: 'control', alarm }),
    );
    expect(await codeOfAsync(rotateKeys(red.test.db, red, 'test'))).to.equal('WAIT_APPROVAL');
    expect(red.keys.kid).to.equal(kid);
    expect((await listOwnKeys(red.test.db)).map((key) => key.kid)).to.deep.equal([kid]);
  });

  it('works on both sides at once', async () => {
    const { id } = await sealRequest(red);
    await sealSetting(blue, 1);
    await rotateKeys(red.test.db, red, 'test');
    await rotateKeys(blue.test.db, blue, 'test');
    await exchange(red, blue);
    const late = await sealRequest(red);
    await exchange(red, blue);
    expect(await appliedIds(blue)).to.have.members([id, late.id]);
    expect([await openBatches(red), await openBatches(blue)]).to.deep.equal([0, 0]);
  });

  describe('cut off by a crash', () => {
    it('before it was decided changes nothing', async () => {
      await makeNextKeys(red.folders.keys, red.keys, locked);
      const again = await restart(red);
      const { name } = await sealRequest(again);
      expect(await signerOf(join(red.folders.outbox, name))).to.equal(red.keys.kid);
    });

    it('once it was decided is finished before anything else is sealed', async () => {
      const link = await linkOf(red.test.db);
      const card = await makeNextKeys(red.folders.keys, red.keys, locked);
      await red.test.db.transaction((tx) => announceRotation(tx, red, link, { card, by: 'test' }));
      const again = await restart(red);
      const { id, name } = await sealRequest(again);
      expect(await signerOf(join(red.folders.outbox, name))).to.equal(card.kid);
      await carryAll(red, blue);
      expect((await importInto(blue)).applied).to.equal(2);
      expect(await appliedIds(blue)).to.deep.equal([id]);
    });

    it('once it was announced ends with the new keys', async () => {
      const link = await linkOf(red.test.db);
      const card = await makeNextKeys(red.folders.keys, red.keys, locked);
      await red.test.db.transaction((tx) => announceRotation(tx, red, link, { card, by: 'test' }));
      await sealUnfinished(red.test.db, red, link, 'control');
      const again = await restart(red);
      await importInto(again);
      expect(again.keys.kid).to.equal(card.kid);
      expect((await loadKeys(red.folders.keys)).kid).to.equal(card.kid);
      expect((await listOwnKeys(red.test.db)).map(({ state }) => state)).to.have.members([
        'retired',
        'current',
      ]);
    });
  });
});

describe('revokeOwnKeys', () => {
  let red: TestNode;
  let blue: TestNode;
  let remove: () => Promise<void>;

  beforeEach(async () => {
    ({ red, blue, remove } = await makeTestPair());
  });
  afterEach(() => remove());

  async function adoptAfterRevocation(from: TestNode, to: TestNode, old: string): Promise<void> {
    await revokeFarKey(to.test.db, to, { kid: old, by: 'test' });
    const trusted = await trustCard(to.test.db, to, from.keys.card, 'test');
    expect(trusted).to.include({ fresh: false, replaced: true });
  }

  it('sends what was not acknowledged again, once the far side trusts the new card', async () => {
    const applied = await sealRequest(red);
    await exchange(red, blue);
    const unread = await sealRequest(red);
    await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
    const { old, epoch, queued } = await revokeOwnKeys(red.test.db, red, 'test');
    expect({ epoch, queued }).to.deep.equal({ epoch: 2, queued: 1 });
    await exportStream(red.test.db, red, 'requests');
    await carryAll(red, blue);
    expect(new Set(outcomes(await importInto(blue)))).to.deep.equal(new Set(['WAIT_KEY']));
    await adoptAfterRevocation(red, blue, old);
    await exchange(red, blue);
    const ids = await appliedIds(blue);
    expect(ids).to.include.members([applied.id, unread.id]).and.to.have.length(3);
    expect([await openBatches(red), await openBatches(blue)]).to.deep.equal([0, 0]);
    const times = await rows<{ times: number }>(blue.test.db, 'select times from applied');
    expect(times.every((row) => row.times === 1)).to.equal(true);
  });

  it('owes snapshots of the ordered streams, which come first', async () => {
    blue.snapshots = {
      identity: () => Promise.resolve([]),
      settings: () => Promise.resolve([settingRecord(settingRecordId('late'), 'late', 7)]),
    };
    await sealSetting(blue, 5);
    await sealSetting(blue, 6);
    const { old } = await revokeOwnKeys(blue.test.db, blue, 'test');
    await exportStream(blue.test.db, blue, 'settings');
    const owed = await rows<{ stream: string }>(blue.test.db, 'select stream from owed_snapshots');
    expect(owed).to.deep.equal([{ stream: 'identity' }]);
    await adoptAfterRevocation(blue, red, old);
    await carryAll(blue, red);
    expect((await importInto(red)).streams).to.have.members(['control', 'settings']);
    const [kept] = await rows<{ version: number }>(
      red.test.db,
      `select (d->>'version')::integer as version from applied`,
    );
    expect(kept?.version).to.equal(7);
  });

  it('is an alarm for whatever the old key signs afterwards', async () => {
    const { name } = await sealRequest(red);
    await revokeFarKey(blue.test.db, blue, { kid: red.keys.kid, by: 'test' });
    await deliver(red, blue, name);
    expect(outcomes(await importInto(blue))).to.deep.equal(['KEY_REVOKED']);
    const [stream] = await rows<{ code: string }>(
      blue.test.db,
      `select frozen_code as code from inbound_streams where stream = 'requests'`,
    );
    expect(stream?.code).to.equal(null);
    expect(await codeOfAsync(trustCard(blue.test.db, blue, red.keys.card, 'test'))).to.equal(
      'card-invalid',
    );
  });

  it('calls batches of the epoch before old', async () => {
    const { name } = await sealRequest(red);
    await copyFile(join(red.folders.store, name), join(red.folders.root, name));
    const { old } = await revokeOwnKeys(red.test.db, red, 'test');
    await adoptAfterRevocation(red, blue, old);
    await exchange(red, blue);
    await copyFile(join(red.folders.root, name), join(blue.folders.inbox, name));
    expect(outcomes(await importInto(blue))).to.deep.equal(['OLD_EPOCH']);
  });

  it('unfreezes the streams of the far side with the new epoch', async () => {
    const stolen = await sealRequest(red);
    await revokeFarKey(blue.test.db, blue, { kid: red.keys.kid, by: 'test' });
    await deliver(red, blue, stolen.name);
    await importInto(blue);
    await revokeOwnKeys(red.test.db, red, 'test');
    await trustCard(blue.test.db, blue, red.keys.card, 'test');
    await exchange(red, blue);
    expect(await appliedIds(blue)).to.deep.equal([stolen.id]);
  });

  it('can follow a rotation', async () => {
    await rotateKeys(red.test.db, red, 'test');
    const { id } = await sealRequest(red);
    await carryAll(red, blue, (name) => name.includes('.control.'));
    await importInto(blue);
    const { old } = await revokeOwnKeys(red.test.db, red, 'test');
    expect(await codeOfAsync(trustCard(blue.test.db, blue, red.keys.card, 'test'))).to.equal(
      'card-invalid',
    );
    await adoptAfterRevocation(red, blue, old);
    await exchange(red, blue);
    expect(await appliedIds(blue)).to.deep.equal([id]);
  });

  it('is finished before anything else is sealed when a crash cut it off', async () => {
    const { id } = await sealRequest(red);
    const link = await linkOf(red.test.db);
    const old = red.keys.kid;
    const card = await makeNextKeys(red.folders.keys, red.keys, locked);
    await red.test.db.transaction((tx) =>
      decideRevocation(tx, red, link, { old, card, by: 'test' }),
    );
    const again = await restart(red);
    await exportStream(again.test.db, again, 'requests');
    expect(again.keys.kid).to.equal(card.kid);
    const names = (await readdir(red.folders.outbox)).filter((name) => name.includes('.e0002.'));
    expect(names.map((name) => name.split('.')[2]).sort()).to.deep.equal(['control', 'requests']);
    await adoptAfterRevocation(again, blue, old);
    await exchange(again, blue);
    expect(await appliedIds(blue)).to.deep.equal([id]);
  });

  it('leaves a rotation that was not announced yet whole, wherever it is cut off', async () => {
    const first = await sealRequest(red);
    const link = await linkOf(red.test.db);
    const old = red.keys.kid;
    const card = await makeNextKeys(red.folders.keys, red.keys, locked);
    await red.test.db.transaction((tx) => announceRotation(tx, red, link, { card, by: 'test' }));
    const power = new Error('power cut');
    const cut = { ...red, network: { beforeRequeue: () => Promise.reject(power) } };
    const failed = revokeOwnKeys(red.test.db, cut, 'test');
    expect(await failed.catch((error: unknown) => error)).to.equal(power);
    const again = await restart(red);
    const { id } = await sealRequest(again);
    expect(again.keys.kid).to.equal(card.kid);
    await carryAll(red, blue);
    await importInto(blue);
    expect(await appliedIds(blue)).to.have.members([first.id, id]);
    const { valid } = await revokeOwnKeys(again.test.db, again, 'test');
    expect(valid).to.deep.equal([old, card.kid]);
  });

  it('makes new keys where the folder holds older ones', async () => {
    const backup = join(red.folders.root, 'backup');
    await cp(red.folders.keys, backup, { recursive: true });
    await rotateKeys(red.test.db, red, 'test');
    await rm(red.folders.keys, { recursive: true });
    await cp(backup, red.folders.keys, { recursive: true });
    const again = await restart(red);
    expect(await codeOfAsync(readyStream(again.test.db, again, 'requests'))).to.equal(
      'keys-missing',
    );
    const { card } = await revokeOwnKeys(again.test.db, again, 'test');
    expect((await sealRequest(again)).name).to.contain('.e0002.');
    expect(again.keys.kid).to.equal(card.kid);
  });
});

describe('escrow', () => {
  it('opens the body of every encrypted batch by age alone', async () => {
    const identity = await generateX25519Identity();
    const { red, blue, remove } = await makeTestPair({
      escrow: await identityToRecipient(identity),
    });
    try {
      const { id, name } = await sealRequest(red);
      const file = await readFile(join(red.folders.outbox, name));
      const body = file.subarray(file.indexOf('\n') + 1);
      const decrypter = new Decrypter();
      decrypter.addIdentity(identity);
      const text = gunzipSync(await decrypter.decrypt(body)).toString();
      expect((JSON.parse(text) as { id: string }).id).to.equal(id);
      await deliver(red, blue, name);
      expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
    } finally {
      await remove();
    }
  });
});
