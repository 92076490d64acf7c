import { copyFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import { newId } from '@sallyport/shared';
import { applyBatch } from './apply.js';
import { readCandidate, type Candidate } from './candidate.js';
import { exportStream } from '../sending/export.js';
import { readFarKeys, findLink, type Link } from '../keys/links.js';
import { sendRecords } from '../sending/outbox.js';
import { codeOfAsync } from '../test-codes.js';
import {
  appliedIds,
  makeTestPair,
  recordingApplies,
  requestRecord,
  type TestNode,
} from '../testing.js';

describe('applyBatch', () => {
  let red: TestNode;
  let blue: TestNode;
  let remove: () => Promise<void>;
  let candidate: Candidate;
  let claimed: string;
  const id = newId();

  beforeEach(async () => {
    ({ red, blue, remove } = await makeTestPair());
    await sendRecords(red.test.db, 'requests', [requestRecord(id)], red.clock.now());
    await exportStream(red.test.db, red, 'requests');
    const [name = ''] = await readdir(red.folders.outbox);
    claimed = join(blue.folders.staging, 'import-test.batch');
    await copyFile(join(red.folders.outbox, name), claimed);
    const link = (await findLink(blue.test.db)) as Link;
    const keys = await readFarKeys(blue.test.db, link.link);
    candidate = await readCandidate(blue, link, keys, claimed);
  });
  afterEach(() => remove());

  const apply = (changed: Candidate) =>
    applyBatch(blue.test.db, blue, recordingApplies, { candidate: changed, claimed });

  it('applies what both validators accept', async () => {
    expect(await apply(candidate)).to.equal(true);
    expect(await appliedIds(blue)).to.deep.equal([id]);
  });

  it('applies nothing of what only the importer accepts, and leaves no plain text', async () => {
    // The importer compares the link before, the second validator does it here.
    const code = await codeOfAsync(apply({ ...candidate, link: 'abcdefghijklmnop' }));
    expect(code).to.equal('VALIDATOR_DISAGREE');
    expect(await appliedIds(blue)).to.deep.equal([]);
    expect(await readdir(blue.folders.staging)).to.deep.equal(['import-test.batch']);
    expect(await apply(candidate)).to.equal(true);
  });
});
