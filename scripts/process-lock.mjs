// Plain JavaScript without dependencies: the bootstrap needs it before anything is installed.
import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import * as fs from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

const BREAK_LIMIT_MS = 10_000;

/**
 * Runs `work` while this process alone holds the lock file `file`; a lock whose owner has died is
 * taken over. `onWait` is told once who holds it. Waits at most `limitMs` (default 20 minutes).
 */
export async function withLock(file, work, { onWait, limitMs = 1_200_000 } = {}) {
  const deadline = Date.now() + limitMs;
  const mine = JSON.stringify({
    pid: process.pid,
    stamp: processStamp(process.pid),
    id: randomUUID(),
  });
  let told = false;
  while (!takeLock(file, mine)) {
    const holder = readHolder(file);
    if (holder === undefined || !isAlive(holder)) {
      breakLock(file);
    } else {
      if (!told && onWait !== undefined) onWait(holder.pid);
      told = true;
      if (Date.now() > deadline)
        throw new Error(`process ${holder.pid} holds ${file} for longer than ${limitMs / 1000} s`);
    }
    await delay(50);
  }
  try {
    return await work();
  } finally {
    // Only our own: after a long stop of this process somebody may have taken it over.
    if (readText(file) === mine) fs.rmSync(file, { force: true });
  }
}

/** True while the very process that was recorded runs; a later process with its number is not it. */
export function isAlive({ pid, stamp }) {
  const now = processStamp(pid);
  return now !== undefined && now === stamp;
}

/** Tells one process from every other that had or will have its number; undefined when it is gone. */
export function processStamp(pid) {
  if (process.platform === 'linux') {
    const stat = readText(`/proc/${pid}/stat`);
    if (stat === undefined) return undefined;
    // The name in parentheses may hold spaces; state and start time follow it (proc(5)).
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    if (fields[0] === 'Z' || fields[0] === 'X') return undefined;
    return `${(readText('/proc/sys/kernel/random/boot_id') || '').trim()}:${fields[19]}`;
  }
  try {
    const text = execFileSync('ps', ['-o', 'stat=,lstart=', '-p', String(pid)], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
    return text === '' || text.startsWith('Z') ? undefined : text.slice(text.indexOf(' ')).trim();
  } catch {
    return undefined;
  }
}

function takeLock(file, mine) {
  // A link appears with its content, so nobody ever reads a lock that has no owner yet.
  const own = `${file}.${process.pid}.${randomUUID()}`;
  fs.writeFileSync(own, mine, { mode: 0o600 });
  try {
    fs.linkSync(own, file);
    return true;
  } catch (error) {
    if (error.code === 'EEXIST') return false;
    throw error;
  } finally {
    fs.rmSync(own, { force: true });
  }
}

/** Removes the lock of a dead owner; one at a time, or a second breaker would remove a new lock. */
function breakLock(file) {
  const breaking = `${file}.break`;
  try {
    fs.mkdirSync(breaking);
  } catch (error) {
    if (error.code !== 'EEXIST') throw error;
    const age =
      Date.now() - (fs.statSync(breaking, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());
    if (age > BREAK_LIMIT_MS) fs.rmSync(breaking, { recursive: true, force: true });
    return;
  }
  try {
    const holder = readHolder(file);
    if (holder === undefined || !isAlive(holder)) fs.rmSync(file, { force: true });
  } finally {
    fs.rmSync(breaking, { recursive: true, force: true });
  }
}

function readHolder(file) {
  try {
    const holder = JSON.parse(readText(file) ?? '');
    return typeof holder?.pid === 'number' ? holder : undefined;
  } catch {
    return undefined;
  }
}

function readText(file) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch (error) {
    if (error.code === 'ENOENT' || error.code === 'ESRCH') return undefined;
    throw error;
  }
}
