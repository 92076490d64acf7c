import type { ApplyTable } from './apply.js';
import { applyCustody } from '../custody/custody.js';
import { applyWithdrawals } from '../sending/withdrawals.js';
import { applyKeyChange } from '../keys/key-changes.js';

/** What both networks do with the records of `control` that concern the crossing itself. */
export const controlApplies: ApplyTable = {
  custody: applyCustody,
  'batch.withdrawn': applyWithdrawals,
  'key.change': applyKeyChange,
};
