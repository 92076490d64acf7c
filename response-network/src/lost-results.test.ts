import { expect } from 'chai';
import { defaultSettings, newId, rows } from '@sallyport/shared';
import { responseRules } from './lost-results.js';
import { applyRequests } from './requests.js';
import { resendResults, storeOutcomes, type Outcome } from './results.js';
import { purgeAnswers } from './retention.js';
import { makeTestNetwork, type TestNetwork } from './testing.js';

describe('responseRules', () => {
  let network: TestNetwork;
  before(async () => {
    network = await makeTestNetwork(applyRequests);
  });
  after(() => network.stop());

  /** An answer of so many bytes, bound to a batch that the far side refused. */
  const answerInBatch = async (bytes: number): Promise<{ id: string; batch: string }> => {
    const { db } = network.test;
    const [id = ''] = await network.arrive(network.request());
    const now = network.time.now;
    const outcome: Outcome = {
      requestId: id,
      status: 'delivered',
      failure: null,
      text: JSON.stringify('x'.repeat(bytes)),
      datasetVersion: 1,
      policyVersion: 1,
      receivedAt: now,
      startedAt: now,
      finishedAt: now,
      tookMs: 1,
    };
    await storeOutcomes(db, [outcome], 'unstarted');
    return { id, batch: await bindWaiting() };
  };
  const bindWaiting = async (): Promise<string> => {
    const { db } = network.test;
    const batch = newId();
    await db.raw(
      `insert into links (link, far_node, epoch, far_epoch, manifest_no, ack_version, created_at)
       values ('test', 'red', 1, 1, 0, 0, now()) on conflict do nothing`,
    );
    await db.raw(
      `insert into outbound_batches (id, link, stream, epoch, seq, kind, state, build_token,
         version, records, created_at)
       select ?, 'test', 'results', 1, coalesce(max(seq), 0) + 1, 'delta', 'rejected', ?, 1, 1, now()
       from outbound_batches`,
      [batch, newId()],
    );
    await db.raw(
      `update outbox_records set batch_id = ?, batch_line = position where batch_id is null`,
      [batch],
    );
    return batch;
  };
  const fail = (id: string) =>
    network.test.db.transaction(async (tx) => {
      const lost = { id, stream: 'results', epoch: 1, seq: 1, code: 'SCHEMA' } as const;
      await responseRules.failRecords?.(tx, lost, network.time.now);
    });
  const waiting = async (id: string) => {
    const lines = await rows<{ line: string }>(
      network.test.db,
      'select line from outbox_records where record_id = ? and batch_id is null',
      [id],
    );
    return lines.map(({ line }) => JSON.parse(line) as { t: string; d: Record<string, unknown> });
  };

  for (const [what, bytes] of [
    ['a result', 10],
    ['a result in parts', 2_000_000],
  ] as const) {
    it(`send ${what} of a refused batch again as failed, class integrity`, async () => {
      const { id, batch } = await answerInBatch(bytes);
      await fail(batch);
      const sent = await waiting(id);
      expect(sent).to.have.length(1);
      expect(sent[0]?.d).to.deep.include({ status: 'failed', text: null, parts: 0, bytes: null });
      expect(sent[0]?.d['failure']).to.include({ class: 'integrity', code: 'SCHEMA' });
      expect(await network.result(id)).to.deep.include({ status: 'failed', text: null });
    });
  }

  it('do not keep an answer that left long ago, but that there was one', async () => {
    const { db } = network.test;
    const { id } = await answerInBatch(2_000_000);
    const now = new Date(network.time.now.getTime() + 31 * 86_400_000);
    const purge = () => purgeAnswers(db, { now, settings: defaultSettings() });
    await purge();
    expect(await network.result(id)).to.include({ purged_at: null });
    await db('outbox_records').where({ record_id: id }).delete();
    expect(await purge()).to.equal(1);
    expect(await network.result(id)).to.deep.include({ purged_at: now, text: null });
    await db.transaction((tx) => resendResults(tx, [id], now));
    const [sent] = await waiting(id);
    expect(sent?.d['failure']).to.include({ code: 'result-purged' });
  });

  it('do not repeat a failure that was refused in its turn', async () => {
    const { id, batch } = await answerInBatch(10);
    await fail(batch);
    await fail(await bindWaiting());
    expect(await waiting(id)).to.deep.equal([]);
  });
});
