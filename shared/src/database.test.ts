import { expect } from 'chai';
import { retryDeadlock, type Transaction } from './database.js';
import { createTestDatabase, eventually, type TestDatabase } from './testing.js';

describe('retryDeadlock', () => {
  let test: TestDatabase;
  before(async () => {
    test = await createTestDatabase([]);
    await test.db.raw('create table slots (id integer primary key, used integer not null)');
    await test.db.raw('insert into slots values (1, 0), (2, 0)');
  });
  after(() => test.drop());

  it('does the work of both when two wait for each other', async () => {
    const begun = new Set<string>();
    let tries = 0;
    const use = (tx: Transaction, id: number) => tx('slots').where({ id }).increment('used');
    const work = (name: string, first: number, second: number) =>
      retryDeadlock(() => {
        tries += 1;
        return test.db.transaction(async (tx) => {
          await use(tx, first);
          begun.add(name);
          await eventually(() => begun.size === 2);
          await use(tx, second);
        });
      });
    await Promise.all([work('one', 1, 2), work('other', 2, 1)]);
    expect(await test.db('slots').pluck('used')).to.deep.equal([2, 2]);
    expect(tries).to.be.at.least(3);
  });

  it('passes on everything else at once', async () => {
    let tries = 0;
    const failure = await retryDeadlock(() => {
      tries += 1;
      return Promise.reject(new Error('no'));
    }).catch((error: unknown) => error);
    expect(failure).to.have.property('message', 'no');
    expect(tries).to.equal(1);
  });
});
