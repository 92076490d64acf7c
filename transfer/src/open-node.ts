import { userInfo } from 'node:os';
import type { Clock, Log, NetworkName, Settings } from '@sallyport/shared';
import { loadKeys } from './keys.js';
import type { Folders, Node } from './node.js';

/** Who acts when a person uses a command line: `cli:<account of the operating system>`. */
export function commandLineActor(): string {
  return `cli:${userInfo().username}`;
}

/**
 * The node whose keys lie in the folders. It follows `settings`, which is asked each time, so that a
 * changed setting takes effect without a restart.
 * @throws SallyportError `keys-missing` before `keys init`.
 */
export async function openNode(options: {
  role: NetworkName;
  folders: Folders;
  settings: () => Settings;
  clock: Clock;
  log: Log;
  build: string;
}): Promise<Node> {
  const { role, folders, settings, clock, log, build } = options;
  const keys = await loadKeys(folders.keys);
  return {
    name: keys.node,
    role,
    folders,
    keys,
    clock,
    log,
    account: userInfo().username,
    build,
    options: {
      crypt: (stream) => settings()[`transfer.crypt.${stream}`],
      get notAfterDays() {
        return settings()['transfer.not_after_days'];
      },
      get keepDays() {
        return settings()['transfer.keep_days'];
      },
      get reserveBytes() {
        return settings()['transfer.reserve_bytes'];
      },
    },
  };
}
