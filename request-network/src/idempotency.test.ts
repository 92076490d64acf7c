import { expect } from 'chai';
import { openTestNetwork, QUERY, type TestNetwork } from './testing.js';

describe('Idempotency-Key', () => {
  let network: TestNetwork;
  before(async () => {
    network = await openTestNetwork();
  });
  after(() => network.stop());

  const submit = (key: string, change: object = {}, as = network.users.ada.key) =>
    network.call('/v1/requests', {
      as,
      body: { dataset: 'claims', query: QUERY, ...change },
      headers: { 'idempotency-key': key },
    });
  const codeOf = ({ status, body }: { status: number; body: object }) =>
    'code' in body ? `${status} ${String(body.code)}` : status;
  const withdraw = (disabled: boolean) => {
    network.replica.drop();
    return network.db('datasets').where({ name: 'claims' }).update({ disabled });
  };

  it('is looked at before anything else of the call', async () => {
    const first = await submit('first');
    await withdraw(true);
    try {
      expect(codeOf(await submit('else'))).to.equal('403 dataset-forbidden');
      const again = await submit('first');
      expect(again.headers.get('idempotency-replayed')).to.equal('true');
      expect(again.body).to.deep.equal(first.body);
      // Another call, which would be refused too: that the key is taken comes first.
      expect(codeOf(await submit('first', { tags: ['x'] }))).to.equal('422 idempotency-key-reused');
    } finally {
      await withdraw(false);
    }
  });

  it('makes a repetition free', async () => {
    const first = await submit('free');
    expect(first.headers.get('ratelimit')).to.match(/r=\d+/);
    const again = await submit('free');
    expect(again.headers.get('ratelimit')).to.equal(null);
    const next = await submit('not free');
    const left = ({ headers }: { headers: Headers }) =>
      Number(/r=(\d+)/.exec(headers.get('ratelimit') ?? '')?.[1]);
    expect(left(first) - left(next)).to.equal(1);
  });

  it('is free again after a refusal', async () => {
    expect(codeOf(await submit('refused', { dataset: 'nothing' }))).to.equal(
      '403 dataset-forbidden',
    );
    const corrected = await submit('refused');
    expect(corrected.status).to.equal(202);
    expect(corrected.headers.get('idempotency-replayed')).to.equal(null);
  });

  it('takes a body for the same however it is written', async () => {
    const text = (...members: string[]) =>
      network.call('/v1/requests', {
        text: `{${members.join(', ')}}`,
        headers: { 'idempotency-key': 'written' },
      });
    const query = `"query": ${JSON.stringify(QUERY)}`;
    const first = await text('"dataset":"claims"', query);
    const again = await text(query, '"dataset" : "cl\\u0061ims"');
    expect(again.body).to.deep.equal(first.body);
    expect(again.headers.get('idempotency-replayed')).to.equal('true');
  });

  it('is of the user, by whatever means they called', async () => {
    const byKey = await submit('whose');
    const bySession = await submit('whose', {}, await network.tokenOf('ada'));
    expect(bySession.body).to.deep.equal(byKey.body);
    const byBob = await submit('whose', {}, network.users.bob.key);
    expect(byBob.body['id']).to.not.equal(byKey.body['id']);
  });

  it('refuses a second call while the first is under way', async () => {
    await network.db.transaction(async (tx) => {
      const name = `${network.users.ada.id} flying`;
      await tx.raw('select pg_advisory_xact_lock(hashtextextended(?, 7215003))', [name]);
      const refused = await submit('flying');
      expect(codeOf(refused)).to.equal('409 in-flight');
      expect(refused.headers.get('retry-after')).to.equal('1');
    });
    expect((await submit('flying')).status).to.equal(202);
  });

  it('has 1 to 255 characters', async () => {
    expect((await submit('k'.repeat(255))).status).to.equal(202);
    for (const key of ['', 'k'.repeat(256)]) {
      expect(codeOf(await submit(key))).to.equal('400 bad-header');
    }
  });
});
