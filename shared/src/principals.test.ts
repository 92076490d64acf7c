import { expect } from 'chai';
import { openDatabase } from './database.js';
import { createLog } from './log.js';
import {
  openPrincipals,
  type KeyLookup,
  type Principal,
  type PrincipalsOptions,
} from './principals.js';
import { generateSessionKey, loadSessionKey, unauthenticated } from './session-tokens.js';

const REMEMBERED = 10_000;
let time = new Date('2026-03-01T12:00:30.000Z');
/** The keys there are, and when they end. */
const ends = new Map<string, number>();

const lookup: KeyLookup = {
  find(key) {
    const expiresAtMs = ends.get(key);
    if (expiresAtMs === undefined) throw unauthenticated();
    return Promise.resolve({ principal: { keyId: key } as Principal, expiresAtMs });
  },
  noteUsed: () => Promise.resolve(),
};

async function open(change: Partial<PrincipalsOptions> = {}) {
  const db = openDatabase('postgres://nobody@127.0.0.1:1/nothing');
  await db.destroy();
  return openPrincipals({
    db,
    clock: { now: () => time },
    log: createLog('test', 'silent'),
    network: 'request',
    sessionKey: await loadSessionKey(await generateSessionKey()),
    issuer: 'red',
    keys: lookup,
    hearsChanges: () => true,
    ...change,
  });
}

type Opened = Awaited<ReturnType<typeof open>>;

async function knows(principals: Opened, key: string): Promise<boolean> {
  try {
    return (await principals.authenticate(`Bearer ${key}`)).keyId === key;
  } catch (error) {
    expect(error).to.include({ code: 'unauthenticated' });
    return false;
  }
}

describe('openPrincipals', () => {
  beforeEach(() => {
    ends.clear();
    ends.set('sp_a', Infinity);
  });

  it('remembers who showed a key until it drops everybody', async () => {
    const principals = await open();
    expect(await knows(principals, 'sp_a')).to.equal(true);
    ends.clear();
    expect(await knows(principals, 'sp_a')).to.equal(true);
    principals.drop();
    expect(await knows(principals, 'sp_a')).to.equal(false);
  });

  it('remembers nobody for longer than the key lives', async () => {
    const principals = await open();
    ends.set('sp_a', time.getTime() + 1);
    expect(await knows(principals, 'sp_a')).to.equal(true);
    ends.clear();
    expect(await knows(principals, 'sp_a')).to.equal(true);
    time = new Date(time.getTime() + 1);
    expect(await knows(principals, 'sp_a')).to.equal(false);
  });

  it('remembers nobody while it does not hear of changes', async () => {
    const principals = await open({ hearsChanges: () => false });
    expect(await knows(principals, 'sp_a')).to.equal(true);
    ends.clear();
    expect(await knows(principals, 'sp_a')).to.equal(false);
  });

  it('does not remember what was found before a change and answered after it', async () => {
    let answer: (() => void) | undefined;
    const find: KeyLookup['find'] = async (key) => {
      const found = await lookup.find(key);
      await new Promise<void>((resolve) => (answer = resolve));
      return found;
    };
    const principals = await open({ keys: { ...lookup, find } });
    const first = knows(principals, 'sp_a');
    await Promise.resolve();
    principals.drop();
    answer?.();
    expect(await first).to.equal(true);
    ends.clear();
    expect(await knows(principals, 'sp_a')).to.equal(false);
  });

  it('remembers a bounded number of keys, and none that is unknown', async () => {
    const principals = await open();
    expect(await knows(principals, 'sp_a')).to.equal(true);
    for (let n = 0; n < REMEMBERED; n++) {
      expect(await knows(principals, `sp_unknown${n}`)).to.equal(false);
    }
    ends.delete('sp_a');
    expect(await knows(principals, 'sp_a')).to.equal(true);
    for (let n = 0; n < REMEMBERED; n++) {
      ends.set(`sp_${n}`, Infinity);
      await knows(principals, `sp_${n}`);
    }
    expect(await knows(principals, 'sp_a')).to.equal(false);
  });

  it('notes the minute in which a key was used, again if that failed', async () => {
    const noted: [string, string][] = [];
    let fails = true;
    const noteUsed: KeyLookup['noteUsed'] = (used) => {
      if (fails) throw new Error('no database');
      for (const [key, at] of used) noted.push([key, at.toISOString()]);
      return Promise.resolve();
    };
    const principals = await open({ keys: { ...lookup, noteUsed } });
    time = new Date('2026-03-01T12:00:30.000Z');
    await knows(principals, 'sp_a');
    const failure = await principals.flush().catch((error: unknown) => error);
    expect(failure).to.include({ message: 'no database' });
    fails = false;
    await principals.flush();
    await principals.flush();
    expect(noted).to.deep.equal([['sp_a', '2026-03-01T12:00:00.000Z']]);
  });
});
