import type { Transaction } from '@sallyport/shared';
import { commandLineActor, withNetwork, type Installation } from '@sallyport/transfer';
import type { Change } from '../change.js';
import type { ResponseNetwork } from '../network.js';

/** How commands reach the network: open for one use, or one change in one transaction. */
export type CommandContext = {
  use<T>(work: (network: ResponseNetwork) => Promise<T>): Promise<T>;
  change<T>(
    work: (tx: Transaction, by: Change, network: ResponseNetwork) => Promise<T>,
  ): Promise<T>;
};

/** The context of an installation, which is asked for when a command runs. */
export function commandContext(installation: () => Installation<ResponseNetwork>): CommandContext {
  const use: CommandContext['use'] = (work) => withNetwork(installation(), work);
  return {
    use,
    change: (work) =>
      use((network) => {
        const by = { actor: commandLineActor(), now: network.clock.now() };
        return network.db.transaction((tx) => work(tx, by, network));
      }),
  };
}
