import { expect } from 'chai';
import fc from 'fast-check';
import { cutLines } from './result-lines.js';

async function cut(text: string, pieceBytes = 7): Promise<string> {
  const bytes = Buffer.from(text);
  async function* pieces() {
    for (let at = 0; at < bytes.length; at += pieceBytes) {
      yield await Promise.resolve(bytes.subarray(at, at + pieceBytes));
    }
  }
  const out: Buffer[] = [];
  for await (const piece of cutLines(pieces())) out.push(piece);
  return Buffer.concat(out).toString();
}

describe('cutLines', () => {
  it('gives one line per hit and keeps integers beyond 2^53 exact', async () => {
    const text =
      '{"took":3,"hits":{"total":{"value":2},"hits":[{"_id":"a","_source":{"n":9007199254740993}},' +
      '{"_id":"b","_source":{"hits":{"hits":[1,[2]]},"x":"]}\\"{["}}]}}';
    expect(await cut(text)).to.equal(
      '{"_id":"a","_source":{"n":9007199254740993}}\n' +
        '{"_id":"b","_source":{"hits":{"hits":[1,[2]]},"x":"]}\\"{["}}\n',
    );
  });

  it('gives the aggregations as one line, without the line feeds of a pretty text', async () => {
    const text = '{\n "hits": {"hits": []},\n "aggregations": {\n  "a": {"value": 1.50}\n }\n}';
    expect(await cut(text)).to.equal('{"a":{"value":1.50}}\n');
  });

  it('gives nothing for a response with neither', async () => {
    expect(await cut('{"took":1,"hits":{"total":{"value":0},"hits":[]}}')).to.equal('');
  });

  it('finds the same hits as a parser, wherever the text is cut', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.dictionary(fc.string(), fc.jsonValue())),
        fc.dictionary(fc.string(), fc.jsonValue()),
        fc.integer({ min: 1, max: 50 }),
        async (hits, aggregations, pieceBytes) => {
          const text = JSON.stringify({ note: 'hits', hits: { max: 'hits', hits }, aggregations });
          const lines = (await cut(text, pieceBytes)).split('\n');
          expect(lines.pop()).to.equal('');
          expect(lines).to.deep.equal([...hits, aggregations].map((each) => JSON.stringify(each)));
        },
      ),
    );
  });
});
