export { createRequestApp } from './app.js';
export { SCOPES, createKey } from './api-keys.js';
export { requestApplies } from './apply.js';
export { ConfigSchema, readEnvironment, type Config } from './config.js';
export { keepHouse } from './housekeeping.js';
export { MIGRATIONS, foldersOf, openNetwork, type RequestNetwork } from './network.js';
export { runRequestNetwork } from './main.js';
export { submitMany, submitRequest, type NewRequest } from './requests.js';
export { requestWorkers, startRequestWorkers } from './worker.js';
