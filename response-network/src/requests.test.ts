import { expect } from 'chai';
import { newId, verifyAudit } from '@sallyport/shared';
import { eventually } from '@sallyport/shared/testing';
import { applyCancellations, applyRequests, expireRequests } from './requests.js';
import { makeTestNetwork, type TestNetwork } from './testing.js';

const TWO_DAYS_MS = 2 * 86_400_000;

describe('requests that arrive', () => {
  let network: TestNetwork;
  before(async () => {
    network = await makeTestNetwork(applyRequests);
  });
  after(() => network.stop());

  const cancel = (id: string, user = network.users.ada.id) => {
    const expires = new Date(network.time.now.getTime() + 86_400_000).toISOString();
    const data = { user_id: user, expires_at: expires };
    return network.apply(applyCancellations, [{ type: 'request.cancel', id, data }]);
  };

  describe('applyRequests', () => {
    it('lets them wait exactly as they came', async () => {
      const request = network.request({ priority: 'urgent' }, { size: 3 });
      const [id = ''] = await network.arrive(request);
      expect(await network.state(id)).to.include({
        state: 'received',
        user_id: request.data.user_id,
        query: request.data.query,
        query_digest: request.data.query_digest,
        priority: 0,
        version: 1,
      });
      expect(await network.outbox(id)).to.deep.equal([]);
    });

    it('keeps the first when one comes again', async () => {
      const request = network.request();
      await network.arrive(request);
      const before = await network.state(request.id);
      await network.arrive(request);
      expect(await network.state(request.id)).to.deep.equal(before);
    });

    it('keeps the first when another comes under its id, and audits it', async () => {
      const [first, second] = [network.request(), network.request({}, { size: 7 })];
      await network.arrive(first);
      await network.arrive({ id: first.id, data: second.data });
      expect(await network.state(first.id)).to.include({ query: first.data.query });
      const entry = await network.test.db('audit_log').where({ subject: first.id }).first();
      expect(entry).to.include({ action: 'request.conflict' });
      expect(await verifyAudit(network.test.db)).to.include({ ok: true });
    });

    it('answers one that is not well formed with a rejection, and the others go on', async () => {
      const [good, bad] = [network.request(), newId()];
      await network.apply(applyRequests, [
        { type: 'request', id: bad, data: { tier: 'Z' }, bad: '/tier must be one of A, B, C' },
        { type: 'request', ...good },
      ]);
      expect(await network.state(good.id)).to.include({ state: 'received' });
      expect(await network.state(bad)).to.equal(undefined);
      const [record] = await network.outbox(bad);
      expect(record).to.include({ stream: 'results', t: 'result' });
      expect(record?.d).to.deep.include({ status: 'rejected', parts: 0, text: null });
      expect(record?.d['failure']).to.include({ code: 'bad-field' });
    });

    it('answers one past its deadline and the tolerance with expired', async () => {
      const ago = (ms: number) => new Date(network.time.now.getTime() - ms).toISOString();
      const [late, tolerated] = [
        network.request({ expires_at: ago(301_000) }),
        network.request({ expires_at: ago(299_000) }),
      ];
      await network.arrive(late, tolerated);
      expect(await network.result(late.id)).to.include({ status: 'expired' });
      expect(await network.state(late.id)).to.include({ state: 'done' });
      expect(await network.state(tolerated.id)).to.include({ state: 'received' });
    });

    it('answers again, with the same record, one that was answered before', async () => {
      const request = network.request();
      await network.arrive(request);
      await cancel(request.id);
      const [first] = await network.outbox(request.id);
      await network.arrive(request);
      const sent = await network.outbox(request.id);
      expect(sent).to.have.length(2);
      expect(sent[1]?.d).to.deep.equal(first?.d);
    });
  });

  describe('applyCancellations', () => {
    it('ends what has not started', async () => {
      const request = network.request();
      await network.arrive(request);
      await cancel(request.id);
      expect(await network.state(request.id)).to.include({ state: 'done' });
      expect((await network.outbox(request.id)).map(({ d }) => d['status'])).to.deep.equal([
        'cancelled',
      ]);
    });

    it('remembers one that overtook its request', async () => {
      const request = network.request();
      await cancel(request.id);
      await network.arrive(request);
      expect(await network.result(request.id)).to.include({ status: 'cancelled' });
    });

    it('tells the process that runs it', async () => {
      const request = network.request();
      await network.arrive(request);
      await network.test.db('requests').where({ id: request.id }).update({ state: 'running' });
      await cancel(request.id);
      expect((await network.state(request.id))?.['cancel_asked_at']).to.deep.equal(
        network.time.now,
      );
      expect(await network.result(request.id)).to.equal(undefined);
    });

    it('tells one that is put back at that very moment', async () => {
      const { db } = network.test;
      const request = network.request();
      await network.arrive(request);
      await db('requests').where({ id: request.id }).update({ state: 'running' });
      const puttingBack = await db.transaction();
      await puttingBack('requests').where({ id: request.id }).update({ state: 'received' });
      const cancelling = cancel(request.id);
      await eventually(async () => {
        const blocked = await db('pg_locks')
          .where({ granted: false, locktype: 'transactionid' })
          .whereIn(
            'pid',
            db('pg_stat_activity').select('pid').whereRaw('datname = current_database()'),
          );
        return blocked.length > 0;
      });
      await puttingBack.commit();
      await cancelling;
      const state = await network.state(request.id);
      expect(state).to.include({ state: 'received' });
      expect(state?.['cancel_asked_at']).to.deep.equal(network.time.now);
    });

    it("does not touch another user's request", async () => {
      const request = network.request();
      await network.arrive(request);
      await cancel(request.id, network.users.bob.id);
      expect(await network.state(request.id)).to.include({ state: 'received' });
    });

    it('changes nothing about what is done', async () => {
      const request = network.request();
      await network.arrive(request);
      await cancel(request.id);
      await cancel(request.id);
      expect(await network.outbox(request.id)).to.have.length(1);
      const kept = await network.test.db('cancellations').where({ request_id: request.id });
      expect(kept).to.deep.equal([]);
    });
  });

  describe('expireRequests', () => {
    it('ends what waited too long and forgets old cancellations', async () => {
      const request = network.request();
      const never = newId();
      await network.arrive(request);
      await cancel(never);
      const later = new Date(network.time.now.getTime() + TWO_DAYS_MS);
      expect((await expireRequests(network.test.db, later)).expired).to.be.greaterThan(0);
      expect(await network.result(request.id)).to.include({ status: 'expired' });
      expect(await network.test.db('cancellations').where({ request_id: never })).to.deep.equal([]);
      expect(await expireRequests(network.test.db, later)).to.deep.equal({ expired: 0 });
    });
  });
});
