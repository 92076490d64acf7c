import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import { newId, rows, type RecordData } from '@sallyport/shared';
import { askApproval, decideApproval } from '../custody/approvals.js';
import { exportStream } from '../sending/export.js';
import { importBatches, type ImportReport } from '../receiving/import.js';
import { revokeFarKey, revokeOwnKeys, rotateKeys } from './key-rotation.js';
import type { NodeKeys } from './keys.js';
import { findLink, trustCard } from './links.js';
import type { Manifest } from '../format/manifest.js';
import { sendRecords } from '../sending/outbox.js';
import { recordText, requestLine, writeTestBatch } from '../test-batch.js';
import { codeOfAsync } from '../test-codes.js';
import {
  appliedIds,
  carryAll,
  makeTestPair,
  recordingApplies,
  requestRecord,
  type TestNode,
} from '../testing.js';

const outcomes = (report: ImportReport) => report.files.map(({ outcome }) => outcome);
const importInto = (node: TestNode) => importBatches(node.test.db, node, recordingApplies);

describe('whoever stole a key of the far side', () => {
  let red: TestNode;
  let blue: TestNode;
  let thief: NodeKeys;
  let remove: () => Promise<void>;

  beforeEach(async () => {
    ({ red, blue, remove } = await makeTestPair());
    thief = red.keys;
  });
  afterEach(() => remove());

  /** Imports a batch with these records that the thief has signed. */
  async function forge(
    change: Partial<Manifest>,
    announced: Partial<RecordData<'key.change'>> | null = null,
  ): Promise<string[]> {
    const link = (await findLink(blue.test.db))?.link ?? '';
    const pair = { request: thief, response: blue.keys, link, folder: red.folders.root };
    const data = { change: 'restore', kid: thief.kid, card: null, retire: {}, epoch: 2 };
    const lines = announced ? [recordText('key.change', { ...data, ...announced })] : [];
    const { path, name } = await writeTestBatch(
      { ...pair, cardOf: () => undefined, remove },
      change.stream === 'requests' ? [requestLine()] : lines,
      { change, type: change.stream === 'requests' ? 'request' : 'key.change' },
    );
    await copyFile(path, join(blue.folders.inbox, name));
    return outcomes(await importInto(blue));
  }

  const announce = (epoch: number) => forge({ stream: 'control', epoch }, { epoch });

  async function ask(): Promise<string> {
    const id = newId();
    await sendRecords(red.test.db, 'requests', [requestRecord(id)], red.clock.now());
    await exportStream(red.test.db, red, 'requests');
    return id;
  }

  async function farEpoch(): Promise<number> {
    return (await findLink(blue.test.db))?.farEpoch ?? 0;
  }

  async function frozen(): Promise<unknown[]> {
    return rows(blue.test.db, 'select stream from inbound_streams where frozen_code is not null');
  }

  it('cannot use up the epochs: a jump waits until two people allow it', async () => {
    expect(await announce(9_999)).to.deep.equal(['WAIT_APPROVAL']);
    expect(await farEpoch()).to.equal(1);
    const { id } = await blue.test.db.transaction((tx) =>
      askApproval(tx, {
        act: 'jump',
        subject: 'epoch 9999',
        details: {},
        reason: 'they say so',
        by: 'user:ann',
        at: blue.clock.now(),
      }),
    );
    expect(outcomes(await importInto(blue))).to.deep.equal(['WAIT_APPROVAL']);
    await decideApproval(blue.test.db, blue, { id, by: 'user:ben', decision: 'approved' });
    expect(outcomes(await importInto(blue))).to.deep.equal(['APPLIED']);
    expect(await farEpoch()).to.equal(9_999);
  });

  it('loses the epoch that it opened to the card that is adopted by hand', async () => {
    expect(await announce(2)).to.deep.equal(['APPLIED']);
    expect(await announce(3)).to.deep.equal(['APPLIED']);
    const forged = { stream: 'requests', epoch: 3 } as const;
    expect(await forge(forged)).to.deep.equal(['APPLIED']);
    const { epoch } = await revokeOwnKeys(red.test.db, red, 'test');
    expect(epoch).to.equal(2);
    const id = await ask();
    await revokeFarKey(blue.test.db, blue, { kid: thief.kid, by: 'test' });
    await trustCard(blue.test.db, blue, red.keys.card, 'test');
    await carryAll(red, blue, (name) => name.includes('.requests.'));
    expect(outcomes(await importInto(blue))).to.deep.equal(['WAIT_KEY']);
    await carryAll(red, blue);
    expect(outcomes(await importInto(blue))).to.have.members(['APPLIED', 'APPLIED']);
    expect(await appliedIds(blue)).to.include(id);
    expect(await farEpoch()).to.equal(2);
    // Only the first announcement may go back.
    thief = red.keys;
    expect(await announce(1)).to.deep.equal(['OLD_EPOCH']);
  });

  it('opens no epoch by the mere name of a record', async () => {
    const named = { stream: 'control', epoch: 2, types: { 'key.change': 0 } } as const;
    expect(await forge(named)).to.deep.equal(['WAIT_KEY']);
    expect(await farEpoch()).to.equal(1);
  });

  it('freezes nothing with it once it is retired', async () => {
    await ask();
    await rotateKeys(red.test.db, red, 'test');
    await carryAll(red, blue);
    await importInto(blue);
    await ask();
    await carryAll(red, blue);
    await importInto(blue);
    expect(await forge({ stream: 'requests', seq: 2 })).to.deep.equal(['KEY_RETIRED']);
    expect(await forge({ stream: 'requests', seq: 3 })).to.deep.equal(['KEY_RETIRED']);
    expect(await frozen()).to.deep.equal([]);
  });

  it('freezes nothing with it once it is revoked, but is noticed', async () => {
    await ask();
    await carryAll(red, blue);
    await importInto(blue);
    await revokeFarKey(blue.test.db, blue, { kid: thief.kid, by: 'test' });
    expect(await forge({ stream: 'requests', seq: 1 })).to.deep.equal(['KEY_REVOKED']);
    expect(await forge({ stream: 'requests', seq: 2 })).to.deep.equal(['KEY_REVOKED']);
    expect(await frozen()).to.deep.equal([]);
    const alarms = await rows(
      blue.test.db,
      `select 1 from audit_log where action = 'link.alarm' and details->>'code' = 'KEY_REVOKED'`,
    );
    expect(alarms).to.have.lengthOf(2);
  });

  it('loses the keys that it announced by it, too', async () => {
    await rotateKeys(red.test.db, red, 'test');
    await carryAll(red, blue);
    await importInto(blue);
    const second = red.keys.kid;
    await rotateKeys(red.test.db, red, 'test');
    await carryAll(red, blue);
    await importInto(blue);
    const { card } = await revokeOwnKeys(red.test.db, red, 'test');
    const refused = trustCard(blue.test.db, blue, card, 'test');
    const [current] = await rows<{ kid: string }>(
      blue.test.db,
      'select kid from far_keys where retire is null',
    );
    expect(await refused.catch((error: Error) => error.message)).to.contain(current?.kid);
    const revoked = await revokeFarKey(blue.test.db, blue, { kid: thief.kid, by: 'test' });
    expect(revoked).to.have.members([thief.kid, second, current?.kid]);
    expect(await codeOfAsync(trustCard(blue.test.db, blue, card, 'test'))).to.equal(undefined);
  });
});
