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
  type Principal,
  type ReadTicket,
  queueReadiness,
} from '@sallyport/shared';
import { addAuditRoutes, addHealthRoutes, addOperationRoutes } from '@sallyport/transfer';
import { sendAccount } from './account-records.js';
import { addDatasetRoutes } from './datasets.routes.js';
import { addKeyRoutes } from './api-keys.routes.js';
import { addLimitRoutes } from './limits.routes.js';
import { VERSION, type RequestNetwork } from './network.js';
import { countOpen } from './request-samples.js';
import { addRequestAdminRoutes } from './request-admin.routes.js';
import { addRequestRoutes } from './requests.routes.js';
import { addLocalSettingRoutes } from './settings.routes.js';
import { addUsageRoutes } from './usage.routes.js';
import { addStatusRoutes } from './status.routes.js';
import { addResultRoutes } from './results.routes.js';

/** Reads a minute of somebody whose profile type is not known here yet. */
const LEAST_READS = 60;

/** The HTTP API of the request network. */
export function createRequestApp(network: RequestNetwork): Express {
  const { db, log, principals } = network;
  const authenticate = (req: Parameters<typeof authorizationOf>[0]) =>
    principals.authenticate(authorizationOf(req));
  const routes = createRoutes<Principal>(authenticate, ({ userId, profileTypeId }) =>
    enterRead(network, userId, profileTypeId),
  );
  const people = {
    ...network,
    network: 'request' as const,
    issuer: network.node.name,
    settings: async () => (await network.replica.rules()).settings,
    sendAccount,
  };
  addSessionRoutes(routes, people);
  addMeRoutes(routes, people);
  addRequestRoutes(routes, network);
  addResultRoutes(routes, network);
  addDatasetRoutes(routes, network);
  addAdministrationRoutes(routes, network);
  addLocalSettingRoutes(routes, network);
  addUsageRoutes(routes, network);
  addLimitRoutes(routes, network);
  addStatusRoutes(routes, network);
  addAuditRoutes(routes, network);
  addKeyRoutes(routes, network);
  addNoticeRoutes(routes, network);
  addOperationRoutes(routes, network);
  addCacheRoutes(routes, network);
  addStatisticsRoutes(routes, { ...network, countNow: countOpen });
  addQueueRoutes(routes, network.queueAdmin);
  addRequestAdminRoutes(routes, network);
  addHealthRoutes(routes, { ...network, version: VERSION, services: [] });
  return createApp({
    title: 'Sallyport request network',
    version: VERSION,
    log,
    config: network.config,
    routes: [routes],
    routers: [queueBoard(network.queues, authenticate)],
    readiness: [
      { name: 'postgresql', required: true, check: () => pingDatabase(db) },
      ...queueReadiness(network.queues, network.config.REDIS_URL),
    ],
  });
}

/** Leave to read, as often as the user's profile type allows. */
async function enterRead(
  { replica, reads }: RequestNetwork,
  userId: string,
  profileTypeId: string,
): Promise<ReadTicket> {
  const limits = (await replica.rules()).profileTypes.get(profileTypeId)?.limits;
  return reads.enter(userId, limits?.read_per_minute ?? LEAST_READS);
}
