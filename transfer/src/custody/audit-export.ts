import { createHash, createPublicKey, sign, verify } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { Type, type Static } from 'typebox';
import {
  AUDIT_START,
  BATCH_JSON_CODES,
  SallyportError,
  Timestamp,
  canonicalJson,
  compileSchema,
  follows,
  parseJson,
  readAudit,
  rows,
  type AuditPlace,
  type AuditRow,
  type Database,
  type JsonLimits,
} from '@sallyport/shared';
import { findUnknownHeads } from './audit-heads.js';
import { NodeName } from '../keys/keys.js';
import { findLink, readFarKeys, type FarKey } from '../keys/links.js';
import type { Node } from '../node.js';

const object = <T extends Parameters<typeof Type.Object>[0]>(members: T) =>
  Type.Object(members, { additionalProperties: false });
const Hash = Type.String({ pattern: '^[0-9a-f]{64}$' });
const Count = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const Text = Type.String({ maxLength: 1_000_000 });

const HeaderLine = object({
  export: Type.Literal('sallyport-audit'),
  v: Type.Literal(1),
  node: NodeName,
  at: Timestamp,
});
const EntryLine = object({
  entry: object({
    position: Count,
    at: Timestamp,
    actor: Text,
    action: Text,
    subject: Text,
    details: Type.Record(Type.String(), Type.Unknown()),
    prev: Hash,
    hash: Hash,
  }),
});
/** A head of the other side's chain, and the first of its manifests that told it. */
const ReceivedLine = object({
  received: object({ no: Count, incarnation: Text, head: Hash, digest: Hash, at: Timestamp }),
});
const End = object({
  entries: Count,
  head: Hash,
  received: Count,
  /** The last manifest that the node had numbered: later heads are not in here. */
  no: Count,
  incarnation: Text,
  /** Of all bytes before this line. */
  sha256: Hash,
});
const EndLine = object({ end: End, kid: Text, signature: Text });
const checkHeader = compileSchema(HeaderLine);
const checkLine = compileSchema(Type.Union([EntryLine, ReceivedLine, EndLine]));
type ExportHeader = Static<typeof HeaderLine>;
type ExportEnd = Static<typeof End>;
type ExportSeal = Static<typeof EndLine>;
type Received = Static<typeof ReceivedLine>['received'];

const MAX_LINE_BYTES = 4 * 1024 * 1024;
const PAGE = 1_000;
const LF = 0x0a;
const JSON_LIMITS: JsonLimits = {
  depth: 64,
  keys: 100_000,
  keysPerObject: 10_000,
  stringLength: MAX_LINE_BYTES,
  arrayLength: 100_000,
  safeNumbers: false,
  negativeZero: true,
  nul: false,
  codes: BATCH_JSON_CODES,
};

/** How the far side's word and ours fit together; nothing in `missing` is as it should be. */
export type Comparison = {
  node: string;
  at: string;
  /** The far side's own chain. */
  chain: AuditPlace & { brokenAt: number | null };
  /** Heads of ours that the far side has; `missing` do not stand in our chain. */
  ours: Compared;
  /** Heads of the far side that we have; `missing` do not stand in its chain. */
  theirs: Compared;
};
/** Those told before a restore may have gone with what was restored over: they are only counted. */
type Compared = { heads: number; restored: number; missing: string[] };

/**
 * The whole audit log, and the heads that came from the far side, as JSON lines. The last line has the
 * SHA-256 of all before it, signed by the node.
 */
export async function* exportAudit(db: Database, node: Node): AsyncGenerator<string> {
  const hash = createHash('sha256');
  const count = (text: string) => {
    hash.update(text);
    return text;
  };
  const lines = (values: object[]) => values.map((value) => `${JSON.stringify(value)}\n`).join('');
  // Asked first: whatever was told up to this number stands in the entries that are read after.
  const { no, incarnation } = await readPlace(db);
  const at = node.clock.now().toISOString();
  yield count(lines([{ export: 'sallyport-audit', v: 1, node: node.name, at }]));
  let place = AUDIT_START;
  for await (const page of readAudit(db)) {
    yield count(lines(page.map((entry) => ({ entry }))));
    const last = page.at(-1);
    if (last) place = { entries: last.position, head: last.hash };
  }
  const held = await readHeld(db);
  yield count(lines(held.map((received) => ({ received }))));
  const received = held.length;
  const end = { ...place, received, no, incarnation, sha256: hash.digest('hex') };
  const signature = sign(null, signedText(end), node.keys.signKey).toString('base64url');
  yield lines([{ end, kid: node.keys.kid, signature }]);
}

/**
 * Compares an export of the far side with this network: its chain, its copies of our heads with our
 * chain, and our copies of its heads with its chain.
 * @throws SallyportError `export-invalid` when the file is not a whole export signed by a trusted key
 * of the far side.
 */
export async function compareExport(db: Database, path: string): Promise<Comparison> {
  const link = await findLink(db);
  const keys = link ? await readFarKeys(db, link.link) : new Map<string, FarKey>();
  const held = await readHeld(db);
  const unmet = new Map(held.map((one) => [one.head, one]));
  const { incarnation } = await readPlace(db);
  const ours: Compared = { heads: 0, restored: 0, missing: [] };
  let place = AUDIT_START;
  let brokenAt: number | null = null;
  for await (const page of readExport(path, keys)) {
    if ('end' in page) {
      const { header, end } = page;
      const chain = { ...place, brokenAt };
      return { node: header.node, at: header.at, chain, ours, theirs: settle(held, unmet, end) };
    }
    for (const row of page.entries) {
      if (!follows(place, row)) brokenAt ??= place.entries + 1;
      place = { entries: row.position, head: row.hash };
      unmet.delete(row.hash);
    }
    const unknown = await findUnknownHeads(
      db,
      page.received.map(({ head }) => head),
    );
    const lost = page.received.filter(({ head }) => unknown.includes(head));
    const present = lost.filter((one) => one.incarnation === incarnation);
    ours.heads += page.received.length;
    ours.restored += lost.length - present.length;
    ours.missing.push(...present.map(({ head }) => head));
  }
  throw invalid('Its last line is missing.');
}

/** What is left of the heads we hold once the whole chain of the far side went by. */
function settle(held: Received[], unmet: ReadonlyMap<string, Received>, end: ExportEnd): Compared {
  const isLater = (one: Received) => one.incarnation === end.incarnation && one.no > end.no;
  const gone = [...unmet.values()].filter((one) => !isLater(one));
  const missing = gone.filter((one) => one.incarnation === end.incarnation);
  return {
    heads: held.length,
    restored: gone.length - missing.length,
    missing: missing.map(({ head }) => head),
  };
}

type ExportPage = { entries: AuditRow[]; received: Received[] };

/** What an export says, in pages; the last one, with `end`, comes once the signature was checked. */
async function* readExport(
  path: string,
  keys: ReadonlyMap<string, FarKey>,
): AsyncGenerator<ExportPage | { header: ExportHeader; end: ExportEnd }> {
  const hash = createHash('sha256');
  let header: ExportHeader | undefined;
  let page: ExportPage = { entries: [], received: [] };
  const found = { ...AUDIT_START, received: 0 };
  for await (const line of readLines(path)) {
    if (!header) {
      header = checked(checkHeader, line);
      hash.update(line);
      continue;
    }
    const read = checked(checkLine, line);
    if ('end' in read) {
      yield page;
      requireSigned(read, { header, found: { ...found, sha256: hash.digest('hex') }, keys });
      yield { header, end: read.end };
      return;
    }
    hash.update(line);
    if ('entry' in read) {
      page.entries.push({ ...read.entry, at: new Date(read.entry.at) });
      found.entries = read.entry.position;
      found.head = read.entry.hash;
    } else {
      page.received.push(read.received);
      found.received += 1;
    }
    if (page.entries.length + page.received.length < PAGE) continue;
    yield page;
    page = { entries: [], received: [] };
  }
}

function requireSigned(
  { end, kid, signature }: ExportSeal,
  {
    header,
    found,
    keys,
  }: {
    header: ExportHeader;
    found: Pick<ExportEnd, 'entries' | 'head' | 'received' | 'sha256'>;
    keys: ReadonlyMap<string, FarKey>;
  },
): void {
  const key = keys.get(kid);
  if (!key || key.revokedAt || key.card.node !== header.node) {
    throw invalid(`It is signed by the key ${kid}, which is no valid one of the far side.`);
  }
  const jwk = { kty: 'OKP', crv: 'Ed25519', x: key.card.sign };
  const publicKey = createPublicKey({ key: jwk, format: 'jwk' });
  const signed = verify(null, signedText(end), publicKey, Buffer.from(signature, 'base64url'));
  const isWhole = Object.entries(found).every(
    ([name, value]) => end[name as keyof typeof found] === value,
  );
  if (!signed || !isWhole) throw invalid('Its last line does not fit what stands before it.');
}

/** Another first word than the payload of a JWS can have: it signs nothing but exports. */
function signedText(end: ExportEnd): Buffer {
  return Buffer.from(`sallyport-audit ${canonicalJson(end)}`);
}

/** The lines of a file, each with its newline. */
async function* readLines(path: string): AsyncGenerator<Buffer> {
  let rest = Buffer.alloc(0);
  for await (const piece of createReadStream(path) as AsyncIterable<Buffer>) {
    rest = Buffer.concat([rest, piece]);
    let from = 0;
    for (let at = rest.indexOf(LF); at !== -1; at = rest.indexOf(LF, from)) {
      yield rest.subarray(from, at + 1);
      from = at + 1;
    }
    rest = rest.subarray(from);
    if (rest.length > MAX_LINE_BYTES) throw invalid('It has a line of more than 4 MiB.');
  }
  if (rest.length > 0) throw invalid('Its last line is not whole.');
}

function checked<T>(check: (value: unknown) => T, line: Buffer): T {
  try {
    return check(parseJson(line, JSON_LIMITS));
  } catch (cause) {
    if (!(cause instanceof SallyportError)) throw cause;
    throw invalid(`A line of it is none that an export has: ${cause.message}`, cause);
  }
}

function invalid(message: string, cause?: unknown): SallyportError {
  return new SallyportError('export-invalid', message, {
    cause,
    next: 'Write it anew on the far side with audit export, and copy the file as it is.',
  });
}

/** How far our manifests were numbered, and since which restore. */
async function readPlace(db: Database): Promise<{ no: number; incarnation: string }> {
  const [place] = await rows<{ no: number; incarnation: string }>(
    db,
    `select coalesce((select max(manifest_no) from links), 0) as no,
       (select id from incarnations order by made_at desc limit 1) as incarnation`,
  );
  return place ?? { no: 0, incarnation: '' };
}

async function readHeld(db: Database): Promise<Received[]> {
  const held = await rows<Omit<Received, 'at'> & { at: Date }>(
    db,
    `select manifest_no as no, incarnation, head, digest, seen_at as at from far_audit_heads
     order by seen_at, manifest_no, head`,
  );
  return held.map((one) => ({ ...one, at: one.at.toISOString() }));
}
