import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { newId, type NetworkName, type RecordType, type StreamName } from '@sallyport/shared';
import { batchName } from './format/batch-file.js';
import { type Body, writeBody } from './format/body.js';
import { type Card, deriveLink, makeKeys, type NodeKeys } from './keys/keys.js';
import {
  type Manifest,
  type SignedManifest,
  signManifest,
  ZERO_DIGEST,
} from './format/manifest.js';

/** Two nodes that know each other, and a folder that is removed with everything in it. */
export type TestPair = {
  folder: string;
  request: NodeKeys;
  response: NodeKeys;
  link: string;
  cardOf: (kid: string) => Card | undefined;
  remove: () => Promise<void>;
};

/** Makes keys for both sides in a new temporary folder. */
export async function makeTestPair(): Promise<TestPair> {
  const folder = await mkdtemp(join(tmpdir(), 'sallyport-test-'));
  const make = (node: string, role: NetworkName) => makeKeys(join(folder, node), node, role);
  const request = await make('asker', 'request');
  const response = await make('answerer', 'response');
  const cards = new Map([request, response].map(({ kid, card }) => [kid, card]));
  return {
    folder,
    request,
    response,
    link: deriveLink(request.card, response.card),
    cardOf: (kid) => cards.get(kid),
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}

/** The manifest of a batch from the request side with no records; `change` replaces members. */
export function testManifest(pair: TestPair, change: Partial<Manifest> = {}): Manifest {
  return {
    fmt: 'sallyport-batch',
    v: 1,
    link: pair.link,
    from: pair.request.node,
    to: pair.response.node,
    stream: 'requests',
    epoch: 1,
    seq: 1,
    prev: ZERO_DIGEST,
    kind: 'delta',
    createdAt: '2025-06-01T10:00:00.000Z',
    records: 0,
    types: {},
    body: { bytes: 0, sha256: ZERO_DIGEST, enc: 'none', rawBytes: 0, crypt: 'none' },
    ack: { no: 1, incarnation: newId(), streams: {} },
    tail: {},
    auditHead: ZERO_DIGEST,
    by: 'tester',
    build: '0.1.0',
    ...change,
  };
}

/** A line as a record of the stream `requests` has it; `change` replaces members of `d`. */
export function requestLine(change: Record<string, unknown> = {}): string {
  const d = {
    user_id: newId(),
    dataset: 'logs',
    dataset_version: 1,
    policy_version: 1,
    tier: 'A',
    pinned_now: '2025-06-01T10:00:00.000Z',
    expires_at: '2025-06-08T10:00:00.000Z',
    priority: 'normal',
    query: '{"query":{"match_all":{}}}',
    query_digest: `sha256:${ZERO_DIGEST}`,
    traceparent: null,
    ...change,
  };
  return recordText('request', d);
}

/** A line with any type and data. */
export function recordText(t: RecordType, d: unknown): string {
  return JSON.stringify({ t, id: newId(), v: 1, at: '2025-06-01T10:00:00.000Z', d });
}

export type TestBatch = SignedManifest & {
  path: string;
  name: string;
  manifest: Manifest;
  text: string;
};

/** Writes a signed batch file with these lines into the pair's folder. */
export async function writeTestBatch(
  pair: TestPair,
  lines: string[],
  options: {
    stream?: StreamName;
    enc?: Body['enc'];
    crypt?: Body['crypt'];
    change?: Partial<Manifest>;
    type?: RecordType;
  } = {},
): Promise<TestBatch> {
  const text = lines.map((line) => `${line}\n`).join('');
  const bodyPath = join(pair.folder, `${newId()}.body`);
  const body = await writeBody(() => toPieces(text), {
    path: bodyPath,
    enc: options.enc ?? 'gzip',
    crypt: options.crypt ?? 'age',
    recipients: [pair.response.card.age],
  });
  const manifest = testManifest(pair, {
    body,
    records: lines.length,
    types: lines.length > 0 ? { [options.type ?? 'request']: lines.length } : {},
    ...(options.stream === undefined ? {} : { stream: options.stream }),
    ...options.change,
  });
  const signed = await signManifest(manifest, pair.request);
  const name = batchName(manifest, signed.digest);
  const path = join(pair.folder, name);
  await writeFile(path, [signed.line, '\n', await readFile(bodyPath)]);
  await rm(bodyPath);
  return { ...signed, path, name, manifest, text };
}

async function* toPieces(text: string): AsyncGenerator<Buffer> {
  const bytes = Buffer.from(text);
  for (let at = 0; at < bytes.length; at += 65_536) yield bytes.subarray(at, at + 65_536);
}
