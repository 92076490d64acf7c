import { expect } from 'chai';
import { rows, type StreamName } from '@sallyport/shared';
import { makeAck, mergeAck } from './acks.js';
import { ZERO_DIGEST, type Ack } from './manifest.js';
import { makeTestPair, type TestNode } from './testing.js';

const digestOf = (seq: number) => (seq === 0 ? ZERO_DIGEST : seq.toString(16).padStart(64, 'a'));

describe('acknowledgements', () => {
  let red: TestNode;
  let blue: TestNode;
  let remove: () => Promise<void>;
  let link: string;

  before(async () => {
    ({ red, blue, remove } = await makeTestPair());
    const [found] = await rows<{ link: string }>(red.test.db, 'select link from links');
    link = found?.link ?? '';
  });
  after(() => remove());
  beforeEach(async () => {
    await red.test.db.raw('delete from outbound_batches');
    await red.test.db.raw('delete from far_acks');
    await blue.test.db.raw('delete from inbound_batches');
    await red.test.db.raw(
      `insert into outbound_batches (id, link, stream, epoch, seq, kind, state, build_token, version,
         digest, records, created_at)
       select gen_random_uuid(), ?, 'requests', 1, n, 'delta', 'ready', gen_random_uuid(), 1,
         lpad(to_hex(n), 64, 'a'), 1, now() from generate_series(1, 9) n`,
      [link],
    );
  });

  const told = (
    no: number,
    change: Partial<NonNullable<Ack['streams'][StreamName]>> = {},
  ): Ack => ({
    no,
    incarnation: '0197b2a0-0000-7000-8000-000000000009',
    streams: {
      requests: {
        epoch: 1,
        contiguous: 0,
        digest: digestOf(change.contiguous ?? 0),
        extra: [],
        missing: [],
        rejected: [],
        more: false,
        ...change,
      },
    },
  });
  const merge = (ack: Ack) =>
    red.test.db.transaction((tx) => mergeAck(tx, link, ack, red.clock.now()));
  const states = async () => {
    const found = await rows<{ states: string }>(
      red.test.db,
      `select string_agg(left(state, 2), ' ' order by seq) as states from outbound_batches`,
    );
    return found[0]?.states;
  };

  it('close what was applied, in any order of arrival', async () => {
    await merge(told(5, { contiguous: 4, extra: [[6, 7]], missing: [[5, 5]] }));
    await merge(told(3, { contiguous: 2, missing: [[3, 9]] }));
    expect(await states()).to.equal('ac ac ac ac re ac ac re re');
    const [kept] = await rows(red.test.db, 'select no, contiguous, missing from far_acks');
    expect(kept).to.deep.equal({ no: 5, contiguous: 4, missing: [[5, 5]] });
  });

  it('close what was refused for its content as refused', async () => {
    const rejected = [{ seq: 2, digest: digestOf(2), code: 'SCHEMA' }];
    await merge(told(1, { contiguous: 3, rejected }));
    const found = await rows(
      red.test.db,
      'select seq, state, far_code from outbound_batches where seq < 4 order by seq',
    );
    expect(found).to.deep.equal([
      { seq: 1, state: 'acked', far_code: null },
      { seq: 2, state: 'rejected', far_code: 'SCHEMA' },
      { seq: 3, state: 'acked', far_code: null },
    ]);
  });

  it('leave open what lies beyond a cut list of refusals', async () => {
    const rejected = [{ seq: 2, digest: digestOf(2), code: 'SCHEMA' }];
    await merge(told(1, { contiguous: 9, rejected, more: true }));
    expect((await states())?.split(' ').slice(2)).to.deep.equal(Array(7).fill('re'));
    const [open] = await rows<{ open: number }>(
      red.test.db,
      `select count(*) as open from outbound_batches where state = 'ready'`,
    );
    expect(open?.open).to.equal(7);
  });

  for (const [name, change] of [
    ['a digest that is not ours', { contiguous: 3, digest: digestOf(4) }],
    ['a number that was never sealed', { contiguous: 3, extra: [[11, 12]] as [number, number][] }],
  ] as const) {
    it(`refuse ${name}, and close nothing`, async () => {
      const { alarms } = await merge(told(1, change));
      expect(alarms.map(({ code }) => code)).to.deep.equal(['ACK_FORK']);
      expect(await states()).to.equal(Array(9).fill('re').join(' '));
    });
  }

  it('fit into line 1 however many holes there are', async () => {
    await blue.test.db.raw(
      `insert into inbound_batches (id, link, stream, epoch, seq, digest, prev, kind, state, code,
         file_name, file_bytes, records, types, duplicates, created_at, seen_at)
       select gen_random_uuid(), ?, stream, 1, n * 1000003, repeat('b', 64), repeat('c', 64), 'delta',
         case when n % 2 = 0 then 'rejected' else 'applied' end, 'SCHEMA', 'x', 1, 1, '{}', 0,
         now(), now()
       from generate_series(2, 900) n, unnest(array['requests', 'requests.urgent', 'control',
         'accounts']) stream`,
      [link],
    );
    const ack = await blue.test.db.transaction((tx) => makeAck(tx, link, 1));
    expect(JSON.stringify(ack).length).to.be.at.most(36 * 1024);
    expect(ack.streams.requests).to.include({ contiguous: 0, more: true });
    expect(ack.streams.requests?.missing[0]).to.deep.equal([1, 2 * 1_000_003 - 1]);
  });
});
