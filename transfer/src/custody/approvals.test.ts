import { expect } from 'chai';
import { newId, rows, verifyAudit, type RoleGrant } from '@sallyport/shared';
import {
  askApproval,
  decideApproval,
  listApprovals,
  numberSubject,
  type Act,
} from './approvals.js';
import { codeOfAsync } from '../test-codes.js';
import { makeTestUser } from '../test-people.js';
import { makeTestPair, type TestNode } from '../testing.js';

describe('approvals', () => {
  let blue: TestNode;
  let remove: () => Promise<void>;
  const subject = numberSubject({ stream: 'requests', epoch: 1, seq: 50_000 });

  const ask = (by = 'cli:ann', about = subject, act: Act = 'jump') =>
    blue.test.db.transaction((tx) =>
      askApproval(tx, {
        act,
        subject: about,
        details: {},
        reason: 'they restored it',
        by,
        at: blue.clock.now(),
      }),
    );
  const decide = (id: string, by: string, decision: 'approved' | 'declined' = 'approved') =>
    decideApproval(blue.test.db, blue, { id, by, decision, reason: 'no' });
  const allowed = async () => {
    const found = await rows<{ to: number | null }>(
      blue.test.db,
      `select jump_allowed_to as to from inbound_streams where stream = 'requests'`,
    );
    return found[0]?.to ?? null;
  };

  beforeEach(async () => {
    ({ blue, remove } = await makeTestPair());
  });
  afterEach(() => remove());

  it('do what was asked for once another person approves', async () => {
    const { id } = await ask();
    expect(await allowed()).to.equal(null);
    await decide(id, 'user:ben');
    expect(await allowed()).to.equal(50_000);
    expect(await listApprovals(blue.test.db)).to.deep.equal([]);
    const [kept] = await listApprovals(blue.test.db, { all: true });
    expect(kept).to.include({ decision: 'approved', asked_by: 'cli:ann', decided_by: 'user:ben' });
  });

  it('take an admin where the importer holds a batch', async () => {
    const roleOn = (role: 'operator' | 'admin') => ({
      roles: [{ network: 'response', role }] as RoleGrant[],
    });
    await makeTestUser(blue.test.db, 'olga', roleOn('operator'));
    await makeTestUser(blue.test.db, 'adam', roleOn('admin'));
    const held = async () => (await ask('worker:import-batches', newId(), 'apply')).id;
    const first = await held();
    expect(await codeOfAsync(decide(first, 'user:olga'))).to.equal('role-missing');
    expect((await decide(first, 'user:adam')).decision).to.equal('approved');
    expect((await decide(await held(), 'cli:olga')).decision).to.equal('approved');
    expect((await decide(await held(), 'user:olga', 'declined')).decision).to.equal('declined');
  });

  it('refuse the person who asked, under any of their names', async () => {
    const { id } = await ask();
    expect(await codeOfAsync(decide(id, 'cli:ann'))).to.equal('approval-same-person');
    expect(await codeOfAsync(decide(id, 'user:ann'))).to.equal('approval-same-person');
    expect(await allowed()).to.equal(null);
  });

  it('need people, not root, on both sides', async () => {
    expect(await codeOfAsync(ask('cli:root'))).to.equal('unauthenticated');
    expect(await codeOfAsync(ask('cli:root (sudo: ann)'))).to.equal('unauthenticated');
    const { id } = await ask('user:ann');
    expect(await codeOfAsync(decide(id, 'cli:root'))).to.equal('unauthenticated');
    expect(await codeOfAsync(decide(id, 'cli:ann@corp'))).to.equal('approval-same-person');
    expect(await allowed()).to.equal(null);
    await decide(id, 'cli:root', 'declined');
  });

  it('answer a repeated question with the open one', async () => {
    const { id } = await ask();
    const again = await ask('cli:ben');
    expect(again).to.include({ id, fresh: false, asked_by: 'cli:ann' });
    expect(await listApprovals(blue.test.db)).to.have.lengthOf(1);
  });

  it('may be taken back by whoever asked, and then asked for again', async () => {
    const { id } = await ask();
    await decide(id, 'cli:ann', 'declined');
    expect(await allowed()).to.equal(null);
    expect(await ask()).to.include({ fresh: true });
  });

  it('are decided once', async () => {
    const { id } = await ask();
    const both = await Promise.allSettled([decide(id, 'cli:ben'), decide(id, 'cli:cem')]);
    expect(both.map(({ status }) => status).sort()).to.deep.equal(['fulfilled', 'rejected']);
    expect(await codeOfAsync(decide(id, 'cli:dan'))).to.equal('version-conflict');
  });

  it('stay open when what they allow is not possible any more', async () => {
    const { id } = await ask('cli:ann', numberSubject({ stream: 'requests', epoch: 7, seq: 9 }));
    expect(await codeOfAsync(decide(id, 'cli:ben'))).to.equal('version-conflict');
    expect(await listApprovals(blue.test.db)).to.have.lengthOf(1);
  });

  it('are found by the beginning of their id', async () => {
    const { id } = await ask();
    await decide(id.slice(0, 20), 'cli:ben');
    expect(await allowed()).to.equal(50_000);
    expect(await codeOfAsync(decide('ffffffff', 'cli:ben'))).to.equal('not-found');
    expect(await codeOfAsync(decide("' or 1=1 --", 'cli:ben'))).to.equal('not-found');
  });

  it('leave both names and the reason in the audit log', async () => {
    const { id } = await ask();
    await decide(id, 'cli:ben');
    const found = await rows<{ action: string; actor: string }>(
      blue.test.db,
      `select action, actor from audit_log where subject = ? order by position`,
      [id],
    );
    expect(found).to.deep.equal([
      { action: 'approval.ask', actor: 'cli:ann' },
      { action: 'approval.approve', actor: 'cli:ben' },
    ]);
    expect((await verifyAudit(blue.test.db)).ok).to.equal(true);
  });
});
