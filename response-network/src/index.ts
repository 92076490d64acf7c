export { ConfigSchema, readEnvironment, type Config } from './config.js';
export { checkElastic, openElastic, type Elastic } from './elastic/client.js';
export { searchText, type SearchOutcome } from './elastic/search.js';
export { createExecutor, type Executor } from './execute.js';
export { runResponseNetwork } from './main.js';
export { applies, migrations, openNetwork, type ResponseNetwork } from './network.js';
