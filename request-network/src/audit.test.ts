import { expect } from 'chai';
import { appendAudit } from '@sallyport/shared';
import { openTestNetwork, type TestNetwork } from './testing.js';

describe('the audit log over HTTP', () => {
  let network: TestNetwork;
  let as: string;
  before(async () => {
    network = await openTestNetwork();
    as = await network.tokenOf('auditor');
    for (const n of [1, 2, 3]) {
      await network.db.transaction((tx) =>
        appendAudit(tx, {
          ...{ at: network.clock.now(), actor: 'user:ada', action: 'thing.make' },
          ...{ subject: `thing ${n}`, details: { reason: 'because' } },
        }),
      );
    }
  });
  after(() => network.stop());

  const list = async (query: string) => {
    const { status, body } = await network.call(`/v1/admin/audit?action=thing.&${query}`, { as });
    expect(status).to.equal(200);
    const { items, next_page_token: token } = body as {
      items: { subject: string }[];
      next_page_token?: string;
    };
    return { subjects: items.map(({ subject }) => subject), token };
  };

  it('is read in pages, newest first', async () => {
    const first = await list('page_size=2');
    expect(first.subjects).to.deep.equal(['thing 3', 'thing 2']);
    const second = await list(`page_size=2&page_token=${first.token}`);
    expect(second).to.deep.equal({ subjects: ['thing 1'], token: undefined });
    expect((await list('text=BECAUSE&subject=thing%202')).subjects).to.deep.equal(['thing 2']);
  });

  it('takes a page token only with the filter and the caller that it was made for', async () => {
    const { token } = await list('page_size=2');
    const path = `/v1/admin/audit?page_size=2&page_token=${token}`;
    expect((await network.call(path, { as })).body['code']).to.equal('bad-page-token');
    const admin = await network.tokenOf('admin');
    const other = await network.call(`${path}&action=thing.`, { as: admin });
    expect(other.body['code']).to.equal('bad-page-token');
  });

  it('is verified and exported', async () => {
    const verified = await network.call('/v1/admin/audit:verify', { as, method: 'POST' });
    expect(verified.body).to.include({ ok: true, broken_at: null });
    const { text, headers } = await network.call('/v1/admin/audit:export', { as });
    expect(headers.get('content-type')).to.equal('application/x-ndjson');
    const lines = text.trimEnd().split('\n');
    const last = JSON.parse(lines.at(-1) ?? '') as { end: { entries: number; head: string } };
    expect(last.end).to.include({ entries: verified.body['entries'], head: verified.body['head'] });
    expect(lines).to.have.length(last.end.entries + 2);
  });
});
