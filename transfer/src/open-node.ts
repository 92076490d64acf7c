import { userInfo } from 'node:os';
import { Encrypter } from 'age-encryption';
import {
  SallyportError,
  STREAMS,
  type Clock,
  type Log,
  type NetworkName,
  type Settings,
  sudoAccount,
} from '@sallyport/shared';
import { locked, type Unlock } from './keys/key-files.js';
import { loadKeys } from './keys/keys.js';
import type { Folders, Node, Snapshots } from './node.js';
import type { NetworkRules } from './sending/network-rules.js';

/**
 * Who acts when a person uses a command line: `cli:<account of the operating system>`. Root is always
 * `cli:root`, with a note of the account that called sudo, which root may have made up.
 */
export function commandLineActor(
  { username, uid }: { username: string; uid: number } = userInfo(),
  caller = sudoAccount(),
): string {
  if (uid !== 0) return `cli:${username}`;
  return caller === undefined ? 'cli:root' : `cli:root (sudo: ${caller.slice(0, 64)})`;
}

/**
 * The node whose keys lie in the folders. It follows `settings`, which is asked each time, so that a
 * changed setting takes effect without a restart.
 * @throws SallyportError `keys-missing` before `keys init`, `keys-locked`, `passphrase-wrong`;
 * `config-invalid` for an escrow recipient that is mistyped.
 */
export async function openNode(options: {
  role: NetworkName;
  folders: Folders;
  settings: () => Settings;
  clock: Clock;
  log: Log;
  build: string;
  network?: NetworkRules;
  snapshots?: Snapshots;
  unlock?: Unlock;
  escrow?: string | undefined;
}): Promise<Node> {
  const { role, folders, settings, clock, log, build } = options;
  const { unlock = locked, escrow, snapshots, network } = options;
  if (escrow !== undefined) requireRecipient(escrow);
  const keys = await loadKeys(folders.keys, unlock);
  return {
    name: keys.node,
    role,
    folders,
    keys,
    unlock,
    ...(snapshots && { snapshots }),
    ...(network && { network }),
    clock,
    log,
    account: userInfo().username,
    build,
    options: {
      crypt: (stream) => settings()[`transfer.crypt.${stream}`],
      paused: (stream) => stream !== 'control' && settings()[`pause.${stream}`],
      get notAfterDays() {
        return settings()['transfer.not_after_days'];
      },
      get keepDays() {
        return settings()['transfer.keep_days'];
      },
      get reserveBytes() {
        return settings()['transfer.reserve_bytes'];
      },
      gapHours: (stream) => settings()[`transfer.gap_hours.p${STREAMS[stream].lane}`],
      get oneWay() {
        return settings()['transfer.one_way'];
      },
      get repeat() {
        return settings()['transfer.repeat'];
      },
      get historyDays() {
        return settings()['transfer.history_days'];
      },
      escrow,
    },
  };
}

function requireRecipient(escrow: string): void {
  try {
    new Encrypter().addRecipient(escrow);
  } catch (cause) {
    throw new SallyportError('config-invalid', 'ESCROW_RECIPIENT is no age recipient.', {
      cause,
      next: 'Copy it again: `age-keygen -y KEY-FILE` prints it.',
    });
  }
}
