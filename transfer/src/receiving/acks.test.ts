import { expect } from 'chai';
import fc from 'fast-check';
import { rows, type StreamName } from '@sallyport/shared';
import { makeAck, mergeAck } from './acks.js';
import { revokeFarKey } from '../keys/key-rotation.js';
import { ZERO_DIGEST, type Ack } from '../format/manifest.js';
import { makeTestPair, type TestNode } from '../testing.js';

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
    await red.test.db.raw('delete from far_incarnations');
    await red.test.db.raw('update links set far_no = 0, far_incarnation = null');
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
  const reset = async () => {
    await red.test.db.raw('delete from far_acks');
    await red.test.db.raw('delete from far_incarnations');
    await red.test.db.raw('update links set far_no = 0, far_incarnation = null');
    await red.test.db.raw(
      `update outbound_batches set state = 'ready', acked_at = null, closed_at = null`,
    );
  };
  const readStates = async () => {
    const found = await rows<{ seq: number; state: string }>(
      red.test.db,
      'select seq, state from outbound_batches order by seq',
    );
    return found.map(({ seq, state }) => [seq, state] as const);
  };
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

  it('refuse a refusal of other bytes than ours', async () => {
    const rejected = [{ seq: 2, digest: digestOf(3), code: 'SCHEMA' }];
    const { alarms } = await merge(told(1, { contiguous: 3, rejected }));
    expect(alarms.map(({ code }) => code)).to.deep.equal(['ACK_FORK']);
    expect(await states()).to.equal(Array(9).fill('re').join(' '));
  });

  it('change nothing when they are about an epoch that we have left', async () => {
    await red.test.db.raw('update links set epoch = 2');
    try {
      expect(await merge(told(1, { contiguous: 3 }))).to.deep.include({ receipts: [], alarms: [] });
      expect(await states()).to.equal(Array(9).fill('re').join(' '));
    } finally {
      await red.test.db.raw('update links set epoch = 1');
    }
  });

  it('open again what a restored far side has lost, and count no more what it told before', async () => {
    const restored = { incarnation: '0197b2a0-0000-7000-8000-00000000000a' };
    const before = told(5, { contiguous: 6 });
    await merge(before);
    await merge({ ...told(2, { contiguous: 4 }), ...restored });
    await merge(before);
    expect(await states()).to.equal('ac ac ac ac re re re re re');
    const lost = await rows<{ seq: number }>(
      red.test.db,
      `select seq from outbound_batches where acked_at is null and version = 3 order by seq`,
    );
    expect(lost.map(({ seq }) => seq)).to.deep.equal([5, 6]);
  });

  it('refuse a number that leaps, whatever the incarnation, and take the next true one', async () => {
    await merge(told(5, { contiguous: 2 }));
    const incarnation = '0197b2a0-0000-7000-8000-00000000000b';
    for (const leap of [told(10 ** 12, { contiguous: 9 }), { ...told(10 ** 12), incarnation }]) {
      const { alarms } = await merge(leap);
      expect(alarms.map(({ code }) => code)).to.deep.equal(['ACK_FORK']);
      expect(await states()).to.equal('ac ac re re re re re re re');
    }
    await merge(told(6, { contiguous: 3 }));
    expect(await states()).to.equal('ac ac ac re re re re re re');
  });

  it('count no more once the key of whoever told them is revoked', async () => {
    const incarnation = '0197b2a0-0000-7000-8000-00000000000b';
    await merge(told(5, { contiguous: 2 }));
    await merge({ ...told(900_000_000, { contiguous: 9 }), incarnation });
    await merge(told(6, { contiguous: 4, missing: [[5, 9]] }));
    expect(await states()).to.equal('ac ac ac ac ac ac ac ac ac');
    await revokeFarKey(red.test.db, red, { kid: blue.keys.kid, by: 'test' });
    await merge(told(7, { contiguous: 4, missing: [[5, 9]] }));
    expect(await states()).to.equal('ac ac ac ac re re re re re');
    const [kept] = await rows(red.test.db, 'select no, contiguous, missing from far_acks');
    expect(kept).to.deep.equal({ no: 7, contiguous: 4, missing: [[5, 9]] });
  });

  it('name what a restored far side has forgotten of epochs that are over', async () => {
    await merge(told(5, { contiguous: 6 }));
    await red.test.db.raw('update links set epoch = 3');
    const incarnation = '0197b2a0-0000-7000-8000-00000000000b';
    expect((await merge(told(6, { contiguous: 1 }))).forgotten).to.deep.equal([]);
    const { forgotten } = await merge({ ...told(1, { contiguous: 2 }), incarnation });
    await red.test.db.raw('update links set epoch = 1');
    expect(forgotten.map(({ epoch, seq, code }) => [epoch, seq, code])).to.deep.equal(
      [3, 4, 5, 6].map((seq) => [1, seq, 'OLD_EPOCH']),
    );
  });

  it('open all of an epoch again that a restored far side has not heard of any more', async () => {
    await merge(told(5, { contiguous: 6 }));
    await red.test.db.raw('update links set epoch = 2');
    await red.test.db.raw('update outbound_batches set epoch = 2');
    await red.test.db.raw('update far_acks set epoch = 2');
    const late = told(6, { contiguous: 4 });
    await merge(late);
    expect(await states()).to.equal('ac ac ac ac ac ac re re re');
    const incarnation = '0197b2a0-0000-7000-8000-00000000000a';
    await merge({ ...late, no: 1, incarnation });
    expect(await states()).to.equal('re re re re re re re re re');
    await merge({ ...told(3, { epoch: 2, contiguous: 2 }), incarnation });
    await merge({ ...late, no: 2, incarnation });
    expect(await states()).to.equal('ac ac re re re re re re re');
    await red.test.db.raw('update links set epoch = 1');
  });

  it('never let a batch pass for applied that is not, in any order, cut, and across restores', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(EVENT, { minLength: 5, maxLength: 40 }), async (events) => {
        await reset();
        const far = new FarSide();
        for (const event of events) {
          if (event.what === 'deliver') {
            const ack = far.take(event.at);
            if (ack) await merge(ack);
          } else {
            far.do(event);
          }
          for (const [seq, state] of await readStates()) {
            if (state === 'acked') expect(far.applied(seq), `number ${seq}`).to.equal(true);
          }
        }
        for (let seq = 1; seq <= 9; seq += 1) far.do({ what: 'apply', seq });
        for (let round = 0; round < 12; round += 1) {
          far.do({ what: 'tell', ranges: 1, refusals: 1 });
          const ack = far.take(-1);
          if (ack) await merge(ack);
        }
        for (const [seq, state] of await readStates()) {
          expect(state, `number ${seq}`).to.be.oneOf(['acked', 'rejected']);
          if (state === 'acked') expect(far.applied(seq), `number ${seq}`).to.equal(true);
        }
      }),
      { numRuns: 60 },
    );
  });

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

type FarEvent =
  | { what: 'apply' | 'refuse'; seq: number }
  | { what: 'tell'; ranges: number; refusals: number }
  | { what: 'restore' };
const Seq = fc.integer({ min: 1, max: 9 });
const EVENT = fc.oneof(
  { weight: 6, arbitrary: fc.record({ what: fc.constant('apply' as const), seq: Seq }) },
  { weight: 3, arbitrary: fc.record({ what: fc.constant('refuse' as const), seq: Seq }) },
  {
    weight: 5,
    arbitrary: fc.record({
      what: fc.constant('tell' as const),
      ranges: fc.integer({ min: 1, max: 4 }),
      refusals: fc.integer({ min: 1, max: 4 }),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({ what: fc.constant('deliver' as const), at: fc.nat({ max: 30 }) }),
  },
  { weight: 1, arbitrary: fc.constant({ what: 'restore' as const }) },
);

/** A pure model of a far side: what it applied and refused, what it told, and its backups. */
class FarSide {
  #closed = new Map<number, 'applied' | 'refused'>();
  #known = new Set<number>();
  #no = 0;
  #life = 1;
  #backup = { closed: new Map(this.#closed), known: new Set(this.#known), no: 0 };
  #sent: { ack: Ack; life: number; refused: number[] }[] = [];
  #heardLife = 0;

  /** In its present life, as far as the sender may know of it. */
  applied(seq: number): boolean {
    return this.#heardLife < this.#life
      ? this.#everApplied.has(seq)
      : this.#closed.get(seq) === 'applied';
  }
  readonly #everApplied = new Set<number>();

  do(event: FarEvent): void {
    if (event.what === 'tell') this.#tell(event);
    else if (event.what === 'restore') this.#restore();
    else if (!this.#closed.has(event.seq)) {
      this.#closed.set(event.seq, event.what === 'apply' ? 'applied' : 'refused');
      if (event.what === 'apply') this.#everApplied.add(event.seq);
    }
  }

  /** One of the acknowledgements that were told, any number of times; the newest for -1. */
  take(at: number): Ack | undefined {
    const sent = this.#sent.at(at < 0 ? -1 : at % Math.max(1, this.#sent.length));
    // Batches of a life that ended before any of it arrived are refused for their old epoch.
    const seen = this.#lives.has(sent?.life ?? 0);
    if (!sent || (sent.life < this.#heardLife && !seen)) return undefined;
    this.#lives.add(sent.life);
    this.#heardLife = Math.max(this.#heardLife, sent.life);
    if (sent.life === this.#life) for (const seq of sent.refused) this.#known.add(seq);
    return sent.ack;
  }
  readonly #lives = new Set<number>();

  #restore(): void {
    this.#closed = new Map(this.#backup.closed);
    this.#known = new Set(this.#backup.known);
    this.#no = this.#backup.no;
    this.#life += 1;
  }

  #tell({ ranges, refusals }: { ranges: number; refusals: number }): void {
    this.#no += 1;
    let contiguous = 0;
    while (this.#closed.has(contiguous + 1)) contiguous += 1;
    const beyond = [1, 2, 3, 4, 5, 6, 7, 8, 9].filter((seq) => seq > contiguous);
    const rangesOf = (numbers: number[]) => numbers.map((seq): [number, number] => [seq, seq]);
    const extra = rangesOf(beyond.filter((seq) => this.#closed.has(seq)));
    const missing = rangesOf(beyond.filter((seq) => !this.#closed.has(seq)));
    const pending = [...this.#closed]
      .filter(([seq, how]) => how === 'refused' && !this.#known.has(seq))
      .map(([seq]) => seq)
      .sort((a, b) => a - b);
    const refused = pending.slice(0, refusals);
    const requests = {
      epoch: 1,
      contiguous,
      digest: digestOf(contiguous),
      extra: extra.slice(0, ranges),
      missing: missing.slice(0, ranges),
      rejected: refused.map((seq) => ({ seq, digest: digestOf(seq), code: 'SCHEMA' })),
      more: extra.length > ranges || missing.length > ranges || pending.length > refusals,
    };
    const incarnation = `0197b2a0-0000-7000-8000-${String(this.#life).padStart(12, '0')}`;
    const ack = { no: this.#no, incarnation, streams: { requests } };
    this.#sent.push({ ack, life: this.#life, refused });
    if (this.#no % 3 === 0) {
      this.#backup = {
        closed: new Map(this.#closed),
        known: new Set(this.#known),
        no: this.#no,
      };
    }
  }
}
