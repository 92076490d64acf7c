import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { SallyportError, newId, rows } from '@sallyport/shared';
import { exportControl, exportStream, sendRecords } from '@sallyport/transfer';
import {
  carryAll,
  reAdopt,
  requestRecord,
  revokeFarKey,
  rotateKeys,
  type TestNode,
} from '@sallyport/transfer/testing';
import type { Fault } from './fault.js';
import {
  carry,
  deliver,
  expectAppliedOnce,
  expectImport,
  expectRefused,
  forge,
  importInto,
  openWorld,
  put,
  readCursor,
  seal,
  type World,
} from './world.js';

/** Keys that have ended, and epochs. These worlds are used up: their keys change. */
export const KEY_FAULTS: readonly Fault[] = [
  {
    number: 15,
    name: 'a key retired at number 500, then number 501 signed by it',
    expected: 'KEY_RETIRED; 500 is accepted late',
    run: () => inWorldOfItsOwn(retireKey),
  },
  {
    number: 16,
    name: 'a batch signed by a revoked key',
    expected: 'KEY_REVOKED',
    async run(world) {
      const { red, blue } = world;
      const early = await forge(world);
      await deliver(world, early);
      await expectImport(blue, ['APPLIED']);
      await revokeFarKey(blue.test.db, blue, { kid: red.keys.kid, by: 'test' });
      await expectRefused(world, await forge(world), 'KEY_REVOKED');
      assert.equal((await readCursor(blue, 'requests')).frozen, null);
      const second = await forge(world, {
        stream: 'requests.urgent',
        records: [requestRecord(newId())],
      });
      await expectRefused(world, second, 'KEY_REVOKED');
      await put(blue, early.name, early.bytes);
      await expectImport(blue, ['DUPLICATE']);
    },
  },
  {
    number: 29,
    name: 'a sender restored from a backup',
    expected: 'store-ahead, re-adopt, OLD_EPOCH; everything once',
    run: () => inWorldOfItsOwn(restoreSender),
  },
];

async function inWorldOfItsOwn(run: (world: World) => Promise<void>): Promise<void> {
  const world = await openWorld();
  try {
    await run(world);
  } finally {
    await world.close();
  }
}

async function retireKey(world: World): Promise<void> {
  const { red, blue } = world;
  const old = { ...red.keys };
  // Numbers 1 to 499 are taken to have been imported long ago.
  await red.test.db.raw(
    `insert into outbound_batches (id, link, stream, epoch, seq, kind, state, build_token, version,
       records, digest, prev, created_at, sealed_at, acked_at)
     select gen_random_uuid(), link, 'requests', 1, 499, 'delta', 'acked', gen_random_uuid(), 1, 1,
       repeat('a', 64), repeat('b', 64), now(), now(), now() from links`,
  );
  await blue.test.db.raw(
    `update inbound_streams set contiguous = 499, contiguous_digest = repeat('a', 64)
     where stream = 'requests'`,
  );
  const record = requestRecord(newId());
  const late = await seal(red, 'requests', [record]);
  assert.match(late, /s000000000500/);
  await rotateKeys(red.test.db, red, 'test');
  assert.notEqual(red.keys.kid, old.kid);
  await exportControl(red.test.db, red);
  await carryAll(red, blue, (name) => name.includes('.control.'));
  const { files } = await importInto(blue);
  assert(
    files.length > 0 && files.every(({ outcome }) => outcome === 'APPLIED'),
    JSON.stringify(files),
  );
  const digest = await readDigest(red, 500);
  world.chains.set('requests', { seq: 500, digest });
  const stolen = await forge(world, { from: { ...red, keys: old } });
  assert.equal(stolen.manifest.seq, 501);
  await expectRefused(world, stolen, 'KEY_RETIRED');
  await carry(world, red, late);
  await expectImport(blue, ['APPLIED']);
  const fresh = requestRecord(newId());
  await carry(world, red, await seal(red, 'requests', [fresh]));
  await expectImport(blue, ['APPLIED']);
  await expectAppliedOnce(blue, [record.id, fresh.id]);
}

async function readDigest(node: TestNode, seq: number): Promise<string> {
  const [found] = await rows<{ digest: string }>(
    node.test.db,
    `select digest from outbound_batches where stream = 'requests' and seq = ?`,
    [seq],
  );
  assert(found);
  return found.digest;
}

async function restoreSender(world: World): Promise<void> {
  const { red, blue } = world;
  const records = [1, 2, 3].map(() => requestRecord(newId()));
  const [first, second, third] = records;
  assert(first && second && third);
  await carry(world, red, await seal(red, 'requests', [first]));
  await expectImport(blue, ['APPLIED']);
  const unseen = await seal(red, 'requests', [second]);
  const late = await readFile(join(red.folders.outbox, unseen));
  // The backup was made before number 2 was sealed: its record waits, its batch is not known.
  await red.test.db.raw(
    `update outbox_records set batch_id = null, batch_line = null
     where batch_id in (select id from outbound_batches where seq = 2)`,
  );
  await red.test.db.raw('delete from outbound_batches where seq = 2');
  await sendRecords(red.test.db, 'requests', [third], red.clock.now());
  await assert.rejects(exportStream(red.test.db, red, 'requests'), (error) => {
    assert(error instanceof SallyportError);
    assert.equal(error.code, 'store-ahead');
    assert.match(String(error.next), /re-adopt/);
    return true;
  });
  await reAdopt(red.test.db, red, { by: 'test' });
  await exportStream(red.test.db, red, 'requests');
  await carryAll(red, blue);
  const { files } = await importInto(blue);
  assert(
    files.every(({ outcome }) => outcome === 'APPLIED'),
    JSON.stringify(files),
  );
  await put(blue, unseen, late);
  await expectImport(blue, ['OLD_EPOCH']);
  const times = await rows<{ id: string }>(blue.test.db, 'select id from applied order by id');
  assert.deepEqual(
    times.map(({ id }) => id),
    records.map(({ id }) => id).sort(),
  );
}
