export { ConfigSchema, readEnvironment, type Config } from './config.js';
export { checkElastic, openElastic, type Elastic } from './elastic/client.js';
export { searchText, type SearchOutcome } from './elastic/search.js';
export { createExecutor, type Executor } from './execute.js';
export { runResponseNetwork } from './main.js';
export { applies, migrations, openNetwork, type ResponseNetwork } from './network.js';
export { createDataset, type DatasetChange } from './dataset-rules.js';
export {
  changeProfileType,
  createProfileType,
  type ProfileTypeChange,
} from './profile-type-rules.js';
export { changeSetting } from './setting-rules.js';
export { sendAccount } from './own-accounts.js';
export { publishSnapshot } from './snapshots.js';
export { createUser, disableUser, enableUser, resetPassword, updateUser } from './user-accounts.js';
export { workersOf } from './worker.js';
