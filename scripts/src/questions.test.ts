import { randomBytes } from 'node:crypto';
import { requireEnvironment } from '@sallyport/shared/testing';
import { expect } from 'chai';
import { claimToJson, generateClaims, loadClaims } from './dataset.js';
import { callElasticsearch } from './elasticsearch-http.js';
import { answersAgree, QUESTIONS } from './questions.js';

const COUNT = 5_000;

describe('generateClaims', () => {
  it('gives the same claims for the same seed, others for another', () => {
    const text = (seed?: number) => [...generateClaims(50, seed)].map(claimToJson).join('\n');
    expect(text()).to.equal(text());
    expect(text(1)).not.to.equal(text(2));
  });

  it('begins with the same claims whatever the count', () => {
    expect([...generateClaims(10)]).to.deep.equal([...generateClaims(30)].slice(0, 10));
  });

  it('gives claims of one year with ledger numbers that no double holds', () => {
    for (const claim of generateClaims(COUNT)) {
      expect(claim.submitted_at >= '2025-01-01T' && claim.submitted_at < '2026-01-01T').to.equal(
        true,
      );
      expect(BigInt(Number(claim.ledger_no))).not.to.equal(claim.ledger_no);
      expect(claimToJson(claim)).to.include(`"ledger_no":${claim.ledger_no}}`);
    }
  });
});

describe('loadClaims', () => {
  let url: string;
  let index: string;
  before(() => {
    url = requireEnvironment('ELASTICSEARCH_URL');
    index = `claims-test-${randomBytes(6).toString('hex')}`;
  });
  after(() => callElasticsearch(url, index, { method: 'DELETE' }));

  it('loads all claims once', async () => {
    expect(await loadClaims(url, index, COUNT)).to.deep.equal({ loaded: COUNT });
    expect(await loadClaims(url, index, COUNT)).to.deep.equal({ loaded: 0 });
  });

  it('loads again what is not complete', async () => {
    await callElasticsearch(url, `${index}/_doc/C-2025-0000001`, { method: 'DELETE' });
    expect(await loadClaims(url, index, COUNT)).to.deep.equal({ loaded: COUNT });
    const { text } = await callElasticsearch(url, `${index}/_count`);
    expect((JSON.parse(text) as { count: number }).count).to.equal(COUNT);
  });

  it('does not touch an index that is not its own', async () => {
    const foreign = `${index}-foreign`;
    await callElasticsearch(url, foreign, { method: 'PUT', body: '{}' });
    const error = await loadClaims(url, foreign, 1).catch(
      (reason: { code: string }) => reason.code,
    );
    const { status } = await callElasticsearch(url, foreign, { method: 'DELETE' });
    expect([error, status]).to.deep.equal(['already-exists', 200]);
  });

  for (const question of QUESTIONS)
    it(`lets Elasticsearch answer as the documents do: ${question.title}`, async () => {
      const { status, text } = await callElasticsearch(url, `${index}/_search`, {
        method: 'POST',
        body: JSON.stringify(question.query),
      });
      expect(status, text).to.equal(200);
      const expected = question.expected(generateClaims(COUNT));
      expect(expected.flat()).not.to.have.length(0);
      expect(answersAgree(question.read(text), expected), text).to.equal(true);
    });
});

describe('answersAgree', () => {
  it('forgives rounding of fractions and nothing else', () => {
    expect(answersAgree([['a', 0.1 + 0.2]], [['a', 0.3]])).to.equal(true);
    expect(answersAgree([[0.3]], [[0.3001]])).to.equal(false);
    expect(answersAgree([[1e12]], [[1e12 + 1]])).to.equal(false);
    expect(answersAgree([['9007199254740993']], [['9007199254740992']])).to.equal(false);
    expect(answersAgree([[1]], [[1], [2]])).to.equal(false);
    expect(answersAgree([[1]], [[1, 2]])).to.equal(false);
  });
});
