import { findProfileTypeByName, makeSecrets, type CommandOutput } from '@sallyport/shared';
import {
  commandLineActor,
  prepareNode,
  showCard,
  withNetwork,
  type Installation,
} from '@sallyport/transfer';
import { hasAdmin } from './administrators.js';
import type { ResponseNetwork } from './network.js';
import { createProfileType } from './profile-type-rules.js';
import { createUser } from './user-accounts.js';

export const DEFAULT_PROFILE_TYPE = 'default';

/** The whole first start; repeating it makes what is missing and changes nothing else. */
export async function initialise(
  installation: Installation<ResponseNetwork>,
): Promise<CommandOutput> {
  const keys = await prepareNode(installation);
  await makeSecrets(installation.folders.keys);
  return withNetwork(installation, async (network) => {
    const { db, clock } = network;
    const settings = network.settings();
    const change = { actor: commandLineActor(), now: clock.now(), settings };
    const oneTimePassword = await db.transaction(async (tx) => {
      if (!(await findProfileTypeByName(tx, DEFAULT_PROFILE_TYPE))) {
        const description = 'What people get who are given nothing else.';
        await createProfileType(tx, DEFAULT_PROFILE_TYPE, { description }, change);
      }
      if (await hasAdmin(tx)) return null;
      const admin = await createUser(
        tx,
        {
          login: 'admin',
          displayName: 'Administrator',
          profileType: DEFAULT_PROFILE_TYPE,
          roles: [
            { network: 'response', role: 'admin' },
            { network: 'request', role: 'admin' },
          ],
        },
        change,
      );
      return admin.oneTimePassword;
    });
    const card = showCard(keys);
    const admin =
      oneTimePassword === null
        ? []
        : [`admin password, shown only now and to be changed: ${oneTimePassword}`];
    return {
      text: [`node ${keys.node} is ready`, card.text, ...admin].join('\n'),
      data: { node: keys.node, ...(card.data as object), admin_password: oneTimePassword },
    };
  });
}
