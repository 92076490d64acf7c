import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { inParallel, rate } from './benchmark.js';
import { submission } from './requests.js';

const run = promisify(execFile);
/** As many processes as keep two cores busy. */
const AT_A_TIME = 2;
const NEIGHBOUR_KEYS = ['id', 'exchpub', 'signpub', 'noisepub'] as const;
const OWN_KEYS = [...NEIGHBOUR_KEYS, 'exchprv', 'signprv', 'noiseprv'] as const;

/** Whether the programs of NNCP (Debian: `apt-get install nncp`) are here. */
export async function hasNncp(): Promise<boolean> {
  return run('nncp-file', ['-version']).then(
    () => true,
    () => false,
  );
}

/**
 * Sends so many requests from one NNCP node to another and has a program take each there; answers how
 * many a second. One packet each by nncp-file, carried by nncp-xfer, unpacked by nncp-toss.
 */
export async function crossByNncp(count: number): Promise<number> {
  const folder = await mkdtemp(join(tmpdir(), 'sallyport-bench-nncp-'));
  try {
    const { near, far, incoming } = await makeNodes(folder);
    const carried = join(folder, 'carried');
    await mkdir(carried);
    const numbers = Array.from({ length: count }, (_, n) => n);
    const found = await rate(count, async () => {
      await inParallel(numbers, AT_A_TIME, (n) => {
        const sent = run('nncp-file', ['-cfg', near, '-quiet', '-', `far:request-${n}.json`]);
        sent.child.stdin?.end(submission(n));
        return sent;
      });
      await run('nncp-xfer', ['-cfg', near, '-quiet', '-mkdir', carried]);
      await run('nncp-xfer', ['-cfg', far, '-quiet', carried]);
      await run('nncp-toss', ['-cfg', far, '-quiet']);
      await inParallel(await readdir(incoming), AT_A_TIME, (name) =>
        run('cat', [join(incoming, name)]),
      );
    });
    const arrived = (await readdir(incoming)).length;
    if (arrived !== count) throw new Error(`nncp delivered ${arrived} of ${count} files`);
    return found;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Two nodes that know each other: the paths of their configurations. */
async function makeNodes(folder: string): Promise<{ near: string; far: string; incoming: string }> {
  const incoming = join(folder, 'incoming');
  await mkdir(incoming);
  const keys = { near: await makeKeys(), far: await makeKeys() };
  const write = async (self: 'near' | 'far', other: 'near' | 'far', more: object) => {
    const path = join(folder, `${self}.hjson`);
    const spool = join(folder, `${self}-spool`);
    await mkdir(spool);
    const neighbour = (name: 'near' | 'far') =>
      Object.fromEntries(NEIGHBOUR_KEYS.map((key) => [key, keys[name][key]]));
    const config = {
      spool,
      log: join(spool, 'log'),
      self: keys[self],
      neigh: { self: neighbour(self), [other]: { ...neighbour(other), ...more } },
    };
    await writeFile(path, JSON.stringify(config), { mode: 0o600 });
    return path;
  };
  return {
    near: await write('near', 'far', {}),
    far: await write('far', 'near', { incoming }),
    incoming,
  };
}

async function makeKeys(): Promise<Record<string, string | undefined>> {
  const { stdout } = await run('nncp-cfgnew', ['-nocomments']);
  return Object.fromEntries(
    OWN_KEYS.map((key) => [key, new RegExp(`\\b${key}: (\\w+)`).exec(stdout)?.[1]]),
  );
}
