import { execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createReadStream, createWriteStream } from 'node:fs';
import { mkdtemp, open, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import {
  batchName,
  makeKeys,
  ZERO_DIGEST,
  type Manifest,
  type NodeKeys,
} from '@sallyport/transfer';
import { openBody, signManifest, writeBody } from '@sallyport/transfer/testing';
import { claimToJson, generateClaims } from '../dataset.js';
import {
  floorRow,
  measurePairs,
  ratioRow,
  secondsOf,
  type Bench,
  type Benchmark,
  type Row,
} from './benchmark.js';

const run = promisify(execFile);
const carry = resolve(
  fileURLToPath(import.meta.url),
  '../../../../transfer/bin/sallyport-carry.js',
);
const MIB = 1024 * 1024;

/**
 * What files alone cost: checking one, and turning lines into a sealed body and back beside pipelines
 * of the standard tools that do the same.
 */
export const filesBenchmark: Benchmark = {
  names: ['verify', 'seal', 'open'],
  async run(bench) {
    const folder = await mkdtemp(join(tmpdir(), 'sallyport-bench-files-'));
    try {
      const keys = await makeKeys(join(folder, 'keys'), 'bench', 'request');
      const found: Row[] = [];
      if (bench.wants('verify')) found.push(await measureVerify(bench, folder, keys));
      if (bench.wants('seal') || bench.wants('open')) {
        found.push(...(await measureBodies(bench, folder, keys)));
      }
      return found.filter(({ name }) => bench.wants(name));
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};

/** `sallyport-carry verify` with the signer's card, start of the process included. */
async function measureVerify(bench: Bench, folder: string, keys: NodeKeys): Promise<Row> {
  const bytes = (bench.quick ? 64 : 1_024) * MIB;
  const path = await writeSigned(folder, keys, bytes);
  const command = [carry, 'verify', path, '--card', join(folder, 'keys')];
  const rates: number[] = [];
  for (let round = 0; round < 4; round++) {
    const seconds = await secondsOf(() => run(process.execPath, command));
    bench.say(`verify ${round}: ${(bytes / 1e6 / seconds).toFixed(0)} MB/s`);
    if (round > 0) rates.push(bytes / 1e6 / seconds);
  }
  return floorRow('verify', 'MB/s', 500, rates.toSorted((a, b) => a - b)[1] ?? 0);
}

/** A batch whose signature, length and hash are right; nobody could open its body. */
async function writeSigned(folder: string, keys: NodeKeys, bytes: number): Promise<string> {
  const chunk = randomBytes(MIB);
  const hash = createHash('sha256');
  for (let done = 0; done < bytes; done += MIB) hash.update(chunk);
  const manifest = manifestOf(keys, { bytes, sha256: hash.digest('hex'), rawBytes: bytes });
  const signed = await signManifest(manifest, keys);
  const path = join(folder, batchName(manifest, signed.digest));
  const file = await open(path, 'wx');
  await file.write(Buffer.concat([signed.line, Buffer.from('\n')]));
  for (let done = 0; done < bytes; done += MIB) await file.write(chunk);
  await file.close();
  return path;
}

function manifestOf(
  keys: NodeKeys,
  { bytes, sha256, rawBytes }: { bytes: number; sha256: string; rawBytes: number },
): Manifest {
  return {
    fmt: 'sallyport-batch',
    v: 1,
    link: 'a'.repeat(16),
    from: keys.node,
    to: 'far',
    stream: 'requests',
    epoch: 1,
    seq: 1,
    prev: ZERO_DIGEST,
    kind: 'delta',
    createdAt: new Date().toISOString(),
    notAfter: new Date(Date.now() + 86_400_000).toISOString(),
    records: 1,
    types: { request: 1 },
    body: { bytes, sha256, rawBytes, enc: 'none', crypt: 'none' },
    ack: { no: 1, incarnation: '00000000-0000-4000-8000-000000000000', streams: {} },
    tail: {},
    auditHead: ZERO_DIGEST,
    by: 'bench',
    build: '0',
  };
}

/** The lines of a batch of the greatest size, packed and unpacked by us and by the standard tools. */
async function measureBodies(bench: Bench, folder: string, keys: NodeKeys): Promise<Row[]> {
  const lines = join(folder, 'lines');
  const rawBytes = await writeLines(lines, (bench.quick ? 8 : 64) * MIB);
  const identity = join(folder, 'keys', 'age.txt');
  const [ours, theirs, plain] = ['ours.body', 'theirs.body', 'plain'].map((n) =>
    join(folder, n),
  ) as [string, string, string];
  let body: Awaited<ReturnType<typeof writeBody>> | undefined;
  const rateOf = async (work: () => Promise<unknown>) => rawBytes / 1e6 / (await secondsOf(work));
  const sealed = await measurePairs(bench, 'seal', {
    baseline: () =>
      rateOf(() =>
        shell(`zstd -q -1 -c ${lines} | age -r ${keys.card.age} > ${theirs} &&
          sha256sum ${theirs} && sync ${theirs}`),
      ),
    ours: async () => {
      await rm(ours, { force: true });
      return rateOf(async () => {
        const source = () => createReadStream(lines, { highWaterMark: MIB });
        const options = { path: ours, enc: 'gzip', crypt: 'age' } as const;
        body = await writeBody(source, { ...options, recipients: [keys.card.age] });
        await signManifest(manifestOf(keys, body), keys);
      });
    },
  });
  const opened = await measurePairs(bench, 'open', {
    baseline: () =>
      rateOf(() =>
        shell(`sha256sum ${theirs} && age -d -i ${identity} ${theirs} | zstd -q -d -c > ${plain} &&
          sync ${plain}`),
      ),
    ours: async () => {
      await rm(plain, { force: true });
      if (!body) throw new Error('nothing was sealed');
      const { ageIdentities } = keys;
      const claimed = body;
      return rateOf(() => openBody(ours, 0, claimed, { ageIdentities, target: plain }));
    },
  });
  return [ratioRow('seal', 'MB/s', 0, sealed), ratioRow('open', 'MB/s', 0, opened)];
}

async function writeLines(path: string, bytes: number): Promise<number> {
  const file = createWriteStream(path);
  let written = 0;
  for (const claim of generateClaims(Infinity)) {
    const line = `${claimToJson(claim)}\n`;
    written += Buffer.byteLength(line);
    if (!file.write(line)) await once(file, 'drain');
    if (written >= bytes) break;
  }
  file.end();
  await once(file, 'finish');
  return (await stat(path)).size;
}

async function shell(command: string): Promise<void> {
  await run('bash', ['-o', 'pipefail', '-c', command]);
}
