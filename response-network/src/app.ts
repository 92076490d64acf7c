import type { Express } from 'express';
import {
  addCacheRoutes,
  addMeRoutes,
  addNoticeRoutes,
  addAdministrationRoutes,
  addQueueRoutes,
  addSessionRoutes,
  addStatisticsRoutes,
  authorizationOf,
  createApp,
  createRoutes,
  pingDatabase,
  queueBoard,
  queueReadiness,
  startServer,
  type ClosingStep,
} from '@sallyport/shared';
import { addAuditRoutes, addHealthRoutes, addOperationRoutes } from '@sallyport/transfer';
import { readDatasetSource, viewSource } from './dataset-sources.js';
import { addDatasetRoutes } from './datasets.routes.js';
import { checkElastic } from './elastic/client.js';
import { countOpen } from './execution-samples.js';
import { addExecutionRoutes } from './executions.routes.js';
import { VERSION, type ResponseNetwork } from './network.js';
import { sendAccount } from './own-accounts.js';
import { addProfileTypeRoutes } from './profile-types.routes.js';
import { addSettingRoutes } from './settings.routes.js';
import { addUserRoutes } from './users.routes.js';
import { addUserImportRoutes } from './user-import.routes.js';

/** The HTTP API of the response network. */
export function createResponseApp(network: ResponseNetwork): Express {
  const { db, elastic, log, principals } = network;
  const authenticate = (req: Parameters<typeof authorizationOf>[0]) =>
    principals.authenticate(authorizationOf(req));
  const routes = createRoutes(authenticate);
  const people = {
    ...network,
    network: 'response' as const,
    issuer: network.node.name,
    settings: () => network.settings(),
    sendAccount,
  };
  addSessionRoutes(routes, people);
  addMeRoutes(routes, people);
  addAuditRoutes(routes, network);
  addNoticeRoutes(routes, network);
  addAdministrationRoutes(routes, {
    ...network,
    sourceOf: async ({ id }) => viewSource(await readDatasetSource(db, id)),
  });
  addUserRoutes(routes, network);
  addUserImportRoutes(routes, network);
  addProfileTypeRoutes(routes, network);
  addDatasetRoutes(routes, network);
  addSettingRoutes(routes, network);
  addOperationRoutes(routes, network);
  addCacheRoutes(routes, network);
  addStatisticsRoutes(routes, { ...network, countNow: countOpen });
  addQueueRoutes(routes, network.queueAdmin);
  addExecutionRoutes(routes, network);
  addHealthRoutes(routes, {
    ...network,
    version: VERSION,
    services: [{ name: 'elasticsearch', required: false, check: () => checkElastic(elastic) }],
  });
  return createApp({
    title: 'Sallyport response network',
    version: VERSION,
    log,
    config: network.config,
    routes: [routes],
    routers: [queueBoard(network.queues, authenticate)],
    readiness: [
      { name: 'postgresql', required: true, check: () => pingDatabase(db) },
      { name: 'elasticsearch', required: false, check: () => checkElastic(elastic) },
      ...queueReadiness(network.queues, network.config.REDIS_URL),
    ],
  });
}

/** Starts the HTTP side of this network. */
export async function startServing(network: ResponseNetwork): Promise<ClosingStep> {
  const { config, log } = network;
  const at = { host: config.HTTP_HOST, port: config.HTTP_PORT };
  const server = await startServer(createResponseApp(network), at);
  log.info({ url: server.url }, 'listening');
  return { name: 'http', close: () => server.close() };
}
