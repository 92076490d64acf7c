import { createLog, runCommandLine } from '@sallyport/shared';
import {
  administrationCommands,
  cacheCommands,
  commandLineActor,
  withNetwork,
  type Installation,
} from '@sallyport/transfer';
import { startServing } from './app.js';
import { commandContext } from './commands/context.js';
import { datasetCommands } from './commands/datasets.js';
import { profileTypeCommands } from './commands/profile-types.js';
import { settingCommands } from './commands/settings.js';
import { userCommands } from './commands/users.js';
import { readEnvironment, type Config } from './config.js';
import { initialise } from './init.js';
import { applies, foldersOf, migrations, openNetwork, type ResponseNetwork } from './network.js';
import { publishSnapshot, SNAPSHOT_STREAMS } from './snapshots.js';
import { startWork } from './worker.js';

const PROGRAM = 'sallyport-response';

/** The command line of the response network; sets the exit code of the process. */
export async function runResponseNetwork(argv: string[] = process.argv.slice(2)): Promise<void> {
  const installation = () => installationOf(readEnvironment());
  const context = commandContext(installation);
  await runCommandLine(
    PROGRAM,
    {
      init: {
        usage: 'init [--node NAME]',
        does: 'Does the whole first start: database, keys, card, defaults, the first admin.',
        values: ['node'],
        run: ({ values }) => {
          const from = installation();
          return initialise({ ...from, nodeName: values['node'] ?? from.nodeName });
        },
      },
      ...administrationCommands(installation),
      ...cacheCommands((use) => withNetwork(installation(), use)),
      ...userCommands(context),
      ...profileTypeCommands(context),
      ...datasetCommands(context),
      ...settingCommands(context),
    },
    argv,
  );
}

/** What the commands that both networks share need to know of this one. */
export function installationOf(config: Config): Installation<ResponseNetwork> {
  const log = createLog(PROGRAM, config.LOG_LEVEL);
  return {
    role: 'response',
    program: PROGRAM,
    databaseUrl: config.DATABASE_URL,
    migrations,
    folders: foldersOf(config),
    nodeName: config.NODE_NAME,
    passphraseFile: config.KEYS_PASSPHRASE_FILE,
    log,
    open: () => openNetwork(config, { log }),
    applies: () => applies,
    async afterTrust({ db, node }) {
      for (const stream of SNAPSHOT_STREAMS) {
        await publishSnapshot(db, node, stream, commandLineActor());
      }
    },
    serve: startServing,
    work: startWork,
  };
}
