import { expect } from 'chai';
import { findUserByLogin, newId, rows, type Role, type User } from '@sallyport/shared';
import {
  exportStream,
  importBatches,
  sendRecords,
  sendSnapshot,
  trustCard,
} from '@sallyport/transfer';
import {
  carryAll,
  decideApproval,
  listApprovals,
  makeTestNode,
  type TestNode,
} from '@sallyport/transfer/testing';
import { applyUsersKeepingAdmins } from './kept-admins.js';
import { MIGRATIONS } from './network.js';

const WEEK_MS = 7 * 86_400_000;

describe('applyUsersKeepingAdmins', () => {
  let red: TestNode;
  let blue: TestNode;
  const root = userOf('root', 'admin');
  const other = userOf('other', 'user');

  beforeEach(async () => {
    red = await makeTestNode('request', { migrations: MIGRATIONS.slice(2) });
    blue = await makeTestNode('response');
    await trustCard(red.test.db, red, blue.keys.card, 'test');
    await trustCard(blue.test.db, blue, red.keys.card, 'test');
    await send([root, other]);
    expect(await outcomes()).to.deep.equal(['APPLIED']);
  });
  afterEach(async () => {
    await red.remove();
    await blue.remove();
  });

  const recordOf = ({ id, ...data }: User) => ({ type: 'user' as const, id, data });
  const send = async (users: User[]) => {
    await blue.test.db.transaction((tx) =>
      sendRecords(tx, 'identity', users.map(recordOf), blue.clock.now()),
    );
    await exportStream(blue.test.db, blue, 'identity');
    await carryAll(blue, red);
  };
  const outcomes = async () => {
    const applies = { user: applyUsersKeepingAdmins };
    const { files } = await importBatches(red.test.db, red, applies);
    // Old files are still in the outbox that is carried.
    return files.map(({ outcome }) => outcome).filter((outcome) => outcome !== 'DUPLICATE');
  };
  const disabled = async (login: string) =>
    (await findUserByLogin(red.test.db, login))?.disabled ?? 'unknown';
  const decide = async (decision: 'approved' | 'declined') => {
    const [held] = await listApprovals(red.test.db);
    const decided = { id: held?.id ?? '', by: 'cli:olga', decision, reason: 'asked them' };
    return decideApproval(red.test.db, red, decided);
  };
  const gone = { ...root, version: 2, disabled: true };

  it('lets everything else through', async () => {
    await send([{ ...other, version: 2, disabled: true }]);
    expect(await outcomes()).to.deep.equal(['APPLIED']);
    await send([{ ...userOf('second', 'admin') }, gone]);
    expect(await outcomes()).to.deep.equal(['WAIT_APPROVAL']);
  });

  it('counts nobody among those who stay who came lately', async () => {
    red.time.now = new Date(red.time.now.getTime() + WEEK_MS / 2);
    blue.time.now = red.time.now;
    await send([userOf('second', 'admin')]);
    expect(await outcomes()).to.deep.equal(['APPLIED']);
    await send([gone]);
    expect(await outcomes()).to.deep.equal(['WAIT_APPROVAL']);
    expect(await disabled('root')).to.equal(false);
  });

  it('lets a second administrator take over after a week', async () => {
    await send([{ ...other, version: 2, roles: root.roles }]);
    expect(await outcomes()).to.deep.equal(['APPLIED']);
    for (const { time } of [red, blue]) time.now = new Date(time.now.getTime() + WEEK_MS);
    await send([gone]);
    expect(await outcomes()).to.deep.equal(['APPLIED']);
    expect(await disabled('root')).to.equal(true);
  });

  it('applies a held batch, and what waits behind it, once a person lets it in', async () => {
    await send([gone]);
    expect(await outcomes()).to.deep.equal(['WAIT_APPROVAL']);
    await send([{ ...other, version: 2, profile_version: 1, display_name: 'later' }]);
    expect(await outcomes()).to.include.members(['WAIT_APPROVAL', 'WAIT_GAP']);
    expect(await disabled('root')).to.equal(false);
    expect(await listApprovals(red.test.db)).to.have.lengthOf(1);
    const told = await rows(red.test.db, `select 1 from notices where kind = 'batch.held'`);
    expect(told).to.have.lengthOf(1);
    await decide('approved');
    expect(await outcomes()).to.deep.equal(['APPLIED', 'APPLIED']);
    expect(await disabled('root')).to.equal(true);
    expect((await findUserByLogin(red.test.db, 'other'))?.display_name).to.equal('later');
  });

  it('keeps a declined batch out for good, until a snapshot replaces it', async () => {
    await send([gone]);
    await outcomes();
    await decide('declined');
    expect(await outcomes()).to.deep.equal(['WAIT_APPROVAL']);
    expect(await listApprovals(red.test.db)).to.have.lengthOf(0);
    const users = [{ ...root, version: 3 }, other].map(recordOf);
    await sendSnapshot(blue.test.db, blue, 'identity', () => Promise.resolve(users));
    await carryAll(blue, red);
    expect(await outcomes()).to.include('APPLIED');
    expect(await disabled('root')).to.equal(false);
    expect(await outcomes()).not.to.include('WAIT_APPROVAL');
  });
});

function userOf(login: string, role: Role): User {
  return {
    id: newId(),
    version: 1,
    login,
    profile_type_id: newId(),
    roles: [{ network: 'request', role }],
    disabled: false,
    must_change_password: false,
    profile_version: 0,
    display_name: login,
    email: null,
    language: null,
    notices: {},
  };
}
