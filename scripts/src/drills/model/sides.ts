import {
  createLog,
  startServer,
  type Clock,
  type CommandArguments,
  type Database,
  type WorkerName,
  type WorkerRun,
} from '@sallyport/shared';
import { eventually } from '@sallyport/shared/testing';
import {
  createRequestApp,
  MIGRATIONS,
  openNetwork as openRequestNetwork,
  readEnvironment as readRequestEnvironment,
  requestApplies,
  requestWorkers,
  type RequestNetwork,
} from '@sallyport/request-network';
import {
  applies,
  createExecutor,
  migrations,
  openNetwork as openResponseNetwork,
  readEnvironment as readResponseEnvironment,
  workersOf,
  type ResponseNetwork,
} from '@sallyport/response-network';
import {
  administrationCommands,
  type ApplyTable,
  type Folders,
  type Node,
} from '@sallyport/transfer';

export type Side = 'request' | 'response';
export const SIDES = ['request', 'response'] as const;
export const NODE: Record<Side, string> = { request: 'red', response: 'blue' };

/** One network as its process has it open: gone with every restart. */
export type Opened = {
  db: Database;
  node: Node;
  /** What the worker does in one run; an import answers its report. */
  work(name: WorkerName): Promise<unknown>;
  /** A command of the command line; answers its data. */
  command(name: string, args?: Partial<CommandArguments>): Promise<unknown>;
  close(): Promise<void>;
};

/** Where a network is installed. */
export type Place = { url: string; folder: string; folders: Folders; clock: Clock };

export type OpenRequest = Opened & { network: RequestNetwork; url: string };
export type OpenResponse = Opened & { network: ResponseNetwork };

const CONCURRENCY = 8;

/** The network at the other end. */
export function farOf(side: Side): Side {
  return side === 'request' ? 'response' : 'request';
}

/** Opens the request network with its HTTP server. */
export async function openRequestSide({ url, folder, clock }: Place): Promise<OpenRequest> {
  const log = createLog('model', 'silent');
  const config = readRequestEnvironment({
    DATABASE_URL: url,
    STATE_DIR: folder,
    NODE_NAME: NODE.request,
    HTTP_PORT: '0',
  });
  const network = await openRequestNetwork(config, { log, clock });
  const server = await startServer(createRequestApp(network), { host: '127.0.0.1', port: 0 });
  await eventually(() => network.principals.ready());
  const { replica, principals } = network;
  const workers = requestWorkers(network);
  return {
    ...opened('request', network, { url, workers, applies: requestApplies(replica) }),
    network,
    url: server.url,
    async work(name) {
      const done = await runWorker(workers, name);
      // The listener does the same a moment later; a moment is nothing that a seed repeats.
      replica.drop();
      principals.drop();
      await replica.rules();
      return done;
    },
    async close() {
      await server.close(100);
      await network.close();
    },
  };
}

/** Opens the response network; nothing answers HTTP there. */
export async function openResponseSide(
  { url, folder, clock }: Place,
  elasticsearchUrl: string,
): Promise<OpenResponse> {
  const log = createLog('model', 'silent');
  const config = readResponseEnvironment({
    DATABASE_URL: url,
    STATE_DIR: folder,
    NODE_NAME: NODE.response,
    HTTP_PORT: '0',
    ELASTICSEARCH_URL: elasticsearchUrl,
  });
  const network = await openResponseNetwork(config, { log, clock });
  const executor = createExecutor({ ...network, concurrencyMax: () => CONCURRENCY });
  const workers = workersOf(network, executor, { wake: () => Promise.resolve() });
  return {
    ...opened('response', network, { url, workers, applies }),
    network,
    close: () => network.close(),
  };
}

type Workers = Partial<Record<WorkerName, WorkerRun>>;

function opened(
  side: Side,
  network: RequestNetwork | ResponseNetwork,
  { url, workers, applies: table }: { url: string; workers: Workers; applies: ApplyTable },
): Omit<Opened, 'close'> {
  const { db, node, queueAdmin, log } = network;
  const commands = administrationCommands(() => ({
    role: side,
    program: `sallyport-${side}`,
    databaseUrl: url,
    migrations: side === 'request' ? MIGRATIONS : migrations,
    folders: node.folders,
    nodeName: node.name,
    log,
    open: () => Promise.resolve({ db, node, queueAdmin, close: () => Promise.resolve() }),
    applies: () => table,
    serve: never,
    work: never,
  }));
  return {
    db,
    node,
    work: (name) => runWorker(workers, name),
    async command(name, args = {}) {
      const command = commands[name];
      if (!command) throw new Error(`there is no command ${name}`);
      const done = await command.run({ positionals: [], values: {}, switches: new Set(), ...args });
      return done?.data;
    },
  };
}

async function runWorker(workers: Workers, name: WorkerName): Promise<unknown> {
  const run = workers[name];
  if (!run) throw new Error(`this network has no worker ${name}`);
  return run(new AbortController().signal);
}

function never(): never {
  throw new Error('the model calls the workers itself');
}
