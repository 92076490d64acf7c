import { createApp, pingDatabase, startServer, type ClosingStep } from '@sallyport/shared';
import { checkElastic } from './elastic/client.js';
import { VERSION, type ResponseNetwork } from './network.js';

/** Starts the HTTP side of this network: health, problem pages and the OpenAPI document. */
export async function startServing(network: ResponseNetwork): Promise<ClosingStep> {
  const { config, db, elastic, log } = network;
  const app = createApp({
    title: 'Sallyport response network',
    version: VERSION,
    log,
    routes: [],
    readiness: [
      { name: 'postgresql', required: true, check: () => pingDatabase(db) },
      { name: 'elasticsearch', required: false, check: () => checkElastic(elastic) },
    ],
  });
  const server = await startServer(app, { host: config.HTTP_HOST, port: config.HTTP_PORT });
  log.info({ url: server.url }, 'listening');
  return { name: 'http', close: () => server.close() };
}
