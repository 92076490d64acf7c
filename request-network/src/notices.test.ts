import { expect } from 'chai';
import { addNotices, newId, pruneNotices, type NewNotice } from '@sallyport/shared';
import { openTestNetwork, type TestNetwork } from './testing.js';

const DAY_MS = 86_400_000;

let network: TestNetwork;
let tokens: Record<'ada' | 'bob' | 'admin' | 'auditor', string>;
before(async () => {
  network = await openTestNetwork();
  const { tokenOf } = network;
  tokens = {
    ada: await tokenOf('ada'),
    bob: await tokenOf('bob'),
    admin: await tokenOf('admin'),
    auditor: await tokenOf('auditor'),
  };
});
beforeEach(() => network.db('notices').delete());
after(() => network.stop());

type Seen = { id: string; title: string; read_at: string | null } & Record<string, unknown>;

function noticeTo(who: 'ada' | 'bob' | null, title: string, change: Partial<NewNotice> = {}) {
  return {
    userId: who && network.users[who].id,
    kind: 'limit.warning',
    severity: 'warning' as const,
    title,
    detail: `${title}.`,
    at: network.time.now,
    ...change,
  };
}

const write = (...notices: NewNotice[]) => network.db.transaction((tx) => addNotices(tx, notices));

async function titlesOf(who: keyof typeof tokens, path = '/v1/me/notices'): Promise<string[]> {
  const { body } = await network.call(path, { as: tokens[who] });
  return (body['items'] as Seen[]).map(({ title }) => title);
}

describe('addNotices', () => {
  it('tells a user what is for them, and all admins what is for admins', async () => {
    await write(noticeTo('ada', 'one'), noticeTo('bob', 'two'), noticeTo(null, 'three'));
    expect(await titlesOf('ada')).to.deep.equal(['one']);
    expect(await titlesOf('bob')).to.deep.equal(['two']);
    expect(await titlesOf('admin')).to.deep.equal(['three']);
    expect(await titlesOf('auditor')).to.deep.equal([]);
  });

  it('writes one notice per user, kind and key within the time, however many write it', async () => {
    const { now } = network.time;
    const again = (at: Date, who: 'ada' | 'bob' = 'ada') =>
      write(noticeTo(who, 'warned', { at, dedupe: { key: newKey, withinMs: 60_000 } }));
    const newKey = newId();
    await Promise.all(Array.from({ length: 8 }, () => again(now)));
    await again(new Date(now.getTime() + 59_999));
    expect(await titlesOf('ada')).to.deep.equal(['warned']);
    await again(new Date(now.getTime() + 60_000));
    expect(await titlesOf('ada')).to.deep.equal(['warned', 'warned']);
    await again(now, 'bob');
    expect(await titlesOf('bob')).to.deep.equal(['warned']);
  });

  it('is seen in the application unless the user chose other channels for its noun', async () => {
    const choose = (notices: object) =>
      network
        .db('users')
        .where({ login: 'ada' })
        .update({ notices: JSON.stringify(notices) });
    await write(noticeTo('ada', 'limit'), noticeTo('ada', 'key', { kind: 'key.expiring' }));
    await choose({ limit: ['email'], key: ['email', 'app'] });
    expect(await titlesOf('ada')).to.deep.equal(['key']);
    await choose({});
    expect(await titlesOf('ada')).to.have.members(['key', 'limit']);
  });
});

describe('GET /v1/me/notices', () => {
  it('comes in pages, newest first, whose tokens are for their reader and filter alone', async () => {
    for (const title of ['one', 'two', 'three']) await write(noticeTo('ada', title));
    const first = await network.call('/v1/me/notices?page_size=2', { as: tokens.ada });
    expect((first.body['items'] as Seen[]).map(({ title }) => title)).to.deep.equal([
      'three',
      'two',
    ]);
    const token = encodeURIComponent(String(first.body['next_page_token']));
    const path = `/v1/me/notices?page_size=2&page_token=${token}`;
    const last = await network.call(path, { as: tokens.ada });
    expect((last.body['items'] as Seen[]).map(({ title }) => title)).to.deep.equal(['one']);
    expect(last.body).to.not.have.property('next_page_token');
    const refused = await Promise.all([
      network.call(path, { as: tokens.bob }),
      network.call(`${path}&unread=true`, { as: tokens.ada }),
    ]);
    expect(refused.map(({ body }) => body['code'])).to.deep.equal([
      'bad-page-token',
      'bad-page-token',
    ]);
  });
});

describe('POST /v1/me/notices:read', () => {
  const read = (who: keyof typeof tokens, body: object) =>
    network.call('/v1/me/notices:read', { as: tokens[who], body });

  it('marks those that are named, once, and nobody else’s', async () => {
    for (const title of ['one', 'two']) await write(noticeTo('ada', title));
    await write(noticeTo('bob', 'three'));
    const { body } = await network.call('/v1/me/notices', { as: tokens.ada });
    const ids = [(body['items'] as Seen[])[0]?.id];
    expect((await read('bob', { ids })).body).to.deep.equal({ read: 0 });
    expect((await read('ada', { ids })).body).to.deep.equal({ read: 1 });
    expect((await read('ada', { ids })).body).to.deep.equal({ read: 0 });
    expect(await titlesOf('ada', '/v1/me/notices?unread=true')).to.deep.equal(['one']);
    expect((await read('ada', { all: true })).body).to.deep.equal({ read: 1 });
    expect(await titlesOf('bob', '/v1/me/notices?unread=true')).to.deep.equal(['three']);
  });

  it('reads a notice to all admins for all of them', async () => {
    await write(noticeTo(null, 'one'));
    expect((await read('auditor', { all: true })).body).to.deep.equal({ read: 0 });
    expect((await read('admin', { all: true })).body).to.deep.equal({ read: 1 });
    const { body } = await network.call('/v1/admin/notices', { as: tokens.auditor });
    const [sent] = body['items'] as Seen[];
    expect(sent).to.include({ title: 'one', recipient: null, read_by: 'admin' });
  });

  it('refuses a body that names neither ids nor all, both, or more', async () => {
    const bodies = [{}, { ids: [newId()], all: true }, { all: false }, { all: true, who: 'bob' }];
    for (const body of bodies) expect((await read('ada', body)).status).to.equal(422);
  });
});

describe('pruneNotices', () => {
  it('drops what is older than its days, and a mark only when nothing needs it', async () => {
    const ages = [91, 90, 1].map((days) => new Date(network.time.now.getTime() - days * DAY_MS));
    for (const at of ages) await write(noticeTo('ada', at.toISOString(), { at }));
    const at = ages[2] as Date;
    const marked = noticeTo('bob', 'once', { at, dedupe: { key: 'k', withinMs: 7 * DAY_MS } });
    await write(marked);
    const prune = (days: number) => pruneNotices(network.db, { now: network.time.now, days });
    expect([await prune(90), await prune(90)]).to.deep.equal([1, 0]);
    expect(await titlesOf('ada')).to.have.length(2);
    expect(await prune(0)).to.equal(3);
    await write({ ...marked, at: network.time.now });
    expect(await titlesOf('bob')).to.deep.equal([]);
  });
});

describe('GET /v1/admin/notices', () => {
  it('shows admins and auditors what was told to whom', async () => {
    await write(noticeTo('ada', 'one'));
    await write(noticeTo(null, 'two', { severity: 'critical' }));
    const path = '/v1/admin/notices';
    expect(await titlesOf('admin', path)).to.deep.equal(['two', 'one']);
    expect(await titlesOf('auditor', `${path}?recipient=ada`)).to.deep.equal(['one']);
    expect(await titlesOf('auditor', `${path}?recipient=admins`)).to.deep.equal(['two']);
    expect(await titlesOf('auditor', `${path}?severity=critical`)).to.deep.equal(['two']);
    expect(await titlesOf('auditor', `${path}?kind=other`)).to.deep.equal([]);
    for (const who of ['ada', 'operator', 'reviewer'] as const) {
      const as = await network.tokenOf(who);
      expect((await network.call(path, { as })).body['code']).to.equal('role-missing');
    }
  });
});
