import { expect } from 'chai';
import {
  appendAudit,
  keepJournal,
  pauseQueue,
  rows,
  type QueueAdmin,
  type Role,
} from '@sallyport/shared';
import { eventually, type CallOptions, type TestAnswer } from '@sallyport/shared/testing';
import { openTestApi, type TestApi } from './testing.js';

describe('queues and schedules of the response network', () => {
  let network: TestApi;
  const reason = 'A test wants it.';
  const worker = 'export-settings';
  const as = async (who: Role, path: string, options: CallOptions = {}): Promise<TestAnswer> =>
    network.call(`/v1/admin${path}`, { as: await network.tokenOf(who), ...options });
  const act = (path: string, body: Record<string, unknown> = { reason }, method = 'POST') =>
    as('admin', path, { body, method });
  const find = async (list: 'queues' | 'schedules'): Promise<Record<string, unknown>> => {
    const { body } = await as('auditor', `/${list}`);
    const items = body['items'] as Record<string, unknown>[];
    return items.find((one) => (one['name'] ?? one['worker']) === worker) ?? {};
  };

  before(async () => {
    network = await openTestApi();
  });
  after(() => network.stop());

  it('shows what waits, and how the last run went', async () => {
    expect(await find('queues')).to.include({ paused: false, depth: 0, last_run: null });
    const journal = keepJournal(network.db, network.clock);
    await journal.ended({ name: worker, ms: 5, error: undefined });
    await journal.ended({ name: worker, ms: 7, error: new Error('no more disk') });
    const queue = await find('queues');
    expect(queue).to.include({ retries: 1, runs: 2 });
    expect(queue['last_run']).to.include({ ok: false, error: 'no more disk' });
    expect(queue['last_success_at']).to.equal(network.time.now.toISOString());
  });

  it('pauses, resumes, drains and retries, each with a reason in the audit log', async () => {
    expect((await act(`/queues/${worker}:pause`)).status).to.equal(204);
    expect((await find('queues'))['paused']).to.equal(true);
    expect((await act(`/queues/${worker}:resume`)).status).to.equal(204);
    const drained = await act(`/queues/${worker}:drain`);
    expect(drained.body).to.deep.equal({ running: 0 });
    expect((await act(`/queues/${worker}:retry`)).status).to.equal(204);
    expect((await find('queues'))['depth']).to.equal(1);
    const entries = await rows<{ action: string; details: { reason: string } }>(
      network.db,
      `select action, details from audit_log where subject = ? and action like 'queue.%'
       order by position`,
      [worker],
    );
    expect(entries.map(({ action }) => action)).to.deep.equal([
      'queue.pause',
      'queue.resume',
      'queue.drain',
      'queue.retry',
    ]);
    expect(entries.every(({ details }) => details.reason === reason)).to.equal(true);
  });

  it('keeps the audit log free while the store does not answer, and notes that it failed', async () => {
    const { db, clock } = network;
    let fail: (error: Error) => void = () => undefined;
    const stuck = new Promise<void>((_done, failed) => (fail = failed));
    const queue = { isPaused: () => Promise.resolve(false), pause: () => stuck };
    const open = () => Promise.resolve({ queue: () => queue });
    const admin = { db, clock, queues: { open } } as unknown as QueueAdmin;
    const pausing = pauseQueue(admin, 'monitor', { actor: 'user:admin', reason });
    const facts = { actor: 'user:admin', subject: 'monitor', details: {} };
    const read = () =>
      rows<{ action: string }>(
        db,
        `select action from audit_log where subject = 'monitor' order by position`,
      );
    await eventually(async () => (await read()).length > 0);
    await db.transaction((tx) => appendAudit(tx, { ...facts, at: clock.now(), action: 'test.go' }));
    fail(new Error('the store is gone'));
    const failure = await pausing.catch((error: Error) => error.message);
    expect(failure).to.equal('the store is gone');
    expect((await read()).map(({ action }) => action)).to.deep.equal([
      'queue.pause',
      'test.go',
      'queue.pause-failed',
    ]);
  });

  it('discards only as many as its caller was shown', async () => {
    const path = `/queues/${worker}:discard`;
    const preview = await act(`${path}?dry_run=true`, {});
    expect(preview.body).to.deep.equal({ count: 1, discarded: false });
    const wrong = await act(path, { reason, expected: 2 });
    expect(wrong.body).to.include({ code: 'version-conflict', found: 1 });
    expect((await act(path, { reason })).body['code']).to.equal('bad-field');
    expect((await act(path, { reason, expected: 1 })).body).to.deep.equal({
      count: 1,
      discarded: true,
    });
    expect((await act(path, { reason, expected: 1 })).status).to.equal(409);
    expect((await find('queues'))['depth']).to.equal(0);
  });

  it('sets a cadence, and lets a schedule rest and go on', async () => {
    const body = { cadence_s: 77, reason };
    expect((await act(`/schedules/${worker}/cadence`, body, 'PUT')).status).to.equal(204);
    await eventually(async () => (await find('schedules'))['cadence_s'] === 77);
    expect((await find('schedules'))['next_at']).to.be.a('string');
    expect((await act(`/schedules/${worker}:pause`)).status).to.equal(204);
    expect(await find('schedules')).to.include({ paused: true, next_at: null });
    expect((await act(`/schedules/${worker}:run`)).status).to.equal(202);
    expect((await find('queues'))['depth']).to.be.above(0);
    expect((await act(`/schedules/${worker}:resume`)).status).to.equal(204);
    expect((await find('schedules'))['paused']).to.equal(false);
    const long = { cadence_s: 86_401, reason };
    expect((await act(`/schedules/${worker}/cadence`, long, 'PUT')).status).to.equal(422);
  });

  it('refuses other roles, unknown workers and acts without a reason', async () => {
    for (const who of ['user', 'reviewer'] as const) {
      expect((await as(who, '/queues')).status, who).to.equal(403);
    }
    for (const who of ['operator', 'auditor'] as const) {
      const refused = await as(who, `/queues/${worker}:pause`, { body: { reason } });
      expect(refused.status, who).to.equal(403);
    }
    expect((await act('/queues/export-requests:pause')).body['code']).to.equal('not-found');
    expect((await act(`/queues/${worker}:pause`, {})).body['code']).to.equal('bad-field');
  });
});
