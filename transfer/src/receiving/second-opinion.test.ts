import { expect } from 'chai';
import { askSecondOpinion, closeSecondOpinion } from './second-opinion.js';
import type { Question } from '../second-validator/judge.js';
import { makeTestPair, requestLine, writeTestBatch, type TestPair } from '../test-batch.js';

describe('askSecondOpinion', () => {
  let pair: TestPair;
  let question: Question;
  const limits = { heapMb: 192, minimumMs: 60_000, bytesPerMs: 1_000 };

  before(async () => {
    pair = await makeTestPair();
    const lines = Array.from({ length: 3_000 }, () => requestLine());
    const { path } = await writeTestBatch(pair, lines);
    question = {
      path,
      node: pair.response.node,
      link: pair.link,
      senders: [pair.request.card],
      identities: [...pair.response.ageIdentities],
    };
  });
  beforeEach(closeSecondOpinion);
  afterEach(closeSecondOpinion);
  after(() => pair.remove());

  it('answers several questions one after the other', async () => {
    const wrong = { ...question, node: 'other' };
    const asked = [question, wrong, question].map((each) => askSecondOpinion(each, 0));
    const verdicts = await Promise.all(asked);
    expect(verdicts.map(({ ok }) => ok)).to.deep.equal([true, false, true]);
  });

  it('asks a new thread once more when one dies', async () => {
    const heaps = [1, 192];
    const dying = {
      ...limits,
      get heapMb() {
        return heaps.shift() ?? 0;
      },
    };
    expect(await askSecondOpinion(question, 0, dying)).to.include({ ok: true });
    expect(heaps).to.deep.equal([]);
  });

  it('has no opinion from threads that fail, and a new one for the next question', async () => {
    const lost = await askSecondOpinion({ ...question, path: `${question.path}.gone` }, 0);
    expect(lost).to.include({ ok: false, code: 'WAIT_LOCK' });
    expect(lost).to.have.property('sentence').that.includes('ENOENT');
    expect(await askSecondOpinion(question, 0)).to.include({ ok: true });
  });

  it('has no opinion from late threads', async () => {
    const late = await askSecondOpinion(question, 0, { ...limits, minimumMs: 1 });
    expect(late).to.include({ ok: false, code: 'WAIT_LOCK' });
    expect(late).to.have.property('sentence').that.includes('longer than 1 ms');
    expect(await askSecondOpinion(question, 0)).to.include({ ok: true });
  });

  it('has no opinion from threads without memory', async () => {
    const full = await askSecondOpinion(question, 0, { ...limits, heapMb: 1 });
    expect(full).to.include({ ok: false, code: 'WAIT_LOCK' });
    expect(await askSecondOpinion(question, 0)).to.include({ ok: true });
  });
});
