import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock, Log, NetworkName, StreamName, Transaction } from '@sallyport/shared';
import type { Unlock } from './keys/key-files.js';
import type { NodeKeys } from './keys/keys.js';
import type { OutgoingRecord } from './sending/outbox.js';
import type { NetworkRules } from './sending/network-rules.js';

/** Where a node keeps its files. `inbox` and `outbox` may lie elsewhere, the rest is private. */
export type Folders = {
  root: string;
  inbox: string;
  outbox: string;
  store: string;
  staging: string;
  waiting: string;
  archive: string;
  quarantine: string;
  keys: string;
};

export type TransferOptions = {
  /** How bodies of a stream leave; streams that are always encrypted ignore `none`. */
  crypt(stream: StreamName): 'age' | 'none';
  /** Whether nothing of a stream is to be sealed for now. */
  paused(stream: StreamName): boolean;
  /** Days after which a batch of a stream that expires may no longer be imported. */
  notAfterDays: number;
  /** Days to keep the bytes of a batch after its acknowledgement. */
  keepDays: number;
  /** Free bytes that an import must leave on the disk. */
  reserveBytes: number;
  /** Hours between two publications of a number that the far side misses. */
  gapHours(stream: StreamName): number;
  /** Nothing ever comes back from the far side: what is sent is repeated instead. */
  oneWay: boolean;
  /** How often a batch is published over a one-way link. */
  repeat: number;
  /** Days over which these publications are spread. */
  historyDays: number;
  /** An age recipient that can open every encrypted body besides the far side. */
  escrow?: string | undefined;
};

/** How the whole state of each ordered stream is read, for a snapshot that is owed. */
export type Snapshots = Partial<Record<StreamName, (tx: Transaction) => Promise<OutgoingRecord[]>>>;

/** What the transfer of one node works with; the database handle always comes beside it. */
export type Node = {
  name: string;
  role: NetworkName;
  folders: Folders;
  /** As of the last `refreshKeys`: another process may have changed them. */
  keys: NodeKeys;
  /** Opens protected keys when they are read again. */
  unlock?: Unlock;
  clock: Clock;
  log: Log;
  /** Who exports: written into manifests. */
  account: string;
  /** Software version: written into manifests. */
  build: string;
  options: TransferOptions;
  /** What the network does about records of its own that the far side will not apply. */
  network?: NetworkRules;
  /** Of the ordered streams that this network sends. */
  snapshots?: Snapshots;
};

/** The folders under a state directory; nothing is made yet. */
export function foldersIn(
  root: string,
  elsewhere: { inbox?: string | undefined; outbox?: string | undefined } = {},
): Folders {
  return {
    root,
    inbox: elsewhere.inbox ?? join(root, 'inbox'),
    outbox: elsewhere.outbox ?? join(root, 'outbox'),
    store: join(root, 'store'),
    staging: join(root, 'staging'),
    waiting: join(root, 'waiting'),
    archive: join(root, 'archive'),
    quarantine: join(root, 'quarantine'),
    keys: join(root, 'keys'),
  };
}

/** Makes the folders that are missing: the private ones for us alone, in- and outbox for carriers. */
export async function makeFolders(folders: Folders): Promise<void> {
  const { inbox, outbox, root, keys: _keys, ...rest } = folders;
  await mkdir(root, { recursive: true, mode: 0o755 });
  for (const folder of [inbox, outbox]) await mkdir(folder, { recursive: true, mode: 0o775 });
  for (const folder of Object.values(rest)) await mkdir(folder, { recursive: true, mode: 0o700 });
}
