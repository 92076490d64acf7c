import { expect } from 'chai';
import { Redis } from 'ioredis';
import { cacheKey } from './byte-cache.js';
import { newId } from './ids.js';
import { createLog } from './log.js';
import { openSharedCache, type SharedCache } from './redis-cache.js';

const redisUrl = process.env['TEST_REDIS_URL'];
const log = createLog('test', 'silent');
const limits = { maxBytes: 1_000, ttlMs: 60_000 };
const time = { now: new Date() };
const clock = { now: () => time.now };

function open(url: string, prefix = newId()): SharedCache {
  return openSharedCache(url, { prefix, limits: () => limits, clock, log });
}

const keyOf = (what: string, { dataset = 'claims', user = 'ada' } = {}) =>
  cacheKey({ dataset, user, what });

describe('openSharedCache', () => {
  it('does without a Redis that is not there', async () => {
    const cache = open('redis://127.0.0.1:1');
    await cache.put(keyOf('1'), Buffer.from('one'));
    expect(await cache.get(keyOf('1'))).to.equal(undefined);
    expect(await cache.size()).to.equal(undefined);
    expect(await cache.drop({})).to.deep.equal({ entries: 0, bytes: 0 });
    cache.close();
  });

  if (!redisUrl) return;

  describe('with Redis', () => {
    const prefix = newId();
    let cache: SharedCache;
    let redis: Redis;
    before(() => {
      cache = open(redisUrl, prefix);
      redis = new Redis(redisUrl);
    });
    after(async () => {
      await cache.drop({});
      await redis.del(`{${prefix}}:facts`);
      redis.disconnect();
      cache.close();
    });
    afterEach(() => cache.drop({}));

    it('gives every process the bytes that one has put', async () => {
      const bytes = Buffer.from([0, 255, 10, 200]);
      await cache.put(keyOf('1'), bytes);
      const other = open(redisUrl, prefix);
      expect(await other.get(keyOf('1'))).to.deep.equal(bytes);
      expect(await other.get(keyOf('2'))).to.equal(undefined);
      other.close();
    });

    it('never holds more than its limit: the oldest go first', async () => {
      for (let n = 1; n <= 5; n += 1) {
        time.now = new Date(time.now.getTime() + 1);
        await cache.put(keyOf(String(n)), Buffer.alloc(300, n));
      }
      await cache.put(keyOf('huge'), Buffer.alloc(2_000));
      expect(await cache.size()).to.include({ entries: 3, bytes: 900, evictions: 2 });
      expect(await cache.get(keyOf('2'))).to.equal(undefined);
      expect((await cache.get(keyOf('3')))?.length).to.equal(300);
    });

    it('drops what a scope names, and counts it first', async () => {
      await cache.put(keyOf('1'), Buffer.alloc(10));
      await cache.put(keyOf('2', { user: 'bob' }), Buffer.alloc(20));
      await cache.put(keyOf('3', { dataset: 'bills' }), Buffer.alloc(40));
      expect(await cache.count({ user: 'ada' })).to.deep.equal({ entries: 2, bytes: 50 });
      expect(await cache.drop({ dataset: 'bills' })).to.deep.equal({ entries: 1, bytes: 40 });
      expect(await cache.drop({ key: keyOf('1') })).to.deep.equal({ entries: 1, bytes: 10 });
      expect(await cache.size()).to.include({ entries: 1, bytes: 20 });
    });

    it('forgets with trim what is too old', async () => {
      await cache.put(keyOf('1'), Buffer.alloc(10));
      time.now = new Date(time.now.getTime() + limits.ttlMs + 1);
      await cache.trim();
      expect(await cache.size()).to.include({ entries: 0, bytes: 0 });
    });
  });
});
