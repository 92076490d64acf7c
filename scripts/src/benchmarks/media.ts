import { execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, open, readdir, rm } from 'node:fs/promises';
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
import { signManifest } from '@sallyport/transfer/testing';
import { measurePairs, ratioRow, secondsOf, type Bench, type Benchmark } from './benchmark.js';

const run = promisify(execFile);
const carry = resolve(
  fileURLToPath(import.meta.url),
  '../../../../transfer/bin/sallyport-carry.js',
);
const MIB = 1024 * 1024;
/** About the greatest batch that is made. */
const BATCH_BYTES = 64 * MIB;

/** `sallyport-carry write`, read-back included, beside the least that shells can do as safely. */
export const mediaBenchmark: Benchmark = {
  names: ['media'],
  async run(bench) {
    const folder = await mkdtemp(join(tmpdir(), 'sallyport-bench-media-'));
    try {
      return [ratioRow('media', 'MB/s', 0.83, await measureWrite(bench, folder))];
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};

async function measureWrite(bench: Bench, folder: string) {
  const count = bench.quick ? 1 : 16;
  const outbox = join(folder, 'outbox');
  const stick = join(folder, 'stick');
  const keys = await makeKeys(join(folder, 'keys'), 'bench', 'request');
  await mkdir(outbox);
  for (let seq = 1; seq <= count; seq++) await writeBatch(outbox, keys, seq);
  await run('sync', ['-f', outbox]);
  const rateOf = async (work: () => Promise<unknown>) => {
    await rm(stick, { recursive: true, force: true });
    await mkdir(stick);
    return (count * BATCH_BYTES) / 1e6 / (await secondsOf(work));
  };
  return measurePairs(bench, 'media', {
    // What is read past the page cache is all that was written.
    baseline: () =>
      rateOf(() =>
        run('bash', [
          '-o',
          'pipefail',
          '-c',
          `cp "${outbox}"/*.batch "${stick}" && sync -f "${stick}" &&
           for f in "${stick}"/*.batch; do
             dd if="$f" iflag=direct bs=4M status=none | sha256sum || exit 1
           done`,
        ]),
      ),
    ours: async () => {
      const options = ['--from', outbox, '--state', join(folder, 'state'), '--json'];
      const rate = await rateOf(async () => {
        const { stdout } = await run(process.execPath, [carry, 'write', stick, ...options]);
        const { media } = JSON.parse(stdout) as { media: { state: string; way: string }[] };
        if (media[0]?.state !== 'safe') throw new Error(`the medium is not safe: ${stdout}`);
        if (media[0].way !== 'direct') bench.say('media: not read past the page cache here');
      });
      for (const name of await readdir(outbox)) {
        if (name.endsWith('.slip.json')) await rm(join(outbox, name));
      }
      return rate;
    },
  });
}

/** A batch whose signature, length and hash are right; nobody could open its body. */
async function writeBatch(folder: string, keys: NodeKeys, seq: number): Promise<void> {
  const chunk = randomBytes(MIB);
  const hash = createHash('sha256');
  for (let done = 0; done < BATCH_BYTES; done += MIB) hash.update(chunk);
  const body = { bytes: BATCH_BYTES, rawBytes: BATCH_BYTES, sha256: hash.digest('hex') };
  const manifest: Manifest = {
    fmt: 'sallyport-batch',
    v: 1,
    link: 'a'.repeat(16),
    from: keys.node,
    to: 'far',
    stream: 'requests',
    epoch: 1,
    seq,
    prev: ZERO_DIGEST,
    kind: 'delta',
    createdAt: new Date().toISOString(),
    notAfter: new Date(Date.now() + 86_400_000).toISOString(),
    records: 1,
    types: { request: 1 },
    body: { ...body, enc: 'none', crypt: 'none' },
    ack: { no: 1, incarnation: '00000000-0000-4000-8000-000000000000', streams: {} },
    tail: {},
    auditHead: ZERO_DIGEST,
    by: 'bench',
    build: '0',
  };
  const signed = await signManifest(manifest, keys);
  const file = await open(join(folder, batchName(manifest, signed.digest)), 'wx');
  try {
    await file.write(Buffer.concat([signed.line, Buffer.from('\n')]));
    for (let done = 0; done < BATCH_BYTES; done += MIB) await file.write(chunk);
  } finally {
    await file.close();
  }
}
