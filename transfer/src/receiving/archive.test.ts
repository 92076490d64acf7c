import { expect } from 'chai';
import { readdir, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { pruneArchive } from './archive.js';
import { importBatches } from './import.js';
import { exportStream } from '../sending/export.js';
import { sendRecords } from '../sending/outbox.js';
import { carryAll, makeTestPair, recordingApplies, requestRecord } from '../testing.js';

describe('pruneArchive', () => {
  it('removes the files of old imports, and a repeat is still known', async () => {
    let paused = true;
    const { red, blue, remove } = await makeTestPair({ paused: () => paused });
    try {
      await sendRecords(red.test.db, 'requests', [requestRecord()], red.clock.now());
      expect(await exportStream(red.test.db, red, 'requests')).to.include({ sealed: 0 });
      paused = false;
      expect(await exportStream(red.test.db, red, 'requests')).to.include({ sealed: 1 });
      await carryAll(red, blue);
      await importBatches(blue.test.db, blue, recordingApplies);
      const [name = ''] = await readdir(blue.folders.archive);
      const at = blue.time.now;
      await utimes(join(blue.folders.archive, name), at, at);
      blue.time.now = new Date(at.getTime() + 91 * 86_400_000);
      expect(await pruneArchive(blue, 92)).to.equal(0);
      expect(await pruneArchive(blue, 90)).to.equal(1);
      expect(await readdir(blue.folders.archive)).to.deep.equal([]);
      await carryAll(red, blue);
      const { duplicates } = await importBatches(blue.test.db, blue, recordingApplies);
      expect(duplicates).to.equal(1);
    } finally {
      await remove();
    }
  });
});
