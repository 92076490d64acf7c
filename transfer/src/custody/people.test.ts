import { expect } from 'chai';
import { sharedMigrations, type RoleGrant } from '@sallyport/shared';
import { createTestDatabase, type TestDatabase } from '@sallyport/shared/testing';
import { transferMigrations } from '../keys/links.js';
import { commandLineActor } from '../open-node.js';
import { areTwoPeople, identifyPerson, isSamePerson } from './people.js';
import { makeTestUser } from '../test-people.js';

describe('identifyPerson', () => {
  let test: TestDatabase;
  const operator: RoleGrant[] = [{ network: 'response', role: 'operator' }];
  const typing = (password: string) => () => Promise.resolve(password);
  const asked = (as: string, password = 'right') =>
    identifyPerson(test.db, { as, network: 'response' }, typing(password));

  before(async () => {
    test = await createTestDatabase([sharedMigrations, transferMigrations]);
    await makeTestUser(test.db, 'olga', { roles: operator });
    await makeTestUser(test.db, 'root', { roles: [{ network: 'response', role: 'admin' }] });
    await makeTestUser(test.db, 'elsewhere', { roles: [{ network: 'request', role: 'operator' }] });
    await makeTestUser(test.db, 'plain', { roles: [{ network: 'response', role: 'user' }] });
    await makeTestUser(test.db, 'gone', { roles: operator, disabled: true });
    await makeTestUser(test.db, 'fresh', { roles: operator, must: true });
  });
  after(() => test.drop());

  it('names the account of the operating system without a login', async () => {
    const never = () => Promise.reject(new Error('nobody should be asked'));
    const name = await identifyPerson(test.db, { network: 'response' }, never);
    expect(name).to.match(/^cli:.+/);
  });

  it('names an operator or admin of this network who knows the password', async () => {
    expect(await asked('Olga')).to.equal('user:olga');
    expect(await asked('root')).to.equal('user:root');
  });

  it('says the same whatever is wrong', async () => {
    const said = new Set<string>();
    const refused = async (as: string, password?: string) => {
      const error = await asked(as, password).catch((thrown: unknown) => thrown);
      expect(error).to.include({ code: 'unauthenticated' });
      said.add((error as Error).message);
    };
    await refused('olga', 'wrong');
    await refused('olga', '');
    for (const login of ['nobody', 'elsewhere', 'plain', 'gone', 'fresh']) await refused(login);
    expect(said.size).to.equal(1);
  });
});

describe('isSamePerson', () => {
  it('takes an account and a login of one name for one person', () => {
    expect(isSamePerson('cli:olga', 'user:olga')).to.equal(true);
    expect(isSamePerson('cli:Olga', 'user:olga')).to.equal(true);
    expect(isSamePerson('cli:olga', 'user:igor')).to.equal(false);
  });

  it('looks at no domain', () => {
    expect(isSamePerson('cli:olga@corp', 'user:olga')).to.equal(true);
    expect(isSamePerson('cli:CORP\\Olga', 'user:olga')).to.equal(true);
    expect(isSamePerson('cli:olga@corp', 'cli:igor@corp')).to.equal(false);
  });
});

describe('areTwoPeople', () => {
  it('takes nobody at his word who is root', () => {
    const ann = commandLineActor({ username: 'root', uid: 0 }, 'ann');
    expect(areTwoPeople(ann, 'user:ben')).to.equal(false);
    expect(areTwoPeople('user:ben', ann)).to.equal(false);
    expect(areTwoPeople(commandLineActor({ username: 'toor', uid: 0 }), 'user:ben')).to.equal(
      false,
    );
    const own = commandLineActor({ username: 'ann', uid: 1000 }, 'ben');
    expect(areTwoPeople(own, 'user:ben')).to.equal(true);
    expect(areTwoPeople(own, 'user:ann')).to.equal(false);
  });
});
