import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { expect } from 'chai';
import { isAlive, processStamp, withLock } from '../process-lock.mjs';

describe('withLock', () => {
  let folder: string;
  let lock: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'sallyport lock '));
    lock = join(folder, 'lock');
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  it('lets one in at a time', async () => {
    let inside = 0;
    let most = 0;
    const work = async () => {
      most = Math.max(most, ++inside);
      await turn();
      inside--;
    };
    await Promise.all(Array.from({ length: 8 }, () => withLock(lock, work)));
    expect(most).to.equal(1);
    expect(readdirSync(folder)).to.deep.equal([]);
  });

  it('is free again after work that fails', async () => {
    const failed = await withLock(lock, () => Promise.reject(new Error('no'))).catch(
      () => 'failed',
    );
    expect(failed).to.equal('failed');
    expect(await withLock(lock, () => 'in')).to.equal('in');
  });

  it('takes over from an owner that has died, and from half a lock', async () => {
    const dead = spawnSync(process.execPath, ['--version']);
    for (const content of [JSON.stringify({ pid: dead.pid, stamp: 'x' }), '{"pi']) {
      writeFileSync(lock, content);
      expect(await withLock(lock, () => 'in')).to.equal('in');
    }
  });

  it('takes over when another process has got the number of the owner', async () => {
    writeFileSync(lock, JSON.stringify({ pid: process.pid, stamp: 'before the restart' }));
    expect(await withLock(lock, () => 'in')).to.equal('in');
  });

  it('tells who holds it, and gives up at the limit', async () => {
    const child = spawn('sleep', ['60']);
    const pid = child.pid as number;
    writeFileSync(lock, JSON.stringify({ pid, stamp: processStamp(pid) }));
    const told: number[] = [];
    const options = { onWait: (holder: number) => told.push(holder), limitMs: 100 };
    const error = await withLock(lock, () => 'in', options).catch(
      (reason: Error) => reason.message,
    );
    child.kill();
    expect(told).to.deep.equal([pid]);
    expect(error).to.include(`process ${pid} holds`);
  });
});

describe('isAlive', () => {
  it('knows this process and no other of its number', () => {
    const stamp = processStamp(process.pid) as string;
    expect(isAlive({ pid: process.pid, stamp })).to.equal(true);
    expect(isAlive({ pid: process.pid, stamp: `${stamp}0` })).to.equal(false);
  });
});
