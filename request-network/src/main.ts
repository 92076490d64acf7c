import {
  SallyportError,
  createLog,
  findUserByLogin,
  formatTable,
  runCommandLine,
  startServer,
  type Commands,
  makeSecrets,
} from '@sallyport/shared';
import {
  administrationCommands,
  prepareNode,
  showCard,
  withNetwork,
  type Installation,
} from '@sallyport/transfer';
import { SCOPES, createKey } from './api-keys.js';
import { createRequestApp } from './app.js';
import { requestApplies } from './apply.js';
import { readEnvironment } from './config.js';
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
  'key create': {
    usage: 'key create LOGIN [--name NAME]',
    does: 'Makes an API key for a user and prints it once.',
    positionals: [1, 1],
    values: ['name'],
    run: ({ positionals, values }) =>
      withNetwork(installation(), async ({ db, clock, apiKeySecret }) => {
        const user = await findUserByLogin(db, positionals[0] ?? '');
        if (!user) {
          throw new SallyportError('not-found', `There is no user ${positionals[0]} here.`, {
            next: 'Users come from the response network; import its identity batches first.',
          });
        }
        const made = await createKey(db, apiKeySecret, {
          userId: user.id,
          name: values['name'] ?? 'made by the operator',
          scopes: SCOPES,
          expiresAt: null,
          at: clock.now(),
        });
        const lines = [[made.key, made.id, made.scopes.join(' ')]];
        return { text: formatTable(['KEY (SHOWN ONCE)', 'ID', 'SCOPES'], lines), data: made };
      }),
  },
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
