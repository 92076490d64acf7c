import { expect } from 'chai';
import { newId, rows } from '@sallyport/shared';
import type { EventView } from './request-schemas.js';
import { applyResults } from './results.js';
import { QUERY, openTestNetwork, type TestNetwork } from './testing.js';

describe('GET /v1/requests/{id}/timeline', () => {
  let network: TestNetwork;

  before(async () => {
    network = await openTestNetwork();
  });
  after(() => network.stop());

  const note = (digest: string, step: string, source: string, minutes: number) =>
    rows(
      network.db,
      `insert into custody_events (id, link, stream, epoch, seq, digest, step, who, at, medium,
                                   source, recorded_at)
       values (?, 'test', 'any', 1, 1, ?, ?, 'Kim the carrier', ?, 'stick 7', ?, now())`,
      [newId(), digest, step, new Date(network.time.now.getTime() + minutes * 60_000), source],
    );

  it('shows how both batches were carried, and nobody who carried them', async () => {
    const { body } = await network.call('/v1/requests', {
      body: { dataset: 'claims', query: QUERY },
    });
    const id = String(body['id']);
    await network.bindWaiting('acked');
    const at = network.time.now.toISOString();
    const empty = { failure: null, media_type: null, bytes: null, sha256: null, text: null };
    const d = {
      ...{ ...empty, status: 'cancelled' as const, parts: 0, disclosure: null },
      ...{ dataset_version: 3, policy_version: 1 },
      times: { received_at: at, started_at: at, finished_at: at, took_ms: 3 },
    };
    await network.apply([applyResults], [{ t: 'result', id, d }]);
    // The clock of the far side is an hour behind.
    const story: [string, string, string, number][] = [
      ['abc', 'applied', 'far', -58],
      ['abc', 'verified', 'far', -59],
      ['abc', 'received', 'far', -60],
      ['abc', 'sealed', 'own', 0],
      ['abc', 'written', 'carrier', 1],
      ['abc', 'receipt', 'own', 9],
      ['d'.repeat(64), 'sealed', 'far', -50],
      ['d'.repeat(64), 'applied', 'own', 9],
      ['d'.repeat(64), 'handed_over', 'far', -49],
    ];
    for (const each of story) await note(...each);
    const { body: answer, text } = await network.call(`/v1/requests/${id}/timeline`);
    const events = answer['events'] as EventView[];
    expect(events.map(({ event, network: on }) => `${event} ${on}`)).to.deep.equal([
      'submitted request',
      'batched request',
      'custody.written request',
      'custody.received response',
      'custody.verified response',
      'custody.applied response',
      'processing request',
      'received response',
      'started response',
      'finished response',
      'custody.sealed response',
      'custody.handed_over response',
      'custody.applied request',
      'cancelled request',
    ]);
    expect(text).to.not.contain('Kim').and.not.contain('stick 7');
  });
});
