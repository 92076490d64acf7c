import {
  createLog,
  runCommandLine,
  startServer,
  type Commands,
  makeSecrets,
} from '@sallyport/shared';
import {
  administrationCommands,
  cacheCommands,
  prepareNode,
  showCard,
  withNetwork,
  type Installation,
} from '@sallyport/transfer';
import { apiKeyCommands } from './api-key-commands.js';
import { settingCommands } from './setting-commands.js';
import { createRequestApp } from './app.js';
import { requestApplies } from './apply.js';
import { readEnvironment } from './config.js';
import { limitCommands } from './limit-commands.js';
import { MIGRATIONS, foldersOf, openNetwork, type RequestNetwork } from './network.js';
import { startRequestWorkers } from './worker.js';

const PROGRAM = 'sallyport-request';

/** Runs one command of whoever runs a request network; sets the exit code of the process. */
export async function runRequestNetwork(argv: string[] = process.argv.slice(2)): Promise<void> {
  await runCommandLine(PROGRAM, commands, argv);
}

const commands: Commands = {
  init: {
    usage: 'init [--node NAME]',
    values: ['node'],
    does: 'The whole first start: migrates, makes folders, keys and secrets, prints the card.',
    async run({ values }) {
      const from = installation();
      const keys = await prepareNode({ ...from, nodeName: values['node'] ?? from.nodeName });
      await makeSecrets(from.folders.keys);
      return showCard(keys);
    },
  },
  ...administrationCommands(installation),
  ...settingCommands(installation),
  ...apiKeyCommands(installation),
  ...cacheCommands((use) => withNetwork(installation(), use)),
  ...limitCommands(installation),
};

function installation(): Installation<RequestNetwork> {
  const config = readEnvironment();
  const log = createLog(PROGRAM, config.LOG_LEVEL);
  return {
    role: 'request',
    program: PROGRAM,
    databaseUrl: config.DATABASE_URL,
    migrations: MIGRATIONS,
    folders: foldersOf(config),
    nodeName: config.NODE_NAME,
    passphraseFile: config.KEYS_PASSPHRASE_FILE,
    log,
    open: () => openNetwork(config, { log }),
    applies: ({ replica }) => requestApplies(replica),
    async serve(network) {
      const at = { host: config.HTTP_HOST, port: config.HTTP_PORT };
      const { url, close } = await startServer(createRequestApp(network), at);
      log.info({ url }, 'listening');
      return { name: 'http', close };
    },
    work: startRequestWorkers,
  };
}
